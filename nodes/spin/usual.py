"""How a model is usually drawn with, where no SPIN Opponent says it."""

import comfy.supported_models

from ..host.denoiser import prediction_of
from .captions import OpponentSampling

DIFFUSION = OpponentSampling()
FLOW = OpponentSampling("euler", "simple", steps=20, cfg=4.0)
GUIDED = OpponentSampling("euler", "simple", steps=20, cfg=1.0)  # guidance is distilled into the model, as a condition
FEW_STEPS = OpponentSampling("euler", "simple", steps=4, cfg=1.0)


def usual_sampling(model) -> OpponentSampling:
    """By what the model is: few steps for Flux schnell, no CFG where guidance is a condition, flow models by Euler, else DDIM.

    Z-Image Turbo, Lightning and their like look as their teachers do, and cannot be told: SPIN Opponent says it for them.
    """
    if isinstance(model.model.model_config, comfy.supported_models.FluxSchnell):
        return FEW_STEPS
    if getattr(getattr(model.model.diffusion_model, "params", None), "guidance_embed", False):
        return GUIDED
    return FLOW if prediction_of(model.get_model_object("model_sampling")) == "flow" else DIFFUSION
