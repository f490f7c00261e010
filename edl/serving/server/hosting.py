"""Hosting a Python function or a layer as a teacher, from inside a program."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np

from edl._endpoints import endpoint_of
from edl.errors import ConfigError, ModelError, WireError
from edl.serving.model.language import LanguagePredictor, halves, is_language_model
from edl.serving.model.layer import evaluating, is_layer, layer_function
from edl.serving.model.predictor import Predictor
from edl.serving.model.preprocess import Preprocess, preprocessed, preprocessing, raw_feeds
from edl.serving.server.server import MakeWorkers, ServerOptions, TeacherServer
from edl.serving.wire.arena import Arena
from edl.serving.wire.description import (
    Description,
    Fetches,
    Specs,
    TensorSpec,
    fetch_names,
    parse_specs,
)
from edl.serving.worker.handles import Worker, WorkerThread


class FunctionPredictor:
    """A function behind the Predictor interface (see ``predictor``)."""

    def __init__(self, function: Callable[..., Any], description: Description) -> None:
        self.description = description
        self._function = function

    def run(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises ModelError if the function returns something else."""
        outputs = _named(self._function(**feeds), list(self.description.fetches))
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


class ServedTeacher:
    """A teacher server on a thread of this process. ``endpoint`` is its address. ``afterwards`` is
    called when it has ended.
    """

    def __init__(
        self,
        make_workers: MakeWorkers,
        options: ServerOptions,
        afterwards: Callable[[], None] = lambda: None,
    ) -> None:
        self._afterwards = afterwards
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
        draining = self._call(self._server.drain())
        try:
            draining.result(patience)
        except concurrent.futures.TimeoutError:
            draining.cancel()
            self._call(self._server.stop()).result()
        self._end()

    def _call(self, coroutine: Any) -> concurrent.futures.Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._afterwards()

    def __enter__(self) -> ServedTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    function: Callable[..., Any],
    feeds: Specs,
    fetches: Fetches,
    *,
    options: Optional[ServerOptions] = None,
    fingerprint: str = "",
    preprocess: Optional[Mapping[str, Preprocess]] = None,
) -> ServedTeacher:
    """Serve a function or a layer to students, from a thread of this process, until it is closed::

        with serve(net, {"img": ((1, 28, 28), "float32")}, ["prob"]) as teacher:
            reader = DistillReader(["img"], ["prob"], source=loader, teachers=[teacher.endpoint])

    ``function``: gets one array for each feed by its name, rows first, several requests' rows
    together, and returns arrays or Paddle tensors with as many rows: one, a tuple in the order of
    ``fetches``, or a dict. A ``paddle.nn.Layer`` gets tensors instead, as the arguments of its
    ``forward`` in the order of ``feeds``, on the device of its parameters. It is computed without
    gradients, and is in evaluation mode until the teacher is closed.
    A causal language model with an ``lm_head`` of its own (as PaddleFormers' are) is served as
    ``edl teacher --causal-lm`` serves one, if its feeds are ``input_ids`` and fetches ``logits``
    and ``hidden_states``.
    ``feeds``: for each name its row shape (-1: any size) and dtype.
    ``fetches``: the same, or names only, as for ``export_model``. Then the function is called once,
    with one row of zeros, to see what it returns.
    It runs on one thread and shares the GIL with the rest of the program; a teacher in production
    is better hosted by ``edl teacher``. ``options``: host, port, token, batching and limits.
    ``fingerprint``: what tells this teacher's model from others under the same service, such as
    "resnet50-v3" (see :class:`Description`); default: made from ``feeds`` and ``fetches``.
    ``preprocess``: for some of the ``feeds``, how raw uint8 images, which are fed then, become what
    the function or layer takes, as for ``export_model``.

    Raises ConfigError if the address is taken, if a shape, a dtype or the fingerprint is none, or
    if names alone do not say enough; ModelError for a language model whose labels are no numbers.
    """
    if not feeds:
        raise ConfigError("a teacher needs at least one feed")
    names = fetch_names(fetches)
    if preprocess:
        raw = raw_feeds(feeds, preprocess)
        wrap = preprocessing if is_layer(function) else preprocessed
        function, feeds = wrap(function, feeds, preprocess), raw
    takes = parse_specs(feeds)
    with contextlib.ExitStack() as stack:
        predictor: Predictor
        if is_layer(function):
            stack.enter_context(evaluating(function))
        if is_layer(function) and is_language_model(function, takes, names):
            predictor = LanguagePredictor(halves(function), fingerprint=fingerprint)
            predictor.test()
        else:
            if is_layer(function):
                function = layer_function(function, list(feeds), names)
            gives = _fetch_specs(function, takes, fetches)
            said = Description(takes, gives, fingerprint=fingerprint)
            predictor = FunctionPredictor(function, said)

        def make_workers(inputs: Arena) -> list[Worker]:
            return [WorkerThread(predictor, inputs)]

        return ServedTeacher(make_workers, options or ServerOptions(), stack.pop_all().close)


async def _start(make_workers: MakeWorkers, options: ServerOptions) -> TeacherServer:
    server = TeacherServer(make_workers, options)
    await server.start()
    return server


def _fetch_specs(
    function: Callable[..., Any], feeds: Mapping[str, TensorSpec], fetches: Fetches
) -> dict[str, TensorSpec]:
    """As they are said, or as the function returns them for one row of zeros."""
    if isinstance(fetches, Mapping):
        return parse_specs(fetches)
    remedy = f'say it, as in {{"{fetches[0]}": ((10,), "float32")}}'
    for name, spec in feeds.items():
        if not spec.has_fixed_size:
            raise ConfigError(
                f"shape and dtype of {', '.join(fetches)} cannot be found out, because rows of "
                f"{name!r} have no fixed size: {remedy}"
            )
    try:
        outputs = _named(function(**{name: spec.zeros() for name, spec in feeds.items()}), fetches)
        arrays = {name: np.asarray(outputs[name]) for name in fetches}
        for name, array in arrays.items():
            if array.shape[:1] != (1,):
                raise ModelError(f"output {name!r} has shape {array.shape} for one row")
    except Exception as error:  # whatever a user's function raises
        raise ConfigError(
            f"a row of zeros does not show shape and dtype of {', '.join(fetches)}: {remedy} "
            f"({type(error).__name__}: {error})"
        ) from error
    return parse_specs(
        {name: (array.shape[1:], str(array.dtype)) for name, array in arrays.items()}
    )


def _named(result: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """What a function returned, by name. Raises ModelError if it is not as many."""
    if isinstance(result, Mapping):
        return result
    values = result if isinstance(result, (tuple, list)) else (result,)
    if len(values) != len(names):
        raise ModelError(
            f"the function returned {len(values)} values for the fetches {', '.join(names)}"
        )
    return dict(zip(names, values))
