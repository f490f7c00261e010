"""Who is alive and who works for whom: ``edl.discovery``, at the top of the repository."""

from edl.discovery import (
    Balancer,
    Etcd,
    Members,
    Membership,
    Participation,
    Registration,
    StudentRecord,
    list_nodes,
)

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
