"""What a budget promises: it counts down by its clock, and says what still fits."""

from small_study import Stopwatch

from autotransfer.search.budget import Budget


def test_a_budget_counts_down_from_when_it_was_made():
    clock = Stopwatch()
    budget = Budget(60, None, clock)
    clock.now += 45
    assert (budget.elapsed(), budget.left()) == (45, 15)
    assert budget.fits(15)
    assert not budget.fits(15.1)


def test_a_spent_budget_has_nothing_left_and_fits_nothing():
    clock = Stopwatch()
    budget = Budget(60, None, clock)
    clock.now += 100
    assert budget.left() == 0
    assert not budget.fits(0.1)


def test_without_seconds_everything_fits():
    clock = Stopwatch()
    budget = Budget(None, 5, clock)
    clock.now += 1e9
    assert budget.left() is None
    assert budget.fits(1e9)
    assert budget.trials == 5
