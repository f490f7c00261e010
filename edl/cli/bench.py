"""``edl bench``: how fast a teacher is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

from edl.cli.example import example
from edl.cli.options import feed_option, feed_spec, form_option, protocol_option
from edl.cli.progress import progress
from edl.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from edl.serving.client.measure import Speed
    from edl.serving.wire.description import Description, TensorSpec

#: An endpoint, and what was measured of it.
Measured = list[tuple[str, "Speed"]]

_BUSY = 0.9
_WIDEST = 400
_COLUMNS = ("clients", "batch", "rows/s", "p50", "p99", "queue", "compute", "wire", "merged")


def _counts(_: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        counts = [int(item) for item in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise click.BadParameter(f"{text!r} is not a list of numbers, as in 1,8,64")
    return list(dict.fromkeys(counts))


@click.command(
    epilog=example("edl bench 127.0.0.1:9292 --batch 1,32 --clients 1,8 --plot speed.png")
)
@click.argument("endpoints", metavar="HOST:PORT...", nargs=-1, required=True)
@click.option(
    "--batch",
    "batches",
    default="1,16,64",
    show_default=True,
    callback=_counts,
    help="Rows in each request.",
)
@click.option(
    "--clients",
    default="1,4",
    show_default=True,
    callback=_counts,
    help="Clients at once; each waits for its answer before it sends the next request.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="How long each is measured.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="FILE.npz with an array for each feed, rows first.  [default: random numbers]",
)
@feed_option(
    "NAME:DTYPE:SHAPE", "The size of a feed that the teacher leaves open, as in ids:int64:128."
)
@click.option(
    "--fetch",
    "fetches",
    multiple=True,
    metavar="NAME",
    help="An output that is asked for, or sparse labels of one, as in 'logits?top_k=64'.  "
    "[default: all]",
)
@click.option(
    "--conf",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="serving_client_conf.prototxt of a server that does not say what it serves.",
)
@protocol_option
@form_option
@click.option("--timeout", default=60.0, show_default=True, help="Seconds an answer may take.")
@click.option("--token", envvar="EDL_TOKEN", default="", help="What the teacher wants to be shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (times in seconds).")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Draw the result: FILE.png, .svg or .pdf. Needs matplotlib.",
)
def command(
    endpoints: tuple[str, ...], as_json: bool, plot: Optional[Path], **options: Any
) -> None:
    """Measure how fast teachers are, by batch size and number of clients.

    Rows per second, how long requests take (half of them, 99 of 100), and, of an edl teacher, where
    their time goes: waiting for a worker, being computed, and on the way. One endpoint after the
    other.
    """
    draw = _drawing(plot)
    measured = _measure(endpoints, options)
    if as_json:
        results = [{"endpoint": name, **dataclasses.asdict(speed)} for name, speed in measured]
        click.echo(json.dumps(results, indent=2))
    else:
        _show(measured)
    if plot is not None:
        draw(measured, plot)


def _drawing(plot: Optional[Path]) -> Callable[[Measured, Path], None]:
    """How to draw; that it cannot be done is said before anything is measured."""
    if plot is None:
        return lambda measured, path: None
    from edl.cli.bench_plot import draw

    return draw


def _measure(endpoints: tuple[str, ...], options: Mapping[str, Any]) -> Measured:
    pairs = [(batch, clients) for clients in options["clients"] for batch in options["batches"]]
    measured: Measured = []
    with progress("measuring", "measurements") as bar:
        for endpoint in endpoints:
            measure_one = _teacher(endpoint, options)
            for batch, clients in pairs:
                doing = f"{endpoint}: {batch} rows, {clients} clients"
                bar.show(len(measured), len(endpoints) * len(pairs), doing=doing)
                measured.append((endpoint, measure_one(batch, clients)))
    return measured


def _teacher(endpoint: str, options: Mapping[str, Any]) -> Callable[[int, int], Speed]:
    """Measures one teacher with so many rows and clients. Raises EdlError if it cannot be."""
    from edl.serving.client.entry import Entry
    from edl.serving.client.health import learn
    from edl.serving.client.measure import given_rows, measure, random_rows, read_counters
    from edl.serving.wire.description import Description

    token, timeout = options["token"], options["timeout"]
    said = Entry(options["protocol"], options["form"], _description(options["conf"]))
    entry = learn(endpoint, said, token, timeout)
    description = entry.description or Description({}, {})
    fetches = list(options["fetches"]) or list(description.fetches)
    known = {**description.feeds, **_label_feeds(fetches, entry.description)}
    needed = {name: spec for name, spec in known.items() if not spec.optional}
    specs = {**needed, **_sizes(options["feeds"], known)}
    if not specs:
        raise ConfigError(
            f"{endpoint} does not say what it serves: give its serving_client_conf.prototxt with "
            "--conf, or its feeds with --feed NAME:DTYPE:SHAPE"
        )
    data = options["data"]
    given = given_rows(specs, _read(data)) if data is not None else None

    def measure_one(batch: int, clients: int) -> Speed:
        return measure(
            lambda: entry.connect(endpoint, token),
            random_rows(specs, batch) if given is None else given,
            fetches,
            batch=batch,
            clients=clients,
            seconds=options["seconds"],
            timeout=timeout,
            counters=lambda: read_counters(endpoint, token, entry.tls),
        )

    return measure_one


def _description(conf: Optional[Path]) -> Optional[Description]:
    if conf is None:
        return None
    from edl.serving.model.prototxt import read_config

    return read_config(conf).describe()


def _label_feeds(
    fetches: list[str], description: Optional[Description]
) -> Mapping[str, TensorSpec]:
    """What sparse labels take beside the model's own feeds. Raises ConfigError for a fetch that the
    teacher does not have, and for labels that its server does not make.
    """
    from edl.serving.wire import labels, narrow
    from edl.serving.wire.fetches import resolve

    feeds: dict[str, TensorSpec] = {}
    if description is None:
        return feeds
    for fetch in fetches:
        name, form = resolve(description, fetch)
        if isinstance(form, narrow.Narrow):
            if not narrow.server_narrows(description):
                raise ConfigError(f"--fetch {fetch}: this server answers in no other dtype")
        elif form is not None:
            if not labels.server_makes_labels(description):
                raise ConfigError(f"--fetch {fetch}: this server makes no sparse labels")
            feeds.update(labels.feed_specs(description.fetches[name], form))
    return feeds


def _sizes(feeds: tuple[str, ...], known: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The feeds that were given. Raises ConfigError for one that the teacher does not have."""
    from edl.serving.wire.description import TensorSpec

    specs = {}
    for name, (shape, dtype) in map(feed_spec, feeds):
        if known and name not in known:
            raise ConfigError(f"--feed {name}: the teacher's feeds are {', '.join(known)}")
        specs[name] = TensorSpec(tuple(shape), dtype)
    return specs


