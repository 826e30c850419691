"""Weights that lie in parts on many processes (FSDP2): laid out for training, and put together for files and for others.

What is saved is always whole, so a run goes on with another number of processes, or without sharding.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def shard(model: nn.Module, blocks: Iterable[nn.Module], device_type: str, processes: int) -> None:
    """Shares the model's weights out, in place: each block by itself, the rest as one.

    Gradients of weights that are trained are then averaged in the backward pass, and each process steps its own part; frozen
    weights are put together, block by block, for every forward and backward pass, which all processes must run alike.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device_type, (processes,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(value: Any) -> bool:
    """Whether it is a DTensor: told by what it can do, since importing torch.distributed.tensor takes 0.7 s."""
    return hasattr(value, "full_tensor")


def whole(value: Any) -> Any:
    """Every sharded tensor in a tree of dictionaries and lists, put together. All processes must call it."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole(item) for item in value]
    return value.full_tensor() if is_sharded(value) else value


def laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, shared out as `like` is."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


@torch.no_grad()
def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """module.load_state_dict of whole tensors, whether the module is sharded or not."""
    now = module.state_dict()
    module.load_state_dict({name: laid_out_as(tensor, now.get(name)) for name, tensor in weights.items()})


def lay_out_optimizer_state(optimizer) -> None:
    """After an optimiser took a whole state: its moments lie as their weights do."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    state[name] = laid_out_as(value, weight)
