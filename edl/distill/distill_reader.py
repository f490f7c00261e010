"""The import path of the original ``paddle_edl``: ``from edl.distill.distill_reader import DistillReader``."""

from edl.distill.reader import DistillReader

__all__ = ["DistillReader"]
