"""DistillReader: a data reader that hands back every batch with the teachers' soft labels."""

from __future__ import annotations

import os

import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

from edl.distill.batches import join_parts, read_batches, read_sample_lists, read_samples
from edl.distill.dispatch import Limits
from edl.distill.session import Batch, Session, SessionConfig
from edl.distill.teachers import Teachers, fixed_teachers, service_teachers
from edl.errors import ConfigError, SourceError
from edl.serving.description import Description

_SAMPLE, _SAMPLE_LIST, _BATCH = "sample", "sample list", "batch"


class DistillReader:
    """Reads a source ahead of the student and adds the teachers' outputs to every batch.

    ``ins`` names the source's slots in order; ``None`` for one without a name. Slots that the
    teacher has a feed for are sent to it, the others pass through. ``predicts`` names the teacher's
    outputs (fetches) that are appended, in this order.

    Every batch of the source comes out exactly once, in order, with outputs computed from its own
    rows, whatever happens to the teachers; or iteration raises an EdlError. Iterate over it (or call
    it, as the original is) once per epoch::

        reader = DistillReader(ins=["img", "label"], predicts=["prob"])
        reader.set_loader(train_loader)
        reader.set_dynamic_teacher("127.0.0.1:2379", "resnet_teacher", require_max_teacher=4)
        for img, label, prob in reader():
            ...

    Nothing is started before the first iteration. Connections are kept between epochs and closed by
    :meth:`close`, at garbage collection, or at interpreter exit. Use one iteration at a time.
    """

    def __init__(
        self,
        ins: Sequence[Optional[str]],
        predicts: Sequence[str],
        *,
        limits: Optional[Limits] = None,
        no_teacher_timeout: float = 600.0,
    ) -> None:
        """``limits``: flow control, timeouts and hedging, see ``edl.distill.dispatch.Limits``.
        ``no_teacher_timeout``: seconds without any usable teacher after which iteration raises
        NoTeacherError. Raises ConfigError if a name is used twice."""
        self._ins = _check_names("ins", ins)
        self._predicts = [str(name) for name in _check_names("predicts", predicts)]
        self._limits = limits or Limits()
        self._no_teacher_timeout = no_teacher_timeout
        self._teacher_batch_size: Optional[int] = None
        self._teachers: Optional[Teachers] = None
        self._max_teachers: Optional[int] = None
        self._conf_file: Optional[str] = None
        self._source: Any = None
        self._form = ""
        self._session: Optional[Session] = None
        self._session_pid = 0
        self._finalizer: Optional[weakref.finalize] = None

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
        self._change()._teachers = fixed_teachers(teachers)
        self._max_teachers = None
        return self

    def set_dynamic_teacher(
        self,
        discovery_servers: Union[str, Sequence[str]],
        teacher_service_name: str,
        require_max_teacher: int = 1,
    ) -> DistillReader:
        """Use at most ``require_max_teacher`` of the teachers that are registered as
        ``teacher_service_name`` in the etcd at ``discovery_servers`` (list or comma-separated)."""
        self._change()._teachers = service_teachers(discovery_servers, teacher_service_name)
        return self.set_require_max_teacher(require_max_teacher)

    def set_require_max_teacher(self, require_max_teacher: int) -> DistillReader:
        """At most so many teachers at a time. Without effect on fixed teachers."""
        if not isinstance(require_max_teacher, int) or require_max_teacher < 1:
            raise ConfigError(f"require_max_teacher must be at least 1, not {require_max_teacher!r}")
        self._change()._max_teachers = require_max_teacher
        return self

    def set_serving_conf_file(self, conf_file: str) -> DistillReader:
        """``serving_client_conf.prototxt``, for teachers that do not say what they serve (Paddle
        Serving's own servers). Raises ConfigError if there is no such file."""
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
        """A ``paddle.io.DataLoader``, or any iterable of batches that can be iterated every epoch."""
        return self._set_source(loader, _BATCH)

    def print_config(self) -> None:
        """Print the configuration."""
        config = {
            "ins": self._ins,
            "predicts": self._predicts,
            "serving_conf_file": self._conf_file,
            "teacher_batch_size": self._teacher_batch_size,
            "teachers": str(self._teachers),
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
        session = self._open_session()
        source = self._source() if callable(self._source) else self._source
        try:
            items = iter(source)  # here, so that a DataLoader forks its workers before our threads
        except TypeError:
            raise SourceError(f"cannot iterate over a {type(source).__name__}") from None
        return self._epoch(session, self._read(items))

    def __iter__(self) -> Iterator[Any]:
        return self()

    def stats(self) -> dict[str, Any]:
        """Counts since the first iteration: batches, tasks sent, resent, hedged, duplicates, lost
        teachers; and for each connected teacher what it answered. Empty before."""
        return self._session.stats() if self._session else {}

    def close(self) -> None:
        """End all threads and connections. The reader can be iterated again afterwards."""
        finalizer, self._finalizer, self._session = self._finalizer, None, None
        if finalizer is not None and self._session_pid == os.getpid():
            finalizer()

    def __enter__(self) -> DistillReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, items: Iterator[Any]) -> Iterator[Batch]:
        if self._form == _SAMPLE:
            return read_samples(items, self._teacher_batch_size or 32)
        if self._form == _SAMPLE_LIST:
            return read_sample_lists(items)
        return read_batches(items, self._ins)

    def _epoch(self, session: Session, batches: Iterator[Batch]) -> Iterator[Any]:
        session.begin_epoch(batches)
        try:
            while (finished := session.take()) is not None:
                if finished.error is not None:
                    raise finished.error
                assert finished.payload is not None
                predictions = join_parts(finished.parts, self._predicts)
                value = finished.payload.with_predictions(predictions)
                if self._form == _SAMPLE:
                    yield from value
                else:
                    yield value
                del finished, predictions, value  # the student's memory is its own again
        finally:
            session.end_epoch()

    # --- helpers ----------------------------------------------------------------------------

    def _change(self) -> DistillReader:
        """Before a setting changes: what runs with the old one is closed."""
        self.close()
        return self

    def _set_source(self, source: Any, form: str) -> DistillReader:
        if self._source is not None:
            raise ConfigError(f"this reader already has a source (a {self._form} one)")
        if form != _BATCH and not callable(source):
            raise ConfigError(f"a {form} generator must be callable and return an iterable")
        self._source, self._form = source, form
        return self

    def _open_session(self) -> Session:
        if self._session is None or self._session_pid != os.getpid():  # or inherited by a fork
            self._session = Session(self._session_config())
            self._session_pid = os.getpid()
            self._finalizer = weakref.finalize(self, _close, self._session, os.getpid())
            self._session.start()
        return self._session

    def _session_config(self) -> SessionConfig:
        teachers, max_teachers = _teachers_from_environment(self._teachers, self._max_teachers)
        return SessionConfig(
            teachers=teachers,
            ins=self._ins,
            predicts=self._predicts,
            task_rows=self._teacher_batch_size or 1 << 30,
            max_teachers=max_teachers,
            fallback=self._fallback_description(),
            limits=self._limits,
            no_teacher_timeout=self._no_teacher_timeout,
        )

    def _fallback_description(self) -> Optional[Description]:
        conf_file = self._conf_file or os.environ.get("PADDLE_DISTILL_CONF_FILE")
        if conf_file is None:
            return None
        from edl.serving.prototxt import read_config

        return read_config(Path(conf_file)).describe()


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


def _close(session: Session, pid: int) -> None:
    if pid == os.getpid():  # a forked child has the parent's objects, but none of its threads
        session.close()
