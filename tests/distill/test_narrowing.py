"""Slots and predictions that travel narrower: real teachers, in this process and others."""

import logging
import signal

import numpy as np
import pytest

from edl.distill import DistillReader, TeacherPool
from edl.distill.batches import ArrayBatch
from edl.distill.narrowing import check_wire
from edl.distill.plan import make_plan
from edl.errors import BatchRefused, ConfigError, ReaderError, SourceError
from edl.serving import Description, TensorSpec, serve
from edl.serving.wire.conversion import convert
from tests.support.processes import python_teacher

ROWS, WIDTH, BATCHES = 6, 8, 12
FEEDS, FETCHES = {"img": ((WIDTH,), "float32")}, {"y": ((WIDTH,), "float32")}


def rounded(array, dtype):
    """What is left of float32 values that have travelled as ``dtype``."""
    if dtype == "bfloat16":
        return (convert(array, "uint16").astype(np.uint32) << 16).view(np.float32)
    return array.astype(dtype).astype(np.float32)


def batches(count=BATCHES):
    generator = np.random.default_rng(0)
    return [
        (generator.normal(size=(ROWS, WIDTH)).astype("f4"), np.full(ROWS, number))
        for number in range(count)
    ]


def double_teacher(able=True, dtype="float32"):
    """A server in this process; one that is not ``able`` says as little as those of before."""
    specs = {"img": ((WIDTH,), dtype)}, {"y": ((WIDTH,), dtype)}
    teacher = serve(lambda img: 2 * img, *specs, fingerprint="double")
    if not able:
        engine = teacher._server.engine
        said = engine.description
        engine.description = Description(said.feeds, said.fetches, {}, said.fingerprint)
    return teacher


@pytest.fixture(scope="module")
def teacher():
    with double_teacher() as teacher:
        yield teacher


@pytest.fixture(scope="module")
def old_teacher():
    with double_teacher(able=False) as teacher:
        yield teacher


def reader_of(*teachers, source=None, **options):
    endpoints = [teacher.endpoint for teacher in teachers]
    return DistillReader(["img", "label"], ["y"], source or batches(), endpoints, **options)


