"""What the programs of the original ``paddle_edl`` 0.3.1 have become, for those who start one.

Each module that was started with ``python -m`` is still there, under ``edl`` and under
``paddle_edl``, and ends with this answer: what has taken its place, what each of its flags is now,
and the command to run instead, with the values that were given. Exit status 2.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, NoReturn

Values = argparse.Namespace

_BALANCE_PORT = 7001
_REGISTERS = "`edl register`: it keeps servers in etcd for as long as they are healthy."
_BALANCES = (
    "nothing is needed. Students find teachers in etcd and elect one of themselves to share them "
    "out.\nGive readers etcd's address where this server's was (set_dynamic_teacher, or "
    "PADDLE_DISTILL_BALANCE_SERVER)."
)
_NO_REDIS = "--etcd: etcd's address (port 2379), which has taken Redis's place; `edl etcd` runs one"
_PASSWORD = "the environment variables EDL_ETCD_USER and EDL_ETCD_PASSWORD"
_ALWAYS_ETCD = "not needed: the registry is etcd"


@dataclass(frozen=True)
class _Program:
    """One program: what has taken its place, its flags (default, what each is now), and what to
    run instead of it.
    """

    successor: str
    flags: dict[str, tuple[str, str]]
    command: Callable[[Values], str]
    script: bool = False


def answer(program: str) -> NoReturn:
    """Say what has taken the place of ``program``, started with ``sys.argv``, and exit."""
    sys.stderr.write(translate(program, sys.argv[1:]))
    sys.exit(2)


def translate(program: str, arguments: Sequence[str]) -> str:
    """The answer, as text. Exits as argparse does if ``arguments`` are not the program's."""
    known = _PROGRAMS[program]
    parser = argparse.ArgumentParser(prog=program, add_help=False)
    for flag, (default, _) in known.flags.items():
        if flag == "--use_paddlecloud":
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, default=default)
    if known.script:
        parser.add_argument("script", nargs=argparse.REMAINDER)
    values, _ = parser.parse_known_args(arguments)
    width = max(map(len, known.flags))
    lines = [
        f"{program} is a program of the original paddle_edl. In its place: {known.successor}",
        *(f"  {flag:{width}}  {now}" for flag, (_, now) in known.flags.items()),
        "Run instead:",
        f"  {known.command(values)}",
    ]
    return "\n".join(lines) + "\n"


def _register(values: Values, etcd: str) -> str:
    service, server = values.service_name or "SERVICE", values.server or "HOST:PORT"
    command = ["edl", "register", "--etcd", etcd, "--service", service, "--server", server]
    return _with_password(values, command)


def _balance(values: Values, etcd: str) -> str:
    command = _with_password(values, ["edl", "balancer", "--etcd", etcd, "--service", "SERVICE"])
    return f"{command}    # if you want it in a process of its own; otherwise nothing"


def _with_password(values: Values, command: list[str]) -> str:
    shown = shlex.join(command)
    return f"EDL_ETCD_USER=... EDL_ETCD_PASSWORD=... {shown}" if values.db_passwd else shown


def _launch(values: Values) -> str:
    hosts = [host.strip() for host in values.cluster_node_ips.split(",")]
    command = ["edl", "launch"]
    if len(hosts) > 1:
        master = f"{hosts[0]}:{values.started_port or 6170}"
        command += ["--nnodes", str(len(hosts)), "--master", master, "--host", values.node_ip]
    elif values.started_port:
        command += ["--start_port", values.started_port]
    if values.selected_gpus:
        command += ["--devices", values.selected_gpus]
    if values.log_dir:
        command += ["--log_dir", values.log_dir]
    if values.log_level.isdigit() and int(values.log_level) != logging.INFO:
        command += ["--log_level", logging.getLevelName(int(values.log_level))]
    return shlex.join([*command, *(values.script or ["train.py"])])


