"""Students and balancers in a real etcd."""

import json
import threading
import time

import pytest

from edl.discovery import Balancer, Etcd, Participation, Registration, StudentRecord
from edl.discovery.keys import BALANCE, CANDIDATE, LEADER, service_prefix
from edl.discovery.records import format_assignment, parse_assignment
from edl.discovery.wanted import Bounds
from edl.discovery.watch import list_prefix
from tests.support.processes import eventually

ANY_NUMBER = StudentRecord()
TEACHERS = [f"10.0.0.{number}:9000" for number in range(1, 7)]


def entries(etcd, service):
    return list_prefix(etcd, service_prefix(service))[0]


def leader(etcd, service):
    return entries(etcd, service).get(LEADER)


@pytest.fixture
def world(etcd_server, service):
    """Teachers, students and balancers of a service; ended at the end."""

    class World:
        def __init__(self):
            self.etcd = Etcd(etcd_server.endpoint)
            self.assigned = {}
            self._ends = [self.etcd.close]

        def teacher(self, endpoint, rate=10.0):
            value = json.dumps({"rate": rate})
            registration = Registration(self.etcd, service, endpoint, value, ttl=2)
            registration.start()
            self._ends.append(registration.stop)
            return registration

        def student(self, name, record=ANY_NUMBER, lead=True):
            etcd = Etcd(etcd_server.endpoint)
            self._ends.insert(0, etcd.close)

            def on_assigned(teachers):
                self.assigned[name] = teachers

            participation = Participation(etcd, service, name, record, on_assigned, lead)
            participation.start()
            self._ends.append(participation.close)
            return participation

        def balancer(self, **options):
            balancer = Balancer(self.etcd, service, ttl=2, eager=True, **options)
            balancer.start()
            self._ends.append(balancer.stop)
            return balancer

        def sizes(self):
            return sorted(map(len, self.assigned.values()))

        def end(self):
            for end in reversed(self._ends):
                end()

    world = World()
    yield world
    world.end()


def test_students_elect_one_of_themselves_and_share_the_teachers(world, etcd, service):
    for endpoint in TEACHERS:
        world.teacher(endpoint)
    for name in ("a", "b", "c"):
        world.student(name)
    eventually(lambda: world.sizes() == [2, 2, 2])
    assert set().union(*world.assigned.values()) == set(TEACHERS)
    assert leader(etcd, service)
    balance = eventually(lambda: json.loads(entries(etcd, service).get("balance", "{}")))
    assert (balance["students"], balance["teachers"], balance["idle"]) == (3, 6, 0)
    assert balance["supply"] == 60


def test_a_student_that_leaves_frees_its_teachers_and_one_that_comes_gets_its_share(world):
    for endpoint in TEACHERS:
        world.teacher(endpoint)
    world.student("a")
    eventually(lambda: world.sizes() == [6])
    b = world.student("b")
    eventually(lambda: world.sizes() == [3, 3])
    b.close()
    eventually(lambda: len(world.assigned["a"]) == 6)


def test_a_teacher_that_leaves_is_assigned_to_nobody_and_a_new_one_to_somebody(world):
    one = world.teacher(TEACHERS[0])
    world.student("a")
    eventually(lambda: world.assigned.get("a") == {TEACHERS[0]})
    world.teacher(TEACHERS[1])
    eventually(lambda: world.assigned["a"] == {TEACHERS[0], TEACHERS[1]})
    one.stop()
    eventually(lambda: world.assigned["a"] == {TEACHERS[1]})


def test_a_student_that_wants_less_is_given_less(world):
    for endpoint in TEACHERS:
        world.teacher(endpoint, rate=10)
    a = world.student("a")
    eventually(lambda: world.sizes() == [6])
    a.report(StudentRecord(want=25.0))
    eventually(lambda: world.sizes() == [3])
    a.report(StudentRecord(want=None, avoid=tuple(TEACHERS[:2])))
    eventually(lambda: world.assigned["a"] == set(TEACHERS[2:]))


def test_when_the_leader_goes_another_follows_and_changes_nothing(world, etcd, service):
    for endpoint in TEACHERS:
        world.teacher(endpoint)
    first = world.balancer()
    eventually(lambda: first.leading)
    for name in ("a", "b"):
        world.student(name, lead=False)
    eventually(lambda: world.sizes() == [3, 3])
    before = dict(world.assigned)
    second = world.balancer()
    first.stop()
    eventually(lambda: second.leading)
    world.teacher("10.0.0.9:9000")
    eventually(lambda: any("10.0.0.9:9000" in links for links in world.assigned.values()))
    assert all(world.assigned[name] >= before[name] for name in before)


def test_without_a_leader_everybody_keeps_what_it_has(world, etcd, service):
    world.teacher(TEACHERS[0])
    balancer = world.balancer()
    world.student("a", lead=False)
    eventually(lambda: world.assigned.get("a") == {TEACHERS[0]})
    balancer.stop()
    eventually(lambda: leader(etcd, service) is None)
    world.teacher(TEACHERS[1])
    assert parse_assignment(entries(etcd, service)["assignments/a"]) == {TEACHERS[0]}
    assert world.assigned["a"] == {TEACHERS[0]}


