"""Pictures by a model, and by a concept through Apply ViCo itself: previews and grids."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...vico_core import ViCoConcept
from ..host.sampling import Sampling, sample_latents
from .attach import ApplySettings, attach, make_subject
from .capture import AUTOMATIC
from .photos import Reference
from .trigger import with_trigger


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
    return torch.cat([vae.decode(latent) for latent in latents])
