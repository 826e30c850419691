"""A host's network whose weights lie in parts on many processes (FSDP2): every forward needs them all, and nobody moves it."""

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import torch
from torch import Tensor, nn

from ...train_core import shard
from .families import sharded_blocks
from .frozen import same_bytes


class ShardedPatcher(comfy.model_patcher.ModelPatcher):
    """A patcher whose weights are where they stay: the host's loading and unloading pass them by."""

    def load(self, *args, **kwargs) -> None:
        for module in self.model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
        self.model.device = self.load_device
        self.model.model_loaded_weight_memory = self.model_size()
        self.model.current_weight_patches_uuid = self.patches_uuid

    def unpatch_model(self, device_to=None, unpatch_weights=True) -> None:
        super().unpatch_model(None, unpatch_weights)

    def partially_unload(self, *args, **kwargs) -> int:
        return 0


def sharded(patcher: comfy.model_patcher.ModelPatcher, processes: int) -> ShardedPatcher:
    """The MODEL with its network's weights shared out over the processes, in place; only their own part stays on each.

    Whatever runs it must run on all processes, and as often: see `one_by_one`. Raises: ValueError for weights of 8 bits.
    """
    network = patcher.model.diffusion_model
    check_types(network)
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_inference():
                module._parameters[name] = nn.Parameter(same_bytes(weight), requires_grad=False)
    whole = sum(weight.nbytes for weight in network.parameters())
    shard(network, sharded_blocks(network), patcher.load_device.type, processes)
    made = ShardedPatcher(patcher.model, patcher.load_device, patcher.offload_device, size=whole // processes)
    made.object_patches = dict(patcher.object_patches)
    made.set_model_unet_function_wrapper(outside_inference)
    made.set_model_sampler_calc_cond_batch_function(one_by_one)
    return made


def check_types(network: nn.Module) -> None:
    """ValueError for what cannot be put together from parts on every machine."""
    small = next((name for name, weight in network.named_parameters() if weight.element_size() < 2), None)
    if small is not None or any(isinstance(p, comfy.ops.QuantizedTensor) for p in network.parameters()):
        raise ValueError("Leave --shard out.\nIt takes weights of 16 or 32 bits, and this file has smaller ones.")


@torch.no_grad()
def outside_inference(apply_model, given: dict) -> Tensor:
    """A step of the sampler. Under inference mode parts would be put together to tensors that no gradient may use later."""
    with torch.inference_mode(False):
        return apply_model(given["input"].clone(), given["timestep"].clone(), **given["c"])


def one_by_one(given: dict) -> list[Tensor]:
    """Each condition by a forward of its own: how many the host would take together hangs on each process's free memory."""
    inputs = (given["input"], given["sigma"], given["model_options"])
    return [comfy.samplers.calc_cond_batch(given["model"], [cond], *inputs)[0] for cond in given["conds"]]
