"""Numbers arrive as the same numbers, or not at all."""

import math
import struct
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edl.errors import WireError
from edl.serving.wire.conversion import convert

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
TARGETS = ("bool", *INTEGERS, *FLOATS, "uint16")
SOURCES = ("bool", *INTEGERS, "uint32", "uint64", *FLOATS, ">f4", ">i8")
DIGITS = {"uint16": 8, "float16": 11, "float32": 24, "float64": 53}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def bfloat16(values):
    """bfloat16's bits, one value at a time: of all, the one that is nearest, or the even one."""
    bits = []
    for value in values:
        [single] = struct.unpack("<I", np.float32(value).tobytes())
        lower, upper = single >> 16, (single >> 16) + 1
        below = Fraction(single & 0xFFFF, 0x10000)
        half = Fraction(1, 2)
        up = below > half or (below == half and lower % 2 == 1)
        bits.append(upper if up else lower)
    return bits


def bfloat16_value(bits):
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def numbers(array, dtype):
    """What ``array`` of ``dtype`` holds, as Python's numbers."""
    return [bfloat16_value(bits) if dtype == "uint16" else bits for bits in array.ravel().tolist()]


def expected(value, source, dtype):
    """The number that ``value`` becomes; None: it is refused."""
    if dtype in DIGITS:
        if isinstance(value, float):
            if not math.isfinite(value):
                return value
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if dtype == "uint16":
                    single = float(np.float32(value))
                    rounded = (
                        bfloat16_value(bfloat16([single])[0]) if math.isfinite(single) else single
                    )
                else:
                    rounded = float(np.dtype(dtype).type(value))
            return rounded if math.isfinite(rounded) else None
        odd = abs(int(value))
        while odd and odd % 2 == 0:
            odd //= 2
        fits = odd < 2 ** DIGITS[dtype] and (dtype != "float16" or abs(value) <= 65504)
        return float(value) if fits else None
    if not math.isfinite(value) or value != int(value):
        return None
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return int(value) if low <= value <= high else None


def same(left, right):
    if math.isnan(left):
        return math.isnan(right)
    return left == right and math.copysign(1, left) == math.copysign(1, right)


def interesting(source):
    kind = np.dtype(source).kind
    elements = hnp.from_dtype(np.dtype(source))
    if kind in "iu":
        limits = np.iinfo(source)
        powers = [
            sign * 2**power + more for power in range(64) for sign in (1, -1) for more in (-1, 0, 1)
        ]
        elements |= st.sampled_from([n for n in powers if limits.min <= n <= limits.max])
    elif kind == "f":
        whole = [
            0.0,
            -0.0,
            1.0,
            255.0,
            257.0,
            -128.0,
            65504.0,
            32768.0,
            math.inf,
            -math.inf,
            math.nan,
        ]
        elements |= st.sampled_from(whole)
    return hnp.arrays(source, st.integers(0, 5), elements=elements)


@given(st.sampled_from(SOURCES).flatmap(interesting), st.sampled_from(TARGETS))
def test_every_number_arrives_as_itself_or_rounded_or_is_refused(array, dtype):
    wanted = [expected(value, array.dtype, dtype) for value in array.tolist()]
    if None in wanted:
        with pytest.raises(WireError, match="cannot hold"):
            convert(array, dtype)
        return
    converted = convert(array, dtype)
    assert converted.dtype == np.dtype(dtype)
    assert converted.shape == array.shape
    for have, want in zip(numbers(converted, dtype), wanted):
        assert same(float(have), float(want)) or (have == want and dtype not in DIGITS)


@given(st.integers(0, 2**32 - 1))
@example(0x7F800001)  # NaNs that rounding would carry into infinity or zero
@example(0x7FFFFFFF)
@example(0xFFFFFFFF)
@example(0x3F808000)  # ties
@example(0x3F818000)
@example(0x00008000)  # denormals
@example(0x7F7F7FFF)  # the largest that stays finite
def test_bfloat16_is_float32_rounded_to_nearest_even(single):
    value = np.array([single], np.uint32).view(np.float32)
    if math.isfinite(value[0]) and bfloat16(value)[0] & 0x7FFF == 0x7F80:
        with pytest.raises(WireError, match="bfloat16 cannot hold the float32 value"):
            convert(value, "uint16")
    elif math.isnan(value[0]):
        assert math.isnan(bfloat16_value(int(convert(value, "uint16")[0])))
    else:
        assert convert(value, "uint16").tolist() == bfloat16(value)


