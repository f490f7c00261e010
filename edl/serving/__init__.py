"""Paddle Serving's protocol: codec, framing, client, teacher server, model export.

Knows nothing of etcd. ``TeacherClient`` talks to a teacher; ``export_model`` writes a model that
``edl teacher`` hosts.
"""

from edl.serving.client import TeacherClient
from edl.serving.description import Description, TensorSpec
from edl.serving.export import export_model

__all__ = ["Description", "TeacherClient", "TensorSpec", "export_model"]
