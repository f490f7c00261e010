"""The dispatch state machine, without threads, sockets or a clock.

The first half are single situations; the second half is a machine that does everything at random:
whatever it does, batches come out once, in order, with their own parts, and memory stays bounded.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edl.distill.dispatch import Dispatch, Output
from edl.distill.state import Limits
from edl.errors import BatchRefused, ReaderError


def dispatch_with(*teachers, **limits):
    dispatch = Dispatch(Limits(**limits))
    for name in teachers:
        dispatch.join(name, now=0.0)
    return dispatch


def add(dispatch, *payloads, rows=4, task_rows=4, nbytes=100):
    for payload in payloads:
        dispatch.add(payload, rows, nbytes, task_rows)


def answer(dispatch, name, task, now=0.0, nbytes=10):
    dispatch.answered(name, [Output(task.id, (task.batch, task.start, task.stop), nbytes)], now)


def teach(dispatch, name, seconds, times=4, start=0.0):
    """Let a teacher answer some batches in ``seconds`` each, and take them."""
    now = start
    for _ in range(times):
        add(dispatch, "lesson")
        task = dispatch.next_task(name, now)
        now += seconds
        answer(dispatch, name, task, now)
        dispatch.take()
    return now


# --- order and cutting --------------------------------------------------------------------------


def test_a_batch_is_cut_into_tasks_and_its_parts_come_back_in_order():
    dispatch = dispatch_with("a", min_window=8)
    add(dispatch, "x", rows=10)
    tasks = [dispatch.next_task("a", 0.0) for _ in range(3)]
    assert [(task.start, task.stop) for task in tasks] == [(0, 4), (4, 8), (8, 10)]
    for task in reversed(tasks):
        assert not dispatch.ready
        answer(dispatch, "a", task)
    assert dispatch.take().parts == [(0, 0, 4), (0, 4, 8), (0, 8, 10)]


def test_batches_are_taken_in_the_order_of_the_source():
    dispatch = dispatch_with("a")
    add(dispatch, "x", "y")
    first, second = dispatch.next_task("a", 0.0), dispatch.next_task("a", 0.0)
    answer(dispatch, "a", second)
    assert dispatch.take() is None
    answer(dispatch, "a", first)
    assert [dispatch.take().payload, dispatch.take().payload] == ["x", "y"]


def test_a_batch_without_rows_goes_to_a_teacher_too():
    dispatch = dispatch_with("a")
    add(dispatch, "x", rows=0)
    task = dispatch.next_task("a", 0.0)
    assert (task.start, task.stop) == (0, 0)


def test_an_error_of_the_source_is_taken_in_its_turn():
    dispatch = dispatch_with("a")
    add(dispatch, "x")
    dispatch.add_error(ValueError("bad file"))
    answer(dispatch, "a", dispatch.next_task("a", 0.0))
    assert dispatch.take().error is None
    assert str(dispatch.take().error) == "bad file"


# --- whether there is hope ----------------------------------------------------------------------


def test_a_teacher_is_usable_if_it_takes_work_and_may_have_what_the_student_waits_for():
    dispatch = dispatch_with("a", "b")
    assert dispatch.usable, "nothing is waited for"
    add(dispatch, "x")
    dispatch.refused("a", dispatch.next_task("a", 0.0).id, "too dark", 0.0)
    assert dispatch.usable, "b may take it"
    dispatch.unavailable("b", dispatch.next_task("b", 1.0).id, "full", 1.0)
    assert not dispatch.usable
    assert "a refused it (too dark)" in dispatch.waits_for(2.0)
    assert "b takes no work (full)" in dispatch.waits_for(2.0)
    dispatch.join("c", 2.0)
    assert dispatch.usable
    dispatch.retire("c", True)
    assert not dispatch.usable


def test_a_retiring_teacher_is_usable_while_it_has_it():
    dispatch = dispatch_with("a")
    add(dispatch, "x")
    dispatch.next_task("a", 0.0)
    dispatch.retire("a", True)
    assert dispatch.usable
    dispatch.leave("a", "silent", blame=False)
    assert not dispatch.usable


# --- failures -----------------------------------------------------------------------------------


def test_a_lost_teachers_tasks_are_first_in_line():
    dispatch = dispatch_with("a", "b")
    add(dispatch, "x", "y", "z")
    lost = [dispatch.next_task("a", 0.0), dispatch.next_task("a", 0.0)]
    dispatch.leave("a", "killed", blame=True)
    again = [dispatch.next_task("b", 0.0), dispatch.next_task("b", 0.0)]
    assert again == lost
    assert dispatch.counters.resent == 2


def test_an_answer_after_its_teacher_was_lost_is_not_delivered_twice():
    dispatch = dispatch_with("a", "b")
    add(dispatch, "x")
    task = dispatch.next_task("a", 0.0)
    dispatch.leave("a", "silent", blame=True)
    dispatch.next_task("b", 0.0)
    answer(dispatch, "a", task)
    answer(dispatch, "b", task)
    assert dispatch.take().payload == "x"
    assert dispatch.take() is None
    assert dispatch.counters.duplicates == 1


def test_two_refusals_are_the_users_error_with_both_messages():
    dispatch = dispatch_with("a", "b", "c")
    add(dispatch, "x", "y")
    for name, text in (("a", "no feed img"), ("b", "unknown feed")):
        task = dispatch.next_task(name, 0.0)
        assert task.batch == 0
        dispatch.refused(name, task.id, text, 0.0)
    error = dispatch.take().error
    assert isinstance(error, BatchRefused)
    assert "a: no feed img" in str(error)
    assert "b: unknown feed" in str(error)


def test_the_only_teachers_refusal_is_final():
    dispatch = dispatch_with("a")
    add(dispatch, "x")
    dispatch.refused("a", dispatch.next_task("a", 0.0).id, "wrong shape", 0.0)
    assert "wrong shape" in str(dispatch.take().error)


def test_a_refusal_waits_a_while_for_a_known_teacher_that_is_away():
    dispatch = dispatch_with("a", refusal_patience=5.0)
    dispatch.expect({"a", "away"})
    add(dispatch, "x")
    dispatch.refused("a", dispatch.next_task("a", 0.0).id, "wrong shape", 1.0)
    assert dispatch.next_task("a", 1.0) is None, "it has said no already"
    dispatch.expire_refusals(5.9)
    assert not dispatch.ready
    dispatch.expire_refusals(6.0)
    assert isinstance(dispatch.take().error, BatchRefused)


def test_a_task_is_not_tried_for_ever():
    dispatch = dispatch_with(max_attempts=3)
    add(dispatch, "x")
    for number in range(3):
        dispatch.join(f"t{number}", 0.0)
        dispatch.next_task(f"t{number}", 0.0)
        dispatch.leave(f"t{number}", f"t{number} was reset", blame=True)
    error = dispatch.take().error
    assert isinstance(error, ReaderError)
    assert "t0 was reset" in str(error)
    assert "t2 was reset" in str(error)


def test_only_the_task_a_dead_teacher_was_working_on_is_suspected():
    dispatch = dispatch_with("a", max_attempts=1)
    add(dispatch, "x", "y")
    dispatch.next_task("a", 0.0)
    dispatch.next_task("a", 0.1)
    dispatch.leave("a", "killed", blame=True)
    assert dispatch.take().error is not None
    assert dispatch.waiting == 1


def test_a_teacher_that_fails_is_given_longer_and_longer_pauses():
    dispatch = dispatch_with("a", max_failures=10)
    add(dispatch, "x")
    now, pauses = 0.0, []
    for _ in range(4):
        dispatch.failed("a", dispatch.next_task("a", now).id, "out of memory", now)
        assert dispatch.next_task("a", now) is None
        pause = dispatch.teachers["a"].suspended_until - now
        pauses.append(pause)
        now += pause
    assert pauses == sorted(pauses)
    assert pauses[-1] > 4 * pauses[0]


def test_a_busy_teacher_is_no_attempt():
    dispatch = dispatch_with("a", max_attempts=1)
    add(dispatch, "x")
    dispatch.unavailable("a", dispatch.next_task("a", 0.0).id, "busy", 0.0)
    assert dispatch.next_task("a", 1.0) is not None


def test_what_blocks_the_student_is_found_without_looking_at_every_task():
    """A batch of many tasks: the oldest in flight is known, whatever their number."""
    dispatch = dispatch_with("a", "b", min_window=4000, max_window=4000)
    teach(dispatch, "a", seconds=0.1, times=10)
    add(dispatch, "x", rows=4096, task_rows=1)
    for _ in range(3000):
        dispatch.next_task("a", 1.0)
    looked_at = []

    class Counting(dict):
        def __getitem__(self, key):
            looked_at.append(key)
            return super().__getitem__(key)

    dispatch._tasks = Counting(dispatch._tasks)
    dispatch.next_hedge()
    assert len(looked_at) <= 2


# --- time ---------------------------------------------------------------------------------------


def test_a_silent_teacher_is_overdue_after_ten_times_what_it_usually_takes():
    dispatch = dispatch_with("a", min_timeout=0.5)
    now = teach(dispatch, "a", seconds=0.2, times=50)
    add(dispatch, "x")
    dispatch.next_task("a", now)
    limit = dispatch.teachers["a"].silence_limit(dispatch.limits)
    assert limit == pytest.approx(2.0, rel=0.1)
    assert not dispatch.overdue(now + limit - 0.01)
    assert "silent" in dispatch.overdue(now + limit)["a"]


def test_a_teacher_that_has_not_answered_yet_is_given_the_longest_time():
    dispatch = dispatch_with("a", max_timeout=60.0)
    add(dispatch, "x")
    dispatch.next_task("a", 0.0)
    assert not dispatch.overdue(59.0)
    assert dispatch.overdue(60.0)


def test_a_teacher_that_answers_others_but_not_one_is_overdue_in_the_end():
    dispatch = dispatch_with("a", max_timeout=5.0)
    add(dispatch, "x")
    forgotten = dispatch.next_task("a", 0.0)
    for second in range(1, 5):
        add(dispatch, second)
        answer(dispatch, "a", dispatch.next_task("a", second - 0.1), now=second)
    assert forgotten.id in dispatch.teachers["a"].in_flight
    assert not dispatch.overdue(4.9)
    assert "not answered" in dispatch.overdue(5.0)["a"]


def test_a_task_that_blocks_the_order_goes_to_a_second_teacher_and_the_first_answer_wins():
    dispatch = dispatch_with("slow", "fast")
    now = teach(dispatch, "fast", seconds=0.1)
    add(dispatch, "x")
    task = dispatch.next_task("slow", now)
    assert dispatch.next_task("fast", now + 0.3) is None
    assert dispatch.next_hedge() == pytest.approx(now + 0.4)
    assert dispatch.next_task("fast", now + 0.5) is task
    assert dispatch.next_task("fast", now + 0.6) is None, "once is enough"
    answer(dispatch, "fast", task, now + 0.6)
    assert dispatch.take().payload == "x"
    answer(dispatch, "slow", task, now + 2)
    assert (dispatch.counters.hedged, dispatch.counters.duplicates) == (1, 1)


def test_a_hedged_task_is_not_sent_a_third_time_when_one_of_its_teachers_is_lost():
    dispatch = dispatch_with("slow", "fast", "third")
    now = teach(dispatch, "fast", seconds=0.1)
    add(dispatch, "x")
    task = dispatch.next_task("slow", now)
    assert dispatch.next_task("fast", now + 0.5) is task
    dispatch.leave("slow", "killed", blame=True)
    assert dispatch.next_task("third", now + 0.5) is None
    dispatch.leave("fast", "killed", blame=True)
    assert dispatch.next_task("third", now + 0.5) is task


def test_a_task_that_blocks_nobody_is_not_hedged():
    dispatch = dispatch_with("slow", "fast")
    now = teach(dispatch, "fast", seconds=0.1)
    add(dispatch, "x", "y")
    head = dispatch.next_task("fast", now)
    dispatch.next_task("slow", now)
    answer(dispatch, "fast", head, now + 0.1)
    assert dispatch.next_task("fast", now + 9) is None, "the student can take x"
    dispatch.take()
    assert dispatch.next_task("fast", now + 9).batch == head.batch + 1, "now y is waited for"


def test_hedges_are_a_bounded_share_of_all_tasks():
    dispatch = dispatch_with("slow", "fast", hedge_share=0.05, max_window=100, min_window=100)
    now = teach(dispatch, "fast", seconds=0.1)
    for _ in range(200):
        add(dispatch, "x")
        task = dispatch.next_task("slow", now)
        now += 10
        hedge = dispatch.next_task("fast", now)
        answer(dispatch, "fast" if hedge else "slow", task, now)
        dispatch.take()
    assert dispatch.counters.hedged <= 2 + 0.05 * dispatch.counters.tasks_sent


# --- flow control -------------------------------------------------------------------------------


def test_over_the_upper_threshold_nothing_is_read_and_only_the_next_batch_is_sent():
    dispatch = dispatch_with("a", "b", high_batches=2, min_window=4)
    add(dispatch, *range(5))
    tasks = [dispatch.next_task("a", 0.0) for _ in range(3)]
    for task in tasks[1:]:
        answer(dispatch, "a", task)
    assert dispatch.high
    assert not dispatch.wants_input()
    assert dispatch.next_task("b", 0.0) is None
    dispatch.leave("a", "gone", blame=False)
    assert dispatch.next_task("b", 0.0).batch == 0, "without it the volume could never fall"


def test_bytes_count_too():
    dispatch = dispatch_with("a", high_bytes=250)
    add(dispatch, "x", "y", nbytes=100)
    for _ in range(2):
        answer(dispatch, "a", dispatch.next_task("a", 0.0), nbytes=30)
    assert dispatch.stats(0.0)["buffer"]["bytes"] == 260
    assert dispatch.high
    dispatch.take()
    assert dispatch.stats(0.0)["buffer"]["bytes"] == 130
    assert not dispatch.high


def test_the_source_is_not_read_further_than_teachers_have_room():
    dispatch = dispatch_with("a", min_window=2, max_window=2)
    read = 0
    while dispatch.wants_input():
        add(dispatch, read)
        read += 1
        dispatch.next_task("a", 0.0)
    assert read <= 4


def test_the_window_grows_while_the_volume_is_low_and_shrinks_when_it_is_high():
    dispatch = dispatch_with("a", min_window=1, max_window=4, low_batches=2, high_batches=6)
    teacher = dispatch.teachers["a"]
    for _ in range(10):
        add(dispatch, "x", "y", "z")
        while task := dispatch.next_task("a", 0.0):
            last = task
        answer(dispatch, "a", last, 0.1)
        while dispatch.take():
            pass
    assert teacher.window.size > 1
    assert teacher.window.size <= 4
    while not dispatch.high:
        add(dispatch, "x")
        for task_id in list(teacher.in_flight)[::-1]:
            dispatch.answered("a", [Output(task_id, None, 0)], 0.2)
        dispatch.next_task("a", 0.2)
    before = teacher.window.size
    answer(dispatch, "a", dispatch._tasks[next(iter(teacher.in_flight))], 0.3)
    assert teacher.window.size <= max(1, before)


def test_small_tasks_are_given_out_together_to_each_teacher_its_share():
    dispatch = dispatch_with("a", "b", min_window=8, max_window=8)
    add(dispatch, *"abcdef")
    given = [[task.id for task in dispatch.next_tasks(name, 0.0)] for name in "abab"]
    assert given == [[0, 1, 2], [3, 4], [5], []]


def test_large_tasks_are_given_out_one_by_one():
    dispatch = dispatch_with("a", min_window=8, max_window=8)
    add(dispatch, *"abc", nbytes=1 << 20)
    assert [[task.id for task in dispatch.next_tasks("a", 0.0)] for _ in range(3)] == [
        [0],
        [1],
        [2],
    ]


def test_no_more_tasks_are_given_out_together_than_there_is_room_for():
    dispatch = dispatch_with("a", min_window=2, max_window=2)
    add(dispatch, *"abcdef")
    for expected in (1, 1, 0):
        assert len(dispatch.next_tasks("a", 0.0)) == expected


def test_half_a_window_is_given_out_together_so_that_there_is_work_while_it_is_answered():
    dispatch = dispatch_with("a", min_window=8, max_window=8)
    add(dispatch, *"abcdefghijkl")
    for expected in (4, 4, 0):
        assert len(dispatch.next_tasks("a", 0.0)) == expected


def test_tasks_of_a_request_that_has_failed_are_first_in_line_and_travel_alone():
    dispatch = dispatch_with("a", "b", min_window=8, max_window=8)
    add(dispatch, *"abcd")
    together = dispatch.next_tasks("a", 0.0)
    assert len(together) == 2
    dispatch.failed_together("a", [task.id for task in together], 0.1)
    assert dispatch.next_tasks("a", 0.1) == together
    assert all(task.alone and not task.refusals and not task.failures for task in together)
    assert not any(task.alone for task in dispatch.next_tasks("b", 0.1))


def test_a_teacher_that_fails_at_several_together_is_sent_one_at_a_time():
    dispatch = dispatch_with("a", min_window=8, max_window=8)
    for round_ in range(4):
        add(dispatch, *"ab")
        together = dispatch.next_tasks("a", round_)
        assert len(together) == (2 if round_ < 3 else 1)
        if round_ < 3:
            dispatch.failed_together("a", [task.id for task in together], round_)
            for task in dispatch.next_tasks("a", round_):
                answer(dispatch, "a", task, round_)
    assert dispatch.counters.failed == 3


def test_what_comes_in_one_answer_is_learned_as_one():
    """Else a teacher would seem many times as fast, and be taken for silent when it is not."""
    apart, one = dispatch_with("a", min_window=8), dispatch_with("a", min_window=8)
    for second in range(39):
        for dispatch in (one, apart):
            add(dispatch, *"ab")
            tasks = dispatch.next_tasks("a", second)
            if dispatch is one:
                dispatch.answered("a", [Output(task.id, "", 10) for task in tasks], second + 1.0)
            else:
                for task, at in zip(tasks, (0.5, 1.0)):
                    answer(dispatch, "a", task, second + at)
    usual = one.teachers["a"], apart.teachers["a"]
    assert [round(teacher.usual, 3) for teacher in usual] == [1.0, 0.5]
    assert usual[0].usual_work == pytest.approx(2 * usual[1].usual_work)
    assert one.rates() == apart.rates()
    assert usual[0].pace == pytest.approx(usual[1].pace)


def test_tasks_that_a_teacher_was_lost_with_travel_alone():
    dispatch = dispatch_with("a", "b", min_window=8, max_window=8)
    add(dispatch, *"abcd")
    together = dispatch.next_tasks("a", 0.0)
    dispatch.leave("a", "connection reset", blame=True)
    assert all(task.alone for task in together)
    assert [task.losses for task in together] == [["connection reset"], []]
    assert dispatch.next_tasks("b", 0.1)[:2] == together


def test_tasks_of_a_teacher_that_just_leaves_may_share_a_request_again():
    dispatch = dispatch_with("a", "b", min_window=8, max_window=8)
    add(dispatch, *"abcd")
    together = dispatch.next_tasks("a", 0.0)
    dispatch.leave("a", "it serves another model", blame=False)
    assert not any(task.alone for task in together)


def test_a_source_of_small_batches_is_woken_for_several_of_them():
    dispatch = dispatch_with("a", min_window=8, max_window=8)
    read = 0
    while dispatch.wants_input():
        add(dispatch, "x")
        read += 1
        dispatch.next_tasks("a", 0.0)
    assert read == 8 + 4 + 1, "a window, half of one ahead, and the one that is too much"
    in_flight = [dispatch._tasks[task_id] for task_id in dispatch.teachers["a"].in_flight]
    woken_at = None
    for count, task in enumerate(in_flight):
        assert not dispatch.needs_input()
        answer(dispatch, "a", task, 0.1)
        dispatch.take()
        dispatch.next_tasks("a", 0.1)
        if dispatch.needs_input():
            woken_at = count + 1
            break
    assert woken_at == 3
    assert dispatch.wants_input()


def test_leaving_an_epoch_forgets_its_batches_and_ignores_their_answers():
    dispatch = dispatch_with("a")
    add(dispatch, "old")
    old = dispatch.next_task("a", 0.0)
    dispatch.clear()
    add(dispatch, "new")
    answer(dispatch, "a", old)
    assert not dispatch.ready
    answer(dispatch, "a", dispatch.next_task("a", 0.0))
    assert dispatch.take().payload == "new"
    assert dispatch.counters.duplicates == 0


def test_a_retiring_teacher_finishes_what_it_has_and_gets_nothing_more():
    dispatch = dispatch_with("a")
    add(dispatch, "x", "y")
    task = dispatch.next_task("a", 0.0)
    dispatch.retire("a", True)
    assert dispatch.next_task("a", 0.0) is None
    answer(dispatch, "a", task)
    assert dispatch.take().payload == "x"
    dispatch.retire("a", False)
    assert dispatch.next_task("a", 0.0) is not None


# --- taken in any order -------------------------------------------------------------------------


def requests_to(*teachers, **limits):
    dispatch = Dispatch(Limits(**limits), in_order=False)
    for name in teachers:
        dispatch.join(name, now=0.0)
    return dispatch


def test_what_is_finished_first_is_taken_first_where_there_is_no_order():
    dispatch = requests_to("a")
    add(dispatch, "x", "y")
    first, second = dispatch.next_task("a", 0.0), dispatch.next_task("a", 0.0)
    answer(dispatch, "a", second)
    assert dispatch.take().payload == "y"
    assert not dispatch.ready
    answer(dispatch, "a", first)
    assert dispatch.take().payload == "x"
    assert dispatch.pending == 0


def test_without_an_order_whatever_is_in_flight_may_be_hedged():
    """The first request is a long one, and the second is at a teacher that does not answer."""
    dispatch = requests_to("slow", "fast")
    now = teach(dispatch, "fast", seconds=0.1)
    add(dispatch, "x")
    assert dispatch.next_task("slow", now).batch == 4
    add(dispatch, "y")
    stuck = dispatch.next_task("slow", now)
    first = dispatch.next_task("fast", now + 1)
    assert first.batch == 4
    assert dispatch.next_task("fast", now + 1) is stuck, "somebody waits for it"


def test_a_request_that_is_withdrawn_is_not_sent_and_its_answer_is_no_duplicate():
    dispatch = requests_to("a", min_window=2)
    add(dispatch, "sent", "waiting")
    task = dispatch.next_task("a", 0.0)
    dispatch.withdraw(0)
    dispatch.withdraw(1)
    assert dispatch.next_task("a", 0.0) is None
    answer(dispatch, "a", task)
    assert [dispatch.take().error is None for _ in range(2)] == [False, False]
    assert (dispatch.counters.duplicates, dispatch.counters.batches) == (0, 0)
    assert not dispatch.teachers["a"].in_flight


def test_what_is_finished_cannot_be_withdrawn():
    dispatch = requests_to("a")
    add(dispatch, "x")
    answer(dispatch, "a", dispatch.next_task("a", 0.0))
    dispatch.withdraw(0)
    assert dispatch.take().error is None
    dispatch.withdraw(0)
    assert dispatch.take() is None


def test_the_answers_to_a_batch_that_was_given_up_are_no_duplicates():
    dispatch = dispatch_with("a", "b", max_failures=1)
    add(dispatch, "x", rows=8)
    first, second = dispatch.next_task("a", 0.0), dispatch.next_task("b", 0.0)
    dispatch.failed("a", first.id, "too dark", 0.0)
    answer(dispatch, "b", second)
    assert dispatch.take().error is not None
    assert dispatch.counters.duplicates == 0


def test_only_the_first_request_fails_when_it_has_waited_too_long():
    dispatch = requests_to()
    for number in range(2):
        dispatch.add(number, 4, 100, 4, now=number + 5.0)
    assert dispatch.waiting_since == 5.0
    dispatch.fail_first(ReaderError("no teacher"))
    assert dispatch.waiting_since is None, "it is finished"
    assert dispatch.take().payload == 0
    assert not dispatch.ready
    assert dispatch.waiting_since == 6.0


# --- another model ------------------------------------------------------------------------------


def test_answers_that_were_not_taken_are_asked_for_again_of_another_model():
    dispatch = dispatch_with("old", min_window=4)
    add(dispatch, "x", "y", rows=8)
    for task in [dispatch.next_task("old", 0.0) for _ in range(3)]:
        answer(dispatch, "old", task)
    held = dispatch._held_bytes
    dispatch.leave("old", "it serves another model", blame=False)
    dispatch.start_over()
    assert not dispatch.ready
    assert dispatch._held_bytes == held - 30
    dispatch.join("new", 1.0)
    for _ in range(4):
        task = dispatch.next_task("new", 1.0)
        dispatch.answered("new", [Output(task.id, "of the new one", 10)], 1.0)
    parts = [dispatch.take().parts for _ in range(2)]
    assert parts == [["of the new one"] * 2] * 2


# --- everything at random -----------------------------------------------------------------------

NAMES = st.sampled_from("abcd")
PICK = st.integers(0, 1000)


class Chaos(RuleBasedStateMachine):
    """Random teachers' speeds, failures, joins and leaves at every step."""

    limits = Limits(
        low_batches=2,
        high_batches=5,
        high_bytes=2000,
        min_window=1,
        max_window=3,
        min_timeout=1.0,
        max_timeout=8.0,
        max_attempts=10**6,
        max_failures=10**6,
        max_bytes=10_000,
        hedge_min=0.01,
        hedge_share=1.0,
    )

    def __init__(self):
        super().__init__()
        self.dispatch = Dispatch(self.limits)
        self.now = 0.0
        self.added = 0
        self.taken = 0
        self.in_flight = []  # (teacher, task), as the teachers see it
        self.late = []  # the same, for teachers that were given up but answer after all

    @precondition(lambda self: self.dispatch.wants_input())
    @rule(rows=st.integers(0, 9), nbytes=st.integers(0, 900))
    def source_yields(self, rows, nbytes):
        self.dispatch.add((self.added, rows), rows, nbytes, 4)
        self.added += 1

    @rule(name=NAMES)
    def teacher_joins(self, name):
        if name not in self.dispatch.teachers:
            self.dispatch.join(name, self.now)

    @rule(name=NAMES, blame=st.booleans())
    def teacher_leaves(self, name, blame):
        self.dispatch.leave(name, "gone", blame)
        self.late += [item for item in self.in_flight if item[0] == name]
        self.in_flight = [item for item in self.in_flight if item[0] != name]

    @precondition(lambda self: self.late)
    @rule(index=PICK)
    def a_late_answer_arrives(self, index):
        name, task = self.late.pop(index % len(self.late))
        outputs = (task.batch, task.start, task.stop)
        self.dispatch.answered(name, [Output(task.id, outputs, 5)], self.now)
        self.in_flight = [item for item in self.in_flight if item != (name, task)]

    @rule(name=NAMES, retiring=st.booleans())
    def teacher_retires_or_returns(self, name, retiring):
        self.dispatch.retire(name, retiring)

    @rule(name=NAMES)
    def teacher_is_sent_a_task(self, name):
        task = self.dispatch.next_task(name, self.now)
        if task is not None:
            self.in_flight.append((name, task))

    def pick(self, index):
        return self.in_flight.pop(index % len(self.in_flight))

    @precondition(lambda self: self.in_flight)
    @rule(index=PICK, nbytes=st.integers(0, 100))
    def teacher_answers(self, index, nbytes):
        name, task = self.pick(index)
        outputs = (task.batch, task.start, task.stop)
        self.dispatch.answered(name, [Output(task.id, outputs, nbytes)], self.now)

    @precondition(lambda self: self.in_flight)
    @rule(index=PICK)
    def teacher_fails(self, index):
        name, task = self.pick(index)
        self.dispatch.failed(name, task.id, "failed", self.now)

    @precondition(lambda self: self.in_flight)
    @rule(index=PICK)
    def teacher_is_busy(self, index):
        name, task = self.pick(index)
        self.dispatch.unavailable(name, task.id, "busy", self.now)

    @rule(seconds=st.floats(0.01, 5.0))
    def time_passes(self, seconds):
        self.now += seconds
        for name in self.dispatch.overdue(self.now):
            self.teacher_leaves(name, True)
        self.dispatch.expire_refusals(self.now)

    @rule()
    def student_takes(self):
        finished = self.dispatch.take()
        if finished is not None:
            number, rows = finished.payload
            assert number == self.taken, "in order, exactly once"
            assert finished.error is None
            cuts = range(0, max(rows, 1), 4)
            assert finished.parts == [(number, start, min(rows, start + 4)) for start in cuts]
            self.taken += 1

    @invariant()
    def nothing_is_lost_and_memory_is_bounded(self):
        dispatch, limits = self.dispatch, self.limits
        assert dispatch.pending == self.added - self.taken
        assert dispatch._held_bytes == sum(b.nbytes for b in dispatch._batches.values())
        complete = [batch for batch in dispatch._batches.values() if batch.complete]
        assert dispatch.ready_batches == len(complete)
        assert dispatch._ready_bytes == sum(batch.nbytes for batch in complete)
        for teacher in dispatch.teachers.values():
            assert len(teacher.in_flight) <= limits.max_window
        room = len("abcd") * limits.max_window
        assert dispatch.pending <= limits.high_batches + 2 * room + 2
        sent = {task.id for _, task in self.in_flight}
        for task_id in dispatch._tasks:
            waiting = task_id in dispatch._waiting
            assert waiting != bool(dispatch._tasks[task_id].sent_to)
            assert waiting or task_id in sent

    def teardown(self):
        """Whatever happened: with one teacher that works, everything comes out."""
        for name in list(self.dispatch.teachers):
            self.teacher_leaves(name, False)
        self.dispatch.join("good", self.now)
        for _ in range(10 * self.dispatch.pending + 10):
            self.student_takes()
            task = self.dispatch.next_task("good", self.now)
            if task is not None:
                outputs = (task.batch, task.start, task.stop)
                self.dispatch.answered("good", [Output(task.id, outputs, 1)], self.now)
            self.now += 0.01
        assert self.taken == self.added


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


