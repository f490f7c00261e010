"""Paddle Serving's protocol: codec, framing, client, teacher server, model export.

Knows nothing of etcd. ``TeacherClient`` talks to a teacher; ``export_model`` writes a model that
``edl teacher`` hosts; ``serve`` hosts a Python function.
"""

from typing import TYPE_CHECKING, Any

from edl.serving.client import TeacherClient
from edl.serving.description import Description, TensorSpec
from edl.serving.export import export_model

if TYPE_CHECKING:
    from edl.serving.hosting import serve
    from edl.serving.server import ServerOptions

__all__ = ["Description", "ServerOptions", "TeacherClient", "TensorSpec", "export_model", "serve"]


def __getattr__(name: str) -> Any:
    """The server's side, which students and workers need not import."""
    if name == "serve":
        from edl.serving.hosting import serve

        return serve
    if name == "ServerOptions":
        from edl.serving.server import ServerOptions

        return ServerOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
