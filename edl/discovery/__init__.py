"""Who is alive: teachers in etcd, with leases and watches. Knows nothing of tensors."""

from edl.discovery.etcd import Etcd
from edl.discovery.membership import Members, Membership
from edl.discovery.registry import Registration, list_nodes

__all__ = ["Etcd", "Members", "Membership", "Registration", "list_nodes"]
