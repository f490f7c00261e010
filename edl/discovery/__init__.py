"""Who is alive, and who works for whom: etcd, leases, watches, balancing. Knows no tensors."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edl.discovery.balancer import Balancer
    from edl.discovery.etcd import Etcd
    from edl.discovery.participation import Participation
    from edl.discovery.records import StudentRecord
    from edl.discovery.registration import Registration
    from edl.discovery.watch import Members, Membership, list_nodes

#: Seconds that leaving may take, whatever does not answer; the rest ends by itself after that.
CLOSE_WITHIN = 1.0

_MODULES = {
    "Balancer": "balancer",
    "Etcd": "etcd",
    "Members": "watch",
    "Membership": "watch",
    "Participation": "participation",
    "Registration": "registration",
    "StudentRecord": "records",
    "list_nodes": "watch",
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
