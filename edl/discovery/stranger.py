"""Whether it is something else that listens where etcd should be."""

from __future__ import annotations

import socket

import grpc

_CONNECT_WITHIN = 0.5
_BALANCE_PORT = 7001  # the original's default
_ADVICE = (
    "; the balance server of the original paddle_edl has no place here: give "
    "the address of etcd itself (its port is 2379)"
)


def stranger(address: tuple[str, int], error: BaseException) -> str:
    """What is to be said besides ``error``, which a call to etcd at ``address`` ended with: that
    something is there which is not etcd. Empty if nothing is, or if it is etcd.
    """
    failure = error if isinstance(error, grpc.RpcError) else error.__context__  # of etcd3's own
    if not isinstance(failure, grpc.Call) or "etcdserver" in (failure.details() or ""):
        return ""
    host, port = address
    if failure.code() == grpc.StatusCode.UNIMPLEMENTED:
        return f". What listens at {host}:{port} is not etcd{_ADVICE}"
    silent = failure.code() == grpc.StatusCode.DEADLINE_EXCEEDED and port == _BALANCE_PORT
    if (silent or failure.code() == grpc.StatusCode.UNAVAILABLE) and _listens(address):
        return f". Something listens at {host}:{port}, but does not speak as etcd does{_ADVICE}"
    return ""


def _listens(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, _CONNECT_WITHIN):
            return True
    except (OSError, ValueError):  # ValueError: a name that can be none
        return False
