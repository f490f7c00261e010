"""How many tasks are in flight at a teacher, on simulated time."""

import heapq
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edl.distill.windows import Bounds, Window, enough

seconds = st.floats(1e-6, 100.0)
bounds = st.builds(
    lambda least, more, most_bytes: Bounds(least, least + more, most_bytes),
    st.integers(1, 8),
    st.integers(0, 60),
    st.integers(1, 1 << 30),
)


@given(seconds, seconds, st.floats(0, 1 << 30), bounds)
def test_a_window_is_within_its_bounds(interval, delay, nbytes, limits):
    size = enough(interval, delay, nbytes, limits)
    assert limits.least <= size <= limits.most
    assert size == limits.least or size * nbytes <= limits.most_bytes


@given(seconds, seconds, seconds, st.floats(0, 1 << 30), bounds)
def test_it_is_larger_for_faster_teachers_that_are_further_away(one, two, delay, nbytes, limits):
    fast, slow = sorted((one, two))
    assert enough(fast, delay, nbytes, limits) >= enough(slow, delay, nbytes, limits)
    assert enough(delay, slow, nbytes, limits) >= enough(delay, fast, nbytes, limits)


@given(seconds, seconds)
def test_it_holds_the_product_of_rate_and_delay(interval, delay):
    assert enough(interval, delay, 0, Bounds(1, 1 << 40, math.inf)) >= math.floor(delay / interval)


steps = st.lists(
    st.tuples(st.floats(0, 2), st.floats(0, 2), st.integers(0, 1 << 22), *[st.booleans()] * 4),
    max_size=60,
)


@given(steps, bounds)
def test_whatever_is_seen_it_stays_within_its_bounds_and_moves_by_one(seen, limits):
    window, now = Window(limits), 0.0
    assert window.size == limits.least
    for latency, interval, nbytes, quiet, low, high, filled in seen:
        now += interval
        before = window.size
        window.answered(latency, interval, nbytes, quiet, now)
        window.adapt(low and not high, high, filled)
        assert abs(window.size - before) <= 1
        assert limits.least <= window.size <= limits.most
        assert 0 <= window.room(0, now) <= window.size
        assert window.room(limits.least, now) >= 0
        if high:
            assert window.size <= max(limits.least, before)


class Teacher:
    """It computes what it has got ``together`` at a time in ``compute`` seconds; each task is on
    its way for ``away`` seconds, half of them back.
    """

    def __init__(self, compute, away, together=1):
        self.compute, self.away, self.together = compute, away, together


def serve(window, teacher, until, nbytes=1000, start=0.0):
    """A student that always has another task. Answers per second in the last half, and the most
    that were in flight there.
    """
    now = start
    sent = {}  # by number: when, and whether it was quiet
    arrived = []  # at the teacher: when, and number
    answers = []  # on their way: when, and number
    free_at, last, number, most, answered = now, now, 0, 0, 0
    half = start + (until - start) / 2
    while now < until:
        while window.room(len(sent), now):
            sent[number] = (now, window.is_quiet(len(sent) + 1))
            heapq.heappush(arrived, (now + teacher.away / 2, number))
            number += 1
        if now >= half:
            most = max(most, len(sent))
        begin = max(free_at, arrived[0][0]) if arrived else math.inf
        if arrived and (not answers or begin < answers[0][0]):
            now = max(now, begin)
            batch = []
            while arrived and arrived[0][0] <= begin and len(batch) < teacher.together:
                batch.append(heapq.heappop(arrived)[1])
            free_at = begin + teacher.compute
            for each in batch:
                heapq.heappush(answers, (free_at + teacher.away / 2, each))
            continue
        now, each = heapq.heappop(answers)
        since, quiet = sent.pop(each)
        answered += now >= half
        window.answered(now - since, now - max(last, since), nbytes, quiet, now)
        window.adapt(True, False, filled=True)
        last = now
    return answered / (until - half), most


@settings(max_examples=60, deadline=None)
@given(st.floats(0.001, 0.2), st.floats(0.0, 0.1))
def test_a_teacher_is_kept_busy_and_its_queue_stays_short(compute, away):
    limits = Bounds(2, 1000, math.inf)
    rate, most = serve(Window(limits), Teacher(compute, away), 400 * (compute + away))
    assert rate * compute > 0.9
    slowest = 2 * (2 * compute + away) + 0.005  # what is in flight is answered in
    assert (most - 1) * compute <= max(slowest, 2 * compute)


@pytest.mark.parametrize("together", [4, 16])
def test_a_teacher_that_computes_several_tasks_together_gets_them(together):
    window = Window(Bounds(2, 1000, math.inf))
    rate, most = serve(window, Teacher(0.005, 0.001, together), 20.0)
    assert rate > 0.9 * together / 0.005
    assert together < most <= 4 * together


def test_large_tasks_are_few_whatever_the_distance():
    window = Window(Bounds(2, 32, 64 << 20))
    _, most = serve(window, Teacher(0.001, 0.1), 20.0, nbytes=19 << 20)
    assert most == 3


def test_a_teacher_that_comes_to_be_far_away_is_measured_anew():
    window = Window(Bounds(2, 1000, math.inf))
    near, _ = serve(window, Teacher(0.001, 0.001), 20.0)
    far, most = serve(window, Teacher(0.001, 0.2), 100.0, start=20.0)
    assert near > 900
    assert far > 900
    assert most > 200
    again, most = serve(window, Teacher(0.001, 0.001), 180.0, start=100.0)
    assert again > 900
    assert most < 20