def test_bfloat16_is_what_paddle_makes_of_it():
    paddle = pytest.importorskip("paddle")
    values = np.random.default_rng(0).normal(0, 1e3, 10_000).astype("f4")
    theirs = paddle.to_tensor(values).astype("bfloat16").numpy()
    assert theirs.dtype == np.uint16
    assert (convert(values, "uint16") == theirs).all()


@pytest.mark.parametrize("dtype", [*TARGETS, "str"])
def test_what_has_the_dtype_is_not_copied(dtype):
    array = np.zeros((2, 3), dtype)
    assert convert(array, dtype) is array


@pytest.mark.parametrize(
    ("array", "dtype", "complaint"),
    [
        (np.array([1, 2**31 + 5]), "int32", "int32 cannot hold the int64 value 2147483653"),
        (np.array([-1]), "uint8", "uint8 cannot hold the int64 value -1"),
        (
            np.array([1e6], "f4"),
            "float16",
            r"float16 cannot hold the float32 value 1(000000.0|e\+06)",
        ),
        (np.array([3.4e38], "f4"), "uint16", r"bfloat16 cannot hold the float32 value 3.4e\+38"),
        (np.array([257]), "uint16", "bfloat16 cannot hold the int64 value 257"),
        (np.array([2**24 + 1]), "float32", "float32 cannot hold the int64 value 16777217"),
        (np.array([1.0, 2.5]), "int64", "int64 cannot hold the float64 value 2.5"),
        (np.array([np.nan]), "int64", "int64 cannot hold the float64 value nan"),
        (np.array([2]), "bool", "bool cannot hold the int64 value 2"),
        (np.array([1], "u2"), "float32", "uint16 values cannot become .*bits or integers"),
        (np.array([1], "u2"), "int32", "uint16 values cannot become .*bits or integers"),
        (np.array([1j]), "float32", "complex128 values cannot become float32"),
        (np.array(["1"]), "float32", "<U1 values cannot become float32"),
        (np.array([1, None]), "float32", "object values cannot become float32"),
        (np.array([1]), "str", "int64 values cannot become str"),
    ],
)
def test_what_cannot_be_kept_is_named(array, dtype, complaint):
    with pytest.raises(WireError, match=complaint):
        convert(array, dtype)


@pytest.mark.parametrize(
    "array", [np.ones((3, 4)), np.ones((4, 3)).T, np.ones((6, 4))[::2], np.ones(())]
)
@pytest.mark.parametrize("dtype", [name for name in TARGETS if name != "float64"])
def test_any_layout_is_converted(array, dtype):
    converted = convert(array, dtype)
    assert converted.shape == array.shape
    assert set(numbers(converted, dtype)) == {1}


def test_many_numbers_are_converted_as_a_few_are():
    many = np.random.default_rng(0).normal(size=(3, 50_001)).astype("f4")
    assert convert(many, "uint16")[2, -5:].tolist() == bfloat16(many[2, -5:])
    many[2, -1] = 3.4e38
    with pytest.raises(WireError, match="bfloat16 cannot hold"):
        convert(many, "uint16")


def test_uint8_pixels_become_bfloat16():
    pixels = np.arange(256, dtype="u1")
    assert numbers(convert(pixels, "uint16"), "uint16") == list(range(256))


def test_every_half_becomes_the_single_that_numpy_makes_of_it():
    halves = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    for array in (halves, halves.reshape(256, 256).T, halves[3:3], halves.astype(">f2")):
        with np.errstate(invalid="ignore"):
            expected = array.astype(np.float32)
        converted = convert(array, "float32")
        assert (converted.dtype, converted.shape) == (np.float32, array.shape)
        np.testing.assert_array_equal(converted.view(np.uint32), expected.view(np.uint32))


def test_an_overflow_far_behind_is_refused_and_infinities_are_not():
    many = np.ones((3, 1 << 16), np.float32)
    many[1, 5] = np.inf
    assert np.isinf(convert(many, "float16")[1, 5])
    many[2, -5] = 65520
    with pytest.raises(WireError, match="float16 cannot hold the float32 value 65520"):
        convert(many, "float16")
