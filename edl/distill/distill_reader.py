"""The module in which the original ``paddle_edl`` has DistillReader."""

from edl.distill.reader import DistillReader

__all__ = ["DistillReader"]
