"""From Apply ViCo's inputs to a model in which image attention runs."""

import math
import uuid
from dataclasses import dataclass
from functools import partial
from types import MethodType

import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy.utils import get_attr
from torch import Tensor

from ...vico_core import Place, ViCoConcept, base_hash, feature_bytes, same_base
from ..host.families.image_tokens import LATENT, ImageTokens
from .capture import AUTOMATIC, CAPTURE, GIVEN, as_input
from .masks import as_masks, is_stand_in
from .photos import Reference, with_axes_of
from .places import load_modules, shape_at, share, tokens_of
from .subject import Subject
from .trigger import identity_of, make_trigger


@dataclass(frozen=True)
class ApplySettings:
    """When, where and how strongly image attention works: Apply ViCo's inputs beside what it connects.

    start, end: shares of the sampling, 0 to 1. place_strengths: one factor a place, as "1, 0.5". effect_mask: [B, H, W].
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: str = AUTOMATIC
    trigger: str = ""
    place_strengths: str = ""
    cache_mb: int = 1024
    effect_mask: Tensor | None = None


def make_subject(model, clip, concept: ViCoConcept, reference: Reference, settings: ApplySettings) -> Subject:
    """A Subject, checked against the model, the CLIP and the reference. ValueError says what is wrong."""
    if settings.start > settings.end:
        raise ValueError(
            f"Set start_percent to end_percent at most.\nIt starts at {settings.start:g} and ends at {settings.end:g}."
        )
    if settings.mask == GIVEN and any(photo.mask is None for photo in reference.photos):
        raise ValueError(
            "Connect a mask to ViCo Reference, or choose 'automatic'.\nThe mask is 'given', but the reference has none."
        )
    places, patcher = load_modules(concept, model)
    factors = parse_factors(settings.place_strengths, len(places))
    word = trigger_word(settings.trigger, concept)
    subject = Subject(
        key=f"vico-{uuid.uuid4()}",
        trigger=make_trigger(
            clip, identity_of(word, concept.embeddings), word, concept.embeddings, concept.initialiser
        ),
        patcher=patcher,
        places=places,
        tokens={place.name: tokens_of(model.model.diffusion_model, place) for place in places},
        strengths={p.name: settings.strength * factor for p, factor in zip(places, factors, strict=True)},
        percents=(settings.start, settings.end),
        mask_source=settings.mask,
        effect_mask=effect_of(settings.effect_mask),
        reference=reference,
        latents=[as_input(model.model, with_axes_of(model, photo.latent)) for photo in reference.photos],
        budget=settings.cache_mb * 2**20,
    )
    bank = reference.bank  # what it holds on the device goes when the host's manager takes the modules off
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, subject.key, lambda *_: bank.leave_device())
    return subject


def trigger_word(trigger: str, concept: ViCoConcept) -> str:
    """The word that was typed; where there is none, the concept's own."""
    return trigger.strip() or concept.placeholder


def effect_of(mask: Tensor | None) -> Tensor | None:
    """The effect mask [B, H, W]; none where LoadImage had no mask to give."""
    masks = as_masks(mask, "effect mask")
    return None if masks is None or is_stand_in(masks) else masks


def parse_factors(text: str, count: int) -> list[float]:
    """'1, 0.5' -> [1.0, 0.5]; empty -> all 1; one number -> that for all."""
    try:
        factors = [float(part) for part in text.replace(",", " ").split()] or [1.0]
        if not all(map(math.isfinite, factors)):
            raise ValueError(text)
    except ValueError as error:
        raise ValueError(f"Write place_strengths as numbers, as '1, 1, 0.5, 0'.\nIt is '{text}'.") from error
    factors = factors * count if len(factors) == 1 else factors
    if len(factors) != count:
        raise ValueError(
            f"Write {count} place_strengths, or one for all.\nplace_strengths has {len(factors)} numbers; this model has {count} places."
        )
    return factors