class AnyOrder(Chaos):
    """The same for requests, which are also withdrawn, given up, and asked of another model."""

    def __init__(self):
        super().__init__()
        self.dispatch = Dispatch(self.limits, in_order=False)
        self.outstanding = {}  # number and rows, in the order of asking
        self.withdrawn = set()
        self.model = 0

    @precondition(lambda self: self.dispatch.wants_input())
    @rule(rows=st.integers(0, 9), nbytes=st.integers(0, 900))
    def source_yields(self, rows, nbytes):
        number = self.dispatch.add((self.added, rows), rows, nbytes, 4)
        assert number == self.added
        self.outstanding[number] = rows
        self.added += 1

    @precondition(lambda self: self.late)
    @rule(index=PICK)
    def a_late_answer_arrives(self, index):
        name, task = self.late.pop(index % len(self.late))
        self.give(name, task, 5)
        self.in_flight = [item for item in self.in_flight if item != (name, task)]

    @precondition(lambda self: self.in_flight)
    @rule(index=PICK, nbytes=st.integers(0, 100))
    def teacher_answers(self, index, nbytes):
        name, task = self.pick(index)
        self.give(name, task, nbytes)

    def give(self, name, task, nbytes):
        outputs = (self.model, task.batch, task.start, task.stop)
        self.dispatch.answered(name, [Output(task.id, outputs, nbytes)], self.now)

    @precondition(lambda self: self.outstanding)
    @rule(index=PICK)
    def one_is_withdrawn(self, index):
        number = list(self.outstanding)[index % len(self.outstanding)]
        finished = self.dispatch._batches[number].complete
        self.dispatch.withdraw(number)
        if not finished:
            self.withdrawn.add(number)

    @precondition(lambda self: self.outstanding)
    @rule()
    def the_oldest_has_waited_too_long(self):
        number = next(iter(self.outstanding))
        if not self.dispatch._batches[number].complete:
            self.withdrawn.add(number)
        self.dispatch.fail_first(ReaderError("no teacher"))

    @rule()
    def all_teachers_get_another_model(self):
        for name in list(self.dispatch.teachers):
            self.teacher_leaves(name, False)
        self.late = []  # what comes from connections that have ended is not heard
        self.dispatch.start_over()
        self.model += 1

    @rule()
    def student_takes(self):
        finished = self.dispatch.take()
        if finished is not None:
            number, rows = finished.payload
            assert self.outstanding.pop(number) == rows, "exactly once"
            assert (finished.error is not None) == (number in self.withdrawn)
            cuts = range(0, max(rows, 1), 4)
            expected = [(self.model, number, start, min(rows, start + 4)) for start in cuts]
            assert finished.parts == ([] if finished.error else expected), "of one model"
            self.taken += 1

    @invariant()
    def the_head_is_the_oldest(self):
        assert self.dispatch._head == next(iter(self.outstanding), self.added)
        for teacher in self.dispatch.teachers.values():
            assert teacher.unwanted <= teacher.in_flight.keys()

    def teardown(self):
        for name in list(self.dispatch.teachers):
            self.teacher_leaves(name, False)
        self.dispatch.join("good", self.now)
        for _ in range(10 * self.dispatch.pending + 10):
            self.student_takes()
            task = self.dispatch.next_task("good", self.now)
            if task is not None:
                self.give("good", task, 1)
            self.now += 0.01
        assert not self.outstanding


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
