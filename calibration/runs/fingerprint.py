"""What decides a result, as one hash: the same fingerprint, the same result."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from torch import nn

from calibration.storage.hashes import of_tensors, of_values
from calibration.tasks import Task
from calibration.tasks.protocol import fitted_on
from calibration.versions import version_of

_PACKAGES = ("crossbar", "attention", "calibration")
_LIBRARIES = ("torch", "numpy", "scipy", "transformers", "aihwkit")


def of_model(model: nn.Module) -> str:
    """SHA-256 (hex) of a digital model: its modules as they print, its weights, and its configurations if it has some.

    What a class of your own keeps in plain attributes is seen where its ``extra_repr`` prints it.
    """
    # Transformers' models have them, a user's own may not.
    configs = [str(getattr(model, name, None)) for name in ("config", "generation_config")]
    return of_values([type(model).__qualname__, *configs, repr(model), of_tensors(model.state_dict())])


def of_task(task: Task) -> str:
    """SHA-256 (hex) of a task: its name and what it feeds a model. How a class of your own scores is not seen."""
    batches = {**fitted_on(task), "evaluation": task.batches("evaluation")}
    splits = {name: [of_tensors(batch) for batch in some] for name, some in batches.items()}
    return of_values([type(task).__qualname__, task.name, task.primary, splits])


@cache
def of_code() -> str:
    """SHA-256 (hex) of this project's own modules and the versions of the libraries that compute."""
    root = Path(__file__).parents[2]
    sources = sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py"))
    files = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
    return of_values([files, {name: version_of(name) for name in _LIBRARIES}])
