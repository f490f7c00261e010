"""Who may stay, and what they may cost: the decisions alone."""

import math

import pytest

from edl.errors import ConfigError
from edl.serving import ServerOptions
from edl.serving.server.gate import (
    MIN_RATE,
    Arrival,
    Budget,
    Gate,
    Guest,
    Limits,
    Pace,
    too_slow,
)

MIB = 1 << 20


def test_the_oldest_newcomer_makes_room_and_who_is_trusted_does_not():
    gate = Gate(2)
    (first, _), (second, _) = gate.enter("a"), gate.enter("b")
    gate.trust(first)
    third, leaver = gate.enter("c")
    assert leaver is second
    gate.trust(third)
    assert gate.enter("d") == (None, None)
    assert len(gate) == 2


def test_a_guest_that_was_thrown_out_does_not_come_back_by_being_trusted_or_leaving_again():
    gate = Gate(1)
    lost, _ = gate.enter("a")
    stays, leaver = gate.enter("b")
    assert leaver is lost
    gate.trust(lost)
    gate.leave(lost)
    gate.leave(lost)
    assert len(gate) == 1
    gate.trust(stays)
    assert gate.enter("c") == (None, None)


def test_a_burst_buys_no_pause():
    pace = Pace(patience=30, now=0)
    pace.moved(500 * MIB, now=1)
    assert pace.deadline == 31
    for second in range(2, 40):  # a byte now and then does not help either
        pace.moved(1, now=second)
    assert pace.deadline < 31.1


def test_who_keeps_up_the_minimum_rate_has_all_the_time_it_takes():
    pace = Pace(patience=2, now=0)
    for second in range(1, 1000):
        assert pace.deadline > second
        pace.moved(MIN_RATE, now=second)


def test_what_newcomers_send_leaves_room_for_the_others():
    budget = Budget(1024)
    strangers = [Arrival(Guest("s"), 512, newcomer=True) for _ in range(4)]
    assert [budget.take_loose(stranger, 100) for stranger in strangers] == [
        True,
        True,
        False,
        False,
    ]
    student = Guest("t", trusted=True)
    assert budget.take_loose(Arrival(student, 256, newcomer=False), 256)
    assert not budget.take_loose(Arrival(student, 100, newcomer=False), 100)
    assert budget.take_block(student, 512)
    assert not budget.take_block(student, 512)


def test_what_is_given_back_can_be_taken_again():
    budget, guest = Budget(1024), Guest("g")
    arrival = Arrival(guest, 256, newcomer=True)
    assert budget.take_loose(arrival, 200)
    assert budget.take_block(guest, 824)
    assert guest.held == 1024
    budget.give_loose(arrival)
    budget.give_loose(arrival)
    budget.give_block(guest, 824)
    assert (guest.held, budget.blocks, budget.loose, budget.newcomers) == (0, 0, 0, 0)


def arrival(size, *, seen, arrived, waits=False, held=0):
    guest = Guest("g", held=held)
    return Arrival(guest, size, False, arrived=arrived, waits=waits, seen=seen)


def test_bodies_that_stand_still_make_room_all_at_once():
    still = [arrival(512 * MIB, seen=100, arrived=100) for _ in range(3)]
    moving = arrival(20 * MIB, seen=0, arrived=10 * MIB)
    new = arrival(512 * MIB, seen=None, arrived=0)
    assert too_slow([*still, moving, new], seconds=1, patience=30) == still
    assert new.seen == 0


def test_of_those_that_move_only_the_one_furthest_from_its_end_makes_room():
    slow = arrival(512 * MIB, seen=0, arrived=MIN_RATE)
    slower = arrival(512 * MIB, seen=0, arrived=MIN_RATE - 1)
    fine = arrival(20 * MIB, seen=0, arrived=MIB)
    assert too_slow([slow, slower, fine], seconds=1, patience=30) == [slower]
    assert too_slow([arrival(20 * MIB, seen=0, arrived=MIB)], seconds=1, patience=30) == []


def test_of_those_that_wait_themselves_the_one_that_holds_most_makes_room():
    small = arrival(MIB, seen=10, arrived=10, waits=True, held=10)
    large = arrival(MIB, seen=10, arrived=10, waits=True, held=500)
    assert too_slow([small, large], seconds=1, patience=30) == [large]


@pytest.mark.parametrize("field", ["max_body", "patience", "idle"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "3"])
def test_a_limit_that_is_none_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        Limits(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 65536),
        ("port", -1),
        ("max_batch_rows", 0),
        ("max_batch_rows", 2.5),
        ("max_wait", -0.1),
        ("max_wait", math.nan),
        ("max_queued", 0),
        ("input_bytes", 0),
        ("input_bytes", 1e6),
        ("load_timeout", 0),
        ("load_timeout", math.nan),
        ("run_timeout", -1),
        ("run_timeout", math.inf),
        ("max_connections", 0),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        ServerOptions(**{field: value})


def test_what_clients_share_is_a_quarter_each_and_counts_apart_from_what_they_send():
    budget = Budget(100, shared_size=80)
    one, other = Guest("one"), Guest("other")
    assert budget.room_to_share(one) == 20
    budget.take_shared(one, 15)
    assert (budget.room_to_share(one), budget.room_to_share(other)) == (5, 20)
    guests = [Guest(str(number)) for number in range(3)]
    for guest in guests:
        budget.take_shared(guest, 20)
    assert budget.room_to_share(other) == 5, "all of them have a limit, too"
    assert budget.take_block(other, 100), "requests have a memory of their own"
    budget.give_shared(one, 15)
    assert budget.room_to_share(other) == 20
    assert Budget(100).room_to_share(other) == 0
