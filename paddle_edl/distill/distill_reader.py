"""The module in which the original has DistillReader."""

from edl.distill.reader import DistillReader

__all__ = ["DistillReader"]
