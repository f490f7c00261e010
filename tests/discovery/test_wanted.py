"""How many teachers are wanted: on a simulated service, and on a real one."""

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edl.discovery.wanted import (
    FALL_AFTER,
    HEADROOM,
    RISE_AFTER,
    SLACK,
    TOLERANCE,
    Bounds,
    Load,
    Need,
    Wanted,
    need,
)
from edl.errors import ConfigError


class Plant:
    """A service on simulated time: students of given capacities share teachers of a given rate,
    which an autoscaler sets to the number wanted ``lag`` seconds later. ``noise``: a function of
    the second, around 1, by which what is measured is wrong. ``busy``: the share of a step that
    keeps the student from waiting; 1 unless an accelerator computes while it waits already.
    """

    def __init__(self, rate, lag=30, bounds=None, teachers=1, noise=lambda second: 1.0, busy=1.0):
        self.rate, self.lag, self.noise, self.busy = rate, lag, noise, busy
        self.wanted = Wanted(bounds)
        self.there = teachers
        self.asked = []  # the number wanted, second by second
        self.waits = []

    def run(self, seconds, capacities):
        """``capacities``: rows per second that each student consumes if it never waits."""
        for _ in range(seconds):
            now = len(self.asked)
            supply = self.there * self.rate
            total = sum(capacities)
            share = min(1.0, supply / total) if total else 1.0
            measured = share * self.noise(now)
            waits = 1 - share * self.busy if share < 1 else 0.0
            needs = tuple(
                Need(need(None, capacity * measured, waits, capacity * share))
                for capacity in capacities
            )
            load = Load(self.there, self.rate if self.there else None, needs)
            self.asked.append(self.wanted.update(float(now), load))
            self.waits.append(1 - share)
            if now >= self.lag:
                self.there = self.asked[now - self.lag]
        return self.asked[-1]


def changes(numbers):
    return sum(a != b for a, b in zip(numbers, numbers[1:]))


few = settings(max_examples=40)  # each is a thousand steps
SOON = Bounds(fall_after=30.0)
capacities = st.lists(st.floats(1, 5000), min_size=1, max_size=5)


@few
@given(capacities, st.floats(10, 1000), st.integers(0, 120), st.integers(0, 50), st.floats(0.05, 1))
def test_it_settles_on_what_is_enough_and_not_much_more(loads, rate, lag, teachers, busy):
    plant = Plant(rate, lag, SOON, teachers, busy=busy)
    enough = HEADROOM * sum(loads) / rate
    # Each doubling takes the lag and what is looked at; the first is from one teacher.
    doublings = 1 + math.ceil(math.log2(max(1, enough)))
    waiting = doublings * (lag + int(RISE_AFTER) + 3)
    number = plant.run(waiting + lag + int(SOON.fall_after) + 10, loads)
    assert max(plant.waits[waiting:]) == 0, "it waits no longer than the page says"
    least, most = math.ceil(enough - 1e-6), math.ceil((1 + SLACK) * enough + 1e-6)
    assert least / (1 + TOLERANCE) <= number <= most / (1 - TOLERANCE)
    assert plant.run(200, loads) == number
    assert changes(plant.asked[-200:]) == 0
    assert max(plant.waits[-200:]) == 0


@few
@given(capacities, st.floats(10, 1000), st.integers(0, 2**32))
def test_noise_makes_it_neither_flap_nor_wait(loads, rate, seed):
    random = Random(seed)
    noise = [random.uniform(0.92, 1.08) for _ in range(900)]
    plant = Plant(rate, 10, SOON, noise=lambda second: noise[second])
    plant.run(400, loads)
    before = len(plant.asked)
    plant.run(500, loads)
    assert changes(plant.asked[before:]) <= 1, "up a little, to stay there"
    assert max(plant.waits[before:]) == 0


@few
@given(st.floats(1, 5000), st.floats(1, 5000), st.floats(10, 1000), st.integers(0, 60))
def test_a_load_that_steps_moves_it_one_way_only(before, after, rate, lag):
    plant = Plant(rate, lag, SOON)
    plant.run(800, [before])
    start = len(plant.asked)
    plant.run(800, [after])
    moved = plant.asked[start - 1 :]
    assert moved == sorted(moved, reverse=moved[-1] < moved[0])


