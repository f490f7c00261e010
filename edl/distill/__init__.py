"""Knowledge distillation with elastic teachers: DistillReader."""

from edl.distill.reader import DistillReader
from edl.distill.state import Limits

__all__ = ["DistillReader", "Limits"]
