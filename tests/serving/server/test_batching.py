"""Which requests are computed together, and in which order."""

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edl.serving.server.batching import Batcher, batch_key

requests = st.lists(
    st.tuples(st.integers(1, 10), st.sampled_from("ab"), st.sampled_from("xyz")), max_size=40
)


def drain(batcher, now=0.0):
    batches = []
    while batch := batcher.take(now):
        batches.append(batch)
    return batches


@given(requests, st.integers(1, 16))
def test_batches_hold_every_request_once_of_one_kind_within_the_limit(items, max_rows):
    batcher = Batcher(max_rows)
    for number, (rows, key, client) in enumerate(items):
        batcher.add(number, rows, key, client, now=0.0)
    batches = drain(batcher)
    for batch in batches:
        assert len({items[number][1] for number in batch}) == 1
        assert sum(items[number][0] for number in batch) <= max_rows or len(batch) == 1
    assert sorted(chain(*batches)) == list(range(len(items)))
    assert (len(batcher), batcher.rows) == (0, 0)


@given(requests, st.integers(1, 16))
def test_a_clients_own_requests_of_one_kind_keep_their_order(items, max_rows):
    batcher = Batcher(max_rows)
    for number, (rows, key, client) in enumerate(items):
        batcher.add(number, rows, key, client, now=0.0)
    served = list(chain(*drain(batcher)))
    for client in "xyz":
        for key in "ab":
            own = [number for number in served if items[number][1:] == (key, client)]
            assert own == sorted(own)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 60))
def test_clients_that_always_have_work_get_equal_shares_of_the_rows(rows_x, rows_y, serving):
    batcher = Batcher(max_rows=1)
    for client, rows in (("x", rows_x), ("y", rows_y)):
        for _ in range(200):
            batcher.add((client, rows), rows, "k", client, now=0.0)
    share = {"x": 0, "y": 0}
    for _ in range(serving):
        ((client, rows),) = batcher.take(0.0)
        share[client] += rows
    assert abs(share["x"] - share["y"]) <= max(rows_x, rows_y)


def test_who_queues_much_does_not_delay_who_queues_little():
    batcher = Batcher(max_rows=1)
    for number in range(100):
        batcher.add(("greedy", number), 1, "k", "greedy", now=0.0)
    for _ in range(10):
        batcher.take(0.0)
    batcher.add(("modest", 0), 1, "k", "modest", now=0.0)
    assert ("modest", 0) in batcher.take(0.0) + batcher.take(0.0)


def test_a_client_that_was_away_is_not_owed_the_time_it_was_away():
    batcher = Batcher(max_rows=1)
    for number in range(100):
        batcher.add(("x", number), 1, "k", "x", now=0.0)
    for _ in range(50):
        batcher.take(0.0)
    for number in range(50):
        batcher.add(("y", number), 1, "k", "y", now=0.0)
    next_ten = [batcher.take(0.0)[0][0] for _ in range(10)]
    assert 4 <= next_ten.count("x") <= 6


def test_a_full_queue_refuses_those_who_fill_it():
    batcher = Batcher(max_rows=1, max_queued=10)
    for number in range(10):
        assert not batcher.is_full("greedy")
        batcher.add(number, 1, "k", "greedy", now=0.0)
    assert batcher.is_full("greedy")
    assert not batcher.is_full("modest")
    admitted = 0
    while not batcher.is_full("modest"):
        batcher.add(admitted, 1, "k", "modest", now=0.0)
        admitted += 1
    assert 5 <= admitted <= 10


def test_without_a_wait_a_request_is_due_at_once():
    batcher = Batcher(8)
    assert batcher.due() is None
    assert batcher.take(5.0) == []
    batcher.add("a", 1, "k", "x", now=5.0)
    assert batcher.due() == 5.0
    assert batcher.take(5.0) == ["a"]


def test_with_a_wait_it_is_due_when_the_batch_is_full_or_the_time_is_up():
    batcher = Batcher(4, max_wait=1.0)
    batcher.add("a", 2, "k", "x", now=5.0)
    assert batcher.due() == 6.0
    batcher.add("b", 3, "other", "x", now=5.5)
    assert batcher.due() == 6.0
    assert batcher.take(5.5) == []
    batcher.add("c", 2, "k", "x", now=5.5)
    assert batcher.due() == 5.0
    assert batcher.take(5.5) == ["a", "c"]
    assert batcher.due() == 6.5


def test_a_full_batch_does_not_wait_for_an_older_one_that_is_not_full():
    batcher = Batcher(2, max_wait=1.0)
    batcher.add("alone", 1, "k", "x", now=0.0)
    batcher.add("full", 2, "other", "y", now=0.5)
    assert batcher.take(0.5) == ["full"]
    assert batcher.take(1.0) == ["alone"]


def test_only_what_is_full_and_next_is_taken_ahead_of_time():
    batcher = Batcher(4)
    batcher.add("a", 2, "k", "x", now=0.0)
    assert batcher.take(0.0, ahead=True) == []
    batcher.add("b", 2, "k", "x", now=0.0)
    assert batcher.take(0.0, ahead=True) == ["a", "b"]
    batcher.add("next", 1, "k", "y", now=0.0)
    batcher.add("full", 4, "other", "z", now=0.0)
    assert batcher.take(0.0, ahead=True) == [], "what is full does not overtake what is next"
    assert batcher.take(0.0) == ["next"]
    assert batcher.take(0.0, ahead=True) == ["full"]


def test_what_was_taken_in_vain_is_next_and_costs_its_client_nothing_more():
    batcher = Batcher(1)
    for number in range(3):
        batcher.add(f"x{number}", 1, "k", "x", now=0.0)
        batcher.add(f"y{number}", 1, "k", "y", now=0.0)
    (taken,) = batcher.take(0.0)
    batcher.add(taken, 1, "alone", "x", now=0.0, again=True)
    assert list(chain(*drain(batcher)))[:3] == ["y0", "x0", "x1"]


def test_clients_that_left_are_forgotten():
    batcher = Batcher(max_rows=1)
    batcher.add("waits", 10**6, "k", "steady", now=0.0)
    batcher.add("waits too", 1, "k", "steady", now=0.0)
    for number in range(10_000):
        batcher.add(number, 1, "k", f"client {number}", now=0.0)
        batcher.take(0.0)
    assert len(batcher._finish) < 200


def test_clearing_gives_everything_back():
    batcher = Batcher(4)
    batcher.add("a", 2, "k", "x", now=0.0)
    batcher.add("b", 2, "other", "y", now=0.0)
    assert sorted(batcher.clear()) == ["a", "b"]
    assert (len(batcher), batcher.due()) == (0, None)


def test_only_equal_feeds_dtypes_row_shapes_and_fetches_go_together():
    def key(shape=(2, 3), dtype="f4", name="x", fetches=("p",)):
        return batch_key({name: np.zeros(shape, dtype)}, list(fetches))

    assert key() == key((7, 3))
    others = [key((2, 4)), key(dtype="f8"), key(name="y"), key(fetches=("q",))]
    assert all(key() != other for other in others)
