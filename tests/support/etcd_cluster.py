"""Several etcd processes that make up a cluster, or one with options of its own."""

import signal
from pathlib import Path

from edl import _process
from edl.discovery import Etcd
from edl.discovery.embedded import etcd_binary, free_port
from tests.support.processes import eventually


class Member:
    def __init__(self, name, directory, client_port, peer_port, peers, *options, scheme="http"):
        self.endpoint = f"127.0.0.1:{client_port}"
        self.data = Path(directory) / name
        client, peer = f"{scheme}://{self.endpoint}", f"http://127.0.0.1:{peer_port}"
        self._command = [
            str(etcd_binary()),
            *("--name", name, "--data-dir", str(self.data)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", peers, "--log-level", "error", "--unsafe-no-fsync"),
            *("--heartbeat-interval", "50", "--election-timeout", "500", *options),
        ]
        self.process = None

    def start(self):
        self.process = _process.start(self._command)

    def kill(self, signum=signal.SIGKILL):
        self.process.send_signal(signum)
        if signum == signal.SIGKILL:
            self.process.wait()

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Cluster:
    """``size`` members. Use as a context manager."""

    def __init__(self, directory, size=3):
        ports = [(free_port(), free_port()) for _ in range(size)]
        peers = ",".join(f"m{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(ports))
        self.members = [
            Member(f"m{n}", directory, client, peer, peers)
            for n, (client, peer) in enumerate(ports)
        ]

    @property
    def endpoints(self):
        return ",".join(member.endpoint for member in self.members)

    def leader(self):
        """The member that leads the others."""
        with Etcd(self.endpoints, timeout=1.0) as etcd:
            name = etcd.call(lambda client: client.status()).leader.name
        return next(member for member in self.members if member.data.name == name)

    def __enter__(self):
        for member in self.members:
            member.start()
        for member in self.members:
            eventually(lambda one=member: answers(one), 30)
        return self

    def __exit__(self, *_):
        for member in self.members:
            member.close()


def answers(member, **options):
    try:
        with Etcd(member.endpoint, timeout=1.0, **options) as etcd:
            etcd.call(lambda client: client.get("/"))
            return True
    except Exception:
        return False
