"""Calibration data and evaluation data kept apart."""

from __future__ import annotations

from calibration.tasks.marks import all_marks, marks, samples
from calibration.tasks.protocol import Task, fitted_on
from crossbar.errors import InputError


def require_disjoint(task: Task) -> None:
    """Refuse a task with evaluation data in what it calibrates or trains on.

    Token sequences overlap if they share 64 tokens in a row, or are equal; other inputs if a sample of one split is
    equal to a sample of the other. Padded positions do not count.

    Raises:
        InputError: with where the first overlap is.
    """
    scored = all_marks(task.batches("evaluation"))
    for purpose, batches in fitted_on(task).items():
        for index, sample in enumerate(samples(batches)):
            if not scored.isdisjoint(marks(sample)):
                raise InputError(
                    f"sample {index} of task {task.name!r} for {purpose} is in its evaluation data too, so scores "
                    "would know what was fitted: give splits that do not overlap"
                )
