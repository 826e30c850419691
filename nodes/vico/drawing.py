"""Pictures by a model, and by a concept through Apply ViCo itself: previews and grids."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import comfy.model_sampling
import torch
from torch import Tensor

from ...vico_core import ViCoConcept
from ..host.sampling import Sampling, sample_latents
from .attach import ApplySettings, attach, make_subject
from .capture import AUTOMATIC
from .photos import Reference
from .trigger import with_trigger


def as_usual(sampling: Sampling, model, **flow) -> Sampling:
    """The same, by Euler where the model is a flow, which DDIM is not made for; `flow`: what else differs there."""
    if not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        return sampling
    return replace(sampling, sampler="euler", scheduler="simple", **flow)


def draw_with_concept(
    model,
    clip,
    vae,
    concept: ViCoConcept,
    reference: Reference,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    mask: str = AUTOMATIC,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Pictures [prompts × seeds, H, W, 3] of the reference's size, as Apply ViCo has them drawn."""
    subject = make_subject(model, clip, concept, reference, ApplySettings(mask=mask))
    model, clip = attach(model, subject), with_trigger(clip, subject.trigger)
    return draw(model, clip, vae, prompts, seeds, sampling, reference.photos[0].latent.shape[1:], on_step)


def draw(
    model,
    clip,
    vae,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    shape: Sequence[int],
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Pictures [prompts × seeds, H, W, 3] of latents of `shape` [C, h, w], with an empty negative prompt."""
    encoded = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("", *prompts)}
    latents = (sample_latents(model, shape, seeds, sampling, encoded[text], encoded[""], on_step) for text in prompts)
    return torch.cat([vae.decode(latent).flatten(0, -4) for latent in latents])  # some decode to [B, T, H, W, 3]
