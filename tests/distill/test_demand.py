"""How much a student asks for."""

from edl.distill.demand import Demand


def run(demand, seconds, *, rate, low=False, high=False, start=0.0, rows=0):
    """The time and rows after so many seconds at ``rate`` rows per second."""
    for second in range(1, seconds + 1):
        demand.update(start + second, int(rows + rate * second), low=low, high=high)
    return start + seconds, int(rows + rate * seconds)


def test_at_first_any_number_of_teachers_is_welcome():
    assert Demand().want is None


def test_high_volume_for_a_while_lowers_the_demand_to_what_is_consumed_and_some():
    demand = Demand()
    run(demand, 4, rate=100, high=True)
    assert demand.want is None
    run(demand, 4, rate=100, high=True, start=4, rows=400)
    assert demand.want == 120


def test_volume_in_between_changes_nothing():
    demand = Demand()
    now, rows = run(demand, 10, rate=100, high=True)
    now, rows = run(demand, 100, rate=50, start=now, rows=rows)
    assert demand.want == 120


def test_low_volume_asks_for_any_number():
    demand = Demand()
    now, rows = run(demand, 10, rate=100, high=True)
    run(demand, 1, rate=10, low=True, start=now, rows=rows)
    assert demand.want is None


def test_a_release_that_was_a_mistake_is_not_repeated_soon():
    demand, now, rows, releases = Demand(), 0.0, 0, []
    for _ in range(6):
        started = now
        while demand.want is None:
            now, rows = run(demand, 1, rate=100, high=True, start=now, rows=rows)
        releases.append(now - started)
        now, rows = run(demand, 2, rate=10, low=True, start=now, rows=rows)
    assert all(later >= 1.8 * earlier for earlier, later in zip(releases, releases[1:]))


def test_a_demand_that_is_met_does_not_creep():
    demand = Demand()
    run(demand, 300, rate=100, high=True)
    assert demand.want == 120


def test_nothing_is_released_while_nothing_is_consumed():
    demand = Demand()
    run(demand, 60, rate=0, high=True)
    assert demand.want is None


def test_what_is_consumed_is_measured():
    demand = Demand()
    run(demand, 30, rate=250)
    assert 240 < demand.rows_per_second < 260


def test_the_share_of_time_that_is_waited_is_measured_over_the_same_seconds():
    demand = Demand()
    for second in range(30):
        demand.update(second, 100 * second, low=True, high=False, waited=0.75 * second)
    assert 0.74 < demand.waits <= 0.75


def test_who_does_not_wait_says_nothing_of_it():
    demand = Demand()
    run(demand, 30, rate=250)
    assert demand.waits is None