def _registers(port: int, endpoints: str, etcd: Callable[[Values], str]) -> _Program:
    return _Program(
        _REGISTERS,
        {
            "--db_endpoints": (f"127.0.0.1:{port}", endpoints),
            "--service_name": ("", "--service"),
            "--server": ("", "--server"),
            "--db_passwd": ("", _PASSWORD),
            "--db_type": ("", _ALWAYS_ETCD),
            "--service_token": ("", "not needed: it had no effect"),
        },
        lambda values: _register(values, etcd(values)),
    )


def _balances(host: str, port: int, endpoints: str, etcd: Callable[[Values], str]) -> _Program:
    return _Program(
        _BALANCES,
        {
            "--server": (f"{host}:{_BALANCE_PORT}", "not needed: nobody has to reach a balancer"),
            "--worker_num": ("1", "not needed"),
            "--db_endpoints": (f"127.0.0.1:{port}", endpoints),
            "--db_passwd": ("", _PASSWORD),
            "--db_type": ("", _ALWAYS_ETCD),
        },
        lambda values: _balance(values, etcd(values)),
    )


_MEETS_IN_ETCD = (
    "nothing is needed. The nodes of a job find each other in etcd (`edl etcd` runs one), and may "
    "come and go:\nstart `edl launch` on each."
)
_JOB = ["edl", "launch", "--master", "etcd://HOST:2379", "--nnodes", "1:8"]


def _job(values: Values) -> str:
    return shlex.join([*_JOB, "--log_dir", values.log_dir, *(values.script or ["train.py"])])


_PROGRAMS = {
    "discovery.register": _registers(2379, "--etcd", lambda values: values.db_endpoints),
    "distill.redis.server_register": _registers(6379, _NO_REDIS, lambda _: "HOST:2379"),
    "distill.discovery_server": _balances(
        "127.0.0.1", 2379, "--etcd", lambda values: values.db_endpoints
    ),
    "distill.redis.balance_server": _balances("0.0.0.0", 6379, _NO_REDIS, lambda _: "HOST:2379"),
    "collective.launch": _Program(
        "`edl launch`: Paddle's own launcher (paddle.distributed.launch), with etcd if you like.",
        {
            "--cluster_node_ips": ("127.0.0.1", "--nnodes, and --master with the first one"),
            "--node_ip": ("127.0.0.1", "--host"),
            "--started_port": ("", "--start_port; of several nodes, the port of --master"),
            "--selected_gpus": ("", "--devices"),
            "--log_level": ("20", "--log_level, by name: INFO"),
            "--log_dir": ("", "--log_dir"),
            "--print_config": ("", "not needed"),
            "--use_paddlecloud": ("", "not needed"),
            "--hdfs_name": ("", "not needed: write checkpoints where all nodes can read them"),
            "--hdfs_ugi": ("", "not needed"),
            "--hdfs_path": ("", "not needed"),
        },
        _launch,
        script=True,
    ),
    "collective.http_store": _Program(
        _MEETS_IN_ETCD,
        {"--host": ("", "not needed"), "--port": ("", "not needed")},
        lambda _: shlex.join([*_JOB, "train.py"]),
    ),
    "demo.collective.job_server_demo": _Program(
        _MEETS_IN_ETCD,
        {
            "--node_ips": ("", "not needed: each node says of itself that it is there"),
            "--gpu_num_of_node": ("8", "--devices of `edl launch`, on each node"),
            "--pod_num_of_node": ("1", "not needed"),
            "--del_pods_one_step": ("1", "not needed: end a launcher"),
            "--add_pods_one_step": ("1", "not needed: start a launcher"),
            "--time_interval_to_change": ("900", "not needed"),
            "--server_port": ("8180", "the port of etcd in --master of `edl launch`"),
        },
        lambda _: shlex.join([*_JOB, "train.py"]),
    ),
    "demo.collective.job_client_demo": _Program(
        "`edl launch`: Paddle's own launcher, which restarts a job when nodes come and go.",
        {
            "--log_level": ("20", "--log_level, by name: INFO"),
            "--log_dir": ("pod_log", "--log_dir"),
            "--package_sh": ("", "not needed: run it before the launcher"),
            "--pod_path": ("", "not needed"),
        },
        _job,
        script=True,
    ),
}
