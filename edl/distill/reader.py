"""DistillReader: a data reader that hands back every batch with the teachers' soft labels."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from edl.distill.batches import join_parts, read_batches, read_sample_lists, read_samples
from edl.distill.session import Batch, Session, SessionConfig
from edl.distill.source import (
    Position,
    from_dataset,
    has_state,
    is_map_style,
    open_source,
    worker_info,
)
from edl.distill.state import Limits
from edl.distill.teachers import Teachers, fixed_teachers, parse_teachers, service_teachers
from edl.distill.trace import Trace, trace_path
from edl.errors import ConfigError, ReaderError, SourceError
from edl.serving.wire.description import Description

if TYPE_CHECKING:
    IterableDataset = object
else:
    try:  # a student has Paddle; whoever only looks at this module need not
        from paddle.io import IterableDataset
    except ImportError:
        IterableDataset = object

_SAMPLE, _SAMPLE_LIST, _BATCH = "sample", "sample list", "batch"

#: Teachers of one model: endpoints (list or comma-separated) or ``etcd://host:port[,...]/service``.
TeacherSpec = Union[str, Sequence[str]]


@dataclass
class _Model:
    """One teacher model: where its teachers are, what is asked of them, what it is called."""

    teachers: Optional[Teachers]
    predicts: list[str]
    name: str = ""

    def column(self, predict: str) -> str:
        """The name of a prediction in a batch."""
        return f"{self.name}.{predict}" if self.name else predict


class DistillReader(IterableDataset):
    """Reads a source ahead of the student and adds the teachers' outputs to every batch.

    ``ins`` names the source's slots in order; ``None`` for one without a name. Slots that the
    teacher has a feed for are sent to it, the others pass through. ``predicts`` names the teacher's
    outputs (fetches) that are appended, in this order.

    Every batch of the source comes out exactly once, in order, with outputs computed from its own
    rows, whatever happens to the teachers; or iteration raises an EdlError. Iterate over it (or
    call it, as the original is) once per epoch::

        reader = DistillReader(["img", "label"], ["prob"], source=train_loader,
                               teachers="etcd://127.0.0.1:2379/resnet_teacher")
        for img, label, prob in reader:
            ...

    Nothing is started before the first iteration. Connections are kept between epochs and closed by
    :meth:`close`, at garbage collection, or at interpreter exit. Use one iteration at a time.

    It is a ``paddle.io.IterableDataset`` too: ``DataLoader(reader, batch_size=None,
    num_workers=n)`` gives the batches in the source's order; each worker reads its own share.
    """

    def __init__(
        self,
        ins: Sequence[Optional[str]],
        predicts: Union[Sequence[str], Mapping[str, Sequence[str]]],
        source: Any = None,
        teachers: Union[TeacherSpec, Mapping[str, TeacherSpec], None] = None,
        *,
        batch_sampler: Any = None,
        teacher_batch_size: Optional[int] = None,
        max_teachers: Optional[int] = None,
        limits: Optional[Limits] = None,
        no_teacher_timeout: float = 600.0,
        token: Optional[str] = None,
        trace: Union[str, Path, None] = None,
    ) -> None:
        """All but the names can also be set by the methods below.

        ``source``: see :meth:`set_loader`; ``batch_sampler`` makes batches of a map-style Dataset.
        ``teachers``: endpoints (list or comma-separated), or ``etcd://host:port[,...]/service``; or
        a mapping from a name to such, for several teacher models at once. Then ``predicts`` is one
        list for all or a mapping with the same names, predictions are appended model by model, and
        in a dict they are called ``name.prediction``.
        ``teacher_batch_size``: see :meth:`set_teacher_batch_size`. ``max_teachers``: use at most so
        many of the teachers found in etcd. ``limits``: flow control, timeouts and hedging, see
        :class:`~edl.distill.Limits`. ``no_teacher_timeout``: seconds without any usable teacher
        after which iteration raises NoTeacherError. ``token``: what teachers want to be shown (or
        the environment variable EDL_TOKEN). ``trace``: a file for a timeline that opens in
        Perfetto (or the environment variable EDL_DISTILL_TRACE; ``{pid}`` is replaced).
        Raises ConfigError for what cannot work.
        """
        super().__init__()
        self._ins = _check_names("ins", ins)
        self._models = _models(predicts, teachers)
        self._limits = limits or Limits()
        self._no_teacher_timeout = no_teacher_timeout
        self._token = token
        self._trace_path = trace
        self._teacher_batch_size: Optional[int] = None
        self._max_teachers: Optional[int] = None
        self._conf_file: Optional[str] = None
        self._batch_sampler = batch_sampler
        self._source: Any = None
        self._form = ""
        self._exhausted_source = False
        self._running: Optional[_Running] = None
        self._finalizer: Optional[weakref.finalize] = None
        self._epoch_number = 0
        self._delivered = 0
        self._position: Optional[Position] = None
        self._resuming = False
        if source is not None:
            self.set_loader(source)
        if teacher_batch_size is not None:
            self.set_teacher_batch_size(teacher_batch_size)
        if max_teachers is not None:
            self.set_require_max_teacher(max_teachers)

    # --- configuration ----------------------------------------------------------------------

    def set_teacher_batch_size(self, teacher_batch_size: int = 1) -> DistillReader:
        """Rows per request. Batches are cut to it; samples are grouped to it.

        Default: batches and sample lists whole, samples 32 at a time.
        """
        if not isinstance(teacher_batch_size, int) or teacher_batch_size < 1:
            raise ConfigError(f"teacher_batch_size must be at least 1, not {teacher_batch_size!r}")
        self._change()._teacher_batch_size = teacher_batch_size
        return self

    def set_fixed_teacher(self, teachers: Union[str, Sequence[str]]) -> DistillReader:
        """Use these teachers: a list of ``host:port``, or a comma-separated string."""
        self._only_model().teachers = fixed_teachers(teachers)
        self._max_teachers = None
        return self

    def set_dynamic_teacher(
        self,
        discovery_servers: Union[str, Sequence[str]],
        teacher_service_name: str,
        require_max_teacher: int = 1,
    ) -> DistillReader:
        """Use at most ``require_max_teacher`` of the teachers that are registered as
        ``teacher_service_name`` in the etcd at ``discovery_servers`` (list or comma-separated).
        """
        model = self._only_model()
        model.teachers = service_teachers(discovery_servers, teacher_service_name)
        return self.set_require_max_teacher(require_max_teacher)

    def set_require_max_teacher(self, require_max_teacher: int) -> DistillReader:
        """At most so many teachers at a time. Without effect on fixed teachers."""
        if not isinstance(require_max_teacher, int) or require_max_teacher < 1:
            raise ConfigError(
                f"require_max_teacher must be at least 1, not {require_max_teacher!r}"
            )
        self._change()._max_teachers = require_max_teacher
        return self

    def set_serving_conf_file(self, conf_file: str) -> DistillReader:
        """``serving_client_conf.prototxt``, for teachers that do not say what they serve (Paddle
        Serving's own servers). Raises ConfigError if there is no such file.
        """
        if not os.path.isfile(conf_file):
            raise ConfigError(f"serving conf file {conf_file!r} does not exist")
        self._change()._conf_file = conf_file
        return self

    def set_sample_generator(self, reader: Callable[[], Iterable[Any]]) -> DistillReader:
        """``reader()`` yields samples: tuples of slots."""
        return self._set_source(reader, _SAMPLE)

    def set_sample_list_generator(self, reader: Callable[[], Iterable[Any]]) -> DistillReader:
        """``reader()`` yields lists of samples."""
        return self._set_source(reader, _SAMPLE_LIST)

    def set_batch_generator(self, reader: Callable[[], Iterable[Any]]) -> DistillReader:
        """``reader()`` yields batches: tuples, lists or dicts of slots with rows first."""
        return self._set_source(reader, _BATCH)

    def set_loader(self, loader: Iterable[Any]) -> DistillReader:
        """A ``paddle.io.DataLoader``, or any iterable of batches that can be iterated every epoch
        (a list, an IterableDataset, a reader creator), or a map-style Dataset if the reader was
        made with a ``batch_sampler``. An iterator serves for one epoch.
        """
        return self._set_source(loader, _BATCH)

    def print_config(self) -> None:
        """Print the configuration."""
        config = {
            "ins": self._ins,
            "predicts": [name for model in self._models for name in model.predicts],
            "serving_conf_file": self._conf_file,
            "teacher_batch_size": self._teacher_batch_size,
            "teachers": "; ".join(str(model.teachers) for model in self._models),
            "require_max_teacher": self._max_teachers,
            "reader_type": self._form or None,
        }
        print("------ DistillReader Configuration Arguments ------")
        for name, value in config.items():
            print(f"{name}: {value}")
        print("------------------------------------------------")

    # --- iteration --------------------------------------------------------------------------

    def __call__(self) -> Iterator[Any]:
        """One epoch: an iterator over the source's batches with their predictions."""
        if self._source is None:
            raise ConfigError(
                "this reader has no source; call set_loader, set_batch_generator, "
                "set_sample_list_generator or set_sample_generator first"
            )
        if not self._resuming and self._delivered:  # the last iteration was left early
            self._next_epoch()
        self._resuming = False
        items = self._open_source()  # first, so that a DataLoader forks its workers before we
        return self._epoch(self._run(), items)  # start threads

    def __iter__(self) -> Iterator[Any]:
        return self()

    def __len__(self) -> int:
        """Batches in an epoch, if the source says. Raises TypeError if it does not."""
        if not hasattr(self._source, "__len__") or is_map_style(self._source):
            raise TypeError(f"the source ({type(self._source).__name__}) has no length")
        return len(self._source)

    def _open_source(self) -> Iterator[Any]:
        """The rest of the source's epoch; in a DataLoader's worker, this worker's share of it."""
        source, start, step = self._source, self._delivered, 1
        worker = worker_info()
        if worker is not None:
            start, step = start + worker.id, worker.num_workers
        if is_map_style(source):
            source = from_dataset(source, self._batch_sampler)
        if hasattr(source, "__next__"):
            if self._exhausted_source:
                raise SourceError(
                    f"the source is an iterator ({type(source).__name__}), which can be read once; "
                    "for more epochs pass what makes it, such as a function that returns it"
                )
            self._exhausted_source = True
        if not has_state(source) or worker is not None:
            return open_source(source, start, step)
        state = self._position.state if self._position is not None else None
        if state is not None:
            source.load_state_dict(state)
            start = 0
        self._position = Position(source, state)
        return self._position.track(open_source(source, start))

    def _epoch(self, running: _Running, items: Iterator[Any]) -> Iterator[Any]:
        if running.iterating:
            raise ReaderError(
                "this reader is being iterated already; finish or close that iteration first, or "
                "make a second DistillReader"
            )
        running.iterating = True
        batches = self._read(items)
        for model, session in zip(self._models, running.sessions):
            batches = _predict(session, batches, model)
        try:
            for batch in batches:
                value = batch.with_predictions()
                if self._form == _SAMPLE:
                    for sample in value:
                        self._count_delivery()
                        yield sample
                else:
                    self._count_delivery()
                    yield value
                del batch, value  # the student's memory is its own again
            self._next_epoch()
        finally:
            for session in running.sessions:  # the source's first: the others wait for it
                session.end_epoch()
            running.iterating = False

    def _next_epoch(self) -> None:
        self._epoch_number += 1
        self._delivered, self._position = 0, None

    def _count_delivery(self) -> None:
        self._delivered += 1
        if self._position is not None:
            self._position.delivered()

    def _read(self, items: Iterator[Any]) -> Iterator[Batch]:
        if self._form == _SAMPLE:
            return read_samples(items, self._teacher_batch_size or 32)
        if self._form == _SAMPLE_LIST:
            return read_sample_lists(items)
        return read_batches(items, self._ins)

    # --- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the student is: epoch, and how much of it has been delivered. JSON-serialisable, if
        the source's own state is (it is included when the source has ``state_dict``).

        Take it at any batch, in the loop or between epochs. It is about this process's iteration; a
        DataLoader's workers have copies of the reader that it knows nothing of.
        """
        state: dict[str, Any] = {
            **{"version": 1, "epoch": self._epoch_number},
            "delivered": self._delivered,
        }
        if self._position is not None and self._position.state is not None:
            state["source"] = self._position.state
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the next iteration gives the rest of that epoch.

        What is skipped is not sent to a teacher. A source with ``load_state_dict`` is asked to
        seek, a DataLoader with a batch sampler loads nothing that is skipped, anything else is read
        through. The source must give the same order again (seed its shuffling by epoch).
        Raises ConfigError if ``state`` is not one of a DistillReader.
        """
        try:
            version, epoch, delivered = (int(state[key]) for key in _STATE_KEYS)
            valid = version == 1 and epoch >= 0 and delivered >= 0
        except (KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            raise ConfigError(f"not a state of a DistillReader: {state!r}")
        self._epoch_number, self._delivered = epoch, delivered
        self._position = Position(None, state["source"]) if "source" in state else None
        self._resuming = True

    @property
    def epoch(self) -> int:
        """The number of the epoch that is being read, or will be read next; the first one is 0."""
        return self._epoch_number

    # --- sight ------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """What has happened since the first iteration; empty before. Plain values.

        ``batches``, ``rows``, ``bytes`` delivered (bytes: what the source gave, and soft labels);
        ``tasks_sent``, ``resent`` (to another teacher after the first was lost), ``hedged`` (to a
        second one beside a slow first), ``duplicates`` (second answers, dropped),
        ``lost_teachers``; ``student_waited`` seconds; ``buffer`` (finished and not taken): batches,
        bytes and level; ``want``: rows per second that are asked of the teachers together, None
        for as many as can be had; ``latency``: median and
        p99 seconds; ``teachers``: for each connected one what it answered, its rows per second over
        the last seconds, latency, and tasks in flight. With several models: a dict of such by name.
        """
        if self._running is None:
            return {}
        if not self._models[0].name:
            return self._running.sessions[0].stats()
        pairs = zip(self._models, self._running.sessions)
        return {model.name: session.stats() for model, session in pairs}

    # --- start and end ----------------------------------------------------------------------

    def close(self) -> None:
        """End all threads and connections. The reader can be iterated again afterwards."""
        finalizer, self._finalizer, self._running = self._finalizer, None, None
        if finalizer is not None:
            finalizer()

    def __enter__(self) -> DistillReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are spawned: the configuration without what runs here."""
        return {**self.__dict__, "_running": None, "_finalizer": None}

    def _run(self) -> _Running:
        """What runs in this process; started now if need be (also in a forked child)."""
        if self._running is None or self._running.pid != os.getpid():
            path = trace_path(self._trace_path)
            trace = Trace(path) if path else None
            sessions = [Session(self._session_config(model), trace) for model in self._models]
            self._running = _Running(os.getpid(), sessions, trace)
            self._finalizer = weakref.finalize(self, self._running.close)
            for session in sessions:
                session.start()
        return self._running

    def _session_config(self, model: _Model) -> SessionConfig:
        teachers, max_teachers = model.teachers, self._max_teachers
        if len(self._models) == 1:
            teachers, max_teachers = _teachers_from_environment(teachers, max_teachers)
        assert teachers is not None
        return SessionConfig(
            teachers=teachers,
            ins=self._ins,
            predicts=model.predicts,
            task_rows=self._teacher_batch_size or 1 << 30,
            max_teachers=max_teachers,
            fallback=self._fallback_description(),
            limits=self._limits,
            no_teacher_timeout=self._no_teacher_timeout,
            token=os.environ.get("EDL_TOKEN", "") if self._token is None else self._token,
        )

    def _fallback_description(self) -> Optional[Description]:
        conf_file = self._conf_file or os.environ.get("PADDLE_DISTILL_CONF_FILE")
        if conf_file is None:
            return None
        from edl.serving.model.prototxt import read_config

        return read_config(Path(conf_file)).describe()

    # --- helpers ----------------------------------------------------------------------------

    def _change(self) -> DistillReader:
        """Before a setting changes: what runs with the old one is closed."""
        self.close()
        return self

    def _only_model(self) -> _Model:
        if self._models[0].name:
            raise ConfigError(
                "this reader has several teacher models; pass their teachers to the constructor"
            )
        return self._change()._models[0]

    def _set_source(self, source: Any, form: str) -> DistillReader:
        if self._source is not None:
            raise ConfigError(f"this reader already has a source (a {self._form} one)")
        if form != _BATCH and not callable(source):
            raise ConfigError(f"a {form} generator must be callable and return an iterable")
        if is_map_style(source):
            from_dataset(source, self._batch_sampler)  # refuses now what cannot work later
        self._source, self._form = source, form
        return self


_STATE_KEYS = ("version", "epoch", "delivered")


@dataclass
class _Running:
    """Threads and files of a reader in one process. Holds no reference to the reader."""

    pid: int
    sessions: list[Session]
    trace: Optional[Trace]
    iterating: bool = False

    def close(self) -> None:
        """End everything, unless it belongs to the process that this one was forked from."""
        if self.pid != os.getpid():
            return
        for session in self.sessions:
            session.close()
        if self.trace is not None:
            self.trace.close()


def _predict(session: Session, batches: Iterator[Batch], model: _Model) -> Iterator[Batch]:
    """``batches`` with one model's predictions added to each. Several models are a chain of these:
    the first one's finished batches are the second one's source.
    """
    session.begin_epoch(batches)
    while (finished := session.take()) is not None:
        if finished.error is not None:
            raise finished.error
        batch = finished.payload
        assert batch is not None
        predictions = join_parts(finished.parts, model.predicts)
        for name in model.predicts:
            batch.predictions[model.column(name)] = predictions[name]
        yield batch
        del finished, predictions, batch


def _models(
    predicts: Union[Sequence[str], Mapping[str, Sequence[str]]],
    teachers: Union[TeacherSpec, Mapping[str, TeacherSpec], None],
) -> list[_Model]:
    if not isinstance(teachers, Mapping):
        if isinstance(predicts, Mapping):
            raise ConfigError("predicts is a mapping, so teachers must be one with the same names")
        names = [str(name) for name in _check_names("predicts", predicts)]
        return [_Model(None if teachers is None else parse_teachers(teachers), names)]
    by_model = predicts if isinstance(predicts, Mapping) else dict.fromkeys(teachers, predicts)
    if not teachers or by_model.keys() != teachers.keys():
        raise ConfigError(
            f"teachers are named {', '.join(teachers)}, predicts {', '.join(by_model)}"
        )
    return [
        _Model(
            parse_teachers(spec),
            [str(item) for item in _check_names(f"predicts of {name}", by_model[name])],
            str(name),
        )
        for name, spec in teachers.items()
    ]


def _check_names(what: str, names: Sequence[Optional[str]]) -> list[Optional[str]]:
    if isinstance(names, str) or not all(name is None or isinstance(name, str) for name in names):
        raise ConfigError(f"{what} must be a list of names, not {names!r}")
    given = [name for name in names if name is not None]
    if not given or len(set(given)) != len(given):
        raise ConfigError(f"{what} must hold different names, at least one: {list(names)!r}")
    return list(names)


def _teachers_from_environment(
    teachers: Optional[Teachers], max_teachers: Optional[int]
) -> tuple[Teachers, Optional[int]]:
    """The environment wins over what the program says, as in the original."""
    servers = os.environ.get("PADDLE_DISTILL_BALANCE_SERVER")
    if servers:
        service = os.environ.get("PADDLE_DISTILL_SERVICE_NAME", "")
        if not service:
            raise ConfigError(
                "PADDLE_DISTILL_BALANCE_SERVER is set, but PADDLE_DISTILL_SERVICE_NAME is not"
            )
        most = os.environ.get("PADDLE_DISTILL_MAX_TEACHER")
        if most is not None and (not most.isdigit() or most == "0"):
            raise ConfigError(f"PADDLE_DISTILL_MAX_TEACHER is {most!r}, not a positive number")
        return service_teachers(servers, service), int(most) if most else max_teachers
    if teachers is None:
        raise ConfigError(
            "this reader has no teachers; call set_fixed_teacher or set_dynamic_teacher, or set "
            "PADDLE_DISTILL_BALANCE_SERVER and PADDLE_DISTILL_SERVICE_NAME"
        )
    return teachers, max_teachers
