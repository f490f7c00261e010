"""DistillReader: a data reader that hands back every batch with the teachers' soft labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from edl._checks import check_count, check_positive
from edl._paddle import import_paddle
from edl.distill.batches import read_batches, read_sample_lists, read_samples
from edl.distill.hapi import tend_models
from edl.distill.loaders import Iteration, tend_dataloaders
from edl.distill.metrics import listen_at, parse_ports
from edl.distill.narrowing import check_wire
from edl.distill.progress import Progress, Start
from edl.distill.running import Running
from edl.distill.settings import (
    Model,
    Settings,
    TeacherSpec,
    answer_original_variables,
    check_lengths,
    check_names,
    check_targets,
    label_form,
    parse_models,
    pool_configs,
    predictions_of,
)
from edl.distill.source import Source
from edl.distill.stand_in import StandIn
from edl.distill.state import Limits
from edl.distill.storing import store_options
from edl.distill.stream import Batch
from edl.distill.teachers import fixed_teachers, service_teachers
from edl.distill.tensors import as_tensors, on_device
from edl.distill.trace import trace_path
from edl.distill.workers import (
    Handout,
    Part,
    end_with,
    wait_for,
    worker_info,
)
from edl.errors import ConfigError, MissingDependencyError, ReaderError
from edl.serving.model.tokenizer import parse_tokenizer

if TYPE_CHECKING:
    IterableDataset = object
else:
    try:  # a student has Paddle; whoever only looks at this module need not
        IterableDataset = import_paddle("DistillReader").io.IterableDataset
    except MissingDependencyError:
        IterableDataset = object

_SAMPLE, _SAMPLE_LIST, _BATCH = "sample", "sample list", "batch"
_STATE_VERSION = 1


class DistillReader(StandIn, IterableDataset):
    """Reads a source ahead of the student and adds the teachers' outputs to every batch.

    ``ins`` names the source's slots in order; ``None`` for one without a name. Slots that the
    teacher has a feed for are sent to it, the others pass through. ``predicts`` names the teacher's
    outputs (fetches) that are appended, in this order.

    A batch is a tuple, list or dict of numpy arrays or Paddle tensors, rows first.
    Slots for the teacher are converted to its dtypes where that keeps their values. A prediction
    has as many rows as its batch, and the shape and dtype of the teacher's fetch.

    Every batch of the source comes out exactly once, in order, with outputs computed from its own
    rows, whatever happens to the teachers; or iteration raises an EdlError. Iterate over it (or
    call it, as the original is) once per epoch::

        reader = DistillReader(["img", "label"], ["prob"], source=train_loader,
                               teachers="etcd://127.0.0.1:2379/resnet_teacher")
        for img, label, prob in reader:
            ...

    Nothing is started before the first iteration. Connections are kept between epochs and closed by
    :meth:`close`, at garbage collection, or at interpreter exit. Use one iteration at a time.

    It stands in for the loader that it wraps: ``len``, ``batch_sampler``, ``dataset``,
    ``set_epoch`` and so on are that one's (see :class:`~edl.distill.stand_in.StandIn`).
    ``paddle.Model`` takes it as it is: ``model.fit(reader)``, where predictions are the last
    labels.

    It is a ``paddle.io.IterableDataset`` too: ``DataLoader(reader, batch_size=None,
    num_workers=n)`` gives the batches in the source's order. Workers share a list or a DataLoader
    over a map-style dataset, whose order one of them draws for all; any other source is read by one
    of them.
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
        tokenizer: Union[str, Path, None] = None,
        trace: Union[str, Path, None] = None,
        return_tensors: Optional[str] = None,
        places: Any = None,
        top_k: Optional[int] = None,
        temperature: float = 1.0,
        samples: int = 0,
        targets: Optional[str] = None,
        lengths: Optional[str] = None,
        store: Union[str, Path, None] = None,
        store_key: Union[str, Sequence[str], None] = None,
        store_model: Union[str, Mapping[str, str], None] = None,
        store_bytes: Optional[int] = None,
        wire: Optional[Mapping[str, str]] = None,
        metrics_port: Union[int, str, None] = None,
    ) -> None:
        """All but the names can also be set by the methods below.

        ``source``: see :meth:`set_loader`; ``batch_sampler`` makes batches of a map-style Dataset.
        ``teachers``: endpoints (list or comma-separated), or ``etcd://host:port[,...]/service``; or
        a mapping from a name to such, for several teacher models at once. Then ``predicts`` is one
        list for all or a mapping with the same names, predictions are appended model by model, and
        in a dict they are called ``name.prediction``.
        ``teacher_batch_size``: see :meth:`set_teacher_batch_size`. ``max_teachers``: use at most so
        many of the teachers found in etcd (a DataLoader's workers divide them, at least one each).
        ``limits``: flow control, timeouts and hedging, see :class:`~edl.distill.Limits`.
        ``no_teacher_timeout``: seconds without any usable teacher after which iteration raises
        NoTeacherError. ``token``: what teachers want to be shown (or the environment variable
        EDL_TOKEN). ``tokenizer``: the student's, as the directory that its files are in or as the
        fingerprint that a language model's teacher says; teachers that have another one are not
        used. ``trace``: a file for a timeline that opens in Perfetto (or the environment
        variable EDL_DISTILL_TRACE; ``{pid}`` is replaced).
        ``return_tensors``: predictions as Paddle tensors ("pd"; strings stay arrays) or numpy
        arrays ("np"); default: tensors where the batch's slots are tensors. ``places``: the device
        on which whole batches come, as tensors, such as "gpu:0" or ``paddle.CUDAPlace(0)``; they
        are copied there ahead of the student. A DataLoader that is the source had better leave its
        batches on the CPU then (``places="cpu"``), where they are read for the teachers.
        ``top_k``: sparse labels of the predictions, which are logits (rows, ..., classes), instead
        of the whole; k is ``top_k`` and m is ``samples``. In place of ``logits`` come
        ``logits.values`` (rows, ..., k), float16, the k largest logits divided by ``temperature``,
        largest first; ``logits.indices`` (rows, ..., k), int32, their classes; ``logits.logsumexp``
        (rows, ...), float32, of logits / ``temperature`` over all classes; with ``samples``
        ``logits.samples`` (rows, ..., m), int32, classes drawn from the others with replacement,
        in proportion to the teacher's probabilities, so that each stands for 1/m of what the others
        hold; with ``targets``, the name of a slot of class ids (rows, ...), ``logits.target``
        (rows, ...), float32, the logit of these divided by ``temperature``, and 0 where an id is no
        class, as -100. They are made by the teacher, or here for one that cannot. What is drawn
        depends on the row's feeds, the position in the row and the epoch, and on nothing else.
        A prediction may say its own form instead, as in ``"logits?top_k=64&temperature=2"``.
        ``lengths``: the name of a slot that says how long rows of sequences are: a mask (rows,
        tokens), ones followed by zeros, or integers (rows,). Of each request nothing is sent beyond
        its longest row, to teachers that say which feeds are sequences, and answers are as wide as
        the batch all the same, filled up with what the teacher says, sparse labels with zeros.
        ``store``: a directory of labels, made if need be. What it has of a row is not asked for,
        what it does not have is asked for and added, and there need be no teacher, nor
        ``teachers``, for what it has. Labels are known by the model, the prediction in its form and
        a hash of all that the row holds for teachers, so changed data and augmented views find
        labels of their own or none; those with ``samples`` belong to their epoch, too.
        ``store_key``: names of slots by which rows are known instead, one or a list, such as a
        sample's id or the seed of its view: rows need not be hashed then, and now and then one is
        compared all the same. ``store_model``: the fingerprint of the model whose labels are
        wanted, if there are no teachers and the store has labels of several, or teachers that only
        say what they are fed and serve; with teachers by name, a mapping from these.
        ``store_bytes``: how large the store may become; nothing is added then.
        ``wire``: in which dtype slots and predictions travel, by name, where that is narrower than
        what the teacher has: "float16" or "bfloat16", for a slot that is uint8 itself also "uint8".
        Floats are rounded to nearest there, and what would become infinite is refused by row.
        Predictions have the teacher's dtype all the same. To teachers that cannot do it all
        travels as it is, which the log says once.
        ``metrics_port``: serve metrics for Prometheus (or the environment variable
        EDL_METRICS_PORT), on 127.0.0.1 or at EDL_METRICS_HOST: a port, 0 for any that is free, or a
        range such as "9100-9199" of which the first free one is taken. The registry says which.
        Raises ConfigError for what cannot work.
        """
        super().__init__()
        self._ins = check_names("ins", ins)
        form = label_form(top_k, temperature, samples, targets)
        self._models = parse_models(predicts, teachers, form)
        self._targets = check_targets(targets, self._ins, self._models)
        self._lengths = check_lengths(lengths, self._ins)
        self._store = store_options(
            store, store_key, store_model, store_bytes, self._ins, self._models
        )
        self._wire = check_wire(wire, self._ins, predictions_of(self._models))
        self._limits = limits or Limits()
        check_positive("no_teacher_timeout", no_teacher_timeout, least=0)
        self._no_teacher_timeout = no_teacher_timeout
        self._token = token
        self._tokenizer = parse_tokenizer(tokenizer) if tokenizer is not None else ""
        self._trace_path = trace
        self._metrics_port = metrics_port
        if metrics_port is not None:
            parse_ports("metrics_port", metrics_port)
        self._as_tensors, self._places = as_tensors(return_tensors, places), places
        self._teacher_batch_size: Optional[int] = None
        self._max_teachers: Optional[int] = None
        self._conf_file: Optional[str] = None
        self._batch_sampler = batch_sampler
        self._source: Optional[Source] = None
        self._form = ""
        self._progress = Progress()
        self._running: Optional[Running] = None
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
        check_count("teacher_batch_size", teacher_batch_size)
        self._change()._teacher_batch_size = teacher_batch_size
        return self

    def set_fixed_teacher(self, teachers: Union[str, Sequence[str]]) -> DistillReader:
        """Use these teachers: a list of ``host:port``, or a comma-separated string;
        ``pipeline://host:port`` is a Python pipeline of Paddle Serving. Raises ConfigError for what
        is no endpoint.
        """
        self._only_model().teachers = fixed_teachers(teachers)
        return self

    def set_dynamic_teacher(
        self,
        discovery_servers: Union[str, Sequence[str]],
        teacher_service_name: str,
        require_max_teacher: int = 1,
    ) -> DistillReader:
        """Use at most ``require_max_teacher`` of the teachers that are registered as
        ``teacher_service_name`` in the etcd at ``discovery_servers`` (list or comma-separated).
        Raises ConfigError for an endpoint or a name that cannot be.
        """
        model = self._only_model()
        model.teachers = service_teachers(discovery_servers, teacher_service_name)
        return self.set_require_max_teacher(require_max_teacher)

    def set_require_max_teacher(self, require_max_teacher: int) -> DistillReader:
        """At most so many teachers at a time. Without effect on fixed teachers."""
        check_count("require_max_teacher", require_max_teacher)
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
        """``reader()`` yields samples: tuples of slots without a row dimension. The reader then
        yields one sample at a time. Raises ConfigError if there is a source already.
        """
        return self._set_source(reader, _SAMPLE)

    def set_sample_list_generator(self, reader: Callable[[], Iterable[Any]]) -> DistillReader:
        """``reader()`` yields lists of samples. Raises ConfigError if there is a source already."""
        return self._set_source(reader, _SAMPLE_LIST)

    def set_batch_generator(self, reader: Callable[[], Iterable[Any]]) -> DistillReader:
        """``reader()`` yields batches: tuples, lists or dicts of slots with rows first. Raises
        ConfigError if there is a source already.
        """
        return self._set_source(reader, _BATCH)

    def set_loader(self, loader: Iterable[Any]) -> DistillReader:
        """A ``paddle.io.DataLoader``, or any iterable of batches that can be iterated every epoch
        (a list, an IterableDataset, a reader creator), or a map-style Dataset if the reader was
        made with a ``batch_sampler``. An iterator serves for one epoch. Raises ConfigError if there
        is a source already, or for a Dataset without a batch sampler.
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
        """One epoch: an iterator over the source's batches with their predictions.

        Raises, in a batch's turn: what the source raised; SourceError for what is no batch, or
        cannot be sent; BatchRefused for rows that teachers refuse; NoTeacherError when there has
        been no teacher to work for ``no_teacher_timeout`` seconds; ReaderError if no teacher fits,
        or the reader was closed; ConfigError without source or teachers; StoreError for a store
        that cannot be opened, whose ``store_key`` does not stand for what rows hold, or whose model
        cannot be told from others.
        """
        if worker_info() is not None:
            return self._epoch_in_worker(self._checked_source())
        if self._places is not None:
            return on_device(self, self._places)
        return self._epoch(self._begin())

    def __iter__(self) -> Iterator[Any]:
        return self()

    def __len__(self) -> int:
        """Batches in an epoch, if the source says. Raises TypeError if it does not."""
        return len(self._checked_source())

    def _checked_source(self) -> Source:
        if self._source is None:
            raise ConfigError(
                "this reader has no source; call set_loader, set_batch_generator, "
                "set_sample_list_generator or set_sample_generator first"
            )
        return self._source

    def _begin(self) -> Iterator[Any]:
        source = self._checked_source()
        if self._running is not None:
            self._running.settle()  # an iteration that was left may use the source still
        start = self._progress.begin()
        items = source.open(start, self._progress.trail)  # first, so that a DataLoader forks its
        return self._values(self._run(), start, items)  # workers before we start threads

    def _begin_for_loader(self) -> Iteration:
        """One epoch for a DataLoader that has no workers."""
        values = self._begin()
        return Iteration(values, self._progress, self._run().leave_iteration)

    def _epoch(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self._progress.deliver()
            yield value
            del value  # the student's memory is its own again
        self._progress.finish()

    def _share(self) -> Progress:
        """One epoch for a DataLoader's workers, which are forked next."""
        self._checked_source()
        if self._running is not None:
            self._running.settle()
        self.close()  # workers have connections of their own, and threads do not survive a fork
        self._progress.begin_with_workers()
        return self._progress

    def _epoch_in_worker(self, source: Source) -> Iterator[Any]:
        """Its part of an epoch, for a DataLoader's worker: begun when the first item is wanted. If
        it fails, that is told.
        """
        start, handout = self._progress.start, self._progress.handout
        if handout is None:
            raise ReaderError("iterate over the DataLoader itself, so that its workers can agree")
        end_with(handout.parent, self.close)
        position = start.skip
        try:
            part = source.open_in_worker(start, handout)
            position = next(part.positions)
            for value in self._part(part, start, handout):
                yield value
                position = next(part.positions)
        except Exception as error:
            handout.tell_failure(position, error)

    def _part(self, part: Part, start: Start, handout: Handout) -> Iterator[Any]:
        """A worker's items with their predictions. The first worker's model is that of all."""
        number = worker_info().id
        running = self._run(number, part.among)
        if number:
            what = "the first one to be given labels by some model"
            models = wait_for(handout.models, what, handout)
            start = replace(start, models=models)
        told = number > 0
        for value in self._values(running, start, part.items):
            if not told:
                handout.tell_models(running.models())
                told = True
            yield value
        if not told:  # there was nothing to read
            handout.tell_models(start.models)

    def _values(self, running: Running, start: Start, items: Iterator[Any]) -> Iterator[Any]:
        """Items with their predictions. When it is closed early it only signals: that may happen
        in the garbage collector, in any thread and at any moment.
        """
        batches, ahead = running.begin_iteration(self._read(items, start.epoch), start.models)
        del items  # the thread that reads them closes them
        try:
            for batch in batches:
                if not any(self._progress.models):
                    self._progress.models = running.models()
                value = batch.with_predictions(self._as_tensors)
                if self._form == _SAMPLE:
                    yield from value
                else:
                    yield value
                del batch, value
        except GeneratorExit:
            for reading in ahead:
                reading.leave()
            raise
        except BaseException:
            running.end_iteration()
            raise
        running.end_iteration()

    def _read(self, items: Iterator[Any], epoch: int) -> Iterator[Batch]:
        if self._form == _SAMPLE:
            return read_samples(items, self._teacher_batch_size or 32, epoch)
        if self._form == _SAMPLE_LIST:
            return read_sample_lists(items, epoch)
        return read_batches(items, self._ins, epoch)

    # --- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the student is: epoch, and how much of it has been delivered. JSON-serialisable, if
        the source's own state is (it is included when the source has ``state_dict``).

        Take it at any batch, in the loop or between epochs. It names the source's length, batch
        size and slots, and the models that have labelled the epoch, and is of use only where these
        are the same. For a DataLoader that shuffles by numpy's global generator it holds the state
        of that, from which the same order can be drawn again.

        Of a DataLoader around this reader it says what the student has taken, however far workers
        have read ahead.
        """
        source, start, handout = self._source, self._progress.here(), self._progress.handout
        state: dict[str, Any] = {
            **{"version": _STATE_VERSION, "epoch": start.epoch, "delivered": start.skip},
            "fingerprint": self._fingerprint(),
        }
        mark, models = start.mark, list(start.models)
        if handout is not None:
            order = handout.order()
            if source is not None and order is not None:
                mark = source.mark_at(order, start.skip)
            models = handout.models() or models
        if source is not None and mark is not None:
            state[source.marks] = mark
        if start.skip and any(models):
            state["models"] = models
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the next iteration gives the rest of that epoch.

        What is skipped is not sent to a teacher. A source with ``load_state_dict`` is asked to
        seek, a DataLoader with a batch sampler loads nothing that is skipped, anything else is read
        through. The source must give the same order again (seed its shuffling by epoch); where it
        can be seen that it does not, iterating raises SourceError. The rest of the epoch is
        labelled by the model that has labelled its beginning.
        Raises ConfigError if ``state`` is not one of a DistillReader, or one of another source.
        """
        try:
            version, epoch, delivered = (int(state[key]) for key in _STATE_KEYS)
            valid = version == _STATE_VERSION and epoch >= 0 and delivered >= 0
            fingerprint, models = state.get("fingerprint", {}), state.get("models", [])
            valid = valid and isinstance(fingerprint, Mapping) and isinstance(models, list)
            valid = valid and all(isinstance(model, str) for model in models)
            order = state.get("order")
            valid = valid and (order is None or isinstance(order, Mapping))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            raise ConfigError(f"not a state of a DistillReader: {state!r}")
        self._check_fingerprint(fingerprint)
        mark = state.get("order" if self._source is None else self._source.marks)
        self._progress.load(Start(epoch, delivered, mark, tuple(models)))

    def _fingerprint(self) -> dict[str, Any]:
        source = {} if self._source is None else self._source.fingerprint()
        return {"ins": self._ins, "form": self._form, **source}

    def _check_fingerprint(self, theirs: Mapping[str, Any]) -> None:
        ours = self._fingerprint()
        for name in ours:
            if None not in (theirs.get(name), ours[name]) and theirs[name] != ours[name]:
                raise ConfigError(
                    f"this state is of another source: its {name.replace('_', ' ')} is "
                    f"{theirs[name]}, this reader's {ours[name]}"
                )

    @property
    def epoch(self) -> int:
        """The number of the epoch that is being read, or will be read next; the first one is 0."""
        return self._progress.epoch

    # --- sight ------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """What has happened since the first iteration; empty before. Plain values.

        ``batches``, ``rows``, ``bytes`` delivered (bytes: what the source gave, and soft labels);
        ``work``: rows, or tokens where teachers say that rows are sequences, as ``unit`` says;
        ``tasks_sent``, ``resent`` (to another teacher after the first was lost), ``hedged`` (to a
        second one beside a slow first), ``duplicates`` (second answers, dropped),
        ``lost_teachers``; ``failed`` (answers that were errors); ``student_waited`` and
        ``student_seconds`` (waits and work, in epochs); ``buffer`` (finished and not taken):
        batches, bytes, level and thresholds; ``want``: work per second that is asked of the
        teachers together, None for as much as can be had; ``latency``: median and p99 seconds, and
        a histogram; ``teachers``: for each connected one what it answered, its rows and work per
        second over the last seconds, latency, and tasks in flight; ``unusable``: why others are not
        used;
        ``models``: fingerprints of those that have been used, the current one last. With several
        models: a dict of such by name. With a store also ``store``: ``hits`` and ``misses``, rows
        that were looked up; ``bytes`` of labels that were there; ``seconds`` that looking up took,
        hashing included; ``added``, ``dropped``: rows that were and were not stored; ``damaged``
        records; ``full``: why nothing is added any more.
        """
        if self._running is None:
            return {}
        stats = self._running.stats()
        return stats if self._models[0].name else stats[""]

    @property
    def metrics_endpoint(self) -> Optional[str]:
        """The ``host:port`` at which metrics are served now, if they are: ``/metrics`` there."""
        return None if self._running is None else self._running.metrics_endpoint

    # --- start and end ----------------------------------------------------------------------

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all labels that have been delivered are on the disk of the store, which they
        are a second later anyway; whether that was within ``timeout`` seconds, or there is no
        store. See ``stats()["store"]["full"]`` for whether it takes any.
        """
        return self._running is None or self._running.flush(timeout)

    def close(self) -> None:
        """End all threads, connections and workers, within a second or so. The reader can be
        iterated again afterwards.
        """
        running, self._running = self._running, None
        if running is not None:
            running.close()
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> DistillReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are spawned: the configuration without what runs here."""
        return {**self.__dict__, "_running": None}

    def _run(self, number: int = 0, among: int = 1) -> Running:
        """What runs in this process; started now if need be (also in a forked child). It is one of
        so many that share the limit of teachers.
        """
        running = self._running
        if running is None or running.pid != os.getpid():
            answer_original_variables()
            configs = pool_configs(self._models, self._settings(), number, among)
            trace, listen = trace_path(self._trace_path), listen_at(self._metrics_port)
            if listen is not None:
                self._progress.length = self._source.length if self._source is not None else None
                listen = None if number and listen.fixed else listen
            position = self._progress.position
            running = Running(self._models, configs, trace, self._store, listen, position)
            running.watch(self)
            self._running = running
        return running

    def _settings(self) -> Settings:
        return Settings(
            slots=self._ins,
            task_rows=self._teacher_batch_size or 1 << 30,
            limits=self._limits,
            no_teacher_timeout=self._no_teacher_timeout,
            max_teachers=self._max_teachers,
            token=self._token,
            conf_file=self._conf_file,
            targets=self._targets,
            tokenizer=self._tokenizer,
            lengths=self._lengths,
            stored=self._store is not None,
            wire=self._wire,
        )

    # --- helpers ----------------------------------------------------------------------------

    def _change(self) -> DistillReader:
        """Before a setting changes: what runs with the old one is closed."""
        self.close()
        return self

    def _only_model(self) -> Model:
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
        self._source, self._form = Source(source, self._batch_sampler), form
        return self


if IterableDataset is not object:
    tend_dataloaders(DistillReader, DistillReader._begin_for_loader, DistillReader._share)
    tend_models(DistillReader, attrgetter("_form"))

_STATE_KEYS = ("version", "epoch", "delivered")