def test_it_rises_at_once_and_falls_when_it_has_been_less_for_long():
    plant = Plant(100, lag=0)
    plant.run(400, [70])
    assert plant.asked[-1] == 1
    plant.run(30, [500])
    assert plant.asked[-1] == 6
    plant.run(int(FALL_AFTER) - 5, [70])
    assert plant.asked[-1] == 6
    plant.run(10, [70])
    assert plant.asked[-1] == 1


def test_a_pause_shorter_than_that_changes_nothing():
    plant = Plant(100, lag=0)
    plant.run(400, [500])
    plant.run(200, [])
    plant.run(400, [500])
    assert set(plant.asked[350:]) == {6}


def test_a_load_on_the_edge_between_two_numbers_does_not_flap():
    plant = Plant(100, lag=0)
    for step in range(8):
        plant.run(350, [250.01 if step % 2 else 249.99])
    assert changes(plant.asked[350:]) <= 1


def test_without_students_it_goes_to_the_least_and_to_zero_if_that_is_it():
    for least in (0, 2):
        plant = Plant(100, bounds=Bounds(least))
        plant.run(400, [500])
        assert plant.asked[-1] == 6
        plant.run(400, [])
        assert plant.asked[-1] == least


def test_who_waits_where_there_are_none_gets_one_at_once():
    wanted = Wanted()
    assert wanted.update(0.0, Load()) == 0
    assert wanted.update(1.0, Load(needs=(Need(0.0),))) == 1


def test_it_is_within_its_bounds_whoever_asks():
    plant = Plant(100, bounds=Bounds(2, 4))
    plant.run(400, [5000])
    plant.run(800, [])
    assert (min(plant.asked), max(plant.asked), plant.asked[-1]) == (2, 4, 2)


def test_that_all_teachers_are_gone_does_not_say_that_fewer_are_wanted():
    """Machines that may be taken away are all taken at once: as many are to come back."""
    plant = Plant(100, lag=0)
    plant.run(400, [500])
    waiting = Load(0, None, (Need(need(None, 0.0, 1.0, 0.0)),))
    assert {plant.wanted.update(400.0 + second, waiting) for second in range(1000)} == {6}


def test_growth_is_by_a_factor_of_what_is_there_and_does_not_wind_up_while_that_starts():
    plant = Plant(100, lag=100_000)
    plant.run(500, [100_000])
    assert plant.asked[-1] == 2


def test_students_use_no_more_teachers_than_they_may():
    wanted = Wanted()
    for second in range(10):
        number = wanted.update(second, Load(4, 10.0, (Need(100.0, 2), Need(30.0))))
    assert number == 5


def test_what_nobody_has_measured_changes_nothing():
    wanted = Wanted(before=3)
    assert {wanted.update(second, Load(3, None, (Need(7.0),))) for second in range(1000)} == {3}


def test_another_leader_goes_on_from_the_number_so_far():
    wanted = Wanted(before=6)
    assert {wanted.update(second, Load(6, 100.0, (Need(80.0),))) for second in range(299)} == {6}
    assert wanted.update(301.0, Load(6, 100.0, (Need(80.0),))) == 1


@pytest.mark.parametrize(
    ("student", "rows"),
    [
        ((300.0, 80.0, 0.0, 50.0), 300.0),  # it has said what it wants
        ((None, 80.0, 0.0, 50.0), 96.0),
        ((None, 80.0, 0.5, 80.0), 192.0),
        ((None, 80.0, None, 80.0), 192.0),  # how long it waits is not known
        ((None, 0.0, 1.0, 50.0), 50.0),  # it has just come
    ],
)
def test_what_a_student_could_use(student, rows):
    assert need(*student) == pytest.approx(rows)


@pytest.mark.parametrize(
    ("bounds", "words"), [((-1,), "least"), ((2, 1), "raise the most"), ((0, 0), "most")]
)
def test_bounds_that_cannot_be_are_said(bounds, words):
    with pytest.raises(ConfigError, match=words):
        Bounds(*bounds)
