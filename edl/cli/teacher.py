"""``edl teacher``: host a model, registered in etcd for as long as it is healthy."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Optional, Union

import click

from edl._endpoints import endpoint_of
from edl.cli.example import example
from edl.cli.progress import progress
from edl.errors import ConfigError

if TYPE_CHECKING:
    from edl.discovery import Etcd, Registration
    from edl.serving.client.entry import Entry
    from edl.serving.server.server import TeacherServer
    from edl.serving.server.tls import ServerTls

logger = logging.getLogger(__name__)

_UPDATE_EVERY = 5.0
_STARTED = round(time.time(), 3)


@click.command(epilog=example("edl teacher --model ./model --etcd 127.0.0.1:2379 --service resnet"))
@click.option("--model", help="Directory (or DIR/NAME prefix) of a Paddle inference model.")
@click.option("--python", help="MODULE:FACTORY of a predictor in Python instead of a model.")
@click.option(
    "--causal-lm", help="Checkpoint directory of a PaddleFormers language model instead of a model."
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32", "float16"]),
    help="What a language model computes in.  [default: its own; float32 on the CPU]",
)
@click.option(
    "--top-k",
    type=int,
    help="Classes, and samples, of a token that may be asked of a language model.  [default: 256]",
)
@click.option(
    "--pad",
    "pads",
    multiple=True,
    help="NAME=NUMBER: rows of this feed or fetch are sequences, short ones are filled up with the "
    "number. Several times for several.",
)
@click.option("--etcd", help="etcd endpoints to register in, comma-separated.")
@click.option("--service", help="Service name to register under.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, help="Port to listen on.  [default: a free one]")
@click.option(
    "--advertise",
    help="Host that students reach this teacher at.  [default: --host, or this machine's address]",
)
@click.option(
    "--ttl", default=10, show_default=True, help="Seconds a dead teacher stays registered."
)
@click.option("--workers", default=0, help="Predictor processes.  [default: one for each device]")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="cpu, gpu, gpu:N, or several: gpu:0,gpu:1. Workers take them in turn.",
)
@click.option(
    "--cpu-threads",
    default=0,
    help="Math threads per worker.  [default: an equal share of the CPUs]",
)
@click.option(
    "--onednn/--no-onednn", default=None, help="oneDNN on the CPU.  [default: Paddle's choice]"
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="fp16 needs a GPU, bf16 a GPU or a CPU with oneDNN and AVX-512.",
)
@click.option("--tensorrt", is_flag=True, help="TensorRT engines on the GPU.")
@click.option("--max-batch-rows", default=64, show_default=True, help="Rows merged into one batch.")
@click.option(
    "--max-batch-tokens",
    default=16384,
    show_default=True,
    help="Tokens of one batch, rows filled up to the longest; where rows are sequences.",
)
@click.option(
    "--max-wait-ms", default=0.0, show_default=True, help="How long a request waits to be merged."
)
@click.option(
    "--max-queued",
    default=1024,
    show_default=True,
    help="Waiting requests beyond which the answer is: busy.",
)
@click.option(
    "--local/--no-local",
    default=True,
    envvar="EDL_LOCAL",
    show_default=True,
    help="A Unix socket and shared memory for students on this machine.",
)
@click.option(
    "--token",
    envvar="EDL_TOKEN",
    help="What clients must show. Better as the environment variable EDL_TOKEN: others on this "
    "machine can read a command line.",
)
@click.option(
    "--tls-cert",
    envvar="EDL_TLS_CERT",
    help="Its certificate, a file in PEM format with those that lead to its authority behind it: "
    "then TLS only is spoken. Read again when it changes.",
)
@click.option("--tls-key", envvar="EDL_TLS_KEY", help="The certificate's key, without a password.")
@click.option(
    "--tls-client-ca",
    envvar="EDL_TLS_CLIENT_CA",
    help="The authorities that sign clients' certificates: clients must have one.",
)
def command(**options: Any) -> None:
    """Host a teacher model behind Paddle Serving's protocol.

    Prints its endpoint when it is ready. On SIGTERM or Ctrl-C it leaves the registry, answers what
    it has accepted, and exits with status 0; a second signal ends it at once.
    """
    if sum(bool(options[kind]) for kind in ("model", "python", "causal_lm")) != 1:
        raise click.UsageError(
            "name a model with --model DIR, a predictor with --python, or a language model with "
            "--causal-lm DIR"
        )
    if options["dtype"] and not options["causal_lm"]:
        raise click.UsageError("--dtype is for --causal-lm; say --precision")
    if options["top_k"] is not None and not options["causal_lm"]:
        raise click.UsageError("--top-k is for --causal-lm; others give as many as are asked for")
    if bool(options["etcd"]) != bool(options["service"]):
        raise click.UsageError("--etcd and --service go together")
    if bool(options["tls_cert"]) != bool(options["tls_key"]):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if options["tls_client_ca"] and not options["tls_cert"]:
        raise click.UsageError("--tls-client-ca needs --tls-cert and --tls-key")
    asyncio.run(_serve(options))


async def _serve(options: dict[str, Any]) -> None:
    from edl.serving.model.predictor import PredictorOptions
    from edl.serving.server.server import ServerOptions, TeacherServer
    from edl.serving.worker.handles import processes

    predictor = PredictorOptions(
        model=options["model"] or "",
        python=options["python"] or "",
        device=options["device"],
        cpu_threads=options["cpu_threads"],
        onednn=options["onednn"],
        precision=options["precision"],
        tensorrt=options["tensorrt"],
        causal_lm=options["causal_lm"] or "",
        dtype=options["dtype"] or "",
        top_k=PredictorOptions.top_k if options["top_k"] is None else options["top_k"],
        pads=dict(map(_pad, options["pads"])),
    )
    server_options = ServerOptions(
        host=options["host"],
        port=options["port"],
        max_batch_rows=options["max_batch_rows"],
        max_batch_tokens=options["max_batch_tokens"],
        max_wait=options["max_wait_ms"] / 1000,
        max_queued=options["max_queued"],
        token=options["token"] or "",
        local=options["local"],
        tls=_tls(options),
    )
    server = TeacherServer(processes(predictor, options["workers"]), server_options)
    stop = _stop_on_signals()
    try:
        await _live(server, options, stop)
    except asyncio.CancelledError:
        raise click.ClickException("stopped at once by a second signal") from None
    finally:
        await server.stop()


def _tls(options: dict[str, Any]) -> Optional[ServerTls]:
    from edl.serving.server.tls import ServerTls

    if not options["tls_cert"]:
        return None
    return ServerTls(options["tls_cert"], options["tls_key"], options["tls_client_ca"] or None)


def _pad(text: str) -> tuple[str, Union[int, float]]:
    """NAME=NUMBER. Raises ConfigError."""
    name, _, number = text.rpartition("=")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if name:
                return name, kind(number)
    raise ConfigError(f"--pad {text!r} is not NAME=NUMBER")


def _stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second cancels the calling task."""
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def on_signal() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, on_signal)
    return stop


