"""DistillReader against real teachers: forms, order, configuration, ends."""

import gc
import logging
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edl.discovery import Registration
from edl.discovery.embedded import free_port
from edl.distill import DistillReader, Limits
from edl.distill.distill_reader import DistillReader as OriginalPath
from edl.errors import (
    BatchRefused,
    ConfigError,
    EdlError,
    NoTeacherError,
    ReaderError,
    SourceError,
)
from tests.support.processes import ROOT, eventually, python_teacher


def images(count, rows=8, width=5):
    """Batches (img, label) whose rows are all different."""
    for number in range(count):
        base = np.arange(rows, dtype="f4")[:, None] + number * rows
        yield np.repeat(base, width, axis=1), np.arange(rows) + number * rows


def reader_of(teacher, source=None, **options):
    reader = DistillReader(["img", "label"], ["prob"], **options)
    reader.set_fixed_teacher(teacher.endpoint)
    if source is not None:
        reader.set_batch_generator(source)
    return reader


def check(batches, count, rows=8, width=5):
    """Every batch once, in order, with the sums of its own rows."""
    number = -1
    for number, (img, label, prob) in enumerate(batches):
        assert label[0] == number * rows
        assert (prob[:, 0] == img.sum(axis=1)).all()
        assert (prob[:, 1] == 2 * prob[:, 0]).all()
        assert img.shape[1] == width
    assert number + 1 == count


def edl_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("edl-")]


# --- forms --------------------------------------------------------------------------------------


def test_the_originals_import_path_works():
    assert OriginalPath is DistillReader


