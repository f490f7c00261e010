"""``edl label``: fill a store with labels, ahead of training."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import click

from edl.cli.example import example
from edl.cli.options import sparse_label_options
from edl.cli.progress import progress
from edl.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from edl.distill import DistillReader
    from edl.distill.labelling import Blocks, Division

_ETCD = "etcd://"


def _shard(
    _: click.Context, parameter: click.Parameter, text: Optional[str]
) -> Optional[tuple[int, int]]:
    if text is None:
        return None
    number, slash, count = text.partition("/")
    if slash and number.isdigit() and count.isdigit() and int(number) < int(count):
        return int(number), int(count)
    raise click.BadParameter(f"{text!r} is not I/N, as in 0/4 to 3/4")


@click.command(
    epilog=example(
        "edl label --source data:loader --slot img --slot label --predicts logits --top-k 16 \\",
        "    --teachers etcd://127.0.0.1:2379/resnet --store labels/",
    )
)
@click.option(
    "--source",
    required=True,
    metavar="MODULE:FACTORY",
    help="What returns the data: a paddle.io.DataLoader, or an iterable of batches.",
)
@click.option(
    "--slot",
    "ins",
    multiple=True,
    required=True,
    metavar="NAME",
    help="A name for each of the source's slots, in order, as the reader's `ins`.",
)
@click.option("--teachers", required=True, help="Endpoints, or etcd://HOST:PORT/SERVICE.")
@click.option(
    "--predicts", multiple=True, required=True, metavar="NAME", help="A teacher's output."
)
@sparse_label_options("in place of whole outputs")
@click.option("--targets", help="For sparse labels: the slot of target ids.")
@click.option("--lengths", help="The slot of the rows' lengths, or their mask.")
@click.option(
    "--store",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The directory of the labels.",
)
@click.option(
    "--store-key",
    multiple=True,
    metavar="NAME",
    help="A slot by which rows are known.  [default: all that they hold]",
)
@click.option(
    "--store-model",
    metavar="FINGERPRINT",
    help="Take only teachers of this model; also one of which no more is known (specs:...).",
)
@click.option("--store-bytes", type=click.IntRange(1), help="How large the store may become.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How often the data is read, if each epoch has views or draws of its own. The source's, "
    "its dataset's and its sampler's set_epoch are called.",
)
@click.option(
    "--shard",
    callback=_shard,
    metavar="I/N",
    help="Do only every N-th block of batches, from the one of number I on.  [default: processes "
    "of the same service and store share the work in etcd; without etcd all]",
)
@click.option("--teacher-batch-size", type=click.IntRange(1), help="Rows per request at most.")
@click.option("--token", envvar="EDL_TOKEN", default="", help="What teachers want to be shown.")
@click.option(
    "--no-teacher-timeout",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    help="Seconds without any usable teacher, after which it ends.",
)
def command(
    source: str,
    teachers: str,
    shard: Optional[tuple[int, int]],
    epochs: int,
    store: Path,
    **options: Any,
) -> None:
    """Fill a store with labels, ahead of training: all teachers, and no student.

    What is in the store is not asked for, so it can be begun again whenever it ends. Several may
    run at once, on any machines: with teachers in etcd they share the work, and the part of one
    that is killed is taken over by the others after ten seconds.
    """
    from edl.distill import DistillReader
    from edl.distill.labelling import Blocks
    from edl.serving.model.factory import make

    data = make(source, "source")
    options = {**options, "ins": list(options["ins"]), "predicts": list(options["predicts"])}
    options["store_key"] = list(options["store_key"]) or None
    with contextlib.ExitStack() as stack:
        job = _job(source, store, options)
        division = _division(stack, teachers, shard, job)
        blocks = Blocks(data, division)
        reader = stack.enter_context(
            DistillReader(source=blocks.loader, teachers=teachers, store=store, **options)
        )
        _run(reader, blocks, division, epochs)


def _job(source: str, store: Path, options: dict[str, Any]) -> str:
    """A name for what is done, the same for all who do the same."""
    what = [source, str(store.resolve()), sorted((k, repr(v)) for k, v in options.items())]
    return hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest()


def _division(
    stack: contextlib.ExitStack, teachers: str, shard: Optional[tuple[int, int]], job: str
) -> Division:
    from edl.distill.labelling import Shard, Shared

    if shard is not None:
        return Shard(*shard)
    if not teachers.startswith(_ETCD):
        return Shard()
    from edl.discovery import Etcd
    from edl.discovery.claims import Claims
    from edl.distill.teachers import ServiceTeachers, parse_teachers

    where = parse_teachers(teachers)
    if not isinstance(where, ServiceTeachers):
        raise ConfigError(f"{teachers!r} names no service")
    etcd = stack.enter_context(Etcd(where.etcd_endpoints))
    return Shared(stack.enter_context(contextlib.closing(Claims(etcd, where.service, job))))


def _run(reader: DistillReader, blocks: Blocks, division: Division, epochs: int) -> None:
    from edl.distill.labelling import label

    since = time.monotonic()
    with progress("labelling", "batches") as bar:
        for epoch in label(reader, blocks, division, epochs):
            store = reader.stats()["store"]
            if store["full"]:
                raise StoreError(f"no more labels are stored: {store['full']}")
            total = None if blocks.batches is None else blocks.batches * epochs
            done = epoch * (blocks.batches or 0) + blocks.position + 1
            rows = store["hits"] + store["misses"]
            bar.show(done, total, note=f"{rows / (time.monotonic() - since):,.0f} rows/s")
    store = reader.stats()["store"]
    seconds = time.monotonic() - since
    click.echo(
        f"{store['misses']} rows labelled, {store['hits']} were there, in {seconds:.1f} s "
        f"({(store['hits'] + store['misses']) / max(seconds, 1e-9):.0f} rows/s)"
    )