async def _live(server: TeacherServer, options: dict[str, Any], stop: asyncio.Event) -> None:
    """Start, register, serve until ``stop``, deregister, drain."""
    starting = asyncio.ensure_future(server.start())
    stopping = asyncio.ensure_future(stop.wait())
    with progress("loading the model"):
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        return
    await starting
    gc.freeze()  # what is there now stays: collecting is for what requests leave behind
    endpoint = endpoint_of(_advertised_host(options), server.port)
    with _registry(options) as etcd:
        registration = await _register(etcd, server, endpoint, options) if etcd else None
        click.echo(f"teacher ready at {endpoint}")
        while not stopping.done():
            await asyncio.wait({stopping}, timeout=_UPDATE_EVERY)
            if registration is not None:
                registration.update(_entry(server).to_json())
                registration.measured(server.engine.rate)
        logger.info("leaving the registry and draining")
        if registration is not None:
            await asyncio.to_thread(registration.stop)
    await server.drain()


def _registry(options: dict[str, Any]) -> contextlib.AbstractContextManager[Optional[Etcd]]:
    """The etcd to register in, if there is one."""
    if not options["etcd"]:
        return contextlib.nullcontext()
    from edl.discovery import Etcd

    return Etcd(options["etcd"])


async def _register(
    etcd: Etcd, server: TeacherServer, endpoint: str, options: dict[str, Any]
) -> Registration:
    from edl.discovery import Registration

    registration = Registration(
        etcd,
        options["service"],
        endpoint,
        _entry(server).to_json(),
        ttl=options["ttl"],
        healthy=lambda: server.healthy,
    )
    await asyncio.to_thread(registration.start)
    return registration


def _entry(server: TeacherServer) -> Entry:
    """What the registry says of the server: what seldom changes, since every student watches it."""
    from edl.serving.client.entry import Entry

    engine = server.engine
    extra: dict[str, Any] = {
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "workers": len(engine.worker_pids),
        "since": _STARTED,
    }
    return Entry(description=engine.description, extra=extra, tls=server.speaks_tls)


def _advertised_host(options: dict[str, Any]) -> str:
    """What students should connect to."""
    host = options["advertise"] or options["host"]
    if host not in ("0.0.0.0", "::"):
        return host
    target: Optional[str] = options["etcd"]
    if target is None:
        return socket.gethostname()
    from edl._endpoints import own_address, parse_etcd_endpoints

    try:
        return own_address(parse_etcd_endpoints(target)[0])
    except OSError as error:
        raise ConfigError(
            f"cannot tell this machine's address; use --advertise: {error}"
        ) from error
