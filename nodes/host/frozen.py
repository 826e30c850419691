"""Training beside weights that stay as the user has them: in place, in their stored type, wherever the host keeps them.

ComfyUI makes its weights under inference mode, where autograd may save none of them; it casts them at every use, and moves
what does not fit away. So nothing of them is saved here: a backward pass reads a layer's weight again, as its forward did.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from types import FunctionType
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...train_core import weights_hash
from .families.gradients import differentiable, replaced
from .families.recomputed import recomputed
from .plain import check_plain


def borrowed(model: comfy.model_patcher.ModelPatcher, dtype=torch.float32) -> comfy.model_patcher.ModelPatcher:
    """The MODEL itself, its LoRAs as the host's patches, computing in `dtype`: to be trained beside, inside `Frozen`.

    Raises: ValueError where another node has changed how it runs, which need not have a gradient.
    """
    check_plain(model)
    patcher = model.clone()
    if patcher.model.get_dtype_inference() != dtype:
        patcher.set_model_compute_dtype(dtype)
    return patcher


def load_frozen(patchers: list, memory: int = 0) -> None:
    """Brings models to the device as the host does for a node; `memory` bytes beside them stay free for the training.

    What does not fit stays in system memory, and the host casts it layer by layer.
    """
    with torch.inference_mode():
        comfy.model_management.load_models_gpu(patchers, memory_required=memory)


# Many files of text encoders lack them, and the host leaves them as the memory was: no two loads would be the same.
OFTEN_MISSING = ("text_projection.weight", "logit_scale")


def patched_hash(patcher: comfy.model_patcher.ModelPatcher, part: str = "diffusion_model") -> str:
    """weights_hash of the diffusion model as the user's file has it, and of the LoRAs on it, loaded or not.

    part: of the patcher's model; "" is all of it, as of a text encoder.
    """
    network, prefix = patcher.model.get_submodule(part), part and f"{part}."
    with torch.inference_mode():
        merged = {
            name: patcher.backup[prefix + name].weight
            for name in network.state_dict()
            if prefix + name in patcher.backup
        }
        weights = {**network.state_dict(), **merged}
        base = weights_hash({name: w for name, w in weights.items() if part or not name.endswith(OFTEN_MISSING)})
    if not patcher.patches:
        return base
    parts = json.dumps([base, described(sorted(patcher.patches.items()))])
    return hashlib.sha256(parts.encode()).hexdigest()


def described(patch) -> Any:
    """A patch of the host (tensors, numbers, adapters, functions in tuples and lists) as JSON values that are equal where it is."""
    if isinstance(patch, Tensor):
        return weights_hash({"": patch})
    if isinstance(patch, list | tuple):
        return [described(part) for part in patch]
    if hasattr(patch, "weights"):  # the host's WeightAdapter
        return [patch.name, described(patch.weights)]
    if isinstance(patch, FunctionType):  # with what it was made with, such as RescaleCFG's multiplier
        return [patch.__module__, patch.__qualname__, [repr(cell.cell_contents) for cell in patch.__closure__ or ()]]
    return getattr(patch, "__qualname__", repr(patch))


class Frozen:
    """Networks of the host that gradients pass while their weights stay as they are.

    Inside `with Frozen(patchers) as frozen:` (itself inside training_mode()) they are loaded, and can be trained beside.
    Whatever may move them (a sampler, a VAE, a text encoder) runs inside `frozen.given_back()`.
    memory: bytes that stay free beside them. within: what else must hold while they are trained, such as checkpointing.
    """

    def __init__(self, patchers: list, memory: int = 0, within: Sequence[Callable[[], AbstractContextManager]] = ()):
        self.patchers, self.memory, self.within = patchers, memory, within
        self.stack = ExitStack()

    def __enter__(self) -> "Frozen":
        load_frozen(self.patchers, self.memory)
        with ExitStack() as stack:  # leaves nothing behind where one of them fails
            for patcher in self.patchers:
                stack.enter_context(graded(patcher.model))
            for make in self.within:
                stack.enter_context(make())
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def reserve(self, memory: int) -> None:
        """From now on so many bytes stay free: what is in their way goes to system memory, and is cast from there."""
        self.memory = memory
        with self.given_back(), torch.inference_mode():
            for patcher in self.patchers:
                short = memory - comfy.model_management.get_free_memory(patcher.load_device)
                if short > 0 and patcher.load_device != patcher.offload_device:
                    patcher.partially_unload(patcher.offload_device, short)

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Inside, the host has its models as they were. Afterwards they are loaded and trained beside again."""
        self.stack.close()
        yield
        self.__enter__()


