"""Which student uses which teachers: a pure function of who is there and who had what.

Every link between a student and a teacher counts: a teacher serves its students evenly, so a
student gets ``rate / number of students`` from each of its teachers. The aim is max-min fairness
of what students get, in rows per second and bounded by what they want: first the poorest student
gets as much as can be, then the next. Teachers are indivisible, so the exact optimum is out of
reach (it is the "Santa Claus" problem, Bansal and Sviridenko, STOC 2006); what is computed is a
state that no single change improves, where students differ by more than ``MARGIN``, reached from
the state so far by such changes. Starting from what is there, and tolerating small differences, is
what keeps changes few and the result stable: balancing a balanced state changes nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

#: For each student, the teachers it uses.
Assignment = dict[str, frozenset[str]]

#: Differences in what students get that are no cause for a change, as a share of the smaller.
MARGIN = 0.1

#: How many of the richest students, and of the best teachers, are looked at for one change.
_CANDIDATES = 16
_MAX_ROUNDS = 50
_ANY_GAIN = 1 + 1e-6  # beyond what floating point makes of equal numbers


@dataclass(frozen=True)
class Student:
    """What a student asks for: at most so many teachers, so many rows per second, and none of those
    that it cannot use (unless there are no others).
    """

    max_teachers: int = 1 << 30
    want: float = math.inf
    avoid: frozenset[str] = frozenset()


def balance(
    teachers: Mapping[str, float],
    students: Mapping[str, Student],
    current: Mapping[str, Iterable[str]],
) -> Assignment:
    """The assignment that follows ``current``, given who is there now.

    ``teachers``: each one's rate, rows per second, positive. ``current`` may name students and
    teachers that are gone. Every student has a teacher if there is any. Takes O(n log n) for what
    has to change.
    """
    state = _State(teachers, students, current)
    for _ in range(_MAX_ROUNDS):
        if not any([state.release_surplus(), state.give_idle(), state.level()]):
            break
    return {student: frozenset(links) for student, links in state.links.items()}


def rates(
    teachers: Mapping[str, float], assignment: Mapping[str, Iterable[str]]
) -> dict[str, float]:
    """What each student gets, rows per second."""
    holders: dict[str, int] = {}
    for links in assignment.values():
        for teacher in links:
            holders[teacher] = holders.get(teacher, 0) + 1
    return {
        student: sum(teachers[teacher] / holders[teacher] for teacher in links)
        for student, links in assignment.items()
    }


Link = tuple[str, str]  # a student and a teacher


@dataclass(frozen=True)
class _Change:
    """Links to remove and to add. ``value``: what the poorest that it touches has afterwards."""

    value: float
    remove: tuple[Link, ...] = ()
    add: tuple[Link, ...] = ()

    def order(self) -> tuple:
        """The best change is the largest: the one that takes fewer links, of equally good ones."""
        return round(self.value, 9), -len(self.remove) - len(self.add), self.remove, self.add


class _State:
    """Links, and what they amount to; changed one link at a time."""

    def __init__(
        self,
        teachers: Mapping[str, float],
        students: Mapping[str, Student],
        current: Mapping[str, Iterable[str]],
    ) -> None:
        self.teachers = teachers
        self.students = students
        self.links: dict[str, set[str]] = {}
        self.holders: dict[str, set[str]] = {teacher: set() for teacher in teachers}
        self.got: dict[str, float] = {}
        self._touched: set[str] = set()
        self.avoid: dict[str, frozenset[str]] = {}
        for student, asked in students.items():
            self.avoid[student] = frozenset() if asked.avoid >= teachers.keys() else asked.avoid
            self.links[student] = {
                teacher
                for teacher in current.get(student, ())
                if teacher in teachers and teacher not in self.avoid[student]
            }
            for teacher in self.links[student]:
                self.holders[teacher].add(student)
        for student, links in self.links.items():
            self.got[student] = math.fsum(self.share(teacher) for teacher in links)

    def share(self, teacher: str, more: int = 0) -> float:
        """What each of a teacher's students gets of it, if it had ``more`` of them."""
        return self.teachers[teacher] / max(1, len(self.holders[teacher]) + more)

    def may_take(self, student: str, teacher: str) -> bool:
        """Whether a link between them is possible and not there yet."""
        return teacher not in self.links[student] and teacher not in self.avoid[student]

    def has_room(self, student: str) -> bool:
        """Whether it may have one more teacher."""
        return len(self.links[student]) < self.students[student].max_teachers

    def wants_more(self, student: str) -> bool:
        """Whether what it gets is less than what it asks for."""
        return self.got[student] < self.students[student].want

    def link(self, student: str, teacher: str) -> None:
        """Add a link."""
        self._change_holders(teacher, student, add=True)

    def unlink(self, student: str, teacher: str) -> None:
        """Remove a link."""
        self._change_holders(teacher, student, add=False)

    def _change_holders(self, teacher: str, student: str, add: bool) -> None:
        holders = self.holders[teacher]
        before = holders | {student}
        if add:
            holders.add(student)
            self.links[student].add(teacher)
        else:
            holders.remove(student)
            self.links[student].remove(teacher)
        for other in before:
            self.got[other] = math.fsum(self.share(item) for item in self.links[other])
        self._touched |= before

    # --- the three kinds of changes ---------------------------------------------------------

    def release_surplus(self) -> bool:
        """Students over their limit, or with a teacher more than they want, let go of the least."""
        released = False
        for student, asked in self.students.items():
            links = self.links[student]
            while len(links) > 1:
                least = min(links, key=lambda teacher: (self.share(teacher), teacher))
                left = self.got[student] - self.share(least)
                if len(links) <= asked.max_teachers and left < asked.want * (1 + MARGIN):
                    break
                self.unlink(student, least)
                released = True
        return released

    def give_idle(self) -> bool:
        """Teachers without students go to the poorest who want more, the fastest first."""
        idle = [teacher for teacher, holders in self.holders.items() if not holders]
        idle.sort(key=lambda teacher: (-self.teachers[teacher], teacher))
        poor = [
            (self.got[student], student)
            for student in self.students
            if self.wants_more(student) and self.has_room(student)
        ]
        heapq.heapify(poor)
        given = False
        for teacher in idle:
            passed_over = []
            while poor:
                entry = heapq.heappop(poor)
                student = entry[1]
                if not self.may_take(student, teacher):
                    passed_over.append(entry)
                    continue
                self.link(student, teacher)
                given = True
                if self.wants_more(student) and self.has_room(student):
                    heapq.heappush(poor, (self.got[student], student))
                break
            for entry in passed_over:
                heapq.heappush(poor, entry)
        return given

    def level(self) -> bool:
        """Improve the lot of the poorest, one change at a time, until none is worth it."""
        poor = [
            (self.got[student], student) for student in self.students if self.wants_more(student)
        ]
        rich = [(-got, student) for student, got in self.got.items()]
        best = [self._offer(teacher) for teacher in self.teachers]
        heapq.heapify(poor)
        heapq.heapify(rich)
        heapq.heapify(best)
        changed = False
        budget = 4 * (len(self.students) + len(self.teachers)) + 100
        while poor and budget:
            got, student = heapq.heappop(poor)
            if got != self.got[student] or not self.wants_more(student):
                continue  # what it got has changed since
            change = self._best_change(student, rich, best)
            if change is None:
                continue
            budget -= 1
            changed = True
            self._touched.clear()
            for link in change.remove:
                self.unlink(*link)
            for link in change.add:
                self.link(*link)
            for touched in self._touched:
                heapq.heappush(poor, (self.got[touched], touched))
                heapq.heappush(rich, (-self.got[touched], touched))
            for _, teacher in (*change.remove, *change.add):
                heapq.heappush(best, self._offer(teacher))
        return changed

    def _offer(self, teacher: str) -> tuple[float, str, int]:
        return -self.share(teacher, 1), teacher, len(self.holders[teacher])

    def _best_change(self, student: str, rich: list, best: list) -> Optional[_Change]:
        """The change that leaves the poorest of those it touches best off, if it is worth it. Links
        change hands or go for any gain, one more must be worth ``MARGIN``.
        """
        got, changes = self.got[student], self._leaves(student)
        worth = got * (1 + MARGIN)
        offers = [
            teacher
            for teacher in self._top(best, self._is_current)
            if self.may_take(student, teacher)
        ]
        if self.has_room(student):
            moves = self._moves(student, rich)
            changes += [change for change in moves if change.value > got * _ANY_GAIN]
            shares = self._shares(student, offers)
            changes += [change for change in shares if change.value > worth]
        if self.links[student]:
            links = self.links[student]
            least = min(links, key=lambda teacher: (self.share(teacher), teacher))
            switches = self._shares(student, offers, instead_of=least)
            changes += [change for change in switches if change.value > worth]
        return max(changes, key=_Change.order, default=None)

    def _leaves(self, student: str) -> list[_Change]:
        """A richer student leaves a teacher that both use, and has others. Such a change is good if
        those who stay are better off and the leaver is no poorer than the poorest of them was.
        """
        changes = []
        for teacher in self.links[student]:
            holders = self.holders[teacher]
            leavers = [name for name in holders if len(self.links[name]) > 1 and name != student]
            if not leavers:
                continue
            rich = max(leavers, key=lambda name: (self.got[name], name))
            left = self.got[rich] - self.share(teacher)
            if left * _ANY_GAIN < self.got[student] or not self._is_richer(rich, student):
                continue
            gain = self.share(teacher, -1) - self.share(teacher)
            value = min(left, self.got[student] + gain)
            poorest_before = [self.got[name] for name in holders if name != rich]
            poorer = sum(got <= self.got[student] * _ANY_GAIN for got in poorest_before)
            if value > self.got[student] * _ANY_GAIN or poorer > 1:
                changes.append(_Change(value, remove=((rich, teacher),)))
        return changes

    def _moves(self, student: str, rich: list) -> list[_Change]:
        """A teacher of a richer student, who has others."""
        changes = []
        for donor in self._top(rich, lambda entry: entry[0] == -self.got[entry[1]]):
            if not self._is_richer(donor, student):
                break
            candidates = self.links[donor] - self.links[student] - self.avoid[student]
            if len(self.links[donor]) < 2 or not candidates:
                continue
            half = (self.got[donor] - self.got[student]) / 2
            take = min(candidates, key=lambda item: (abs(self.share(item) - half), item))
            share = self.share(take)
            value = min(self.got[donor] - share, self.got[student] + share)
            changes.append(_Change(value, ((donor, take),), ((student, take),)))
        return changes

    def _shares(
        self, student: str, offers: list[str], instead_of: Optional[str] = None
    ) -> list[_Change]:
        """A teacher together with those who use it already, perhaps in place of a lesser one."""
        rest = self.got[student]
        remove: tuple[Link, ...] = ()
        if instead_of is not None:
            rest, remove = rest - self.share(instead_of), ((student, instead_of),)
        changes = []
        for teacher in offers:
            value = min(rest + self.share(teacher, 1), self._left(teacher, student))
            changes.append(_Change(value, remove, ((student, teacher),)))
        return changes

    def _is_richer(self, rich: str, poor: str) -> bool:
        return self.got[rich] > self.got[poor] * (1 + MARGIN)

    def _left(self, teacher: str, newcomer: str) -> float:
        """What the poorest of a teacher's students would have if another one joined them."""
        loss = self.share(teacher) - self.share(teacher, 1)
        return min(
            (self.got[other] - loss for other in self.holders[teacher] if other != newcomer),
            default=math.inf,
        )

    def _is_current(self, entry: tuple[float, str, int]) -> bool:
        return entry[2] == len(self.holders[entry[1]])

    def _top(self, heap: list, is_current: Callable[[Any], bool]) -> list[str]:
        """The names of the first few entries of a heap; those that are out of date are dropped."""
        found: list = []
        while heap and len(found) < _CANDIDATES:
            entry = heapq.heappop(heap)
            if is_current(entry) and (not found or entry != found[-1]):
                found.append(entry)
        for entry in found:
            heapq.heappush(heap, entry)
        return [entry[1] for entry in found]
