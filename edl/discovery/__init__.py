"""Who is alive, and who works for whom: etcd, leases, watches, balancing. Knows no tensors."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edl.discovery.balancer import Balancer
    from edl.discovery.etcd import Etcd
    from edl.discovery.membership import Members, Membership
    from edl.discovery.participation import Participation
    from edl.discovery.records import StudentRecord
    from edl.discovery.registry import Registration, list_nodes

_MODULES = {
    "Balancer": "balancer",
    "Etcd": "etcd",
    "Members": "membership",
    "Membership": "membership",
    "Participation": "participation",
    "Registration": "registry",
    "StudentRecord": "records",
    "list_nodes": "registry",
}

__all__ = [
    "Balancer",
    "Etcd",
    "Members",
    "Membership",
    "Participation",
    "Registration",
    "StudentRecord",
    "list_nodes",
]


def __getattr__(name: str) -> Any:
    """Imported when it is used: a student with fixed teachers needs no gRPC."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
