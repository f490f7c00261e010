"""The student's side of EDL: ``edl.distill``, at the top of the repository to be found."""

from edl.distill import DistillReader, Limits, TeacherPool

__all__ = ["DistillReader", "Limits", "TeacherPool"]
