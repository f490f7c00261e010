"""Services as they may be, for tests."""

from dataclasses import replace

from edl.view.snapshot import Service, Student, Teacher


def service(teachers=4, students=2, *, busy=0.95, waits=0.0, **fields):
    """One that is balanced, whose teachers and students are all alike."""
    hosts = tuple(
        Teacher(f"10.0.0.{number}:9292", busy=busy, errors=0.0, requests=1000.0)
        for number in range(1, teachers + 1)
    )
    users = tuple(
        Student(f"student{number}", teachers=tuple(host.endpoint for host in hosts), waits=waits)
        for number in range(1, students + 1)
    )
    return replace(Service("resnet", balanced=True, teachers=hosts, students=users), **fields)


def with_teacher(one, **fields):
    """The first teacher is another."""
    first, *others = one.teachers
    return replace(one, teachers=(replace(first, **fields), *others))
