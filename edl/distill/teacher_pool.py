"""TeacherPool: ask elastic teachers about rows, without a reader."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

from edl._checks import check_count, check_positive
from edl.discovery import CLOSE_WITHIN
from edl.distill.metrics import listen_at, parse_ports
from edl.distill.narrowing import check_wire
from edl.distill.requests import Feeds, Outputs, Requests, in_order, read_feeds
from edl.distill.routing import Share, gather, join_shares, share_out
from edl.distill.running import Running
from edl.distill.settings import (
    Model,
    RequestLimits,
    Settings,
    TeacherSpec,
    check_lengths,
    check_names,
    check_targets,
    label_form,
    parse_models,
    pool_configs,
    predictions_of,
)
from edl.distill.state import Limits
from edl.distill.tensors import as_tensors, convert_predictions
from edl.distill.trace import trace_path
from edl.errors import ConfigError, ReaderError
from edl.serving.model.tokenizer import parse_tokenizer


class TeacherPool:
    """Elastic teachers for students that have no loader to wrap: those that generate first and ask
    then, evaluation, anything that asks about rows whenever it likes.

    ``predicts`` and ``teachers`` are those of :class:`~edl.distill.DistillReader`, and so is what
    is promised: an answer to a request is computed from its own rows, whatever happens to the
    teachers, or it is an EdlError; requests of a teacher that is lost or slow go to another one;
    students share the teachers of a service; all answers are of one model (see
    :meth:`allow_new_model`). Nothing waits without saying why::

        with TeacherPool(["logits"], teachers="etcd://127.0.0.1:2379/resnet_teacher") as pool:
            logits = pool.infer({"img": images})["logits"]

    A request is a dict by the teacher's feeds or, if ``feeds`` names them, a sequence of slots (or
    the only one): numpy arrays, Paddle tensors or what numpy takes, rows first, any number of
    them. What the teacher has no feed for is not sent. Do not change arrays before they are
    answered. An answer is a dict of the predictions, with as many rows.

    All methods may be called from any thread. Nothing is started before the first request. It ends
    with :meth:`close`, at garbage collection, or at interpreter exit, and belongs to the process
    that has made it: one that was forked makes its own.
    """

    def __init__(
        self,
        predicts: Union[Sequence[str], Mapping[str, Sequence[str]]],
        teachers: Union[TeacherSpec, Mapping[str, TeacherSpec], None] = None,
        *,
        feeds: Optional[Sequence[Optional[str]]] = None,
        route: Optional[str] = None,
        teacher_batch_size: Optional[int] = None,
        max_teachers: Optional[int] = None,
        max_outstanding: int = 256,
        limits: Optional[Limits] = None,
        no_teacher_timeout: float = 600.0,
        token: Optional[str] = None,
        tokenizer: Union[str, Path, None] = None,
        serving_conf_file: Optional[str] = None,
        trace: Union[str, Path, None] = None,
        return_tensors: Optional[str] = None,
        top_k: Optional[int] = None,
        temperature: float = 1.0,
        samples: int = 0,
        targets: Optional[str] = None,
        lengths: Optional[str] = None,
        wire: Optional[Mapping[str, str]] = None,
        metrics_port: Union[int, str, None] = None,
    ) -> None:
        """``teachers``: endpoints, or ``etcd://host:port[,...]/service``; or a mapping from a name
        to such. Then ``predicts`` is one list for all or a mapping with the same names.

        ``route``: the name of a feed that has, for each row, the name of the teachers that it goes
        to; the answers come in the rows' order. All must have the same predictions, of one shape
        and dtype. Without it, each row goes to the teachers of every name, and the predictions are
        called ``name.prediction``.
        ``teacher_batch_size``: larger requests are cut to so many rows (default: they are not).
        ``max_teachers``: use at most so many of the teachers found in etcd. ``max_outstanding``:
        requests that may be unanswered at a time (of each name), before :meth:`submit` waits.
        ``limits``: time-outs, hedging and memory, see :class:`~edl.distill.Limits`.
        ``no_teacher_timeout``: seconds of its waiting without any usable teacher, after which a
        request fails with NoTeacherError. ``token``: what teachers want to be shown (or the
        environment variable EDL_TOKEN). ``serving_conf_file``: ``serving_client_conf.prototxt``,
        for teachers that do not say what they serve. ``trace``: a file for a timeline that opens in
        Perfetto (or the environment variable EDL_DISTILL_TRACE; ``{pid}`` is replaced).
        ``return_tensors``: answers as Paddle tensors ("pd") or numpy arrays ("np"); default:
        tensors where a feed of the request is one. ``tokenizer``, ``top_k``, ``temperature``,
        ``samples``, ``targets`` (the name of a request's class ids): sparse labels and language
        models, as of a DistillReader. The same rows get the same samples, always. ``lengths``: the
        name of a request's mask, or of its rows' lengths, by which sequences are trimmed, as of a
        DistillReader. ``wire``: in which narrower dtype feeds and predictions travel, by name, as
        of a DistillReader. ``metrics_port``: serve metrics, as of a DistillReader.
        Raises ConfigError for what cannot work.
        """
        form = label_form(top_k, temperature, samples, targets)
        self._models = parse_models(predicts, teachers, form)
        self._feeds = None if feeds is None else check_names("feeds", feeds)
        self._targets = check_targets(targets, self._feeds, self._models)
        self._lengths = check_lengths(lengths, self._feeds)
        self._wire = check_wire(wire, self._feeds, predictions_of(self._models))
        self._tokenizer = parse_tokenizer(tokenizer) if tokenizer is not None else ""
        self._route = route
        self._check_route()
        if teachers is None and "PADDLE_DISTILL_BALANCE_SERVER" not in os.environ:
            raise ConfigError("a TeacherPool needs teachers: pass teachers=...")
        check_count("max_outstanding", max_outstanding)
        for name, number in (
            ("teacher_batch_size", teacher_batch_size),
            ("max_teachers", max_teachers),
        ):
            if number is not None:
                check_count(name, number)
        check_positive("no_teacher_timeout", no_teacher_timeout, least=0)
        if serving_conf_file is not None and not os.path.isfile(serving_conf_file):
            raise ConfigError(f"serving conf file {serving_conf_file!r} does not exist")
        self._as_tensors = as_tensors(return_tensors, None)
        self._task_rows = teacher_batch_size or 1 << 30
        self._max_teachers = max_teachers
        self._max_outstanding = max_outstanding
        self._limits = limits or Limits()
        self._no_teacher_timeout = no_teacher_timeout
        self._token = token
        self._conf_file = serving_conf_file
        self._trace_path = trace
        self._metrics_port = metrics_port
        if metrics_port is not None:
            parse_ports("metrics_port", metrics_port)
        self._pid = os.getpid()
        self._starting = threading.RLock()  # a finalizer may use pools in the midst of it
        self._closed = False
        self._running: Optional[Running] = None
        self._requests: dict[str, Requests] = {}

    def _check_route(self) -> None:
        if self._route is None:
            return
        if not isinstance(self._route, str) or not self._route:
            raise ConfigError(f"route must be the name of a feed, not {self._route!r}")
        if not self._models[0].name:
            raise ConfigError("route needs teachers by name: a mapping from each tag to teachers")
        first, *others = self._models
        for model in others:
            if set(model.predicts) != set(first.predicts):
                raise ConfigError(
                    f"rows that are routed need the same predictions of all teachers: {first.name} "
                    f"has {', '.join(first.predicts)}, {model.name} {', '.join(model.predicts)}"
                )
        if self._feeds is not None and self._route not in self._feeds:
            raise ConfigError(f"route is {self._route!r}, which is not among feeds: {self._feeds}")

    # --- asking -----------------------------------------------------------------------------

    def submit(self, feeds: Any, timeout: Optional[float] = None) -> Future[dict[str, Any]]:
        """Ask about the rows of ``feeds``; the future of the answer, a dict from each prediction to
        its array or tensor.

        Waits while ``max_outstanding`` requests are unanswered or ``Limits.max_bytes`` are held,
        and logs every few seconds for what; for ``timeout`` seconds at most (0: not at all), by
        default until there is room or the pool is closed. A future that is cancelled is withdrawn;
        its callbacks run where answers are handed out, and have to be quick: there ``submit`` does
        not wait.

        Raises SourceError for rows that cannot be sent, PoolFull when the time is over, ReaderError
        if the pool was closed or belongs to another process; at the first request also ConfigError
        or DiscoveryError, if looking for teachers cannot be begun. The future raises: SourceError
        for values that the teacher's feed cannot hold or a feed that is missing; BatchRefused for
        rows that teachers refuse; NoTeacherError when there has been no teacher to work for
        ``no_teacher_timeout`` seconds while it waited; ReaderError if no teacher fits, or the pool
        was closed before.
        """
        requests = self._started()
        if timeout is not None:
            check_positive("timeout", timeout, least=0)
        elif any(pool.handing_out for pool in requests.values()):
            timeout = 0.0
        until = math.inf if timeout is None else time.monotonic() + timeout
        rows = read_feeds(feeds, self._feeds)
        if self._route is not None:
            return self._submit_by_tag(rows, requests, self._route, until)
        if len(self._models) > 1:
            return self._submit_to_all(rows, requests, until)
        (model,) = self._models
        finish = partial(_named, model, self._wants_tensors(rows))
        return requests[model.name].submit(rows, finish, until)

    def infer(self, feeds: Any) -> dict[str, Any]:
        """Ask about the rows of ``feeds``, and wait for the answer. Raises what :meth:`submit` and
        its future raise.
        """
        since = time.monotonic()
        self._refuse_to_wait(self._started())
        future = self.submit(feeds)
        try:
            return future.result()
        finally:
            future.cancel()  # if waiting was interrupted
            del future  # which has its error, which has this frame
            self._note_wait("infer", since)

    def map(self, iterable: Iterable[Any], *, ahead: Optional[int] = None) -> Iterator[dict]:
        """The answers to requests, in their order.

        ``iterable`` is read in the thread that iterates over the answers, a little ahead of it, as
        far as teachers have room and finished answers are less than ``Limits`` say (``high_*``);
        with ``ahead``, at most so many requests beyond the one that is waited for. An error of a
        request, or of ``iterable``, comes in its turn and ends it. When it is left early, what was
        asked ahead is withdrawn. Raises ConfigError for an ``ahead`` that is no number.
        """
        if ahead is not None:
            check_count("ahead", ahead, 0)
        requests = self._started()
        self._refuse_to_wait(requests)

        def wanted() -> bool:
            return all(pool.wanted for pool in requests.values())

        return self._noting(in_order(iterable, self.submit, wanted, self._limits, ahead))

    def _submit_by_tag(
        self, rows: Feeds, requests: Mapping[str, Requests], route: str, until: float
    ) -> Future[Any]:
        shares = share_out(rows.named(route), list(requests), route)
        if len(shares) == 1:
            finish = partial(_convert, self._wants_tensors(rows))
            return requests[shares[0].name].submit(rows, finish, until)
        parts = {share.name: rows.select(share.rows) for share in shares}
        futures = _submit_each(parts, requests, until)
        return gather(futures, partial(_joined, shares, rows.rows, self._wants_tensors(rows)))

    def _submit_to_all(
        self, rows: Feeds, requests: Mapping[str, Requests], until: float
    ) -> Future[Any]:
        futures = _submit_each(dict.fromkeys(requests, rows), requests, until)
        return gather(futures, partial(_all_named, self._models, self._wants_tensors(rows)))

    def _wants_tensors(self, rows: Feeds) -> bool:
        return rows.tensors if self._as_tensors is None else self._as_tensors

    def _refuse_to_wait(self, requests: Mapping[str, Requests]) -> None:
        if any(pool.handing_out for pool in requests.values()):
            raise ReaderError(
                "a future's callback runs where answers are handed out, and would wait for itself: "
                "use submit there"
            )

    # --- one model --------------------------------------------------------------------------

    def allow_new_model(self) -> None:
        """Let the answers from now on be of another model, if no teacher that is known has the
        present one any more: call it where the answers before and after need not be of one model,
        such as between epochs. Until then requests wait for teachers of the model that has given
        the first answer.
        """
        self._check_process()
        if self._running is not None:
            for pool in self._running.pools:
                pool.unbind()

    # --- sight ------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """What has happened since the first request; empty before. Plain values.

        ``requests``, ``rows``, ``bytes`` answered (bytes: feeds and answers); ``outstanding``:
        requests that are not; the others are those of DistillReader.stats. With teachers by name: a
        dict of such by name.
        """
        if self._running is None:
            return {}
        stats = self._running.stats()
        return stats if self._models[0].name else stats[""]

    @property
    def metrics_endpoint(self) -> Optional[str]:
        """The ``host:port`` at which metrics are served now, if they are: ``/metrics`` there."""
        return None if self._running is None else self._running.metrics_endpoint

    def _note_wait(self, what: str, since: float) -> None:
        running = self._running
        if running is not None and running.trace is not None:
            thread = threading.current_thread().name
            running.trace.span(f"student {thread}", what, since, time.monotonic())

    def _noting(self, answers: Iterator[dict]) -> Iterator[dict]:
        with contextlib.closing(answers):  # type: ignore[type-var]
            since = time.monotonic()
            for answer in answers:
                self._note_wait("map", since)
                yield answer
                del answer
                since = time.monotonic()

    # --- start and end ----------------------------------------------------------------------

    def close(self) -> None:
        """End all threads and connections, within a second or so. Requests that are not answered
        yet fail with ReaderError, and so do later ones. In a process that was forked it does
        nothing.
        """
        if self._pid != os.getpid():
            return
        self._closed = True  # without the lock: this may be called in the midst of anything
        deadline = time.monotonic() + CLOSE_WITHIN
        if self._running is not None:
            self._running.close()
        for pool in self._requests.values():
            pool.join(deadline - time.monotonic())

    def __enter__(self) -> TeacherPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ReaderError(
                f"this TeacherPool was made by process {self._pid}, and connections do not survive "
                "a fork: make one in this process"
            )

    def _started(self) -> dict[str, Requests]:
        """The requests to the teachers of each name; begun now if need be."""
        self._check_process()
        with self._starting:
            if self._running is None and not self._closed:
                self._start()
                if self._closed:  # meanwhile, by somebody who saw nothing that could be ended
                    self.close()
        if self._closed:
            raise ReaderError("this TeacherPool was closed")
        return self._requests

    def _start(self) -> None:
        configs = pool_configs(self._models, self._settings())
        trace, listen = trace_path(self._trace_path), listen_at(self._metrics_port)
        running = Running(self._models, configs, trace, listen=listen)
        try:
            pools = zip(self._models, running.pools)
            self._requests = {model.name: Requests(pool) for model, pool in pools}
        except BaseException:  # such as: no thread can be started
            running.close()
            raise
        running.watch(self)
        self._running = running

    def _settings(self) -> Settings:
        return Settings(
            slots=self._feeds,
            task_rows=self._task_rows,
            limits=self._limits,
            no_teacher_timeout=self._no_teacher_timeout,
            max_teachers=self._max_teachers,
            token=self._token,
            conf_file=self._conf_file,
            targets=self._targets,
            tokenizer=self._tokenizer,
            lengths=self._lengths,
            wire=self._wire,
            requests=RequestLimits(self._max_outstanding),
        )


def _submit_each(
    parts: Mapping[str, Feeds], requests: Mapping[str, Requests], until: float
) -> list[Future[Any]]:
    """Each part to the teachers of its name; none, if one of them cannot be."""
    futures: list[Future[Any]] = []
    try:
        for name, part in parts.items():
            futures.append(requests[name].submit(part, dict, until))
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return futures


# What is done with answers when they come. None of these holds the pool, whose end is to be noticed
# while requests are outstanding.


def _convert(tensors: bool, outputs: Outputs) -> dict[str, Any]:
    return convert_predictions(outputs, (), tensors)


def _named(model: Model, tensors: bool, outputs: Outputs) -> dict[str, Any]:
    return _convert(tensors, {model.column(name): array for name, array in outputs.items()})


def _all_named(models: Sequence[Model], tensors: bool, answers: list[Outputs]) -> dict[str, Any]:
    return {
        name: value
        for model, outputs in zip(models, answers)
        for name, value in _named(model, tensors, outputs).items()
    }


def _joined(
    shares: Sequence[Share], rows: int, tensors: bool, answers: list[Outputs]
) -> dict[str, Any]:
    return _convert(tensors, join_shares(shares, answers, rows))
