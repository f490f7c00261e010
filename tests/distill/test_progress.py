"""Where the student is: pure, without a source."""

import pickle

import pytest

from edl.distill.progress import Progress, Start


def take(progress, count):
    for _ in range(count):
        progress.deliver()


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_state_that_was_loaded_stands_until_something_is_taken(attempts):
    """Iterations that fail before their first item, or are left, lose nothing."""
    progress = Progress()
    progress.load(Start(3, 10, "mark", ("model",)))
    for _ in range(attempts):
        assert progress.begin() == Start(3, 10, "mark", ("model",))
    take(progress, 1)
    assert (progress.epoch, progress.delivered) == (3, 11)


def test_an_iteration_that_was_left_is_followed_by_the_next_epoch():
    progress = Progress(Start(3, 10))
    progress.begin()
    take(progress, 2)
    assert progress.here().skip == 12
    assert progress.begin() == Start(4)


def test_each_start_is_an_object_of_its_own():
    progress = Progress()
    assert progress.begin() is not progress.begin()


def test_the_mark_is_that_of_the_last_item_that_was_delivered():
    progress = Progress()
    progress.begin()
    for mark in "abc":
        progress.trail.read(mark)
    take(progress, 2)
    assert progress.here().mark == "b"


def test_the_end_of_an_epoch_is_the_beginning_of_the_next():
    progress = Progress()
    progress.begin()
    progress.models = ["model"]
    take(progress, 5)
    progress.finish()
    assert progress.here() == Start(1)


def test_a_copy_that_is_not_forked_begins_where_the_original_does():
    progress = Progress(Start(2, 5, "mark"))
    assert pickle.loads(pickle.dumps(progress)).begin() == Start(2, 5, "mark")


def test_what_workers_are_told_is_forgotten_with_the_iteration():
    progress = Progress()
    progress.begin_with_workers()
    assert progress.handout is not None
    progress.finish()
    assert progress.handout is None
