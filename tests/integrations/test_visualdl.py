"""A reader's curves."""

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.integrations.visualdl import report

NAMES = {
    *("rows_per_second", "seconds_waited", "share_waited", "batches_ready", "teachers"),
    "requests_in_flight",
}


def reader_of(predicts, teachers):
    source = [(np.full((8, 3), number, "f4"), np.arange(8)) for number in range(20)]
    return DistillReader(["img", "label"], predicts, source=source, teachers=teachers)


class Written:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.curves = {}

    def add_scalar(self, tag, value, step):
        self.curves.setdefault(tag, []).append((step, value))


def test_each_step_of_the_student_adds_to_every_curve(sums_teacher):
    writer = Written()
    with reader_of(["prob"], sums_teacher.endpoint) as reader:
        report(reader, writer, 0)
        assert not writer.curves, "nothing has begun"
        for step, _ in enumerate(reader):
            report(reader, writer, step)
    assert set(writer.curves) == {f"edl/{name}" for name in NAMES}
    for curve in writer.curves.values():
        assert [step for step, _ in curve] == list(range(20))
    assert {value for _, value in writer.curves["edl/teachers"]} == {1.0}
    assert writer.curves["edl/seconds_waited"][-1][1] > 0.0
    assert all(0.0 < value <= 1.0 for _, value in writer.curves["edl/share_waited"])


def test_of_several_models_each_has_its_curves(sums_teacher):
    writer = Written()
    teachers = dict.fromkeys(("batches", "b"), sums_teacher.endpoint)
    with reader_of(["prob"], teachers) as reader:
        for step, _ in enumerate(reader):
            report(reader, writer, step)
    assert set(writer.curves) == {f"edl/{model}/{name}" for model in teachers for name in NAMES}


def test_visualdl_reads_what_was_written(sums_teacher, tmp_path):
    visualdl = pytest.importorskip("visualdl")
    with reader_of(["prob"], sums_teacher.endpoint) as reader:
        with visualdl.LogWriter(str(tmp_path), file_name="vdlrecords.student.log") as writer:
            for step, _ in enumerate(reader):
                report(reader, writer, step)
    log = visualdl.LogReader(file_path=str(tmp_path / "vdlrecords.student.log"))
    teachers = log.get_data("scalar", "edl/teachers")
    assert [(each.id, each.value) for each in teachers] == [(step, 1.0) for step in range(20)]
    assert log.get_data("scalar", "edl/rows_per_second")[-1].value > 0
