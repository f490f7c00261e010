"""Stored labels: what a teacher has said of a row, for whenever the row comes again.

Needs lmdb and xxhash, when it is used (the extra ``store``). Knows nothing of teachers.
"""

from edl.store.store import LabelStore

__all__ = ["LabelStore"]
