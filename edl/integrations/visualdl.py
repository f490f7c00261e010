"""What a reader does, as curves in VisualDL::

    writer = visualdl.LogWriter("log")
    for step, (img, label, prob) in enumerate(reader):
        report(reader, writer, step)
        ...

VisualDL itself is not imported.
"""

from __future__ import annotations

from typing import Any

from edl.distill import DistillReader


def report(reader: DistillReader, writer: Any, step: int) -> None:
    """Write what the reader is at, at this ``step`` of the student, with ``writer.add_scalar``; a
    ``visualdl.LogWriter`` or one like it. Nothing before the first iteration.

    ``edl/rows_per_second``: what the teachers have answered over the last seconds;
    ``edl/seconds_waited``: by the student for its batches, since the first iteration;
    ``edl/share_waited``: these, of the time in epochs; ``edl/batches_ready``: finished and not
    taken; ``edl/teachers``: connected; ``edl/requests_in_flight``: at these. Of several models each
    has its own, as ``edl/NAME/teachers``.
    """
    stats = reader.stats()
    several = all(isinstance(value, dict) for value in stats.values())
    models = {f"edl/{name}": of for name, of in stats.items()} if several else {"edl": stats}
    for prefix, of in models.items():
        teachers = of["teachers"].values()
        scalars = {
            "rows_per_second": sum(teacher["rows_per_second"] for teacher in teachers),
            "seconds_waited": of["student_waited"],
            "share_waited": of["student_waited"] / max(1e-9, of["student_seconds"]),
            "batches_ready": of["buffer"]["batches"],
            "teachers": len(teachers),
            "requests_in_flight": sum(teacher["in_flight"] for teacher in teachers),
        }
        for name, value in scalars.items():
            writer.add_scalar(f"{prefix}/{name}", float(value), step)