@contextmanager
def graded(network: nn.Module) -> Iterator[None]:
    """Inside, gradients pass the network, and little of it is kept for them."""
    with readable(network), differentiable(network), recomputed(network):
        yield


@contextmanager
def readable(network: nn.Module) -> Iterator[None]:
    """Inside, a gradient passes the network's layers and nothing of the size of their weights is saved for it."""
    with ExitStack() as stack:
        for module in network.modules():
            stack.enter_context(saveable(module))
            if isinstance(module, comfy.ops.CastWeightBiasOp) and is_graded(module):
                stack.enter_context(replaced(module, "forward", partial(read, module, module.forward)))
        yield


def is_graded(module: nn.Module) -> bool:
    """Layers with weights whose input has a gradient; an embedding's is an integer."""
    return getattr(module, "weight", None) is not None and not isinstance(module, nn.Embedding)


@contextmanager
def saveable(module: nn.Module) -> Iterator[None]:
    """Inside, what the module itself computes with are tensors that autograd may save: the same bytes."""
    held = {name: weight for name, weight in module._parameters.items() if is_locked(weight)}
    buffers = {name: buffer for name, buffer in module._buffers.items() if is_locked(buffer)}
    for name, weight in held.items():
        module._parameters[name] = nn.Parameter(same_bytes(weight), requires_grad=False)
    for name, buffer in buffers.items():
        module._buffers[name] = same_bytes(buffer)
    try:
        yield
    finally:
        module._parameters.update(held)
        module._buffers.update(buffers)


def is_locked(tensor: Tensor | None) -> bool:
    """Made under inference mode. A quantised weight, which is no plain tensor, is read by the host alone."""
    return tensor is not None and tensor.is_inference() and not isinstance(tensor, comfy.ops.QuantizedTensor)


