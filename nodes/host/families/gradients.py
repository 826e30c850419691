"""What of the host's networks has no gradient as it stands, and what stands in for it while something is trained."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import comfy.ldm.cosmos.predict2
import comfy.ldm.flux.layers
import torch
from torch import Tensor, nn

ADDS_IN_PLACE = (comfy.ldm.flux.layers.DoubleStreamBlock, comfy.ldm.flux.layers.SingleStreamBlock)
STREAMS = ("img", "txt", "x")  # as those blocks call what they add to


@contextmanager
def differentiable(network: nn.Module) -> Iterator[None]:
    """Inside, gradients pass every block of the network. Enter it before gradient_checkpointing, and while weights are in place."""
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, ADDS_IN_PLACE):
                stack.enter_context(residuals_kept(module))
            if isinstance(module, comfy.ldm.cosmos.predict2.Attention):
                stack.enter_context(replaced(module, "compute_qkv", partial(graded_qkv, module, module.compute_qkv)))
        yield


@contextmanager
def replaced(module: nn.Module, name: str, value: Callable) -> Iterator[None]:
    """Inside, the module's method of that name is another one; afterwards what it was before."""
    before = module.__dict__.get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)


@contextmanager
def residuals_kept(block: nn.Module) -> Iterator[None]:
    """Inside, what the block adds to in place is its own copy, of which each norm reads another one.

    A block that is computed twice must find its inputs again.
    """
    hooks = read_copies(module for module in block.modules() if isinstance(module, nn.LayerNorm))
    try:
        with replaced(block, "forward", partial(with_own_streams, block.forward)):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def read_copies(norms: Iterable[nn.Module]) -> list:
    """From now on each norm reads a copy of its own: what it saves for its gradient is then added to in place. Returns the hooks."""
    return [norm.register_forward_pre_hook(lambda module, args: (args[0].clone(),)) for norm in norms]


def with_own_streams(forward, *args, **kwargs):
    named = {name: value.clone() if name in STREAMS else value for name, value in kwargs.items()}
    return forward(*(args[:1] and (args[0].clone(), *args[1:])), **named)


def graded_qkv(attention: nn.Module, plain, x: Tensor, context=None, rope_emb=None, transformer_options=None):
    """Attention.compute_qkv of Cosmos-Predict2 and Anima, whose fused norm and rotation has no gradient: norm, then rotation."""
    q, k, v = plain(x, context, None, transformer_options or {})  # [B, N, H, D]
    if attention.is_selfattn and rope_emb is not None:
        q, k = rotated(q, rope_emb), rotated(k, rope_emb)
    return q, k, v


def rotated(x: Tensor, freqs: Tensor) -> Tensor:
    """Rotary embedding of pairs (i, i + D/2). x: [B, N, H, D]; freqs: [..., D/2, 2, 2]."""
    pairs = torch.stack(x.to(freqs.dtype).chunk(2, dim=-1), dim=-1).unsqueeze(-2)  # [B, N, H, D/2, 1, 2]
    turned = (freqs * pairs).sum(-1)  # [B, N, H, D/2, 2]
    return torch.cat(turned.unbind(-1), dim=-1).type_as(x)
