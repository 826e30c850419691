"""A ComfyUI MODEL as a train_core Denoiser, and its conditioning as tensors."""

import math

import comfy.model_patcher
import comfy.model_sampling
import torch
from torch import Tensor

from ...train_core import NoiseSchedule, Prediction

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


def check_channels(model) -> None:
    """ValueError for a U-Net that reads more than the latent: inpainting, pix2pix."""
    config, latent = model.model_config.unet_config, model.latent_format.latent_channels
    if "model_channels" in config and config["in_channels"] != latent:
        raise ValueError(
            f"this U-Net reads {config['in_channels']} channels and a latent has {latent}: inpainting and pix2pix models are not "
            "trained here. Connect the model that they were made from"
        )


class ModelDenoiser:
    """A loaded MODEL as a train_core Denoiser: the host's own forward, short of its turn from prediction to picture.

    context: the model's conditioning as `context_of` makes it. Assumes: the patcher is loaded, and stays so.
    """

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher):
        self.model = patcher.model
        check_channels(self.model)
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
