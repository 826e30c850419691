"""Copies of a user's models that a training may work on; the models themselves stay as they are, bit for bit."""

import copy
from contextlib import contextmanager

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...train_core import weights_hash
from .plain import check_plain


@contextmanager
def training_mode():
    """Inside, gradients flow: inference mode is off, and the host leaves out fused kernels that have no backward."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


def as_a_node(function, *args) -> Tensor:
    """What a host's model gives when it runs as the executor runs nodes; training may use the result.

    The host's models were made under inference mode. A weight that is computed with or moved to another device outside it
    "does not track versions", and from then on works in neither mode.
    """
    with torch.inference_mode():
        result = function(*args)
    return result.clone()


def model_hash(module: torch.nn.Module) -> str:
    """weights_hash of a host's model."""
    with torch.inference_mode():
        return weights_hash(module.state_dict())


def own_weights(model: torch.nn.Module, memo: dict) -> torch.nn.Module:
    """A frozen copy of a host's model whose weights can take part in a backward pass. Call it inside training_mode()."""
    with torch.inference_mode():
        copied = copy.deepcopy(model, memo)
    tensors = {}  # a weight that two modules share stays one
    for module in copied.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                made = tensors.get(id(weight))
                if made is None:
                    made = tensors[id(weight)] = torch.nn.Parameter(weight.clone(), requires_grad=False)
                module._parameters[name] = made
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.clone()
    return copied


def load_for_training(patchers: list) -> None:
    """Brings training copies to the device, whole. Whatever has to make room moves as it does between nodes."""
    loaded = comfy.model_management.loaded_models()
    if all(p in loaded and p.loaded_size() >= p.model_size() and not moved_by_a_node(p.model) for p in patchers):
        return
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu(patchers, force_full_load=True)


def moved_by_a_node(model: torch.nn.Module) -> bool:
    return any(weight.is_inference() for weight in model.parameters())


def training_copy(model: comfy.model_patcher.ModelPatcher, dtype=torch.float32) -> comfy.model_patcher.ModelPatcher:
    """A MODEL with weights of its own, loaded, its LoRAs merged in, that computes in `dtype` and can be trained.

    The model that went in stays as it is, bit for bit: what is trained are the copy's weights, or adapters on them.
    Call it inside training_mode(): weights that a node loaded under inference mode cannot take part in a backward pass.
    """
    check_plain(model)
    source = model.clone(disable_dynamic=True) if model.is_dynamic() else model
    with torch.inference_mode():
        comfy.model_management.unload_all_models()  # takes LoRAs out of the shared weights, and makes room
    shared = {id(source.model.model_config): source.model.model_config, id(source.model.current_patcher): None}
    weights = own_weights(source.model, shared)
    own = comfy.model_patcher.ModelPatcher(weights, source.load_device, source.offload_device)
    patcher = source.clone(disable_dynamic=True, model_override=own.get_clone_model_override())
    if source.model.get_dtype_inference() != dtype:
        patcher.set_model_compute_dtype(dtype)
    load_for_training([patcher])
    patcher.patches.clear()  # merged: the weights are the copy's own now, and unloading must not take the patches out
    patcher.backup.clear()
    return patcher