def _read(path: Path) -> dict[str, np.ndarray]:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is not an .npz file of arrays: {error}") from error


def _show(measured: Measured) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    for endpoint in dict.fromkeys(name for name, _ in measured):
        table = Table(title=f"{endpoint} (times in ms)", title_justify="left", box=SIMPLE_HEAD)
        for column in _COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        speeds = [speed for name, speed in measured if name == endpoint]
        for speed in speeds:
            times = (speed.p50, speed.p99, speed.queue, speed.compute, speed.wire)
            table.add_row(
                str(speed.clients),
                str(speed.batch),
                f"{speed.rows_per_second:,.0f}",
                *("" if seconds is None else f"{seconds * 1e3:.2f}" for seconds in times),
                "" if speed.merged is None else f"{speed.merged:.1f}",
            )
        console = Console()
        wide = console.options.update(max_width=_WIDEST)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
        console.print(table)  # figures are not cut off, however narrow the terminal
        for note in _notes(speeds):
            click.echo(note)


def _notes(speeds: list[Speed]) -> list[str]:
    """What to know before these figures are believed."""
    notes = []
    if any(speed.busy > _BUSY for speed in speeds):
        notes.append(
            "This process used a whole CPU in some of these: it may be what was measured. Run a "
            "second one beside it, or fewer clients."
        )
    foreign = sum(speed.foreign or 0 for speed in speeds)
    if foreign:
        notes.append(f"Others had {foreign} requests answered meanwhile; they share these figures.")
    if speeds[0].queue is None:
        notes.append("The server does not say where the time goes; an edl teacher does.")
    return notes
