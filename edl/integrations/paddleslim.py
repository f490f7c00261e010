"""PaddleSlim's ``Distill`` with a teacher that is somewhere else::

    reader = DistillReader(["img", "label"], ["logits"], source=loader, teachers=...)
    teacher = RemoteTeacher(["logits"])
    config = [{"layers": [{"layers_name": ["fc", "logits"], "loss_function": "KLLoss"}]}]
    distill = Distill(config, students=[student], teachers=[teacher])
    for img, label in teacher.batches(reader):
        distill_loss, student_out, teacher_out = distill(img)

A pair in ``layers_name`` names a layer of the student, and a prediction.
"""

from edl.integrations.teacher import RemoteTeacher

__all__ = ["RemoteTeacher"]
