"""Tensors that travel narrower: what a name asks for, what is widened, what is refused."""

import numpy as np
import pytest

from edl.errors import ConfigError, WireError
from edl.serving import Description, TensorSpec
from edl.serving.wire import narrow
from edl.serving.wire.conversion import convert
from edl.serving.wire.fetches import answer_specs, resolve
from edl.serving.wire.labels import LabelForm
from edl.serving.wire.narrow import Narrow

SERVED = Description(
    {"x": TensorSpec((4,), "float32")},
    {"y": TensorSpec((4,), "float32"), "ids": TensorSpec((4,), "int64")},
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_name_says_in_which_dtype_an_output_is_wanted(dtype):
    assert resolve(SERVED, narrow.ask("y", dtype)) == ("y", Narrow(dtype))
    [(name, spec)] = answer_specs("y", SERVED.fetches["y"], Narrow(dtype)).items()
    assert (name, spec.shape, spec.dtype) == ("y", (4,), narrow.ANSWER_DTYPES[dtype])


def test_other_names_ask_for_what_they_did():
    assert resolve(SERVED, "y") == ("y", None)
    assert resolve(SERVED, "y?top_k=2") == ("y", LabelForm(2))


def test_a_fetch_that_is_called_so_is_asked_for_by_its_name():
    served = Description(SERVED.feeds, {"y?dtype=float16": TensorSpec((4,), "float16")})
    assert resolve(served, "y?dtype=float16") == ("y?dtype=float16", None)


@pytest.mark.parametrize(
    ("fetch", "words"),
    [
        ("y?dtype=float8", "'y[?]dtype=float8': the dtype must be one of float16, bfloat16"),
        ("y?dtype=", "the dtype must be one of"),
        ("y?dtype=float16&top_k=3", "the dtype must be one of"),
        ("z?dtype=float16", "unknown fetch 'z'; this teacher's fetches: 'y', 'ids'"),
        ("ids?dtype=float16", "'ids' is int64, which is not wider"),
        ("dtype=float16", "unknown fetch 'dtype=float16'"),
    ],
)
def test_a_name_of_any_origin_that_asks_for_nothing_there_is_refused_by_name(fetch, words):
    with pytest.raises(ConfigError, match=words):
        resolve(SERVED, fetch)


@pytest.mark.parametrize("sent", ["float16", "uint16", "uint8"])
@pytest.mark.parametrize(
    "dtype",
    ["float16", "uint16", "float32", "float64", "int8", "int16", "int32", "int64", "bool", "str"],
)
def test_what_is_widened_has_the_same_values(sent, dtype):
    every = np.arange(1 << 8 if sent == "uint8" else 1 << 16).astype(
        "uint8" if sent == "uint8" else "uint16"
    )
    array = every.view(sent).reshape(-1, 4)
    wide = narrow.widen(array, dtype)
    assert narrow.widened_bytes(TensorSpec((4,), dtype), array) == (
        array.nbytes if dtype == "str" else array.size * np.dtype(dtype).itemsize
    )
    if not narrow.widens(sent, dtype):
        assert wide is array
        return
    assert (wide.shape, wide.dtype.name) == (array.shape, dtype)
    if sent == "uint8":
        expected = convert(array, dtype)
    elif sent == "float16":
        expected = array.astype(dtype)
    else:
        with np.errstate(invalid="ignore"):
            expected = (array.astype(np.uint32) << 16).view(np.float32).astype(dtype)
    np.testing.assert_array_equal(wide, expected)


def test_a_narrower_feed_fits_and_a_wider_or_another_one_does_not():
    spec = TensorSpec((4,), "float32")
    for dtype in ("float32", "float16", "uint16", "uint8"):
        assert not narrow.mismatch(spec, np.zeros((2, 4), dtype))
    for dtype in ("float64", "int8", "int32", "bool"):
        assert "expected dtype float32" in narrow.mismatch(spec, np.zeros((2, 4), dtype))
    assert "expected shape" in narrow.mismatch(spec, np.zeros((2, 5), "float16"))
    assert "expected dtype float16" in narrow.mismatch(
        TensorSpec((4,), "float16"), np.zeros((2, 4), "uint16")
    )


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float16", 1e6, r"row 12: float16 cannot hold the float32 value 1(000000.0|e\+06)"),
        ("uint16", 3.4e38, r"row 12: bfloat16 cannot hold the float32 value 3.4e\+38"),
    ],
)
def test_what_would_become_infinite_is_refused_with_its_row(dtype, value, words):
    array = np.ones((5, 3), np.float32)
    array[1, 1], array[2, 2] = np.inf, value
    with pytest.raises(WireError, match=words):
        narrow.narrowed(array, dtype, first=10)
    array[2, 2] = np.nan
    wide = narrow.widen(narrow.narrowed(array, dtype), "float32")
    np.testing.assert_array_equal(wide, array)


@pytest.mark.parametrize(
    ("said", "able"), [(1, True), (2, True), (0, False), (True, False), ("1", False)]
)
def test_a_server_says_that_it_can(said, able):
    assert narrow.server_narrows(Description({}, {}, {"narrow": said})) is able
    assert not narrow.server_narrows(Description({}, {}))
