"""Import etcd3 with any protobuf.

etcd3 0.12 ships code generated for protobuf 3, which protobuf 4 and later refuse to run. The
descriptors inside those generated files are still good: they are read from the files (as text, the
files are not executed), message classes are built from them, and put where etcd3 imports its
generated modules from. With protobuf 3 nothing is changed.

Use: ``from edl.discovery._etcd3 import etcd3``.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import google.protobuf

from edl.errors import MissingDependencyError

# Forking (a DataLoader's workers do) while a watch is open makes gRPC print a line each time.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

#: In order of dependence: rpc.proto imports the other two.
_MODULES = ("kv_pb2", "auth_pb2", "rpc_pb2")


def _import_etcd3() -> Any:
    spec = importlib.util.find_spec("etcd3")
    new = int(google.protobuf.__version__.split(".")[0]) >= 4
    if "etcd3" not in sys.modules and new and spec is not None and spec.origin is not None:
        _install_messages(Path(spec.origin).parent / "etcdrpc")
    try:
        import etcd3
        import etcd3.etcdrpc
        import etcd3.exceptions
    except ImportError as error:
        raise MissingDependencyError(
            f"discovery needs the etcd3 package: pip install etcd3 ({error})"
        ) from error
    return etcd3


def _install_messages(folder: Path) -> None:
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.DescriptorPool()  # of our own: another etcd client may use the default
    for name in _MODULES:
        path = folder / f"{name}.py"
        file = pool.AddSerializedFile(_serialized_descriptor(path))
        # Some protobuf implementations return nothing from AddSerializedFile.
        file = file or pool.FindFileByName(name.replace("_pb2", ".proto"))
        sys.modules[f"etcd3.etcdrpc.{name}"] = _module(f"etcd3.etcdrpc.{name}", file)


def _serialized_descriptor(path: Path) -> bytes:
    """The argument ``serialized_pb=_b('...')`` of a generated module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            call = node.value
            if isinstance(call, ast.Call) and isinstance(call.args[0], ast.Constant):
                return str(call.args[0].value).encode("latin1")
    raise MissingDependencyError(f"{path} is not the etcd3 that this module knows (0.12)")


def _module(name: str, file: Any) -> types.ModuleType:
    from google.protobuf import message_factory

    module = types.ModuleType(name)
    module.DESCRIPTOR = file  # type: ignore[attr-defined]
    for message_name, descriptor in file.message_types_by_name.items():
        setattr(module, message_name, message_factory.GetMessageClass(descriptor))
    for enum in file.enum_types_by_name.values():
        for value in enum.values:
            setattr(module, value.name, value.number)
    return module


etcd3 = _import_etcd3()
