"""Copies of a model that share the memory of its parameters, so that a job holds its digital weights once."""

from __future__ import annotations

import copy

from torch import nn


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy with modules, buffers and parameters of its own, whose parameters lie in the memory of the model's.

    Converting, attaching and moving either of the two leaves the other as it is. Nothing may write into a parameter's
    memory: what changes a parameter gives it other memory, ``parameter.data = values``, which the other does not see.
    Parameters of a class of their own, such as lazy ones, are copied.
    """
    views = {id(parameter): _view(parameter) for parameter in model.parameters() if type(parameter) is nn.Parameter}
    return copy.deepcopy(model, views)


def _view(parameter: nn.Parameter) -> nn.Parameter:
    view = nn.Parameter(parameter.detach(), parameter.requires_grad)
    vars(view).update(vars(parameter))  # marks that transformers keeps on parameters
    return view
