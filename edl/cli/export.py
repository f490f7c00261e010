"""``edl export``: write a model as Paddle Serving's two directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import click

from edl.cli.example import example
from edl.cli.options import feed_option, feed_spec, sparse_label_options
from edl.cli.progress import progress
from edl.errors import ConfigError

if TYPE_CHECKING:
    from edl.serving.model.preprocess import Preprocess

#: What ``export_model`` alone can do, as it is when nothing is said.
_NO_OPTIONS = {"pdmodel": False, "top_k": None, "temperature": 1.0, "samples": 0, "preprocess": ()}


@click.command(
    epilog=example(
        "edl export --layer nets:ResNet --weights net.pdparams --out ./model \\",
        "    --feed img:float32:3,224,224 --fetch prob",
    )
)
@click.option("--model", help="An inference model: a directory or DIR/NAME prefix.")
@click.option("--layer", help="MODULE:FACTORY of a paddle.nn.Layer, instead of --model.")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The layer's parameters: what paddle.save(layer.state_dict(), FILE) wrote.",
)
@feed_option(
    "NAME[:DTYPE:SHAPE]",
    "A name for each input, in order; with a layer also its kind, as in img:float32:3,224,224 "
    "(no batch dimension).",
)
@click.option(
    "--fetch",
    "fetches",
    multiple=True,
    help="A name for each output, in order; with a layer also a form of sparse labels of it, as in "
    "'logits?top_k=64'.",
)
@sparse_label_options("in place of the layer's outputs")
@click.option(
    "--preprocess",
    multiple=True,
    metavar="NAME[:KEY=VALUE]...",
    help="A feed that takes raw uint8 images, which the program normalises: scale (1/255), mean, "
    "std (each a number, or one for each channel) and layout (HWC, or CHW), as in "
    "img:mean=0.485,0.456,0.406:std=0.229,0.224,0.225. --feed says what the layer takes.",
)
@click.option("--pdmodel", is_flag=True, help="A program of Paddle 2, for Paddle Serving 0.9.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where serving_server and serving_client go.",
)
def command(
    model: Optional[str],
    layer: Optional[str],
    weights: Optional[Path],
    feeds: tuple[str, ...],
    fetches: tuple[str, ...],
    out: Path,
    **options: Any,
) -> None:
    """Write a model as Paddle Serving's two directories, with the names that students say.

    `edl teacher --model OUT` hosts it; so do Paddle Serving's own servers, if it is a .pdmodel.
    """
    if bool(model) == bool(layer):
        raise click.UsageError("name an inference model with --model, or a layer with --layer")
    if layer:
        if not feeds or not fetches:
            raise click.UsageError("a layer needs --feed NAME:DTYPE:SHAPE and --fetch NAME")
        from edl.serving.model.export import export_model

        specs = dict(feed_spec(feed) for feed in feeds)
        options["preprocess"] = dict(map(_preprocess, options["preprocess"]))
        with progress("exporting"):
            files = export_model(_make(layer, weights), out, specs, fetches, **options)
    else:
        if weights or options != _NO_OPTIONS:
            raise click.UsageError(
                "--weights, --pdmodel, --preprocess, --top-k, --temperature and --samples go with "
                "--layer"
            )
        from edl.serving.model.export import export_inference_model

        assert model is not None
        with progress("exporting"):
            files = export_inference_model(model, out, list(feeds) or None, list(fetches) or None)
    click.echo(f"exported {files.program}")


def _preprocess(text: str) -> tuple[str, Preprocess]:
    """A feed, and how raw images become what it is. Raises BadParameter, or ConfigError for numbers
    that cannot be.
    """
    from edl.serving.model.preprocess import Preprocess

    name, *items = text.split(":")
    said: dict[str, Any] = {}
    for item in items:
        key, _, value = item.partition("=")
        try:
            if key == "layout":
                said[key] = value
            elif key in ("mean", "std") and "," in value:
                said[key] = [float(number) for number in value.split(",")]
            elif key in ("scale", "mean", "std"):
                top, _, bottom = value.partition("/")
                said[key] = float(top) / float(bottom or 1)
            else:
                raise ValueError
        except (ValueError, ZeroDivisionError):
            raise click.BadParameter(
                f"{item!r} is none of scale=N, mean=N,N,N, std=N,N,N and layout=HWC",
                param_hint="--preprocess",
            ) from None
    return name, Preprocess(**said)


def _make(target: str, weights: Optional[Path]) -> Any:
    from edl._paddle import import_paddle
    from edl.serving.model.factory import make

    paddle = import_paddle("exporting a model")
    layer = make(target, "layer")
    if weights is not None:
        state = paddle.load(str(weights))
        missing, unexpected = layer.set_state_dict(state)
        if missing or unexpected:
            raise ConfigError(
                f"{weights} does not fit {target}: missing {', '.join(missing) or 'nothing'}, "
                f"unexpected {', '.join(unexpected) or 'nothing'}"
            )
    return layer