def attach(model, subject: Subject):
    """A clone of the model in which the subject's image attention runs."""
    model = model.clone()
    for place in subject.places:
        path = f"diffusion_model.{place.block}.forward"
        plain, tokens = model.get_model_object(path), subject.tokens[place.name]
        model.add_object_patch(path, image_attended(plain, place, tokens, subject))
    model.add_callback_with_key(CallbacksMP.ON_CLONE, subject.key, partial(follow, subject.places))
    model.set_additional_models(subject.key, [subject.patcher])
    wrappers = {
        WrappersMP.OUTER_SAMPLE: subject.on_sample,
        WrappersMP.SAMPLER_SAMPLE: subject.on_sampler,
        WrappersMP.PREDICT_NOISE: subject.on_evaluation,
        WrappersMP.CALC_COND_BATCH: subject.on_prompts,
        WrappersMP.APPLY_MODEL: subject.on_apply,
    }
    for kind, wrapper in wrappers.items():
        model.add_wrapper_with_key(kind, subject.key, wrapper)
    return model


def image_attended(previous, place: Place, tokens: ImageTokens, subject):
    """The block's forward with image attention after it; `previous` may be another subject's."""

    def forward(*args, **kwargs):
        options = kwargs["transformer_options"]
        capture = options.get(CAPTURE)
        if capture is not None:
            kwargs["transformer_options"] = capture.reading(place, tokens, options)
            returned = previous(*args, **kwargs)
            return tokens.changed(returned, options, lambda x: capture.take(place, x, tokens.grid(options)))
        returned = previous(*args, **kwargs)
        if LATENT not in options:  # no subject is active in this step
            return returned
        return tokens.changed(returned, options, lambda x: subject.attend(place, x, options))

    forward.previous, forward.node = previous, "Apply ViCo"
    forward.over = lambda other: image_attended(other, place, tokens, subject)
    return forward


def follow(places: list[Place], old, new) -> None:
    """A clone of the model that has another network (to compile it, for hooks) runs that one's blocks."""
    if new.model is old.model:
        return
    for place in places:
        before, block = (get_attr(patcher.model, f"diffusion_model.{place.block}") for patcher in (old, new))
        path = f"diffusion_model.{place.block}.forward"
        new.object_patches[path] = moved(new.object_patches[path], before, block)


def moved(forward, before: torch.nn.Module, block: torch.nn.Module):
    """A chain of image attention over a block, over another one instead; what another node has put below it stays."""
    if hasattr(forward, "over"):
        return forward.over(moved(forward.previous, before, block))
    return MethodType(type(block).forward, block) if getattr(forward, "__self__", None) is before else forward


def step_bytes(subject: Subject, model) -> int:
    """Bytes of the reference's features of one step and prompt, all keys kept."""
    dtype = model.model.get_dtype_inference()
    sizes = []
    for latent in subject.latents:
        for place in subject.active_places:
            tokens = subject.tokens[place.name]
            sizes.append((tokens_at(model, place, tokens, latent), tokens.dim))
    return feature_bytes(sizes, dtype.itemsize)


def tokens_at(model, place: Place, tokens: ImageTokens, latent: Tensor) -> int:
    """Tokens of the latent at a place; in a U-Net each Upsample of the decoder after it doubles their sides."""
    if tokens.patch is not None:
        return tokens.count({LATENT: latent.shape})
    level = int(place.name.split(".")[1])
    blocks = model.model.diffusion_model.output_blocks
    ups = sum(type(layer).__name__ == "Upsample" for block in blocks[level:] for layer in block)
    return (latent.shape[-2] >> ups) * (latent.shape[-1] >> ups)


def describe_cost(subject: Subject, model) -> str:
    """Short enough for the two lines that the frontend shows under a node."""
    network = model.model.diffusion_model
    part = share([shape_at(network, place) for place in subject.places], network)
    step = step_bytes(subject, model)
    steps = subject.budget // (2 * step)
    held = f"{steps} steps fit" if subject.budget else "none is kept"
    size = f"{part:.1%} of the model, {len(subject.places)} places"
    return f"{size}.\nFeatures: {step / 2**20:.1f} MB a step, {held}."


def describe_base(concept: ViCoConcept, model) -> str:
    """A warning where the concept was trained beside another model than this one."""
    if not concept.base_hash or same_base(concept.base_hash, base_hash(model.model.diffusion_model.named_parameters())):
        return ""
    return "The concept was trained on another base:\nit may look different here."
