"""Paddle Serving's protocol: codec, framing, client, teacher server, model export.

Knows nothing of etcd. ``TeacherClient`` talks to a teacher; ``export_model`` writes a model that
``edl teacher`` hosts; ``serve`` hosts a function or a layer from inside a program.
"""

from typing import TYPE_CHECKING, Any

from edl.serving.client.teacher import TeacherClient
from edl.serving.client.tls import Trust
from edl.serving.model.export import export_model
from edl.serving.model.preprocess import Preprocess
from edl.serving.wire.description import Description, TensorSpec

if TYPE_CHECKING:
    from edl.serving.server.hosting import serve
    from edl.serving.server.server import ServerOptions
    from edl.serving.server.tls import ServerTls

__all__ = [
    "Description",
    "Preprocess",
    "ServerOptions",
    "ServerTls",
    "TeacherClient",
    "TensorSpec",
    "Trust",
    "export_model",
    "serve",
]


def __getattr__(name: str) -> Any:
    """The server's side, which students and workers need not import."""
    if name == "serve":
        from edl.serving.server.hosting import serve

        return serve
    if name == "ServerOptions":
        from edl.serving.server.server import ServerOptions

        return ServerOptions
    if name == "ServerTls":
        from edl.serving.server.tls import ServerTls

        return ServerTls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