@pytest.mark.parametrize("there", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("back", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("rows", [None, 4])
def test_what_travels_narrower_comes_in_the_dtype_that_was_promised(teacher, there, back, rows):
    wire = {name: dtype for name, dtype in (("img", there), ("y", back)) if dtype}
    with reader_of(teacher, teacher_batch_size=rows, wire=wire) as reader:
        got = list(reader)
    assert len(got) == BATCHES
    for (img, label, y), (source, number) in zip(got, batches()):
        np.testing.assert_array_equal(img, source)
        np.testing.assert_array_equal(label, number)
        assert y.dtype == np.float32
        sent = source if there is None else rounded(source, there)
        expected = 2 * sent if back is None else rounded(2 * sent, back)
        np.testing.assert_array_equal(y, expected)


def test_images_of_bytes_travel_as_bytes_and_their_labels_are_exact(teacher):
    source = [(np.random.default_rng(n).integers(0, 256, (ROWS, WIDTH), "u1"), n) for n in range(4)]
    source = [(img, np.full(ROWS, number)) for img, number in source]
    with reader_of(teacher, source=source, wire={"img": "uint8"}) as reader:
        for img, _, y in reader:
            assert img.dtype == np.uint8
            np.testing.assert_array_equal(y, 2 * img.astype("f4"))


def test_less_is_sent_and_nothing_is_converted_twice():
    description = Description(FEEDS_SPEC, FETCHES_SPEC, {"narrow": 1})
    plan = make_plan(["img"], ["y"], description, wire={"img": "float16", "y": "bfloat16"})
    batch, made = ArrayBatch((batches(1)[0][0],), ROWS, 0), {}
    first = plan.feed(batch, 2, 6, made=made)["img"]
    assert (first.dtype, first.shape) == (np.float16, (4, WIDTH))
    assert plan.feed(batch, 2, 6, made=made)["img"] is first
    assert plan.fetch_names == ["y?dtype=bfloat16"]


def test_a_teacher_that_cannot_is_sent_the_whole():
    plan = make_plan(
        ["img"],
        ["y"],
        Description(FEEDS_SPEC, FETCHES_SPEC),
        wire={"img": "float16", "y": "float16"},
    )
    images = batches(1)[0][0]
    assert np.shares_memory(plan.feed(ArrayBatch((images,), ROWS, 0), 0, ROWS)["img"], images)
    assert plan.fetch_names == ["y"]
    assert plan.wide == "'img' as float32 to it, 'y' as float32 from it"


FEEDS_SPEC = {"img": TensorSpec((WIDTH,), "float32")}
FETCHES_SPEC = {"y": TensorSpec((WIDTH,), "float32")}


def test_a_teacher_and_an_old_one_give_the_same_in_one_epoch(teacher, old_teacher, caplog):
    wire = {"img": "float16", "y": "float16"}
    source = batches(60)
    with reader_of(teacher, old_teacher, source=source, teacher_batch_size=1, wire=wire) as reader:
        for (_, _, y), (img, _) in zip(reader, source):
            np.testing.assert_allclose(y, 2 * img, rtol=2e-3, atol=1e-6)
        by_teacher = reader.stats()["teachers"]
    assert all(figures["rows"] for figures in by_teacher.values()), by_teacher
    said = [record for record in caplog.records if "no narrower tensors" in record.message]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert (
        f"teacher {old_teacher.endpoint} takes and sends no narrower tensors: 'img' as float32"
        in (said[0].message)
    )


def test_what_may_have_been_rounded_is_stored_as_such(old_teacher, tmp_path):
    """Whichever teachers there were: that one could not do it says nothing of others."""
    for wire in ({"img": "float16"}, {"y": "float16"}):
        with reader_of(old_teacher, wire=wire, store=tmp_path) as reader:
            list(reader)
        with reader_of(old_teacher, store=tmp_path, wire=wire) as reader:
            list(reader)
            assert reader.stats()["store"]["misses"] == 0
    with reader_of(old_teacher, store=tmp_path) as reader:
        list(reader)
        assert reader.stats()["store"]["hits"] == 0


def test_teachers_of_narrow_feeds_are_sent_what_they_have():
    with double_teacher(dtype="float16") as teacher:
        with reader_of(teacher, wire={"img": "float16", "y": "float16"}) as reader:
            for _, _, y in reader:
                assert y.dtype == np.float16


def test_a_real_teacher_that_is_killed_changes_no_label():
    source = batches(60)
    with python_teacher("Sums") as first, python_teacher("Sums") as second:
        reader = DistillReader(
            ["img", None], ["prob"], source, [first.endpoint, second.endpoint],
            teacher_batch_size=2, wire={"img": "bfloat16", "prob": "float16"},
        )  # fmt: skip
        with reader:
            for number, ((_, _, prob), (img, _)) in enumerate(zip(reader, source)):
                if number == 20:
                    first.kill(signal.SIGKILL)
                total = rounded(img, "bfloat16").sum(1)
                expected = rounded(np.stack([total, 2 * total], 1), "float16")
                np.testing.assert_allclose(prob, expected, rtol=2e-3, atol=1e-6)
        assert number == 59


def test_a_pool_does_the_same(teacher):
    images = batches(1)[0][0]
    wire = {"img": "float16", "y": "float16"}
    with TeacherPool(["y"], [teacher.endpoint], wire=wire) as pool:
        y = pool.infer({"img": images})["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, 2 * rounded(images, "float16"))


def test_the_workers_of_a_dataloader_do_the_same(teacher):
    paddle = pytest.importorskip("paddle")
    with reader_of(teacher, wire={"img": "float16"}) as reader:
        loader = paddle.io.DataLoader(reader, batch_size=None, num_workers=2)
        got = [*iter(loader)]
    for (_, _, y), (img, _) in zip(got, batches()):
        np.testing.assert_array_equal(y.numpy(), 2 * rounded(img, "float16"))


def test_several_models_travel_alike(teacher, old_teacher):
    source = [{"img": img} for img, _ in batches()]
    teachers = {"one": [teacher.endpoint], "other": [old_teacher.endpoint]}
    with DistillReader(["img"], ["y"], source, teachers, wire={"img": "float16"}) as reader:
        for batch in reader:
            np.testing.assert_array_equal(batch["one.y"], 2 * rounded(batch["img"], "float16"))
            np.testing.assert_array_equal(batch["other.y"], 2 * batch["img"])


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        ({"image": "float16"}, "wire names 'image', which is neither a slot nor a prediction"),
        (
            {"img": "float8"},
            "wire says 'float8' of 'img'; slots travel as float16, bfloat16, uint8",
        ),
        ({"y": "uint8"}, "wire says 'uint8' of 'y'; predictions travel as float16, bfloat16"),
        ("float16", "wire must be a mapping from names to dtypes"),
    ],
)
def test_what_cannot_be_is_refused_when_the_reader_is_made(wire, words):
    with pytest.raises(ConfigError, match=words):
        DistillReader(["img"], ["y"], wire=wire)
    with pytest.raises(ConfigError, match=words):
        TeacherPool(["y"], ["127.0.0.1:1"], feeds=["img"], wire=wire)


def test_sparse_labels_are_narrow_already():
    with pytest.raises(ConfigError, match="'y', of which sparse labels are asked for"):
        DistillReader(["img"], ["y"], top_k=4, wire={"y": "float16"})
    assert check_wire({"x": "uint8"}, ["x"], ["y?top_k=4"]) == {"x": "uint8"}


def test_a_feed_that_has_no_such_form_is_named():
    with serve(lambda img: img, {"img": ((3,), "int64")}, {"y": ((3,), "int64")}) as teacher:
        with DistillReader(
            ["img"], ["y"], [(np.zeros((2, 3), "i8"),)], [teacher.endpoint],
            wire={"img": "float16"},
        ) as reader:  # fmt: skip
            words = "its feed 'img' is int64, which cannot travel as float16"
            with pytest.raises(ReaderError, match=words):
                next(iter(reader))


def test_a_name_that_is_nothing_to_the_teacher_of_a_pool_is_named(teacher):
    with TeacherPool(["y"], [teacher.endpoint], wire={"image": "float16"}) as pool:
        words = "it has feeds 'img' and fetches 'y', but wire names 'image'"
        with pytest.raises(ReaderError, match=words):
            pool.infer({"img": batches(1)[0][0]})


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        (
            "float16",
            1e6,
            r"slot 0 \('img'\): row 5: float16 cannot hold the float32 value 1(000000.0|e\+06), as "
            r"which wire has it travel; name bfloat16 for it there, or leave it out of wire",
        ),
        ("bfloat16", 3.4e38, r"slot 0 \('img'\): row 5: bfloat16 cannot hold .* 3.4e\+38"),
        ("uint8", 1, r"slot 0 \('img'\): it is float32, and only uint8 travels as uint8"),
    ],
)
def test_what_cannot_travel_is_refused_in_its_batchs_turn(teacher, dtype, value, words):
    source = batches(20)
    if dtype == "uint8":
        source = [(img.astype("u1"), label) for img, label in source]
        source[7] = (source[7][0].astype("f4"), source[7][1])
    else:
        source[7][0][5, 3] = value
    wire = {"img": dtype}
    with reader_of(teacher, source=source, teacher_batch_size=2, wire=wire) as reader:
        got = []
        with pytest.raises(SourceError, match=words):
            got.extend(reader)
    assert len(got) == 7


def test_an_answer_beyond_its_dtype_is_refused_in_its_batchs_turn(teacher):
    source = batches(20)
    source[7][0][5, 3] = 6e4
    with reader_of(teacher, source=source, wire={"y": "float16"}) as reader:
        got = []
        words = r"'y' in float16: row 5: float16 cannot hold the float32 value 120000"
        with pytest.raises(BatchRefused, match=words):
            got.extend(reader)
    assert len(got) == 7


def test_an_old_teacher_gets_values_that_would_not_fit(old_teacher):
    source = batches(2)
    source[1][0][5, 3] = 1e6
    with reader_of(old_teacher, source=source, wire={"img": "float16", "y": "float16"}) as reader:
        for (_, _, y), (img, _) in zip(reader, source):
            np.testing.assert_array_equal(y, 2 * img)
