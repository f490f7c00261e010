"""Knowledge distillation with elastic teachers: DistillReader, TeacherPool."""

from edl.distill.reader import DistillReader
from edl.distill.state import Limits
from edl.distill.teacher_pool import TeacherPool

__all__ = ["DistillReader", "Limits", "TeacherPool"]
