"""Hosting a Python function as a teacher, from inside a program."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np

from edl.errors import ConfigError, ModelError, WireError
from edl.serving.server.server import MakeWorkers, ServerOptions, TeacherServer, endpoint_of
from edl.serving.wire.description import Description, TensorSpec
from edl.serving.worker.arena import Arena
from edl.serving.worker.handles import Worker, WorkerThread

Specs = Mapping[str, tuple[Sequence[int], str]]


class FunctionPredictor:
    """A function behind the Predictor interface (see ``predictor``)."""

    def __init__(self, function: Callable[..., Any], description: Description) -> None:
        self.description = description
        self._function = function

    def run(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises ModelError if the function returns something else."""
        outputs = self._named(self._function(**feeds))
        arrays = {}
        for name in fetches:
            if name not in outputs:
                raise ModelError(f"the function returned {', '.join(outputs)}, but no {name!r}")
            spec = self.description.fetches[name]
            try:
                arrays[name] = spec.conform(np.asarray(outputs[name]))
            except WireError as error:
                raise ModelError(f"output {name!r}: {error}") from error
            wrong = spec.mismatch(arrays[name])
            if wrong:
                raise ModelError(f"output {name!r}: {wrong}")
        return arrays

    def _named(self, result: Any) -> Mapping[str, Any]:
        if isinstance(result, Mapping):
            return result
        values = result if isinstance(result, (tuple, list)) else (result,)
        names = list(self.description.fetches)
        if len(values) != len(names):
            raise ModelError(
                f"the function returned {len(values)} values for the fetches {', '.join(names)}"
            )
        return dict(zip(names, values))


class ServedTeacher:
    """A teacher server on a thread of this process. ``endpoint`` is its address."""

    def __init__(self, make_workers: MakeWorkers, options: ServerOptions) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="edl-teacher", daemon=True
        )
        self._thread.start()
        try:
            self._server = self._call(_start(make_workers, options)).result()
        except BaseException:
            self._end()
            raise
        self.endpoint = endpoint_of(options.host, self._server.port)

    def close(self, patience: float = 30.0) -> None:
        """Answer what has been accepted, within ``patience`` seconds, and stop."""
        if not self._thread.is_alive():
            return
        try:
            self._call(self._server.drain()).result(patience)
        except concurrent.futures.TimeoutError:
            self._call(self._server.stop()).result()
        self._end()

    def _call(self, coroutine: Any) -> concurrent.futures.Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> ServedTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    function: Callable[..., Any],
    feeds: Specs,
    fetches: Specs,
    *,
    options: Optional[ServerOptions] = None,
    fingerprint: str = "",
) -> ServedTeacher:
    """Serve ``function`` to students, from a thread of this process, until it is closed::

        with serve(net, {"img": ((1, 28, 28), "float32")}, {"prob": ((10,), "float32")}) as teacher:
            reader = DistillReader(["img"], ["prob"], source=loader, teachers=[teacher.endpoint])

    ``feeds``, ``fetches``: for each name its row shape (-1: any size) and dtype. The function gets
    one array for each feed by its name, rows first, several requests' rows together, and returns
    arrays or Paddle tensors with as many rows: one, a tuple in the order of ``fetches``, or a dict.
    It runs on one thread and shares the GIL with the rest of the program; a teacher in production
    is better hosted by ``edl teacher``. ``options``: host, port, token, batching and limits.
    ``fingerprint``: what tells this teacher's model from others under the same service, such as
    "resnet50-v3" (see :class:`Description`); default: made from ``feeds`` and ``fetches``.

    Raises ConfigError if the address is taken, or a shape, a dtype or the fingerprint is none.
    """
    if not fetches or not feeds:
        raise ConfigError("a teacher needs at least one feed and one fetch")
    options = options or ServerOptions()
    description = Description(_specs(feeds), _specs(fetches), fingerprint=fingerprint)
    predictor = FunctionPredictor(function, description)

    def make_workers(inputs: Arena) -> list[Worker]:
        return [WorkerThread(predictor, inputs)]

    return ServedTeacher(make_workers, options)


async def _start(make_workers: MakeWorkers, options: ServerOptions) -> TeacherServer:
    server = TeacherServer(make_workers, options)
    await server.start()
    return server


def _specs(specs: Specs) -> dict[str, TensorSpec]:
    result = {}
    for name, (shape, dtype) in specs.items():
        try:
            result[name] = TensorSpec(tuple(shape), dtype)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{name!r}: {error}") from error
    return result
