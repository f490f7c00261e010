"""A teacher's rate, from what its batches took."""

import pytest

from edl.serving.server.rate import Rate


def test_nothing_is_known_before_the_first_batch():
    assert Rate().seconds_each == 0


def test_the_first_batch_counts_whole():
    rate = Rate()
    rate.observe(16, 1.6)
    assert rate.seconds_each == pytest.approx(0.1)


def test_a_steady_teacher_has_its_rate_from_the_start():
    rate = Rate()
    for _ in range(50):
        rate.observe(8, 0.4)
        assert rate.seconds_each == pytest.approx(0.05)


def test_the_average_follows_a_change():
    rate = Rate()
    for _ in range(30):
        rate.observe(8, 0.8)
    for _ in range(30):
        rate.observe(8, 0.4)
    assert rate.seconds_each == pytest.approx(0.05, rel=0.01)


def test_small_batches_among_large_ones_count_little():
    rate = Rate()
    for _ in range(10):
        rate.observe(64, 0.64)
        rate.observe(1, 0.1)
    assert rate.seconds_each < 0.012
