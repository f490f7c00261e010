"""Knowledge distillation with elastic teachers: DistillReader."""

from edl.distill.dispatch import Limits
from edl.distill.reader import DistillReader

__all__ = ["DistillReader", "Limits"]
