"""A ComfyUI MODEL as a train_core Denoiser, and its conditioning as tensors."""

import json
from collections.abc import Sequence

import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...train_core import Context, NoiseSchedule, Prediction, cat_contexts, weights_hash
from .frozen import described

# By exact class: a subclass in the host predicts something else than its parent (X0, LCM and EDM descend from EPS).
PREDICTIONS: dict[type, Prediction] = {
    comfy.model_sampling.EPS: "epsilon",
    comfy.model_sampling.V_PREDICTION: "v",
    comfy.model_sampling.V_PREDICTION_DDPM: "v",
    comfy.model_sampling.CONST: "flow",
}
GUIDANCE = ("sampler_pre_cfg_function", "sampler_cfg_function", "sampler_post_cfg_function")  # of model_options
CONDITIONS = (Tensor, int, float, bool, str, type(None))


def prediction_of(model_sampling) -> Prediction:
    """What the model answers. Raises: ValueError for families whose target this pack does not know."""
    kind = next(kind for kind in type(model_sampling).__mro__ if "calculate_denoised" in vars(kind))
    if kind not in PREDICTIONS:
        raise ValueError(
            "Connect a model that predicts epsilon, v or flow.\n"
            f"This one can be sampled but not trained here: it predicts as {kind.__name__}."
        )
    if getattr(model_sampling, "noise_scale", 1.0) != 1.0 or getattr(model_sampling, "sigma_data", 1.0) != 1.0:
        raise ValueError(
            "Connect another model.\n"
            "This one can be sampled but not trained here: its noise is of another width than the picture's 1."
        )
    return PREDICTIONS[kind]


def schedule_of(model_sampling) -> NoiseSchedule:
    """The noise schedule that the model samples with, from the host's own table of sigmas."""
    sigmas = model_sampling.sigmas.double().cpu()
    if prediction_of(model_sampling) == "flow":
        return NoiseSchedule.from_flow_sigmas(sigmas)
    return NoiseSchedule.from_alphas_cumprod(1 / (sigmas.square() + 1))


def channels_read(model) -> int:
    """Channels that the network of a host's BaseModel reads: the latent's, and of what the host puts beside them."""
    config, form = model.model_config.unet_config, model.latent_format
    if "model_channels" in config:
        return config["in_channels"]
    noise = torch.zeros(1, form.latent_channels, *[1] * (form.latent_dimensions - 2), 8, 8)
    beside = model.concat_cond(noise=noise, device=noise.device)
    return form.latent_channels + (0 if beside is None else beside.shape[1])


def check_channels(model) -> None:
    """ValueError for a network that reads more than the latent: inpainting, pix2pix."""
    reads, latent = channels_read(model), model.latent_format.latent_channels
    if reads != latent:
        raise ValueError(
            "Connect the model that this one was made from.\n"
            f"It reads {reads} channels and a latent has {latent}: inpainting and pix2pix are not trained here."
        )


def graded_attention(chosen, *args, **kwargs) -> Tensor:
    """torch's own attention instead of the host's choice for pictures, which need not have a backward pass (Sage, int8)."""
    return attention_pytorch(*args, **kwargs)


class ModelDenoiser:
    """A loaded MODEL as a train_core Denoiser: the host's own forward, short of its turn from prediction to picture.

    context: the model's conditioning as `context_of` makes it, one for each row. Assumes: the patcher is loaded, and stays so.
    """

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher):
        self.model = patcher.model
        check_channels(self.model)
        self.sampling = patcher.get_model_object("model_sampling")
        self.prediction = prediction_of(self.sampling)
        self.schedule = schedule_of(self.sampling)
        self.dtype = patcher.get_model_object("manual_cast_dtype") or self.model.get_dtype()
        self.guidance = json.dumps([described(patcher.model_options.get(name)) for name in GUIDANCE])
        options = patcher.model_options.get("transformer_options", {})
        self.transformer_options = {**options, "optimized_attention_override": graded_attention}

    @property
    def process(self) -> str:
        """Hash of what the model predicts, of its noise schedule, of the timesteps that it is told, and of its guidance."""
        told = self.timestep(torch.arange(len(self.schedule)))
        return weights_hash({self.prediction: self.schedule.sigma, self.guidance: told.cpu()})

    def predict(self, x_t: Tensor, t: Tensor, context: list[dict]) -> Tensor:
        """x_t: [B, C, H, W], or [B, C, T, H, W] in families with frames; context: one for each row."""
        timestep, groups = self.timestep(t), alike(context)
        parts = [(x_t[rows], timestep[rows], cat_contexts([context[i] for i in rows])) for rows in groups]
        return in_order([self.forward(*part, self.transformer_options).float() for part in parts], groups)

    def timestep(self, t: Tensor) -> Tensor:
        """The host's own scale of t (int [B])."""
        return self.sampling.timestep(self.sampling.sigmas.to(t.device)[t]).float()

    def forward(self, x: Tensor, timestep: Tensor, conditions: dict, options: dict) -> Tensor:
        """The network on rows that one forward can take together. options: transformer_options, of which it gets a copy."""
        conds = {name: self.read(value, x.device) for name, value in conditions.items()}
        cross_attn, options = conds.pop("c_crossattn", None), dict(options)
        x = x.to(self.dtype)
        return self.model.diffusion_model(x, timestep, context=cross_attn, transformer_options=options, **conds)

    def read(self, value, device: torch.device):
        """A condition as the model reads it: integers (Anima's t5xxl_ids) and constants (Lumina's num_tokens) as they are."""
        if not isinstance(value, Tensor):
            return value
        return value.to(device, self.dtype if value.is_floating_point() else None)


def context_of(model, conditioning: list, shape: tuple[int, ...]) -> Context:
    """One prompt's CONDITIONING as what the model reads (SDXL: size embedding included), batch of 1.

    shape: of the latent, [C, H, W] or [C, T, H, W].
    """
    cross_attn, options = conditioning[0]
    scale = model.latent_format.spacial_downscale_ratio
    noise = torch.zeros(1, *shape)
    size = {"width": shape[-1] * scale, "height": shape[-2] * scale}
    conds = model.extra_conds(noise=noise, device=noise.device, cross_attn=cross_attn, **{**size, **options})
    unknown = [name for name, cond in conds.items() if not isinstance(cond.cond, CONDITIONS)]
    if unknown:
        raise ValueError(
            f'Connect a model that reads nothing but text.\nThis one reads "{unknown[0]}" too, which cannot be trained here.'
        )
    values = {name: cond.cond for name, cond in conds.items()}
    return {name: v.detach().cpu().clone() if isinstance(v, Tensor) else v for name, v in values.items()}


def alike(contexts: list[dict]) -> list[list[int]]:
    """Rows that one forward can take together: those whose conditions have one shape, and the same constants.

    Texts of other lengths run apart: repeating or padding one to the other's length is not exact where positions count.
    """
    groups: dict[tuple, list[int]] = {}
    for row, context in enumerate(contexts):
        kind = tuple((name, v.shape if isinstance(v, Tensor) else v) for name, v in sorted(context.items()))
        groups.setdefault(kind, []).append(row)
    return list(groups.values())


def in_order(parts: Sequence[Tensor], groups: list[list[int]]) -> Tensor:
    """The rows of `alike`'s groups in the batch's order."""
    if len(groups) == 1:
        return parts[0]
    order = torch.tensor([row for rows in groups for row in rows], device=parts[0].device)
    return torch.cat(list(parts))[order.argsort()]