def test_who_is_no_longer_the_leader_cannot_write(world, etcd, service):
    balancer = world.balancer()
    eventually(lambda: balancer.leading)
    assert balancer._write({"assignments/x": "{}"})
    key = service_prefix(service) + LEADER
    etcd.call(lambda client: client.put(key, "usurper"))
    assert not balancer._write({"assignments/x": '{"teachers": ["evil"]}'})
    assert entries(etcd, service)["assignments/x"] == "{}"
    eventually(lambda: not balancer.leading)
    etcd.call(lambda client: client.delete(key))
    eventually(lambda: balancer.leading)


def test_assignments_of_students_who_left_are_removed(world, etcd, service):
    key = service_prefix(service) + "assignments/gone"
    etcd.call(lambda client: client.put(key, format_assignment(frozenset(TEACHERS))))
    world.balancer()
    eventually(lambda: "assignments/gone" not in entries(etcd, service))


def test_hundreds_of_students_are_written_in_several_transactions(world, etcd, service):
    world.teacher(TEACHERS[0])
    record = StudentRecord().to_json(since=0)
    prefix = service_prefix(service)
    for number in range(250):
        etcd.call(lambda client, n=number: client.put(f"{prefix}students/s{n}", record))
    world.balancer()
    eventually(lambda: sum(key.startswith("assignments/") for key in entries(etcd, service)) == 250)


def test_a_leader_that_balances_for_longer_than_its_lease_goes_on_to_lead(world, etcd, service):
    slow, summaries = threading.Event(), []

    def on_summary(summary):
        summaries.append(summary)
        if slow.is_set():
            time.sleep(5)  # its lease is of two seconds

    world.teacher(TEACHERS[0])
    world.student("a", lead=False)
    balancer = world.balancer(on_summary=on_summary)
    eventually(lambda: world.sizes() == [1])
    first = leader(etcd, service)
    slow.set()
    count = len(summaries)
    world.teacher(TEACHERS[1])
    eventually(lambda: len(summaries) > count)
    for _ in range(40):
        assert leader(etcd, service) == first == balancer.name
        time.sleep(0.1)
    slow.clear()
    eventually(lambda: world.sizes() == [2])
    assert leader(etcd, service) == first


def test_what_the_leader_wrote_is_no_reason_to_balance_again(world, etcd, service):
    summaries = []
    world.balancer(on_summary=summaries.append)
    for endpoint in TEACHERS:
        world.teacher(endpoint)
    world.student("a", lead=False)
    eventually(lambda: world.sizes() == [6])
    time.sleep(0.5)
    count = len(summaries)
    world.teacher("10.0.0.9:9000")
    eventually(lambda: world.sizes() == [7])
    time.sleep(0.5)
    assert len(summaries) == count + 1


def test_no_strangers_entry_ends_a_candidate(world, etcd, service):
    prefix = service_prefix(service)
    digits = '{"rate": ' + "9" * 400 + "}"
    for key in (f"{prefix}nodes/{TEACHERS[0]}", f"{prefix}students/x", f"{prefix}assignments/x"):
        etcd.call(lambda client, key=key: client.put(key, digits))
    etcd.call(lambda client: client.put(prefix.encode() + b"students/\xff", digits))
    world.student("a")
    eventually(lambda: world.sizes() == [1])
    world.teacher(TEACHERS[1])
    eventually(lambda: len(world.assigned["a"]) == 2)


def test_a_student_outside_an_epoch_gives_its_teachers_back_and_gets_some_when_it_returns(world):
    for endpoint in TEACHERS:
        world.teacher(endpoint)
    a, _ = world.student("a"), world.student("b")
    eventually(lambda: world.sizes() == [3, 3])
    a.report(StudentRecord(want=0.0))
    eventually(lambda: world.sizes() == [0, 6])
    a.report(StudentRecord())
    eventually(lambda: world.sizes() == [3, 3])


def test_a_student_that_leads_makes_room_for_who_does_nothing_else(world, etcd, service):
    world.teacher(TEACHERS[0])
    world.student("a")
    eventually(lambda: world.assigned.get("a") == {TEACHERS[0]})
    assert leader(etcd, service)
    summaries = []
    balancer = world.balancer(on_summary=summaries.append)
    eventually(lambda: leader(etcd, service) == balancer.name)
    eventually(lambda: summaries)
    assert CANDIDATE not in entries(etcd, service)
    balancer.stop()
    assert summaries[-1] is None, "it says nothing any more, and that it does not"
    eventually(lambda: leader(etcd, service) not in (None, balancer.name))


def test_how_many_teachers_are_wanted_is_in_the_registry_and_the_next_leader_goes_on(
    world, etcd, service
):
    def wanted():
        return json.loads(entries(etcd, service).get(BALANCE, "{}")).get("wanted")

    for endpoint in TEACHERS[:2]:
        world.teacher(endpoint, rate=10.0)
    bounds = Bounds(most=3)
    first = world.balancer(bounds=bounds)
    world.student("a", StudentRecord(want=100.0), lead=False)
    eventually(lambda: wanted() == 3)
    first.stop()
    second = world.balancer(bounds=Bounds(most=5))
    eventually(lambda: second.leading)
    world.teacher(TEACHERS[2], rate=10.0)
    eventually(lambda: wanted() == 5)
