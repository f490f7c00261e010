"""A picture of what ``edl bench`` has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edl.cli.bench import Measured
from edl.errors import ConfigError, MissingDependencyError

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingDependencyError(
        f"--plot needs matplotlib: pip install 'paddle-edl[plot]' ({error})"
    ) from error

_PARTS = {"wire": "#9ecae1", "queue": "#fdae6b", "compute": "#3182bd"}


def draw(measured: Measured, path: Path) -> None:
    """Rows per second by batch size, and where the time of a request goes. Raises ConfigError if
    the file cannot be written, or is of no known kind.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rates, times = figure.subplots(1, 2)
    _draw_rates(rates, measured)
    _draw_times(times, measured)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot draw {path}: {error}") from error


def _draw_rates(axes: Any, measured: Measured) -> None:
    """A line for each teacher and number of clients."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for endpoint, speed in measured:
        label = f"{endpoint}, clients: {speed.clients}"
        lines.setdefault(label, []).append((speed.batch, speed.rows_per_second))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points)), marker="o", label=label)
    axes.set(xlabel="rows in a request", ylabel="rows per second", xscale="log", ylim=(0, None))
    batches = sorted({speed.batch for _, speed in measured})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_times(axes: Any, measured: Measured) -> None:
    """A bar for each measurement: the mean in its parts, or the median where they are unknown."""
    labels = [f"{speed.clients} x {speed.batch}" for _, speed in measured]
    places = range(len(measured))
    left = [0.0] * len(measured)
    for part, color in _PARTS.items():
        widths = [1e3 * (getattr(speed, part) or 0.0) for _, speed in measured]
        axes.barh(places, widths, left=left, color=color, label=part)
        left = [start + width for start, width in zip(left, widths)]
    unknown = [0.0 if speed.queue is not None else 1e3 * speed.p50 for _, speed in measured]
    axes.barh(places, unknown, color="#bdbdbd", label="unknown" if any(unknown) else None)
    axes.plot([1e3 * speed.p99 for _, speed in measured], places, "k|", label="p99")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set(xlabel="ms per request", ylabel="clients x rows")
    axes.legend()
