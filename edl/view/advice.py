"""What a service's figures mean and what to do about it, in sentences. Pure.

The arithmetic: teachers that are busy for a share ``b`` of their time deliver what students use up
while these do not wait, ``1 - w`` of theirs. Without waiting students would use up ``1 / (1 - w)``
of that, for which ``n * b / (1 - w)`` teachers would have to be busy all the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from edl.view.snapshot import Service, Snapshot, Student, Teacher
from edl.view.text import percent

#: Waiting for less than this share of the time is no cause for more teachers.
LITTLE_WAITING = 0.05

#: Teachers busy for more than this cannot do much more; as busy as that is well used.
BUSY = 0.85

#: With fewer errors, or fewer requests, it may be chance.
_FEW_ERRORS, _FEW_REQUESTS = 0.01, 20

_NAMED = 3


@dataclass(frozen=True)
class Advice:
    """A sentence, in English and Chinese. ``level``: "act" where something is wrong, "note" where
    something could be better, "good" where nothing is to be done.
    """

    level: str
    english: str
    chinese: str


def advise(seen: Snapshot) -> dict[str, list[Advice]]:
    """For each service, what to do, the most urgent first; at least one sentence."""
    return {service.name: advise_service(service) for service in seen.services}


def advise_service(service: Service) -> list[Advice]:
    """See ``advise``."""
    teachers, students = service.teachers, service.students
    if not teachers and not students:
        return [Advice("note", "Nobody is here.", "这里没有教师，也没有学生。")]
    if not teachers:
        return [_no_teachers(service)]
    found = [*_failing(teachers), *_silent(teachers), *_alone(service)]
    if students:
        found += _load(service)
    else:
        found.append(
            Advice(
                "note",
                f"No student works with {_these(len(teachers))}.",
                f"{len(teachers)} 个教师没有学生使用。",
            )
        )
    return sorted(found, key=lambda item: ("act", "note", "good").index(item.level))


def _no_teachers(service: Service) -> Advice:
    count = len(service.students)
    return Advice(
        "act",
        f"{_count(count, 'student')} {'has' if count == 1 else 'have'} no teacher: start one with "
        f"edl teacher --service {service.name}.",
        f"{count} 个学生没有教师：用 edl teacher --service {service.name} 启动一个。",
    )


def _failing(teachers: tuple[Teacher, ...]) -> list[Advice]:
    failing = [
        teacher
        for teacher in teachers
        if (teacher.errors or 0.0) >= _FEW_ERRORS and teacher.requests >= _FEW_REQUESTS
    ]
    failing.sort(key=lambda teacher: -(teacher.errors or 0.0))
    found = [
        Advice(
            "act",
            f"Teacher {teacher.endpoint} fails {percent(teacher.errors)} of its requests: "
            f"{teacher.words or 'it does not say why'}.",
            f"教师 {teacher.endpoint} 的请求有 {percent(teacher.errors)} 失败："
            f"{teacher.words or '原因未知'}。",
        )
        for teacher in failing[:_NAMED]
    ]
    more = len(failing) - len(found)
    if more > 0:
        found.append(Advice("act", f"{more} more teachers fail.", f"另有 {more} 个教师也在失败。"))
    return found


def _silent(teachers: tuple[Teacher, ...]) -> list[Advice]:
    silent = [teacher for teacher in teachers if teacher.problem]
    if not silent:
        return []
    first = silent[0]
    if len(silent) == 1:
        english = f"Teacher {first.endpoint} gives no figures: {first.problem}."
        chinese = f"教师 {first.endpoint} 没有给出指标：{first.problem}。"
    else:
        english = f"{len(silent)} teachers give no figures; {first.endpoint}: {first.problem}."
        chinese = f"{len(silent)} 个教师没有给出指标；{first.endpoint}：{first.problem}。"
    return [Advice("note", english, chinese)]


def _alone(service: Service) -> list[Advice]:
    without = [
        student for student in service.students if not student.teachers and student.want != 0
    ]
    found = []
    if service.students and not service.balanced:
        found.append(Advice("act", "Nobody balances: students keep the teachers that they have.",
                            "没有进程在做均衡：学生保留现有的教师。"))  # fmt: skip
    elif without:
        found.append(
            Advice(
                "act",
                f"{_count(len(without), 'student')} of {len(service.students)} "
                f"{'has' if len(without) == 1 else 'have'} no teacher.",
                f"{len(service.students)} 个学生中有 {len(without)} 个没有教师。",
            )
        )
    return found


def _load(service: Service) -> list[Advice]:
    """Whether there are too few teachers, or too many."""
    waits, busy, count = service.waits, service.busy, len(service.teachers)
    if waits is None:
        return [*_unknown(service), *_wanted_only(service)]
    if waits >= LITTLE_WAITING:
        return [_waiting(service, waits, busy)]
    spare = count - enough(count, waits, busy) if busy is not None and busy < BUSY else 0
    if service.wanted is not None:
        spare = min(spare, count - service.wanted)
    if busy is not None and spare > 0:
        return [
            Advice(
                "note",
                f"Teachers are idle {percent(1 - busy)}; {spare} could go.",
                f"教师有 {percent(1 - busy)} 的时间空闲；可以撤掉 {spare} 个。",
            )
        ]
    english = f"Students wait {percent(waits)} of their time"
    chinese = f"学生等待的时间占 {percent(waits)}"
    if busy is not None:
        english += f", teachers are busy {percent(busy)}"
        chinese += f"，教师忙碌 {percent(busy)}"
    return [Advice("good", f"{english}: nothing to do.", f"{chinese}：无需处理。")]


def _waiting(service: Service, waits: float, busy: Optional[float]) -> Advice:
    english = f"Students wait {percent(waits)} of their time"
    chinese = f"学生等待的时间占 {percent(waits)}"
    count = len(service.teachers)
    if busy is not None and busy < BUSY * 0.8:
        english += f" though teachers are busy only {percent(busy)}"
        chinese += f"，而教师只忙碌 {percent(busy)}"
        limited = [student for student in service.students if _is_limited(student, count)]
        if limited:
            return Advice(
                "act",
                f"{english}: {_count(len(limited), 'student')} may have no more teachers "
                "(require_max_teacher).",
                f"{chinese}：{len(limited)} 个学生已达到教师数上限（require_max_teacher）。",
            )
        if busy < waits:  # they are busy whenever somebody waits for them
            return Advice(
                "act",
                f"{english}: more teachers would not help; look at the students' own source, at "
                "the network, and at teacher_batch_size.",
                f"{chinese}：增加教师没有用；请检查学生自己的数据源、网络和 teacher_batch_size。",
            )
        return Advice(
            "note",
            f"{english}: the demand comes in bursts, which a higher high_batches evens out, or the "
            "students' own source or the network is slow.",
            f"{chinese}：需求时高时低（提高 high_batches 可使之平稳），"
            "或者学生自己的数据源、网络较慢。",
        )
    more = max(1, enough(count, waits, busy) - count)
    if service.wanted is not None:
        more = max(1, service.wanted - count)
    teachers = "teacher like these" if count > 1 else "teacher like this"
    if more > 1:
        teachers = teachers.replace("teacher", "teachers", 1)
    return Advice(
        "act",
        f"{english}; {more} more {teachers} would be enough.",
        f"{chinese}；再增加 {more} 个同样的教师就够了。",
    )


def _unknown(service: Service) -> list[Advice]:
    silent = [student for student in service.students if student.problem]
    if silent:
        return [
            Advice(
                "note",
                f"Student {silent[0].name[:8]} gives no figures: {silent[0].problem}.",
                f"学生 {silent[0].name[:8]} 没有给出指标：{silent[0].problem}。",
            )
        ]
    if any(student.asked for student in service.students):
        return []  # they have just been asked for the first time
    return [
        Advice(
            "note",
            "Students do not say how long they wait: set metrics_port=0, or EDL_METRICS_PORT=0.",
            "学生没有报告等待时间：请设置 metrics_port=0 或 EDL_METRICS_PORT=0。",
        )
    ]


def _wanted_only(service: Service) -> list[Advice]:
    """What the balancer says, where students say nothing."""
    if service.wanted is None or service.wanted == len(service.teachers):
        return []
    more = service.wanted - len(service.teachers)
    if more > 0:
        return [Advice("act", f"The balancer would have {more} more.",
                       f"均衡器认为还需要 {more} 个教师。")]  # fmt: skip
    return [Advice("note", f"The balancer could do with {-more} fewer.",
                   f"均衡器认为可以撤掉 {-more} 个教师。")]  # fmt: skip


def enough(count: int, waits: float, busy: Optional[float]) -> int:
    """How many teachers like these ``count`` the students would need not to wait. ``busy``: share
    of the time; all of it if that is not known.
    """
    working = 1.0 if busy is None else busy
    room = 1.0 if waits >= LITTLE_WAITING else BUSY  # who lets teachers go leaves some room
    return max(1, math.ceil(count * working / max(0.05, 1 - waits) / room - 1e-9))


def _is_limited(student: Student, teachers: int) -> bool:
    return student.limit is not None and len(student.teachers) >= student.limit < teachers


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _these(number: int) -> str:
    return "this teacher" if number == 1 else f"these {number} teachers"
