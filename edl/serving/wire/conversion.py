"""Arrays in another dtype, if that keeps what they say.

One rule: a number arrives as the same number. Only floats may be rounded, to the nearest value of
a narrower float, as everybody does with features. What would become another number is refused.

============================  =====================  ==============================================
from                          to                     made
============================  =====================  ==============================================
the same, other byte order    the same               always
bool                          any number             always: 0 or 1
int8, uint8                   float16, bfloat16 (*)  always
int8, uint8, int16            float32                always
int8 to int32, uint8          float64                always
integer                       a wider integer        always
integer                       any other integer      if all values fit
integer                       any other float        if it has all values (float32 has those up
                                                     to 2**24, and some beyond)
integer, float                bool                   if all values are 0 or 1
float                         a wider float          always
float                         a narrower float       rounded to nearest, ties to even; refused if
                                                     a finite value would become infinite
float                         integer                if all values are whole and fit
strings                       strings                always: as they are
numbers, strings              strings, numbers       never
uint16                        uint16                 always: as it is, bfloat16's bits
uint16                        any other              never
anything else                 anything               never
============================  =====================  ==============================================

NaN and infinities stay what they are; what is too small for a narrower float becomes 0 there.
(*) numpy has no bfloat16: an array of its bits has the dtype uint16, as Paddle hands them out, and
to convert to "uint16" is to compute these bits. A uint16 array for another dtype is refused, for
nobody can tell bits from integers. float64 becomes bfloat16 by way of float32, as in Paddle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from edl.errors import WireError

_BFLOAT16 = np.dtype(np.uint16)
_BFLOAT16_DIGITS = 8  # of its significand, in binary, the first one included
_UINT64_MAX = 2**64 - 1
#: So many values are converted at a time: what is computed on the way stays in the cache.
_CHUNK = 1 << 16
#: Of a half that was moved up to where a single's exponent ends: its sign and what is below.
_SINGLE_OF_HALF = np.uint32(0x8FFFE000).view(np.int32)
_BIASES = np.float32(2.0 ** (127 - 15))


def convert(array: np.ndarray, dtype: str) -> np.ndarray:
    """``array`` in ``dtype`` (a numpy name; "uint16": bfloat16's bits; "str"), of the same shape.

    An array that is of this dtype already is returned as it is. Raises WireError, with a value
    where values decide, if the table above says no.
    """
    wanted = np.dtype(dtype)
    kind = array.dtype.kind
    if array.dtype == wanted or (wanted.kind == "U" and kind in "OUS"):
        return array
    if wanted.kind == "U" or kind not in "biuf":
        raise WireError(f"{array.dtype} values cannot become {dtype}")
    if array.dtype == _BFLOAT16:
        raise WireError(
            f"uint16 values cannot become {dtype}: they may be bfloat16's bits or integers"
        )
    values = np.atleast_1d(array)
    if wanted == _BFLOAT16:
        converted = _to_bfloat16(values)
    elif wanted.kind == "f":
        converted = _to_float(values, wanted)
    else:
        converted = _to_integers(values, wanted)
    return converted.reshape(array.shape)


def _to_integers(array: np.ndarray, wanted: np.dtype) -> np.ndarray:
    """Integers or bools."""
    if array.dtype.kind == "f":
        _refuse_any(array != np.trunc(array), array, wanted)  # NaN is unlike itself
    if array.size and not np.can_cast(array.dtype, wanted):
        low, high = 0, 1
        if wanted.kind != "b":
            low, high = int(np.iinfo(wanted).min), int(np.iinfo(wanted).max)
        for value in (array.min(), array.max()):
            if not low <= value.item() <= high:  # exact: Python's numbers
                _refuse(value, wanted)
    return array.astype(wanted)


def _to_float(array: np.ndarray, wanted: np.dtype) -> np.ndarray:
    if array.dtype.kind in "iu":
        limits = np.finfo(wanted)
        _check_integers(array, limits.nmant + 1, int(limits.max), wanted)
    if array.dtype == np.float16 and wanted == np.float32:
        return _by_chunks(array, wanted, _half_to_single)
    if array.dtype.kind == "f" and not np.can_cast(array.dtype, wanted):
        return _by_chunks(array, wanted, _to_narrower)
    with np.errstate(all="ignore"):
        return array.astype(wanted)


def _by_chunks(
    array: np.ndarray, wanted: np.dtype, fill: Callable[[np.ndarray, np.ndarray], None]
) -> np.ndarray:
    values = array.reshape(-1)
    converted = np.empty(values.shape, wanted)
    for start in range(0, values.size, _CHUNK):
        fill(converted[start : start + _CHUNK], values[start : start + _CHUNK])
    return converted.reshape(array.shape)


def _to_narrower(converted: np.ndarray, values: np.ndarray) -> None:
    with np.errstate(all="ignore"):  # an overflow is refused below
        converted[...] = values
    if converted.dtype == np.float16:  # whose bits are looked at in no time, unlike its values
        infinite = (converted.view(np.uint16) & 0x7FFF) == 0x7C00
    else:
        infinite = np.isinf(converted)
    _refuse_overflow(values, infinite, converted.dtype)


def _half_to_single(converted: np.ndarray, values: np.ndarray) -> None:
    """The same as numpy's own conversion, several times as fast: exponent and significand in their
    new places, and then the difference of the exponents' biases. Infinities and NaN, which have an
    exponent of their own, are left to numpy.
    Source: F. Giesen, "Half to float done quick", 2012.
    """
    halves, bits = values.view(np.int16), converted.view(np.int32)
    np.copyto(bits, halves)  # the sign is in all upper bits now
    bits <<= 13
    bits &= _SINGLE_OF_HALF
    converted *= _BIASES
    special = (halves & 0x7C00) == 0x7C00
    if special.any():
        with np.errstate(invalid="ignore"):  # signalling NaN
            converted[special] = values[special]


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    return _by_chunks(array, _BFLOAT16, _fill_bfloat16)


def _fill_bfloat16(converted: np.ndarray, values: np.ndarray) -> None:
    converted[...] = _bfloat16_bits(values)


def _bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """The upper half of float32's bits, rounded to nearest, ties to even."""
    if array.dtype.kind in "iu":
        _check_integers(array, _BFLOAT16_DIGITS, _UINT64_MAX, _BFLOAT16)
    with np.errstate(all="ignore"):
        single = array.astype(np.float32)
    bits = single.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    converted = rounded.astype(np.uint16)
    not_a_number = np.isnan(single)
    if not_a_number.any():  # rounding carries some into infinity or zero; this bit keeps them NaN
        converted[not_a_number] = (bits[not_a_number] >> 16) | 0x40
    _refuse_overflow(array, (converted & 0x7FFF) == 0x7F80, _BFLOAT16)
    return converted


def _check_integers(array: np.ndarray, digits: int, largest: int, wanted: np.dtype) -> None:
    """Refuse integers that a float with so many binary digits, up to ``largest``, does not have."""
    if array.dtype.itemsize * 8 - (array.dtype.kind == "i") <= digits or not array.size:
        return
    if -(1 << digits) <= array.min().item() and array.max().item() <= 1 << digits:
        return
    magnitude = array.astype(np.uint64)
    magnitude[array < 0] *= np.uint64(_UINT64_MAX)  # -1: two's complement
    lowest_bit = magnitude & (~magnitude + np.uint64(1))
    significand = magnitude // np.maximum(lowest_bit, np.uint64(1))
    _refuse_any(significand >> np.uint64(digits) != 0, array, wanted)
    _refuse_any(magnitude > np.uint64(min(largest, _UINT64_MAX)), array, wanted)


def _refuse_overflow(array: np.ndarray, infinite: np.ndarray, wanted: np.dtype) -> None:
    """Refuse finite values that became infinite."""
    if infinite.any():
        _refuse_any(infinite & np.isfinite(array), array, wanted)


def _refuse_any(wrong: np.ndarray, array: np.ndarray, wanted: np.dtype) -> None:
    if wrong.any():
        _refuse(array[wrong][0], wanted)


def _refuse(value: np.generic, wanted: np.dtype) -> NoReturn:
    name = "bfloat16" if wanted == _BFLOAT16 else wanted.name
    raise WireError(f"{name} cannot hold the {value.dtype} value {value!s}")
