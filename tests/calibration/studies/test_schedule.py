"""In which order cells are computed."""

from calibration.studies.plan import Cell
from calibration.studies.schedule import Schedule


def schedule(*setups, chips=2, times=(0.0, 1.0)):
    cells = [Cell(f"{s} {c} {t}", s, t, c) for s in setups for c in range(chips) for t in times]
    return Schedule(cells, {s: {} for s in setups})


def test_a_unit_is_a_chip_at_all_times():
    plan = schedule("a")
    unit = plan.take(0)
    assert (unit.id, unit.seed, unit.seconds) == ("a", 0, (0.0, 1.0))
    assert plan


def test_workers_keep_to_a_setup_and_then_help_the_others():
    plan = schedule("a", "b", chips=3)
    taken = [(plan.take(worker).id, worker) for worker in (0, 1, 0, 0, 0)]
    assert taken == [("a", 0), ("b", 1), ("a", 0), ("a", 0), ("b", 0)]
    assert plan.take(1).id == "b"
    assert not plan
    assert plan.take(0) is None


def test_what_is_given_back_comes_last():
    plan = schedule("a", chips=2)
    unit = plan.take(0)
    plan.give_back(unit, unit.seconds[1:])
    assert [(taken.seed, taken.seconds) for taken in (plan.take(1), plan.take(1))] == [(1, (0.0, 1.0)), (0, (1.0,))]
    plan.give_back(unit, ())
    assert not plan


def test_every_unit_is_taken_once_whoever_asks():
    plan = schedule(*(f"{k}" for k in range(2000)), chips=3, times=(0.0,))
    taken, worker = [], 0
    while plan:
        unit = plan.take(worker % 7)
        taken.append((unit.id, unit.seed))
        worker += 1 + worker % 3
    assert len(taken) == len(set(taken)) == 6000
