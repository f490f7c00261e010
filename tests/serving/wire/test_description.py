"""What a teacher serves, as it is said in the registry and on the wire."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.errors import ConfigError, WireError
from edl.serving.wire.description import SPECS_ONLY, Description, TensorSpec

dtypes = st.sampled_from(["int64", "float32", "uint16", "bool", "str"])
specs = st.builds(TensorSpec, st.lists(st.integers(-1, 5), max_size=3).map(tuple), dtypes)
named = st.dictionaries(st.text(min_size=1, max_size=5), specs, max_size=3)
fingerprints = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=128)

VALID = {"feeds": {"x": {"shape": [4], "dtype": "float32"}}, "fetches": {}, "fingerprint": "a"}


@given(named, named, fingerprints)
def test_descriptions_round_trip_through_json(feeds, fetches, fingerprint):
    description = Description(feeds, fetches, {"device": "cpu"}, fingerprint)
    assert Description.from_json(description.to_json()) == description


def with_value(path, value):
    """A valid description's JSON, but for one value; ``value`` is JSON."""
    root = json.loads(json.dumps(VALID))
    place = root
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "HERE"
    return json.dumps(root).replace('"HERE"', value)


def test_what_the_tests_below_spoil_is_good():
    assert Description.from_json(with_value(["fingerprint"], '"b"')).fingerprint == "b"


@pytest.mark.parametrize(
    "size", ["1e999", "-1e999", "NaN", "1.0", "true", "null", '"3"', "-2", "2147483648", "9" * 4000]
)
def test_a_size_that_is_none_is_refused(size):
    text = with_value(["feeds", "x", "shape"], f"[{size}]")
    with pytest.raises(ConfigError, match="not a teacher's description"):
        Description.from_json(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["feeds", "x", "shape"], "3"),
        (["feeds", "x", "shape"], '"33"'),
        (["feeds", "x", "shape"], "{}"),
        (["feeds", "x", "shape"], f"[{', '.join(['2'] * 32)}]"),
        (["feeds", "x", "shape"], "[2147483647, 2147483647]"),
        (["feeds", "x", "dtype"], '"u4"'),
        (["feeds", "x", "dtype"], '"f4,("'),
        (["feeds", "x", "dtype"], "null"),
        (["feeds", "x", "dtype"], "[]"),
        (["feeds", "x"], "[]"),
        (["feeds"], "[]"),
        (["feeds"], "null"),
        (["fingerprint"], "7"),
        (["fingerprint"], "null"),
        (["fingerprint"], '["a"]'),
        (["fingerprint"], '"a\\nb"'),
        (["fingerprint"], '"\\ud800"'),
        (["fingerprint"], f'"{"a" * 129}"'),
    ],
)
def test_what_is_not_of_its_kind_is_refused(path, value):
    with pytest.raises(ConfigError, match="not a teacher's description"):
        Description.from_json(with_value(path, value))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "3", "[" * 100_000, '{"feeds":' * 9_999])
def test_other_text_is_refused(text):
    with pytest.raises(ConfigError, match="not a teacher's description"):
        Description.from_json(text)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
almost_specs = st.dictionaries(
    st.text(max_size=3),
    values | st.fixed_dictionaries({"shape": st.lists(values) | values, "dtype": dtypes | values}),
    max_size=2,
)
almost = st.fixed_dictionaries(
    {}, optional={"feeds": almost_specs, "fetches": almost_specs, "fingerprint": values}
)


@given(almost | values)
def test_any_json_is_a_description_or_a_config_error(value):
    try:
        description = Description.from_json(json.dumps(value))
    except ConfigError:
        return
    assert Description.from_json(description.to_json()) == description
    for spec in description.feeds.values():
        assert all(type(size) is int and -1 <= size < 2**31 for size in spec.shape)
        np.empty((0, *(max(size, 0) for size in spec.shape)), spec.dtype)


@given(st.text())
def test_any_text_is_a_description_or_a_config_error(text):
    with pytest.raises(ConfigError):
        Description.from_json(text)


def test_dtypes_are_named_as_numpy_does():
    assert [TensorSpec((), dtype).dtype for dtype in ("f4", "float32", "i8")] == [
        *("float32", "float32", "int64")
    ]
    assert {TensorSpec((), dtype).dtype for dtype in ("str", "U7", "object")} == {"str"}
    with pytest.raises(ConfigError, match="dtype 'complex64'"):
        TensorSpec((), "complex64")


# --- fingerprints ---------------------------------------------------------------------------

SPEC = TensorSpec((4,), "float32")
FEEDS, FETCHES = {"x": SPEC}, {"y": SPEC, "z": SPEC}


def test_without_a_fingerprint_of_its_own_a_teacher_has_that_of_its_feeds_and_fetches():
    here = Description(FEEDS, FETCHES)
    elsewhere = Description(dict(FEEDS), dict(FETCHES), {"device": "gpu"})
    assert here.fingerprint == elsewhere.fingerprint
    assert here.fingerprint.startswith(SPECS_ONLY)
    old_entry = json.loads(here.to_json())
    del old_entry["fingerprint"]
    assert Description.from_json(json.dumps(old_entry)).fingerprint == here.fingerprint


@pytest.mark.parametrize(
    ("feeds", "fetches"),
    [
        ({"x2": SPEC}, FETCHES),
        ({"x": TensorSpec((5,), "float32")}, FETCHES),
        ({"x": TensorSpec((-1,), "float32")}, FETCHES),
        ({"x": TensorSpec((4,), "float16")}, FETCHES),
        (FEEDS, {"z": SPEC, "y": SPEC}),
        (FEEDS, {"y": SPEC}),
        ({}, {**FEEDS, **FETCHES}),
    ],
)
def test_other_names_shapes_dtypes_or_order_give_another(feeds, fetches):
    assert Description(feeds, fetches).fingerprint != Description(FEEDS, FETCHES).fingerprint


def test_a_fingerprint_that_cannot_be_shown_is_refused():
    for fingerprint in ("a\n", "\ud800", "a" * 129, 7):
        with pytest.raises(ConfigError, match="fingerprint"):
            Description({}, {}, fingerprint=fingerprint)


# --- arrays ---------------------------------------------------------------------------------

IMAGE = TensorSpec((1, 2, 2), "float32")


def test_what_fits_is_not_touched():
    array = np.zeros((3, 1, 2, 2), "f4")
    assert IMAGE.conform(array) is array
    assert not IMAGE.mismatch(array)


def test_flat_rows_and_other_dtypes_are_made_to_fit():
    for dtype in ("f8", "f2", "u1", "i8", "?", ">f4"):
        assert not IMAGE.mismatch(IMAGE.conform(np.ones((3, 4), dtype)))


def test_strings_fit_strings_whatever_numpy_calls_them():
    for array in (np.array(["a", "bc"]), np.array(["a", "bc"], object), np.array([b"a"])):
        spec = TensorSpec((), "str")
        assert spec.conform(array) is array
        assert not spec.mismatch(array)


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((3, 5), "f4"), r"expected shape \(rows, 1, 2, 2\), got \(3, 5\)"),
        (np.zeros((), "f4"), "expected shape"),
        (np.zeros((), "f8"), "expected shape"),
    ],
)
def test_shapes_that_do_not_fit_are_left_for_the_teacher_to_refuse(array, complaint):
    conformed = IMAGE.conform(array)
    with pytest.raises(AssertionError, match=complaint):
        assert not IMAGE.mismatch(conformed), IMAGE.mismatch(conformed)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(WireError, match=r"float32 cannot hold the int64 value 16777217"):
        IMAGE.conform(np.full((1, 4), 2**24 + 1))