def same_bytes(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An ordinary tensor over the memory of one that was made under inference mode. dtype: another one of its size."""
    made = torch.empty(0, dtype=dtype or tensor.dtype, device=tensor.device)
    return made.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def read(module: nn.Module, forward, x: Tensor, *args, **kwargs) -> Tensor:
    """The layer's own forward. Where its weight would be cast for a gradient, the cast is not saved, but made again.

    A norm's few numbers are saved as they are cast. torch's own convolution would keep its input, for a gradient of the weight
    that nobody wants.
    """
    if not is_plain(module, x):
        run, kept = forward, False
    elif all(weight.dtype == x.dtype for weight in weights_of(module)):
        run, kept = forward, not isinstance(module, tuple(CONVOLUTIONS))
    else:
        run, kept = partial(forward_with_casts, module, forward), isinstance(module, NORMS)
    if kept or not (torch.is_grad_enabled() and x.requires_grad):
        return run(x, *args, **kwargs)
    return FrozenLayer.apply(x, module, lambda x: run(x, *args, **kwargs))


def weights_of(module: nn.Module) -> list[Tensor]:
    return [weight for weight in (module.weight, getattr(module, "bias", None)) if weight is not None]


def is_plain(module: nn.Module, x: Tensor) -> bool:
    """Whether the layer computes with its stored numbers, in the type of x, on the device where they are."""
    moved = any(weight.device != x.device for weight in weights_of(module))
    patched = module.weight_function or module.bias_function
    quantised = isinstance(module.weight, comfy.ops.QuantizedTensor)
    return not (moved or patched or quantised or torch.is_autocast_enabled(x.device.type))


def forward_with_casts(module: nn.Module, forward, x: Tensor, *args, **kwargs) -> Tensor:
    """The layer's own forward, which finds its weights in the type of x."""
    stored = {name: module._parameters[name] for name in ("weight", "bias") if module._parameters.get(name) is not None}
    module._parameters.update({name: as_type(weight, x.dtype) for name, weight in stored.items()})
    try:
        return forward(x, *args, **kwargs)
    finally:
        module._parameters.update(stored)


def as_type(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight.to(dtype). Eight bits on a CPU by a table of their 256 numbers: torch's own cast there takes five times as long."""
    if weight.element_size() > 1 or weight.device.type != "cpu":
        return weight.to(dtype)
    numbers = table(weight.dtype, dtype)
    made = torch.empty(weight.numel(), dtype=dtype)
    parts = same_bytes(weight.contiguous(), torch.uint8).flatten().split(TABLE_PART), made.split(TABLE_PART)
    for places, part in zip(*parts, strict=True):
        torch.index_select(numbers, 0, places.int(), out=part)
    return made.view(weight.shape)


@cache
def table(eight: torch.dtype, dtype: torch.dtype) -> Tensor:
    """The numbers [256] of all values of eight bits."""
    return torch.arange(256, dtype=torch.uint8).view(eight).to(dtype)


TABLE_PART = 2**16  # numbers that are read at once, so that their places stay in the processor's cache


class FrozenLayer(torch.autograd.Function):
    """y = layer(x) by the layer's own forward, dx by its weight as it is read again in the backward pass. No gradient of weights."""

    @staticmethod
    def forward(ctx, x: Tensor, module: nn.Module, forward) -> Tensor:
        ctx.module, ctx.shape, ctx.dtype, ctx.plain = module, x.shape, x.dtype, is_plain(module, x)
        if isinstance(module, NORMS):
            ctx.save_for_backward(x)
        return forward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        module = ctx.module
        if ctx.plain:
            return through(module, grad, as_type(module.weight, grad.dtype), ctx.shape).to(ctx.dtype), None, None
        x = ctx.saved_tensors[0] if isinstance(module, NORMS) else None
        weight, bias, stream = comfy.ops.cast_bias_weight(module, x if x is not None else grad, offloadable=True)
        if x is None:
            dx = through(module, grad, whole(weight, grad.dtype), ctx.shape)
        else:
            dx = through_norm(module, grad, x, weight, bias)
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)
        return dx.to(ctx.dtype), None, None


NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
CONVOLUTIONS = {nn.Conv1d: nn.grad.conv1d_input, nn.Conv2d: nn.grad.conv2d_input, nn.Conv3d: nn.grad.conv3d_input}


def whole(weight: Tensor, dtype) -> Tensor:
    """A quantised weight as numbers."""
    return weight.dequantize().to(dtype) if isinstance(weight, comfy.ops.QuantizedTensor) else weight


def through(module: nn.Module, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """dx of a linear or convolution layer, from dy and its weight alone."""
    for kind, input_gradient in CONVOLUTIONS.items():
        if isinstance(module, kind):
            return input_gradient(shape, weight, grad, module.stride, module.padding, module.dilation, module.groups)
    dx = grad @ weight
    smoothing = getattr(
        module, "pre_quant_scale", None
    )  # of the host's quantised layers: their input is multiplied by it
    return dx if smoothing is None else dx * smoothing.to(dx)


def through_norm(module: nn.Module, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """dx of a norm, computed again with copies of its few weights."""
    weight, bias = weight.clone(), None if bias is None else bias.clone()
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        if isinstance(module, nn.LayerNorm):
            y = F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
        elif isinstance(module, nn.RMSNorm):
            y = F.rms_norm(x, module.normalized_shape, weight, module.eps)
        else:
            y = F.group_norm(x, module.num_groups, weight, bias, module.eps)
    return torch.autograd.grad(y, x, grad.to(y.dtype))[0]
