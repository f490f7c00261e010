"""EDL by its original name, for programs that import ``paddle_edl``; the same classes."""

from edl import EdlError, __version__

__all__ = ["EdlError", "__version__"]
