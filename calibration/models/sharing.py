"""Copies of a model that share the memory of its weights, so that a job holds its digital weights once."""

from __future__ import annotations

import copy

from torch import nn


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy with modules, buffers and parameters of its own, whose weight matrices lie in the memory of the model's.

    Converting, attaching and moving either of the two leaves the other as it is. Nothing may write into a matrix:
    what changes one gives the parameter other memory, ``parameter.data = values``, which the other does not see.
    Vectors are copied, which are small, so that a user's step may write into biases and gains of norms. Parameters of
    a class of their own, such as lazy ones, are copied too.
    """
    shared = (found for found in model.parameters() if type(found) is nn.Parameter and found.dim() > 1)
    return copy.deepcopy(model, {id(parameter): _view(parameter) for parameter in shared})


def _view(parameter: nn.Parameter) -> nn.Parameter:
    view = nn.Parameter(parameter.detach(), parameter.requires_grad)
    vars(view).update(vars(parameter))  # marks that transformers keeps on parameters
    return view
