"""EDL: knowledge distillation for PaddlePaddle with elastic teachers.

The names most programs need are ``edl.distill.DistillReader`` for the student and
the ``edl`` command for everything else. Importing this package imports nothing heavy.
"""

from edl.errors import EdlError

__version__ = "0.4.0"

__all__ = ["EdlError", "__version__"]
