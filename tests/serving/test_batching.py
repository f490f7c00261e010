"""Which requests are computed together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edl.serving.batching import Batcher, batch_key

requests = st.lists(st.tuples(st.integers(1, 10), st.sampled_from("ab")), max_size=40)


@given(requests, st.integers(1, 16))
def test_batches_hold_every_request_once_of_one_kind_within_the_limit(items, max_rows):
    batcher = Batcher(max_rows)
    for number, (rows, key) in enumerate(items):
        batcher.add(number, rows, key, now=0.0)
    seen = []
    while batch := batcher.take():
        assert batch[0] == min(set(range(len(items))) - set(seen)), "the oldest comes first"
        assert len({items[number][1] for number in batch}) == 1
        assert sum(items[number][0] for number in batch) <= max_rows or len(batch) == 1
        assert batch == sorted(batch)
        seen += batch
    assert sorted(seen) == list(range(len(items)))


def test_without_a_wait_a_request_is_due_at_once():
    batcher = Batcher(8)
    assert batcher.due() is None
    batcher.add("a", 1, "k", now=5.0)
    assert batcher.due() == 5.0


def test_with_a_wait_it_is_due_when_the_batch_is_full_or_the_time_is_up():
    batcher = Batcher(4, max_wait=1.0)
    batcher.add("a", 2, "k", now=5.0)
    assert batcher.due() == 6.0
    batcher.add("b", 3, "other", now=5.5)
    assert batcher.due() == 6.0
    batcher.add("c", 2, "k", now=5.5)
    assert batcher.due() == 5.0
    assert batcher.take() == ["a", "c"]


def test_only_equal_feeds_dtypes_row_shapes_and_fetches_go_together():
    def key(shape=(2, 3), dtype="f4", name="x", fetches=("p",)):
        return batch_key({name: np.zeros(shape, dtype)}, list(fetches))

    assert key() == key((7, 3))
    others = [key((2, 4)), key(dtype="f8"), key(name="y"), key(fetches=("q",))]
    assert all(key() != other for other in others)
