"""``edl.distill`` by its original name."""

from edl.distill import DistillReader, Limits

__all__ = ["DistillReader", "Limits"]
