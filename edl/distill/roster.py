"""Which teachers a student holds, leaves, avoids, and may send work to. Pure, like ``dispatch``.

No threads, no sockets, no clock. What is there is told by ``found`` and ``assigned``, what happens
to connections by ``connected`` and ``lost``; ``step`` returns the connections to open and to end.

One epoch has one model, from the first batch that the student takes. Teachers of other models are
sent nothing (``left_out``). Before that, a model that no teacher serves gives way to the one that
most of them do: that is how the first epoch gets its model, and how a reader goes over to another
one between epochs, when all teachers have. Students that see the same teachers choose alike.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Optional

from edl.serving.wire import selftest
from edl.serving.wire.description import SPECS_ONLY
from edl.serving.wire.selftest import SelfTest

#: Seconds that a student waits for an assignment before it chooses teachers for itself.
_PATIENCE_UNASSIGNED = 3.0

#: Seconds that a teacher must fail before the balancer is told that this student cannot use it, as
#: long as there is another one; a restart is over by then.
_PATIENCE_FAILING = 1.5

#: Seconds that the first teachers to connect wait for others, which may outvote them.
_PATIENCE_MODEL = 1.0

#: Teachers that do not fit this reader, after which it is the reader's mistake rather than theirs.
_ENOUGH_UNFIT = 4

#: Teachers that are held at once although they cannot be used: the last ones to have failed, and
#: as many that turned out to have another model.
_MOST_TRIED = 16


@dataclass
class Held:
    """A teacher to which there is a connection, or an attempt at one."""

    connected: bool = False
    model: str = ""
    test: Optional[SelfTest] = None  # what it computes of fixed tokens, if it says so
    problem: str = "not connected yet"
    failing_since: Optional[float] = None
    unfit: bool = False  # it works, but does not fit this reader
    retiring: bool = False  # not wanted any more: it is left when it has answered


@dataclass(frozen=True)
class Changes:
    """Connections to open and to end, by endpoint."""

    open: tuple[str, ...] = ()
    end: tuple[str, ...] = ()


@dataclass
class Roster:
    """The teachers of one reader.

    ``reader``: the student's name, by which students choose different teachers. ``limit``: teachers
    to use at most. ``balanced``: whether somebody assigns teachers.
    """

    reader: str
    limit: Optional[int]
    balanced: bool
    held: dict[str, Held] = field(default_factory=dict)
    resting: bool = False  # no epoch is read: teachers of a shared service are left to others
    heard: bool = False
    models: list[str] = field(default_factory=list)  # those used so far, the current one last
    bound: bool = False  # the student has labels of it: the model stays for this epoch
    _found: dict[str, str] = field(default_factory=dict)  # endpoint, and the model it declares
    _declared: dict[str, set[str]] = field(default_factory=dict)  # the inverse, without ""
    _assigned: frozenset[str] = frozenset()
    _unassigned_since: Optional[float] = None
    _undecided_since: Optional[float] = None
    _test: Optional[SelfTest] = None  # what this epoch's model computes of fixed tokens

    # --- what happens -----------------------------------------------------------------------

    def found(self, models: Mapping[str, str]) -> None:
        """The teachers that there are, with the fingerprints that they declare (empty: none)."""
        self.heard = True
        self._found = dict(models)
        self._declared = {}
        for name, model in models.items():
            if model:
                self._declared.setdefault(model, set()).add(name)

    def assigned(self, teachers: Iterable[str]) -> None:
        """The teachers that this student is to use."""
        self._assigned = frozenset(teachers)

    def connected(self, name: str, model: str, now: float, test: Optional[SelfTest] = None) -> None:
        """A teacher answers, and serves ``model``, of which it computes ``test``."""
        teacher = self.held[name]
        teacher.connected, teacher.model, teacher.test = True, model, test
        teacher.problem, teacher.failing_since, teacher.unfit = "", None, False
        self._decide_model(now)

    def lost(self, name: str, problem: str, now: float, *, unfit: bool = False) -> None:
        """A connection has ended, or could not be made. A retiring teacher is not held any more."""
        teacher = self.held[name]
        if teacher.retiring:
            del self.held[name]
            return
        teacher.connected, teacher.problem, teacher.unfit = False, problem, unfit
        if teacher.failing_since is None:
            teacher.failing_since = now

    def keep_to(self, model: str) -> None:
        """The epoch was begun with ``model``, before this reader was started."""
        if self.model != model:
            self.models.append(model)
            self._test = None
        self.bound = True

    # --- what follows -----------------------------------------------------------------------

    def step(self, now: float) -> Changes:
        """Hold the teachers that are to be used. Those that retire while they are connected stay
        until they are lost; the others end at once.
        """
        self._decide_model(now)
        wanted = self._wanted(now)
        end = []
        for name, teacher in list(self.held.items()):
            teacher.retiring = name not in wanted
            if teacher.retiring and not teacher.connected:
                del self.held[name]
                end.append(name)
        new = sorted(wanted - self.held.keys())
        self.held.update((name, Held()) for name in new)
        return Changes(tuple(new), tuple(end))

    @property
    def model(self) -> str:
        """The fingerprint of this epoch's model; empty while that is not decided."""
        return self.models[-1] if self.models else ""

    @property
    def admitted(self) -> set[str]:
        """Teachers that tasks can be at: connected, with the model of this epoch."""
        return {
            name
            for name, teacher in self.held.items()
            if teacher.connected and self._is_of_this_epoch(teacher)
        }

    @property
    def registered(self) -> int:
        """How many teachers there are, held or not."""
        return len(self._found)

    @property
    def known(self) -> set[str]:
        """Teachers that may say something of a task sooner or later."""
        return {name for name, teacher in self.held.items() if not teacher.retiring}

    def avoided(self, now: float) -> tuple[str, ...]:
        """Teachers that this student cannot use at the moment, for whoever assigns."""
        patience = _PATIENCE_FAILING if self.admitted else 0.0
        failing = {
            name for name, teacher in self.held.items() if self._is_failing(teacher, now, patience)
        }
        return tuple(sorted(failing | self._others().keys() | self._deviants().keys()))

    def left_out(self) -> dict[str, str]:
        """Teachers that are sent nothing because they have another model, or compute something else
        with the same, and why. What a teacher serves counts, and what its entry declares until it
        is connected.
        """
        others = {name: self._why_not(model) for name, model in self._others().items()}
        return {**others, **self._deviants()}

    def problems(self) -> dict[str, str]:
        """Teachers that cannot be sent anything, and why."""
        failing = {name: teacher.problem for name, teacher in self.held.items() if teacher.problem}
        return {**failing, **self.left_out()}

    @property
    def silent(self) -> bool:
        """Whether no teacher says what it serves, nor may soon."""
        if self._found and not self.held:
            return False
        failing = all(teacher.failing_since is not None for teacher in self.held.values())
        return self.heard and failing

    def hopeless(self) -> bool:
        """Whether no teacher fits this reader: none of all that there are, or of the first few."""
        unfit = sum(teacher.unfit for teacher in self.held.values())
        tried = min(_ENOUGH_UNFIT, len(self._found))
        return unfit > 0 and unfit == len(self.held) and unfit >= tried

    # --- decisions --------------------------------------------------------------------------

    def _wanted(self, now: float) -> set[str]:
        """The teachers to use: those assigned; without an assignment for long, some of the
        student's own choice. Those that fail are tried on, to be used as soon as they are back.
        """
        if self.balanced and self.resting:
            self._unassigned_since = None
            return set()
        trying = self._trying()
        assigned = self._found.keys() & self._assigned
        if assigned:
            self._unassigned_since = None
            return assigned | trying
        if self.balanced:
            if self._unassigned_since is None:
                self._unassigned_since = now
            if now - self._unassigned_since < _PATIENCE_UNASSIGNED:
                return self._found.keys() & self.held.keys()
        return choose(self._found, self.limit, self.reader, self.avoided(now)) | trying

    def _trying(self) -> set[str]:
        """Teachers that cannot be used now, but are held: when they can, that is seen at once."""
        failing = [
            (teacher.failing_since, name)
            for name, teacher in self.held.items()
            if name in self._found and teacher.failing_since is not None
        ]
        left_out = self._others().keys() | self._deviants().keys()
        others = sorted(
            name for name in left_out if name in self.held and self.held[name].connected
        )
        return {name for _, name in sorted(failing)[-_MOST_TRIED:]} | set(others[:_MOST_TRIED])

    def _is_failing(self, teacher: Held, now: float, patience: float) -> bool:
        if teacher.failing_since is None or self.hopeless():  # which is this student's mistake
            return False
        return teacher.unfit or now - teacher.failing_since >= patience

    def _others(self) -> dict[str, str]:
        """Teachers of other models than this epoch's; none while that may give way."""
        served = any(t.connected and self._is_of_this_epoch(t) for t in self.held.values())
        if not self.model or not (self.bound or served or self.model in self._declared):
            return {}
        others = {}
        for model, names in self._declared.items():
            if model != self.model:
                others.update(dict.fromkeys(names, model))
        for name, teacher in self.held.items():
            if teacher.connected:
                others.pop(name, None)
                if teacher.model != self.model:
                    others[name] = teacher.model
        return others

    def _is_of_this_epoch(self, teacher: Held) -> bool:
        """Whether it has the epoch's model, and computes with it what the others do."""
        same = bool(self.model) and teacher.model == self.model
        return same and not self._difference(teacher)

    def _difference(self, teacher: Held) -> str:
        if self._test is None or teacher.test is None:
            return ""
        return selftest.difference(self._test, teacher.test)

    def _deviants(self) -> dict[str, str]:
        """Teachers of this epoch's model that compute something else with it, and what."""
        if self._test is None:
            return {}
        return {
            name: f"its model is this epoch's, but its labels are others: {difference}"
            for name, teacher in self.held.items()
            if teacher.connected and teacher.model == self.model
            if (difference := self._difference(teacher))
        }

    def _why_not(self, model: str) -> str:
        why = f"its model is {model}, this epoch's is {self.model}"
        if model.startswith(SPECS_ONLY) == self.model.startswith(SPECS_ONLY):
            return why
        return (
            f"{why}: that they are the same cannot be told where only feeds and fetches are known, "
            "as of a Paddle Serving; name its model to the registrar (edl register --model), or "
            "give it a service of its own"
        )

    def _decide_model(self, now: float) -> None:
        """Before there are labels: a model that a connected teacher serves."""
        connected = {name: teacher for name, teacher in self.held.items() if teacher.connected}
        serving = Counter(teacher.model for teacher in connected.values())
        if self.bound or not serving or any(map(self._is_of_this_epoch, connected.values())):
            self._undecided_since = None
            self._learn_test()
            return
        if self._undecided_since is None:
            self._undecided_since = now
        patient = now - self._undecided_since < _PATIENCE_MODEL
        if patient and self._awaits_more():
            return
        votes = Counter({model: len(names) for model, names in self._declared.items()})
        for name, teacher in connected.items():
            votes[self._found.get(name, "")] -= 1
            votes[teacher.model] += 1
        choice = self.model if votes[self.model] > 0 else _most_common(votes)
        if choice not in serving and not patient:
            choice = _most_common(serving)
        if choice in serving:
            if choice != self.model:
                self.models.append(choice)
            self._test = None
            self._learn_test()

    def _learn_test(self) -> None:
        """What most of the connected teachers compute with this epoch's model, if that is not
        known.
        """
        if self._test is None:
            tests = [
                teacher.test
                for teacher in self.held.values()
                if teacher.connected and teacher.model == self.model and teacher.test is not None
            ]
            self._test = selftest.typical(tests)

    def _awaits_more(self) -> bool:
        """Whether a teacher may say soon what it serves, or computes, of which nothing is known."""
        tested = any(teacher.test is not None for teacher in self.held.values())
        return any(
            not teacher.connected
            and teacher.failing_since is None
            and (tested or not self._found.get(name))
            for name, teacher in self.held.items()
        )


def choose(
    found: Collection[str], limit: Optional[int], reader: str, avoid: Collection[str]
) -> set[str]:
    """At most ``limit`` teachers for a reader, different ones for different readers.

    Rendezvous hashing: each reader ranks all teachers in an order of its own, so readers spread
    over the teachers, and one that comes or goes changes little. Those in ``avoid`` (failing at the
    moment) are taken only when there are not enough others.
    """
    if limit is None or limit >= len(found):
        return set(found)

    def rank(endpoint: str) -> tuple[bool, bytes]:
        digest = hashlib.blake2b(f"{reader} {endpoint}".encode(), digest_size=8).digest()
        return endpoint in avoid, digest

    return set(sorted(found, key=rank)[:limit])


def _most_common(models: Counter[str]) -> str:
    """The same for every student that sees the same models."""
    return min(models, key=lambda model: (-models[model], model), default="")
