"""Which student uses which teachers: a pure function of who is there and who had what.

Every link between a student and a teacher counts: a teacher serves its students evenly, so a
student gets ``rate / number of students`` from each of its teachers. The aim is max-min fairness
of what students get, in rows per second and bounded by what they want: first the poorest student
gets as much as can be, then the next. Teachers are indivisible, so the exact optimum is out of
reach (it is the "Santa Claus" problem, Bansal and Sviridenko, STOC 2006); what is computed is a
state that no single change improves, where students differ by more than ``MARGIN``, reached from
the state so far by such changes. Starting from what is there, and tolerating small differences, is
what keeps changes few and the result stable: balancing a balanced state changes nothing.

One student more or less at a teacher concerns all who share it. Where they are a crowd it hardly
matters to each of them: they are told only when it has come to something, so that a change costs
the logarithm of the crowd and not the crowd; and such a teacher is for those who have no other,
since a second small share could as well be a part of a larger first one.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

#: For each student, the teachers it uses.
Assignment = dict[str, frozenset[str]]

#: Differences in what students get that are no cause for a change, as a share of the smaller.
MARGIN = 0.1

#: How many of the richest students, and of the best teachers, are looked at for one change.
_CANDIDATES = 16
#: How many teachers of one student are looked at until there is one that another may take.
_TEACHERS_LOOKED_AT = 100
_MAX_ROUNDS = 50
_CROWD = 50
_ANY_GAIN = 1 + 1e-6  # beyond what floating point makes of equal numbers


@dataclass(frozen=True)
class Student:
    """What a student asks for: at most so many teachers, so many rows per second (0: no teacher at
    all), and none of those that it cannot use (unless there are no others).
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
    teachers that are gone. Every student that wants something has a teacher if there is any. Takes
    O(n log n) for ``n`` students, teachers and links.
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
    """Links, and what they amount to; changed one link at a time.

    ``got``: what each student gets, within 1 / ``_CROWD``: the sum of its teachers' shares as they
    were ``told``. ``ladder``: these shares with their teachers, the least first. ``shared``: those
    of its teachers that others use too. ``among``: for each teacher, those of its students who have
    others too.
    """

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
        self.among: dict[str, set[str]] = {teacher: set() for teacher in teachers}
        self.got: dict[str, float] = {}
        self.told: dict[str, float] = {}
        self.ladder: dict[str, list[tuple[float, str]]] = {}
        self.shared: dict[str, set[str]] = {}
        self._untold: set[str] = set()
        self._touched: set[str] = set()
        self.avoid: dict[str, frozenset[str]] = {}
        for student, asked in students.items():
            self.avoid[student] = frozenset() if asked.avoid >= teachers.keys() else asked.avoid
            links = self.links[student] = {
                teacher
                for teacher in current.get(student, ())
                if teacher in teachers and teacher not in self.avoid[student] and asked.want
            }
            for teacher in links:
                self.holders[teacher].add(student)
                if len(links) > 1:
                    self.among[teacher].add(student)
        for student, links in self.links.items():
            self.shared[student] = {item for item in links if len(self.holders[item]) > 1}
        self.tell_all()

    def tell_all(self) -> None:
        """Compute what everybody gets, exactly."""
        self.told = {teacher: self.share(teacher) for teacher in self.teachers}
        self._untold.clear()
        for student, links in self.links.items():
            self.ladder[student] = sorted((self.told[teacher], teacher) for teacher in links)
            self.got[student] = math.fsum(share for share, _ in self.ladder[student])

    def share(self, teacher: str, more: int = 0) -> float:
        """What each of a teacher's students gets of it, if it had ``more`` of them."""
        return self.teachers[teacher] / max(1, len(self.holders[teacher]) + more)

    def is_crowded(self, teacher: str, more: int = 0) -> bool:
        """Whether a teacher's students, if it had ``more`` of them, are a crowd."""
        return len(self.holders[teacher]) + more > _CROWD

    def exactly(self, student: str) -> float:
        """What a student gets."""
        got = self.got[student]
        for teacher in self._untold & self.links[student] if self._untold else ():
            got += self.share(teacher) - self.told[teacher]
        return got

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
        links = self.links[student]
        if len(links) == 1:
            self.among[next(iter(links))].add(student)
        if links:
            self.among[teacher].add(student)
        links.add(teacher)
        holders = self.holders[teacher]
        holders.add(student)
        for other in holders if len(holders) == 2 else (student,) if len(holders) > 2 else ():
            self.shared[other].add(teacher)
        self.got[student] += self.told[teacher]
        insort(self.ladder[student], (self.told[teacher], teacher))
        self._touched.add(student)
        self._tell(teacher)

    def unlink(self, student: str, teacher: str) -> None:
        """Remove a link."""
        links = self.links[student]
        links.remove(teacher)
        holders = self.holders[teacher]
        holders.remove(student)
        for other in (student, *holders) if len(holders) == 1 else (student,):
            self.shared[other].discard(teacher)
        self.among[teacher].discard(student)
        if len(links) == 1:
            self.among[next(iter(links))].discard(student)
        self.got[student] = self.got[student] - self.told[teacher] if links else 0.0
        self._take_off_ladder(student, teacher)
        self._touched.add(student)
        self._tell(teacher)

    def _tell(self, teacher: str) -> None:
        """Let a teacher's students know what their share of it is now, if it matters to them."""
        holders, share = self.holders[teacher], self.share(teacher)
        news = share - self.told[teacher]
        if self.is_crowded(teacher) and abs(news) < share / _CROWD:
            self._untold.add(teacher)
            return
        self._untold.discard(teacher)
        for student in holders if news else ():
            self.got[student] += news
            self._take_off_ladder(student, teacher)
            insort(self.ladder[student], (share, teacher))
        self.told[teacher] = share
        self._touched |= holders

    def _take_off_ladder(self, student: str, teacher: str) -> None:
        ladder = self.ladder[student]
        del ladder[bisect_left(ladder, (self.told[teacher], teacher))]

    # --- the three kinds of changes ---------------------------------------------------------

    def release_surplus(self) -> bool:
        """Students over their limit, or with a teacher more than they want, or one in a crowd
        beside others, let go of the least.
        """
        released = False
        crowded = {teacher for teacher in self.teachers if self.is_crowded(teacher)}
        for student, asked in self.students.items():
            ladder = self.ladder[student]
            while len(ladder) > 1:
                least = ladder[0][1]
                left = self.exactly(student) - self.share(least)
                enough = left >= asked.want * (1 + MARGIN)
                over = len(ladder) > asked.max_teachers
                if not enough and not over and least not in crowded:
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
        self.tell_all()
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
        got, links = self.exactly(student), self.links[student]
        worth = got * (1 + MARGIN)
        anywhere = [
            teacher
            for teacher in self._top(best, self._is_current)
            if self.may_take(student, teacher)
        ]
        roomy = [teacher for teacher in anywhere if not self.is_crowded(teacher, 1)]
        changes = self._leaves(student, got)
        if self.has_room(student):
            moves = self._moves(student, got, rich)
            changes += [change for change in moves if change.value > got * _ANY_GAIN]
        least = self.ladder[student][0][1] if links else None
        if least is None:
            shares = self._shares(got, student, anywhere)
        elif len(links) == 1 and self.is_crowded(least):
            shares = self._shares(got, student, anywhere, instead_of=least)
        else:
            shares = self._shares(got, student, roomy if self.has_room(student) else [])
            instead = anywhere if len(links) == 1 else roomy
            shares += self._shares(got, student, instead, instead_of=least)
        changes += [change for change in shares if change.value > worth]
        return max(changes, key=_Change.order, default=None)

    def _leaves(self, student: str, got: float) -> list[_Change]:
        """A richer student leaves a teacher that both use, and has others. Such a change is good if
        those who stay are better off and the leaver is no poorer than the poorest of them was.
        """
        changes = []
        for teacher in self.shared[student]:
            leavers = [(self.exactly(name), name) for name in self.among[teacher]]
            had, rich = max((pair for pair in leavers if pair[1] != student), default=(0.0, ""))
            left = had - self.share(teacher)
            if left * _ANY_GAIN < got or had <= got * (1 + MARGIN):
                continue
            gain = self.share(teacher, -1) - self.share(teacher)
            value = min(left, got + gain)
            # Who has no other teacher gets the share that the student gets too, and no more.
            poorer = len(self.holders[teacher]) - len(leavers)
            poorer += sum(had <= got * _ANY_GAIN for had, name in leavers if name != rich)
            if value > got * _ANY_GAIN or poorer > 1:
                changes.append(_Change(value, remove=((rich, teacher),)))
        return changes

    def _moves(self, student: str, got: float, rich: list) -> list[_Change]:
        """A teacher of a richer student, who has others."""
        changes = []
        for donor in self._top(rich, lambda entry: entry[0] == -self.got[entry[1]]):
            had = self.exactly(donor)
            if had <= got * (1 + MARGIN):
                break
            take = self._nearest(donor, (had - got) / 2, student)
            if len(self.links[donor]) < 2 or take is None:
                continue
            value = min(had - self.share(take), got + self.share(take))
            changes.append(_Change(value, ((donor, take),), ((student, take),)))
        return changes

    def _nearest(self, donor: str, share: float, student: str) -> Optional[str]:
        """The teacher of one student that another may take, and whose share is nearest to one."""
        ladder = self.ladder[donor]
        above = bisect_left(ladder, (share, ""))
        below = above - 1
        for _ in range(min(len(ladder), _TEACHERS_LOOKED_AT)):
            up = ladder[above][0] - share if above < len(ladder) else math.inf
            down = share - ladder[below][0] if below >= 0 else math.inf
            if up < down:
                teacher, above = ladder[above][1], above + 1
            else:
                teacher, below = ladder[below][1], below - 1
            if self.may_take(student, teacher):
                return teacher
        return None

    def _shares(
        self, got: float, student: str, offers: list[str], instead_of: Optional[str] = None
    ) -> list[_Change]:
        """A teacher together with those who use it already, perhaps in place of a lesser one."""
        rest = got
        remove: tuple[Link, ...] = ()
        if instead_of is not None:
            rest, remove = rest - self.share(instead_of), ((student, instead_of),)
        changes = []
        for teacher in offers:
            value = min(rest + self.share(teacher, 1), self._left(teacher))
            changes.append(_Change(value, remove, ((student, teacher),)))
        return changes

    def _left(self, teacher: str) -> float:
        """What the poorest of a teacher's students would have if another one joined them."""
        holders, among = self.holders[teacher], self.among[teacher]
        if len(holders) > len(among):  # nobody has less of it than who has nothing else
            return self.share(teacher, 1)
        loss = self.share(teacher) - self.share(teacher, 1)
        return min((self.exactly(other) - loss for other in among), default=math.inf)

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
