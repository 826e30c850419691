"""What a trainer needs of a ComfyUI MODEL: a copy that can be trained, a Denoiser, and its conditioning as tensors."""

import copy
import math
from contextlib import contextmanager

import comfy.ldm.flux.model
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import torch
from torch import Tensor

from train_core import NoiseSchedule, Prediction, weights_hash


@contextmanager
def residuals_kept(diffusion_model: torch.nn.Module):
    """Inside, Flux can run backward: its blocks add to the residual
    stream in place, after a norm has saved it for its gradient.

    Each norm therefore reads a copy. Other families' blocks do not do this, and are left alone.
    """
    norms = []
    if isinstance(diffusion_model, comfy.ldm.flux.model.Flux):
        norms = [module for module in diffusion_model.modules() if isinstance(module, torch.nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda module, args: (args[0].clone(),)) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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


FAMILIES = (  # the first that fits: V_PREDICTION is a subclass of EPS in the host
    (comfy.model_sampling.V_PREDICTION_DDPM, "v"),
    (comfy.model_sampling.EDM, None),
    (comfy.model_sampling.X0, None),
    (comfy.model_sampling.V_PREDICTION, "v"),
    (comfy.model_sampling.EPS, "epsilon"),
    (comfy.model_sampling.IMG_TO_IMG_FLOW, None),
    (comfy.model_sampling.CONST, "flow"),
)


def prediction_of(model_sampling) -> Prediction:
    """What the model answers. Raises: ValueError for families whose target this pack does not know."""
    for kind, prediction in FAMILIES:
        if isinstance(model_sampling, kind) and prediction is not None:
            return prediction
        if isinstance(model_sampling, kind):
            break
    raise ValueError("this model can be sampled but not trained here: its prediction is neither epsilon, v nor flow")


def schedule_of(model_sampling) -> NoiseSchedule:
    """The noise schedule that the model samples with, from the host's own table of sigmas."""
    sigmas = model_sampling.sigmas.double().cpu()
    if prediction_of(model_sampling) == "flow":
        return NoiseSchedule.from_flow_sigmas(sigmas)
    return NoiseSchedule.from_alphas_cumprod(1 / (sigmas.square() + 1))


class ModelDenoiser:
    """A loaded MODEL as a train_core Denoiser: the host's own
    forward, up to where it turns the prediction into a picture.

    context: the model's conditioning as `context_of` makes it. Assumes: the patcher is loaded, and stays so.
    """

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher):
        self.model = patcher.model
        self.sampling = patcher.get_model_object("model_sampling")
        self.prediction = prediction_of(self.sampling)
        self.schedule = schedule_of(self.sampling)
        self.dtype = patcher.get_model_object("manual_cast_dtype") or self.model.get_dtype()
        self.transformer_options = patcher.model_options.get("transformer_options", {})

    def predict(self, x_t: Tensor, t: Tensor, context: dict[str, Tensor]) -> Tensor:
        timestep = self.sampling.timestep(self.sampling.sigmas.to(t.device)[t]).float()
        conds = {name: value.to(x_t.device, self.dtype) for name, value in context.items()}
        cross_attn = conds.pop("c_crossattn", None)
        return self.model.diffusion_model(
            x_t.to(self.dtype),
            timestep,
            context=cross_attn,
            transformer_options=self.transformer_options.copy(),
            **conds,
        ).float()


def context_of(model, conditioning: list, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """One prompt's CONDITIONING as the tensors that the model reads (SDXL: size embedding included), batch of 1.

    shape: of the latent, [C, H, W].
    """
    cross_attn, options = conditioning[0]
    scale = model.latent_format.spacial_downscale_ratio
    noise = torch.zeros(1, *shape)
    size = {"width": shape[-1] * scale, "height": shape[-2] * scale}
    conds = model.extra_conds(noise=noise, device=noise.device, cross_attn=cross_attn, **{**size, **options})
    unknown = [name for name, cond in conds.items() if not isinstance(cond.cond, Tensor)]
    if unknown:
        raise ValueError(f'this model is conditioned on more than text ("{unknown[0]}"), which cannot be trained here')
    return {name: cond.cond.detach().cpu().clone() for name, cond in conds.items()}


def batch_contexts(contexts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several prompts' contexts as one batch. A prompt of fewer 77-token chunks than another is repeated to its length.

    The host does the same when it batches: attention over repeated keys is attention over the keys.
    """
    return {name: torch.cat(repeat_to_one_length([context[name] for context in contexts])) for name in contexts[0]}


def repeat_to_one_length(tensors: list[Tensor]) -> list[Tensor]:
    """Tokens [1, N, d] of different N, all at N's least common multiple; other tensors as they are."""
    if tensors[0].ndim < 3:
        return tensors
    length = math.lcm(*(tensor.shape[1] for tensor in tensors))
    return [tensor.repeat(1, length // tensor.shape[1], 1) for tensor in tensors]


def training_copy(model: comfy.model_patcher.ModelPatcher, dtype=torch.float32) -> comfy.model_patcher.ModelPatcher:
    """A MODEL with weights of its own, loaded, its LoRAs merged in, that computes in `dtype` and can be trained.

    The model that went in stays as it is, bit for bit: what is trained are the copy's weights, or adapters on them.
    Call it inside training_mode(): weights that a node loaded under inference mode cannot take part in a backward pass.
    """
    foreign = [name for name in model.object_patches if name.startswith("diffusion_model.")]
    if foreign:
        raise ValueError(
            f"another node has patched layers of this model (for instance {foreign[0]}), which training cannot copy: "
            "connect the model from before that node"
        )
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
