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


def test_gpu_seconds_count_what_all_gpus_have_worked():
    clock, worked = Stopwatch(), [0.0]
    budget = Budget(None, None, clock, gpu_seconds=100)
    budget.begin_search(lambda: worked[0], workers=4)
    clock.now += 1e6  # wall-clock time is no limit
    assert budget.left() == 25  # four at once
    worked[0] = 90
    assert budget.left() == 2.5
    worked[0] = 200
    assert budget.left() == 0
    assert not budget.fits(0.1)


def test_the_limit_that_comes_first_counts():
    clock = Stopwatch()
    budget = Budget(60, None, clock, gpu_seconds=100)
    budget.begin_search(lambda: 0.0, workers=1)
    assert budget.left() == 60
    clock.now += 50
    assert budget.left() == 10
    budget = Budget(60, None, clock, gpu_seconds=20)
    budget.begin_search(lambda: 5.0, workers=3)
    assert (budget.left(), budget.wall_left) == (5, 60)


def test_what_was_left_when_the_search_began_is_noted_once():
    clock = Stopwatch()
    budget = Budget(60, None, clock)
    clock.now += 10
    budget.begin_search()
    clock.now += 10
    budget.begin_search()
    assert budget.for_search == 50
    elsewhere = Budget(30, None, clock)
    elsewhere.begin_search(for_search=50)
    assert elsewhere.for_search == 50
