"""What is asked for in place of whole logits, and the ids that come back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edl.errors import ConfigError, WireError
from edl.serving.wire import labels
from edl.serving.wire.description import Description, TensorSpec
from edl.serving.wire.labels import LabelForm

forms = st.builds(
    LabelForm,
    st.integers(1, labels.MAX_TOP_K),
    st.floats(labels.MIN_TEMPERATURE, labels.MAX_TEMPERATURE),
    st.integers(0, labels.MAX_SAMPLES),
    st.booleans(),
)


@given(st.text(max_size=20), forms)
def test_what_is_written_is_read(name, form):
    assert labels.split(labels.ask(name, form)) == (name, form)


@given(forms)
def test_a_form_is_quick_to_read(form):
    assert len(str(form)) < 80


@given(st.text(st.sampled_from("top_ksamplestrgu=&0123456789.e+-?naif"), max_size=40))
def test_any_other_text_is_refused_in_words(text):
    try:
        form = LabelForm.parse(text)
    except ConfigError:
        return
    assert LabelForm.parse(str(form)) == form


def test_the_text_says_what_is_not_as_usual():
    assert str(LabelForm(64)) == "top_k=64"
    assert str(LabelForm(48, 2.0, 16, True)) == "top_k=48&temperature=2&samples=16&target"
    assert str(LabelForm(8, 0.5)) == "top_k=8&temperature=0.5"


def test_a_name_without_a_suffix_asks_for_the_whole():
    assert labels.split("logits") == ("logits", None)


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("", "none of top_k=N"),
        ("samples=4", "top_k is missing"),
        ("top_k=0", "from 1 to 65536, not 0"),
        ("top_k=1000000000", "from 1 to 65536, not 1000000000"),
        ("top_k=99999999999999999999", "none of top_k=N"),
        ("top_k=-1", "none of top_k=N"),
        ("top_k=6_4", "none of top_k=N"),
        ("top_k=٦", "none of top_k=N"),
        ("top_k=64&top_k=64", "'top_k' is said twice"),
        ("top_k=64&temperature=nan", "none of top_k=N"),
        ("top_k=64&temperature=inf", "none of top_k=N"),
        ("top_k=64&temperature=0", "from 0.001 to 1000, not 0.0"),
        ("top_k=64&temperature=1e999", "from 0.001 to 1000, not inf"),
        ("top_k=64&samples=70000", "from 0 to 65536, not 70000"),
        ("top_k=64&target=1", "none of top_k=N"),
        ("top_k=64&target&target", "'target' is said twice"),
        ("top_k=64&colour=red", "none of top_k=N"),
        ("top_k=64" + "&" * 1000, "none of top_k=N"),
    ],
)
def test_what_is_no_form_is_refused_with_its_name(suffix, words):
    with pytest.raises(ConfigError, match="fetch 'logits") as caught:
        labels.split(f"logits?{suffix}")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"top_k": 64.0}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"top_k": 64, "temperature": "2"}, "temperature must be a number"),
        ({"top_k": 64, "temperature": float("nan")}, "not nan"),
        ({"top_k": 64, "samples": -1}, "samples must be from 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers, words):
    with pytest.raises(ConfigError, match=words):
        LabelForm(**numbers)


def test_the_parts_come_in_their_order_with_shapes_and_dtypes():
    specs = labels.part_specs("logits", TensorSpec((-1, 100), "float32"), LabelForm(8, 1, 4, True))
    assert list(specs.items()) == [
        ("values", TensorSpec((-1, 8), "float16")),
        ("indices", TensorSpec((-1, 8), "int32")),
        ("logsumexp", TensorSpec((-1,), "float32")),
        ("samples", TensorSpec((-1, 4), "int32")),
        ("target", TensorSpec((-1,), "float32")),
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TensorSpec((10,), "int64"), "'logits' is int64"),
        (TensorSpec((), "float32"), "last dimension is the classes"),
        (TensorSpec((10,), "float32"), "top_k=11 is more than the 10 classes of 'logits'"),
    ],
)
def test_a_fetch_that_has_no_such_labels_is_named(spec, words):
    with pytest.raises(ConfigError, match=words):
        labels.part_specs("logits", spec, LabelForm(11))


# --- ids ------------------------------------------------------------------------------------


@given(
    st.sampled_from([1, 200, 256, 257, 65_536, 65_537, 150_000, 1 << 24, (1 << 24) + 1]).flatmap(
        lambda classes: st.tuples(
            st.just(classes),
            arrays.arrays(
                np.int32,
                arrays.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=5),
                elements=st.integers(0, classes - 1),
            ),
        )
    )
)
def test_ids_come_back_from_however_narrow_they_travel(case):
    classes, ids = case
    narrow = labels.narrow_ids(ids, classes)
    assert narrow.nbytes == ids.size * labels.id_bytes(classes)
    back = labels.widen_ids(narrow, ids.ndim)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, ids)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3), np.int64),
        np.zeros((2, 3, 5), np.uint8),
        np.zeros((2, 3, 1), np.uint8),
        np.zeros(2, np.uint8),
        np.zeros((2, 3), np.int16),
        np.zeros((2, 3), object),
    ],
)
def test_what_holds_no_ids_is_refused(array):
    with pytest.raises(WireError, match="holds no ids"):
        labels.widen_ids(array, 2)


def answer(**changes):
    return {
        "values": np.zeros((2, 2), np.float16),
        "indices": np.array([[0, 9], [1, 2]], np.uint8),
        "logsumexp": np.zeros(2, np.float32),
        **changes,
    }


def test_ids_beyond_the_classes_are_refused():
    assert labels.as_parts(answer(), 10)["indices"].max() == 9
    with pytest.raises(WireError, match="indices has ids from 0 to 9 of 9"):
        labels.as_parts(answer(), 9)


def test_negative_ids_are_refused_even_where_the_classes_are_not_known():
    ids = np.array([[0, -9], [1, 2]], np.int32)
    with pytest.raises(WireError, match="indices has ids from -9"):
        labels.as_parts(answer(indices=ids), -1)


def test_logits_beyond_float16_are_refused_with_a_remedy():
    values = np.array([[np.inf, 0], [0, 0]], np.float16)
    labels.check_range(values, np.array([np.inf, 1], np.float32))
    with pytest.raises(WireError, match=r"logits around 70000 are beyond float16.*temperature"):
        labels.check_range(values, np.array([70_000, 1], np.float32))


def test_bytes_of_a_token_with_150_000_classes():
    assert LabelForm(64).bytes_per_position(150_000) == 324
    assert LabelForm(8, samples=8).bytes_per_position(150_000) == 68


# --- who makes them -------------------------------------------------------------------------


@pytest.mark.parametrize("said", [None, 0, True, "1", [1], {"a": 1}, 1.0])
def test_a_server_that_does_not_say_so_makes_no_labels(said):
    extra = {} if said is None else {"labels": said}
    assert not labels.server_makes_labels(Description({}, {}, extra))


@pytest.mark.parametrize("said", [1, 2])
def test_a_server_of_this_version_or_a_later_one_makes_labels(said):
    assert labels.server_makes_labels(Description({}, {}, {"labels": said}))


def test_the_form_of_a_program_is_read_off_its_fetches():
    form = LabelForm(8, 2.0, 4)
    specs = labels.part_specs("logits", TensorSpec((100,), "float32"), form)
    fetches = {f"logits.{part}?{form}": spec for part, spec in specs.items()}
    assert labels.program_makes_labels(Description({}, fetches), "logits") == form
    assert labels.program_makes_labels(Description({}, fetches), "other") is None


@pytest.mark.parametrize("fetch", ["logits.values?top_k=x", "logits.values?top_k=8", "logits"])
def test_fetches_that_are_not_all_of_a_form_make_no_labels(fetch):
    description = Description({}, {fetch: TensorSpec((8,), "float16")})
    assert labels.program_makes_labels(description, "logits") is None
