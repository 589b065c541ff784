"""Training whose parameters, gradients and optimizer state the processes of a group share out (FSDP2).

What is trained is a copy of the model: `torch.distributed.fsdp.fully_shard` changes modules for good. The model itself
stays as it is, and goes on to say what the copy is to learn.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from calibration.models.sharing import shared_copy
from crossbar import analog_layers, clip_weights


class Shards:
    """A copy of a model of which each process of the default group keeps a part of every trained matrix and vector.

    Args:
        model: in the same state in all processes.
        names: of the parameters that are trained. Numbers by themselves, such as ranges, and what is not trained are
            whole in every process.
        blocks: names of modules whose parameters are gathered one module after another; those of the rest are gathered
            together.

    Attributes:
        model: the copy.
        own: what this process has of its trained parameters, by name, for an optimizer; in the same memory.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], blocks: Iterable[str]) -> None:
        self.model, wanted = shared_copy(model), set(names)
        parameters = dict(self.model.named_parameters())
        whole = {parameter for name, parameter in parameters.items() if name not in wanted or not parameter.dim()}
        self._mesh = init_device_mesh(next(iter(parameters.values())).device.type, (dist.get_world_size(),))
        for module in (*map(self.model.get_submodule, blocks), self.model):
            fully_shard(module, mesh=self._mesh, ignored_params=whole)
        self._shared = {name: p for name, p in self.model.named_parameters() if name in wanted}
        self.own = {name: nn.Parameter(_local(p)) for name, p in self._shared.items()}

    def collect(self) -> None:
        """Give `own` the gradients of a backward pass, averaged over the processes."""
        for name, parameter in self._shared.items():
            grad, parameter.grad = parameter.grad, None
            if grad is not None and not isinstance(grad, DTensor):  # which FSDP leaves alone
                dist.all_reduce(grad)
                grad.div_(dist.get_world_size())
            self.own[name].grad = None if grad is None else _local(grad)

    def limit_gradients(self, most: float) -> None:
        """Scale all gradients so that their norm is ``most`` at most, as `torch.nn.utils.clip_grad_norm_` does."""
        device = self._mesh.device_type
        parts, whole = torch.zeros((), device=device), torch.zeros((), device=device)
        for name, parameter in self.own.items():
            if parameter.grad is not None:
                squares = parts if isinstance(self._shared[name], DTensor) else whole
                squares += parameter.grad.float().square().sum()
        dist.all_reduce(parts)
        scale = (most / ((parts + whole).sqrt() + 1e-6)).clamp(max=1.0)
        for parameter in self.own.values():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)

    def gathered(self, name: str, part: Tensor) -> Tensor:
        """All of a tensor of which every process has the ``part`` that it has of a parameter; all must ask."""
        like = self._shared[name]
        if not isinstance(like, DTensor):
            return part.detach().clone()
        shared = DTensor.from_local(
            part.detach(), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return shared.full_tensor()

    def part_of(self, name: str, whole: Tensor) -> Tensor:
        """What this process has of a tensor as large as a parameter; one that is broadcast along it stays whole."""
        like = self._shared[name]
        if not isinstance(like, DTensor) or whole.dim() != like.dim() or whole.shape[0] != like.shape[0]:
            return whole
        shared: DTensor = distribute_tensor(whole.detach(), like.device_mesh, like.placements, src_data_rank=None)
        return shared.to_local()

    @torch.no_grad()
    def clip_weights(self, deviations: float) -> None:
        """`crossbar.clip_weights`, for which the weights of one layer at a time are gathered."""
        names = {id(parameter): name for name, parameter in self._shared.items()}
        for layer in analog_layers(self.model).values():
            if layer.source is None:
                continue
            taken = [
                (owner, key, parameter)
                for owner in layer.source.module.modules()
                for key, parameter in owner._parameters.items()
                if isinstance(parameter, DTensor)
            ]
            for owner, key, parameter in taken:
                name = names[id(parameter)]
                owner._parameters[key] = nn.Parameter(self.gathered(name, self.own[name]))
            clip_weights(layer, deviations)
            for owner, key, parameter in taken:
                clipped, name = owner._parameters[key], names[id(parameter)]
                assert clipped is not None
                self.own[name].copy_(self.part_of(name, clipped))
                owner._parameters[key] = parameter


def _local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory."""
    own = tensor.detach()
    return own.to_local() if isinstance(own, DTensor) else own
