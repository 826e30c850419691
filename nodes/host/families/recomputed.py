"""What the host's U-Nets compute again in a backward pass instead of keeping it: cheap insides of frozen blocks, to the same bits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import GEGLU
from torch import Tensor, nn

from .gradients import replaced


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """Inside, a norm and the SiLU after it keep their input alone, and a gated GELU what its projection gave."""
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, GEGLU):
                stack.enter_context(replaced(module, "forward", partial(projected_and_gated, module)))
            elif isinstance(module, nn.Sequential) and begins_with_norm(module):
                stack.enter_context(replaced(module, "forward", partial(normed_and_convolved, module)))
        yield


def begins_with_norm(layers: nn.Sequential) -> bool:
    """Whether nothing that a LoRA could change is computed again: a linear layer before the SiLU would get no gradient."""
    return len(layers) > 2 and isinstance(layers[0], nn.GroupNorm) and isinstance(layers[1], nn.SiLU)


def projected_and_gated(module: GEGLU, x: Tensor) -> Tensor:
    return again(gated, module.proj(x))


def gated(projected: Tensor) -> Tensor:
    x, gate = projected.chunk(2, dim=-1)
    return x * F.gelu(gate)


def normed_and_convolved(layers: nn.Sequential, x: Tensor) -> Tensor:
    *cheap, last = layers
    return last(again(nn.Sequential(*cheap), x))


def again(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """forward(x), of which x alone is kept where a gradient is wanted."""
    return Again.apply(x, forward) if torch.is_grad_enabled() and x.requires_grad else forward(x)


class Again(torch.autograd.Function):
    """y = forward(x); dx by running forward once more. Assumes: nothing else in it is trained, and nothing random."""

    @staticmethod
    def forward(ctx, x: Tensor, forward) -> Tensor:
        ctx.again, device = forward, x.device.type
        ctx.autocast = partial(
            torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        ctx.save_for_backward(x)
        return forward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        x = ctx.saved_tensors[0].detach().requires_grad_(True)
        with torch.enable_grad(), ctx.autocast():
            y = ctx.again(x)
        return torch.autograd.grad(y, x, grad)[0], None