def test_batches_come_in_order_with_their_predictions_epoch_after_epoch(sums_teacher):
    with reader_of(sums_teacher, lambda: images(200)) as reader:
        for _ in range(3):
            check(reader(), 200)
        assert reader.stats()["batches"] == 600


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_batches_are_cut_to_the_teachers_batch_size(sums_teacher, rows):
    with reader_of(sums_teacher, lambda: images(20)) as reader:
        reader.set_teacher_batch_size(rows)
        check(reader(), 20)
        assert reader.stats()["tasks_sent"] == 20 * -(-8 // min(rows, 8))


def test_samples_come_one_by_one(sums_teacher):
    reader = DistillReader(["img", "label"], ["prob"]).set_fixed_teacher([sums_teacher.endpoint])
    reader.set_sample_generator(lambda: ((np.full(3, i, "f4"), i) for i in range(50)))
    reader.set_teacher_batch_size(8)
    with reader:
        samples = list(reader())
    assert [label for _, label, _ in samples] == list(range(50))
    assert all(prob[0] == 3 * label for _, label, prob in samples)


def test_sample_lists_come_as_sample_lists(sums_teacher):
    reader = DistillReader(["img", "label"], ["prob"]).set_fixed_teacher(sums_teacher.endpoint)
    sizes = [4, 1, 7]
    lists = [[(np.full(3, size, "f4"), size)] * size for size in sizes]
    reader.set_sample_list_generator(lambda: iter(lists))
    with reader:
        out = list(reader())
    assert [len(samples) for samples in out] == sizes
    assert all(prob[0] == 3 * label for samples in out for _, label, prob in samples)


def test_ragged_single_slot_and_empty_batches(sums_teacher):
    shapes = [(8, 5), (3, 5), (0, 5), (1, 2)]
    reader = DistillReader(["img"], ["prob"]).set_fixed_teacher(sums_teacher.endpoint)
    reader.set_batch_generator(lambda: (np.ones(shape, "f4") for shape in shapes))
    with reader:
        out = list(reader())
    assert [prob.shape for _, prob in out] == [(8, 2), (3, 2), (0, 2), (1, 2)]


def test_an_empty_source_is_an_empty_epoch(sums_teacher):
    with reader_of(sums_teacher, lambda: iter(())) as reader:
        assert list(reader()) == []


def test_slots_that_are_not_fed_pass_through_as_the_same_objects(sums_teacher):
    marker = object()
    reader = DistillReader(["img", "label", None], ["prob"])
    reader.set_fixed_teacher(sums_teacher.endpoint).set_batch_generator(
        lambda: [(np.ones((2, 3), "f4"), marker, marker)]
    )
    with reader:
        ((_, label, other, prob),) = list(reader())
    assert label is marker
    assert other is marker
    assert prob.shape == (2, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_paddle_dataloader_is_wrapped(sums_teacher, workers):
    paddle = pytest.importorskip("paddle")

    class Squares(paddle.io.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return np.full(3, index, "f4"), index

    loader = paddle.io.DataLoader(Squares(), batch_size=8, num_workers=workers)
    reader = DistillReader(["img", "label"], ["prob"]).set_fixed_teacher(sums_teacher.endpoint)
    reader.set_loader(loader)
    with reader:
        for _ in range(2):
            out = list(reader())
            assert [batch[1].tolist()[0] for batch in out] == [0, 8, 16, 24, 32]
            for img, label, prob in out:
                assert isinstance(prob, paddle.Tensor)
                assert (prob.numpy()[:, 0] == 3 * label.numpy()).all()
                assert img.shape == [8, 3]


# --- teachers -----------------------------------------------------------------------------------


def test_teachers_are_found_in_etcd(etcd_server, etcd, service, sums_teacher):
    registration = Registration(etcd, service, sums_teacher.endpoint, "{}")
    registration.start()
    reader = DistillReader(["img", "label"], ["prob"])
    reader.set_dynamic_teacher([etcd_server.endpoint], service).set_loader(list(images(50)))
    with reader:
        check(reader, 50)
    registration.stop()


def test_the_environment_wins(etcd_server, etcd, service, sums_teacher, monkeypatch):
    registration = Registration(etcd, service, sums_teacher.endpoint, "{}")
    registration.start()
    monkeypatch.setenv("PADDLE_DISTILL_BALANCE_SERVER", etcd_server.endpoint)
    monkeypatch.setenv("PADDLE_DISTILL_SERVICE_NAME", service)
    monkeypatch.setenv("PADDLE_DISTILL_MAX_TEACHER", "2")
    reader = DistillReader(["img", "label"], ["prob"]).set_fixed_teacher("127.0.0.1:1")
    with reader.set_loader(list(images(5))):
        check(reader, 5)
    registration.stop()


def test_a_dead_fixed_teacher_is_no_harm_beside_a_live_one(sums_teacher):
    reader = reader_of(sums_teacher, lambda: images(50))
    reader.set_fixed_teacher(f"127.0.0.1:{free_port()},{sums_teacher.endpoint}")
    with reader:
        check(reader(), 50)


def test_without_teachers_it_says_so_every_few_seconds_and_goes_on_when_one_comes(
    etcd_server, service, caplog
):
    reader = DistillReader(["img", "label"], ["prob"]).set_loader(list(images(20)))
    reader.set_dynamic_teacher(etcd_server.endpoint, service)
    caplog.set_level(logging.WARNING, "edl")
    teachers = []

    def come_late():
        time.sleep(5.5)
        teachers.append(
            python_teacher("Sums", "--etcd", etcd_server.endpoint, "--service", service)
        )

    helper = threading.Thread(target=come_late)
    helper.start()
    with reader:
        check(reader(), 20)
    helper.join()
    teachers[0].close()
    assert f"no teacher is registered for service '{service}'" in caplog.text


def test_without_teachers_for_too_long_it_raises_with_what_was_tried():
    endpoint = f"127.0.0.1:{free_port()}"
    reader = DistillReader(["img", "label"], ["prob"], no_teacher_timeout=0.5)
    reader.set_fixed_teacher(endpoint).set_loader(list(images(1)))
    with reader, pytest.raises(NoTeacherError, match=rf"{endpoint}: cannot connect.*refused"):
        list(reader())


def test_without_etcd_for_too_long_it_raises_with_its_address(service):
    endpoint = f"127.0.0.1:{free_port()}"
    reader = DistillReader(["img", "label"], ["prob"], no_teacher_timeout=0.5)
    reader.set_dynamic_teacher(endpoint, service).set_loader(list(images(1)))
    with reader, pytest.raises(NoTeacherError, match=rf"{service}.*{endpoint}"):
        list(reader())


def test_teachers_that_do_not_fit_are_an_error_that_says_why(sums_teacher):
    reader = DistillReader(["image"], ["prob"]).set_fixed_teacher(sums_teacher.endpoint)
    reader.set_loader([(np.ones((1, 2), "f4"),)])
    with reader, pytest.raises(ReaderError, match="'img' is missing from ins"):
        list(reader())


def test_a_request_that_teachers_refuse_is_raised_at_its_place_in_the_order(sums_teacher):
    def source():
        yield from images(3)
        yield np.ones((2, 3, 1), "f4"), np.zeros(2)
        yield from images(3)

    with reader_of(sums_teacher, source) as reader:
        batches = reader()
        check([next(batches) for _ in range(3)], 3)
        with pytest.raises(BatchRefused, match="expected shape"):
            next(batches)


# --- sources that fail --------------------------------------------------------------------------


def test_an_exception_of_the_source_is_raised_at_its_place_in_the_order(sums_teacher):
    def source():
        yield from images(3)
        raise KeyError("corrupt record")

    with reader_of(sums_teacher, source) as reader:
        batches = reader()
        check([next(batches) for _ in range(3)], 3)
        with pytest.raises(KeyError, match="corrupt record"):
            next(batches)
        with pytest.raises(KeyError):  # the reader is good for another epoch
            list(reader())


def test_an_array_that_cannot_travel_is_named(sums_teacher):
    with (
        reader_of(sums_teacher, lambda: [(np.zeros((2, 2), "c8"), 0)]) as reader,
        pytest.raises(SourceError, match="complex64"),
    ):
        list(reader())


@pytest.mark.parametrize(
    ("configure", "complaint"),
    [
        (lambda reader: reader(), "no source"),
        (lambda reader: reader.set_loader([])(), "no teachers"),
        (lambda reader: reader.set_loader([]).set_loader([]), "already has a source"),
        (lambda reader: reader.set_sample_generator([1]), "must be callable"),
        (lambda reader: reader.set_teacher_batch_size(0), "teacher_batch_size"),
        (lambda reader: reader.set_require_max_teacher("3"), "require_max_teacher"),
        (lambda reader: reader.set_serving_conf_file("/no/such"), "/no/such"),
        (lambda reader: DistillReader("img", ["p"]), "ins must be a list"),
        (lambda reader: DistillReader(["a", "a"], ["p"]), "different names"),
        (lambda reader: DistillReader([None], ["p"]), "at least one"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_with_the_remedy(configure, complaint):
    with pytest.raises(ConfigError, match=complaint):
        configure(DistillReader(["img"], ["prob"]))


def test_print_config_shows_the_configuration(capsys):
    DistillReader(["img", None], ["prob"]).set_fixed_teacher("a:1").print_config()
    out = capsys.readouterr().out
    assert "ins: ['img', None]" in out
    assert "teachers: teachers a:1" in out


# --- ends ---------------------------------------------------------------------------------------


def test_nothing_is_started_before_the_first_iteration(sums_teacher):
    reader = reader_of(sums_teacher, lambda: images(1))
    assert edl_threads() == []
    reader.close()


def test_leaving_early_ends_the_epoch_and_the_next_one_starts_afresh(sums_teacher):
    closed = []

    def source():
        try:
            yield from images(1000)
        finally:
            closed.append(True)

    with reader_of(sums_teacher, source) as reader:
        for _ in range(3):
            for number, (_, label, _) in enumerate(reader()):
                assert label[0] == number * 8
                if number == 5:
                    break
        eventually(lambda: len(closed) == 3)


def test_two_iterations_at_once_are_an_error(sums_teacher):
    with reader_of(sums_teacher, lambda: images(50)) as reader:
        first = reader()
        next(first)
        with pytest.raises(ReaderError, match="being iterated already"):
            next(reader())
        check([next(reader_of(sums_teacher, lambda: images(1))())], 1)
        first.close()
        check(reader(), 50)


@pytest.mark.parametrize("end", ["close", "collect", "break"])
def test_no_thread_is_left(sums_teacher, end):
    reader = reader_of(sums_teacher, lambda: images(100))
    batches = reader()
    next(batches)
    assert edl_threads()
    if end == "close":
        reader.close()
    elif end == "break":
        batches.close()
        reader.close()
    del reader, batches
    gc.collect()
    eventually(lambda: edl_threads() == [])


def test_a_reader_that_was_closed_can_be_iterated_again(sums_teacher):
    reader = reader_of(sums_teacher, lambda: images(5))
    for _ in range(2):
        check(reader(), 5)
        reader.close()


def test_closing_while_the_student_waits_wakes_it(service):
    reader = DistillReader(["img", "label"], ["prob"]).set_fixed_teacher("127.0.0.1:1")
    reader.set_loader(list(images(1)))
    threading.Timer(0.5, reader.close).start()
    with pytest.raises(ReaderError, match="closed"):
        list(reader())


SCRIPT = """
import sys, os, signal, threading, numpy as np
from edl.distill import DistillReader
def source():
    for i in range(10**6):
        yield np.full((4, 3), i, "f4"), i
reader = DistillReader(["img", "label"], ["prob"]).set_fixed_teacher(sys.argv[1])
reader.set_batch_generator(source)
for number, batch in enumerate(reader()):
    if number == 20:
        print("reading", flush=True)
    if number >= 20 and sys.argv[2] == "exit":
        break
    if number >= 20 and sys.argv[2] == "raise":
        raise ValueError("mine")
"""


@pytest.mark.parametrize("how", ["exit", "raise", "ctrl-c"])
def test_the_interpreter_ends_at_once_however_the_program_ends(sums_teacher, how):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, sums_teacher.endpoint, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdout.readline() == "reading\n"
    if how == "ctrl-c":
        process.send_signal(2)
    started = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - started < 15
    if how == "exit":
        assert process.returncode == 0
        assert "Traceback" not in errors
        assert "Exception ignored" not in errors
    else:
        assert ("ValueError: mine" if how == "raise" else "KeyboardInterrupt") in errors
        assert "Fatal" not in errors


def test_a_reader_works_in_a_forked_child_and_in_the_parent(sums_teacher):
    reader = reader_of(sums_teacher, lambda: images(20))
    check(reader(), 20)
    child = os.fork()
    if not child:
        try:
            check(reader(), 20)
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    check(reader(), 20)
    reader.close()


def test_all_errors_are_of_one_tree():
    assert issubclass(NoTeacherError, EdlError)
    assert Limits().low_batches < Limits().high_batches
