"""Numbers that a user gives."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from edl._checks import check_count, check_positive
from edl.errors import ConfigError

NO_NUMBERS = [math.nan, math.inf, -math.inf, 10**400, True, None, "1", 1j, Decimal(1), [1]]


@pytest.mark.parametrize("value", [1, 1e-9, np.float32(0.5), np.int64(3), Fraction(1, 3)])
def test_numbers_of_any_kind_above_zero_are_positive(value):
    check_positive("patience", value)


@pytest.mark.parametrize("value", [0, 0.0, -1, *NO_NUMBERS])
def test_what_is_not_a_positive_number_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="patience must be a finite number above 0, not "):
        check_positive("patience", value)


def test_the_least_that_is_allowed_may_be_zero():
    check_positive("max_wait", 0, 0)
    with pytest.raises(ConfigError, match="max_wait must be a finite number of at least 0, not -1"):
        check_positive("max_wait", -1, 0)


@pytest.mark.parametrize("value", [1, 10**400, np.int32(7)])
def test_whole_numbers_are_counts(value):
    count = check_count("workers", value)
    assert count == value
    assert type(count) is int


@pytest.mark.parametrize("value", [0, -1, 2.0, *NO_NUMBERS[:3], *NO_NUMBERS[4:]])
def test_what_is_not_a_count_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="workers must be a whole number of at least 1, not "):
        check_count("workers", value)
