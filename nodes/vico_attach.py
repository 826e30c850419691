"""How ViCo enters a ComfyUI model: the reference pass, its features, and image attention at the places.

One `Subject` is one Apply. Its three wrappers travel with the model's clones: one reads the prompts when sampling starts, one
notes which part of the picture a prompt covers, one runs the reference pass beside the main pass. Nothing is global; nothing
outlives the MODEL and the VICO_REFERENCE that the graph holds.
"""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from vico_core import (
    FeatureBank,
    ImageAttention,
    Place,
    ViCoConcept,
    column_attention,
    find_places,
    keep_tokens,
    object_mask,
)
from vico_core.reference import Features

from .vico_text import Trigger, columns_of_prompts

CAPTURE = "vico_capture"  # in transformer_options while a reference pass runs
TOKENS_PER_CHUNK = 77
AUTOMATIC, GIVEN, NO_MASK = "automatic", "given", "none"


@dataclass
class Photo:
    """latent [1, C, h, w] as the VAE gives it; image [H, W, 3] in 0..1; mask [H, W] in 0..1, or None."""

    latent: Tensor
    image: Tensor
    mask: Tensor | None = None


@dataclass
class Reference:
    """What VICO_REFERENCE carries: photos of one object, and the features that its pictures share."""

    photos: list[Photo]
    bank: FeatureBank = field(default_factory=FeatureBank)


@dataclass
class Run:
    """What one sampling knows: the prompts' mask columns, the patcher whose weights are on, and the part of the picture that
    each prompt covers (None: all)."""

    columns: dict
    patcher: object
    areas: dict = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)


@dataclass
class Row:
    """One distinct context of a batch: the rows of x that have it, and what its features depend on."""

    rows: list[int]
    t: Tensor
    context: Tensor
    y: Tensor | None
    columns: list[int]


@dataclass
class Subject:
    """One Apply: the concept's modules and word, the reference's latents in the model's scale, and when and how strongly."""

    trigger: Trigger
    patcher: comfy.model_patcher.ModelPatcher  # of the modules; held here, so that it lives as long as they do
    places: list[Place]
    strengths: dict[str, float]
    sigmas: tuple[float, float]
    mask_source: str
    effect_mask: Tensor | None
    reference: Reference
    latents: list[Tensor]
    budget: int
    on_masks: Callable | None = None  # called with every photo's Capture, for previews

    @property
    def key(self) -> str:
        return self.trigger.subject

    @property
    def modules(self) -> torch.nn.ModuleDict:
        return self.patcher.model

    @property
    def active_places(self) -> list[Place]:
        return [place for place in self.places if self.strengths[place.name] != 0]

    def is_active(self, sigma: float) -> bool:
        start, end = self.sigmas
        return end <= sigma <= start and bool(self.active_places)

    def on_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        run = Run(columns_of_prompts(guider.conds, self.trigger), guider.model_patcher)
        guider.model_options["transformer_options"][self.key] = run
        self.reference.bank.begin_run()
        return executor(*args, **kwargs)

    def on_prompts(self, executor, model, conds, x_in, timestep, model_options):
        run = model_options["transformer_options"][self.key]
        run.areas = {c["uuid"]: c.get("area") for part in conds for c in part or []}
        run.size = tuple(x_in.shape[-2:])
        return executor(model, conds, x_in, timestep, model_options)

    @torch.compiler.disable(recursive=False)
    def on_forward(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        if self.is_active(float(transformer_options["sigmas"][0])):
            rows = distinct_rows(x, timesteps, context, y, transformer_options, transformer_options[self.key])
            features = self.features(executor.original, rows, x, transformer_options)
            transformer_options = {**transformer_options, self.key + ".features": features}
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def features(self, unet, rows: dict, x: Tensor, transformer_options: dict) -> list[tuple[list[int], Features]]:
        """[(rows of x, their features)]: from the bank, and by one reference pass for all that it lacks."""
        run = transformer_options[self.key]
        names = tuple(place.name for place in self.active_places)
        weights = run.patcher.patches_uuid
        keys = {k: (k, self.mask_source, names, weights, x.dtype) for k in rows}
        # Hooks (a LoRA on a schedule) change the weights from step to step without the uuid telling: nothing is kept then.
        budget = self.budget if run.patcher.current_hooks is None else 0
        found = {k: self.reference.bank.get(keys[k], x.device) if budget else None for k in rows}
        missing = [k for k in rows if found[k] is None]
        if missing:
            computed = self.reference_pass(unet, [rows[k] for k in missing], x, transformer_options)
            for k, features in zip(missing, computed, strict=True):
                found[k] = features
                self.reference.bank.put(keys[k], features, budget)
        return [(rows[k].rows, found[k]) for k in rows]

    def reference_pass(self, unet, rows: list[Row], x: Tensor, transformer_options: dict) -> list[Features]:
        """Runs the U-Net on the clean photos, once a distinct context, up to the last place. `unet`: its bare forward."""
        photos = zip(self.latents, self.reference.photos, strict=True)
        captures = [self.capture(unet, latent, photo, rows, x, transformer_options) for latent, photo in photos]
        if self.on_masks:
            self.on_masks(captures)
        names = [place.name for place in self.active_places]
        return [{name: torch.cat([c.kept(name, row) for c in captures]) for name in names} for row in range(len(rows))]

    def capture(self, unet, latent, photo, rows: list[Row], x: Tensor, transformer_options: dict) -> "Capture":
        capture = Capture(self.active_places, [row.columns for row in rows], self.mask_source, photo.mask)
        for same in rows_of_equal_length(rows):
            capture.rows = same
            group = [rows[i] for i in same]
            x_ref = as_input(latent, x.shape[1]).to(x).expand(len(group), -1, -1, -1)
            y = None if group[0].y is None else torch.stack([row.y for row in group])
            t, context = torch.stack([row.t for row in group]), torch.stack([row.context for row in group])
            with contextlib.suppress(LastPlaceReached):
                unet(x_ref, t, context, y, None, capture.options(transformer_options))
        return capture

    @torch.compiler.disable
    def attend(self, place: Place, x: Tensor, transformer_options: dict) -> Tensor:
        """Image attention after the place's block: x [B, N, dim] → [B, N, dim]. Unchanged outside the active steps."""
        features = transformer_options.get(self.key + ".features")
        strength = self.strengths[place.name]
        if features is None or strength == 0:
            return x
        kept = [(rows, of_row[place.name]) for rows, of_row in features]
        out = self.modules[module_name(place)].forward_kept(x, kept)
        if self.effect_mask is not None:
            return torch.lerp(x, out, self.weights(x, transformer_options) * strength)
        return out if strength == 1 else torch.lerp(x, out, strength)

    def weights(self, x: Tensor, transformer_options: dict) -> Tensor:
        """The effect mask at this place's tokens [B, N, 1], cut to the part of the picture that each prompt covers."""
        run, grid = transformer_options[self.key], transformer_options["activations_shape"][-2:]
        full = F.interpolate(
            self.effect_mask[None, :1].float(), size=run.size, mode="bilinear"
        )  # [1, 1, H, W] of the latent
        uuids = transformer_options["uuids"]
        parts = [F.interpolate(cut(full, run.areas[u]), size=grid, mode="area").flatten(1)[..., None] for u in uuids]
        return torch.cat(parts).repeat_interleave(x.shape[0] // len(uuids), 0).to(x)


class LastPlaceReached(Exception):
    """Ends a reference pass: the rest of the decoder and the head are never read."""


class Capture:
    """Collects one photo's tokens and object masks at the places while the U-Net runs on it."""

    def __init__(self, places: list[Place], columns: list[list[int]], mask_source: str, mask: Tensor | None):
        self.places = places
        self.columns = columns
        self.mask_source = mask_source
        self.mask = mask
        self.rows: list[int] = []  # those that the present forward holds
        self.tokens: dict[str, dict[int, Tensor]] = {place.name: {} for place in places}
        self.masks: dict[str, dict[int, Tensor]] = {place.name: {} for place in places}
        self.grids: dict[str, tuple[int, int]] = {}

    def options(self, transformer_options: dict) -> dict:
        """The reference sees the weights (LoRA included) but no other patch, wrapper or control of the main pass."""
        dropped = ("patches", "patches_replace", "wrappers", "callbacks", "optimized_attention_override")
        options = {k: v for k, v in transformer_options.items() if k not in dropped}
        options[CAPTURE] = self
        if self.mask_source == AUTOMATIC:
            attention = {("output", place.level, place.depth): partial(self.attend, place) for place in self.places}
            options["patches_replace"] = {"attn2": attention}
        return options

    @torch.compiler.disable
    def attend(self, place: Place, q, k, v, extra_options):
        """The block's own text attention, whose placeholder column becomes the object mask (ViCo §3.2)."""
        heads = extra_options["n_heads"]
        columns = [[column % k.shape[1] for column in self.columns[row]] for row in self.rows]
        masks = object_mask(column_attention(q, k, heads, columns))
        self.masks[place.name].update(zip(self.rows, masks, strict=True))
        return optimized_attention(q, k, v, heads, attn_precision=extra_options["attn_precision"])

    @torch.compiler.disable
    def take(self, place: Place, x: Tensor, grid: tuple[int, int]) -> None:
        if place not in self.places:
            return
        self.grids[place.name] = grid
        self.tokens[place.name].update(zip(self.rows, x, strict=True))
        if self.mask_source == GIVEN:
            given = tokens_under(self.mask, grid).to(x.device)
            self.masks[place.name].update(dict.fromkeys(self.rows, given))
        if place == self.places[-1]:
            raise LastPlaceReached

    def kept(self, place: str, row: int) -> Tensor:
        return keep_tokens(self.tokens[place][row], self.masks[place].get(row))


def image_attended(previous, place: Place, subject: Subject):
    """The block's forward with image attention after it; `previous` may be another subject's."""

    def forward(x, context=None, transformer_options={}):  # noqa: B006 (the host's signature)
        x = previous(x, context=context, transformer_options=transformer_options)
        capture = transformer_options.get(CAPTURE)
        if capture is None:
            return subject.attend(place, x, transformer_options)
        capture.take(place, x, tuple(transformer_options["activations_shape"][-2:]))
        return x

    return forward


def attach(model, subject: Subject):
    """A clone of the model in which the subject's image attention runs."""
    model = model.clone()
    for place in subject.places:
        path = f"diffusion_model.{place.block}.forward"
        model.add_object_patch(path, image_attended(model.get_model_object(path), place, subject))
    model.set_additional_models(subject.key, [subject.patcher])
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, subject.key, subject.on_sample)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, subject.key, subject.on_prompts)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, subject.key, subject.on_forward)
    return model


def load_modules(concept: ViCoConcept, model) -> tuple[list[Place], "comfy.model_patcher.ModelPatcher"]:
    """The concept's places in this model and its modules under the host's memory management. ValueError if they do not fit."""
    places = places_in(model, concept)
    modules = torch.nn.ModuleDict()
    for place in places:
        block = comfy.utils.get_attr(model.model.diffusion_model, place.block)
        module = ImageAttention(
            block.n_heads * block.d_head, block.n_heads, block.d_head, operations=comfy.ops.manual_cast, device="meta"
        )
        dtype = storage_dtype(model)
        module.load_state_dict({k: t.to(dtype) for k, t in concept.modules[place.name].items()}, assign=True)
        modules[module_name(place)] = module.requires_grad_(False).eval()
    load_device, offload_device = (
        comfy.model_management.get_torch_device(),
        comfy.model_management.unet_offload_device(),
    )
    return places, comfy.model_patcher.CoreModelPatcher(modules, load_device=load_device, offload_device=offload_device)


def module_name(place: Place) -> str:
    return place.name.replace(".", "_")


def storage_dtype(model) -> torch.dtype:
    """The model's own, where that is a plain float; half precision beside quantised weights."""
    dtype = model.model_dtype()
    return dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float16


def places_in(model, concept: ViCoConcept) -> list[Place]:
    family = type(model.model.model_config).__name__
    unet = model.model.diffusion_model
    places = find_places(name for name, _ in unet.named_parameters())
    if not places:
        raise ValueError(
            f"This model ({family}) has no place for a ViCo concept, which needs a U-Net of the Stable Diffusion family."
        )
    widths = {}
    for place in places:
        block = comfy.utils.get_attr(unet, place.block)
        widths[place.name] = block.n_heads * block.d_head
    if widths != concept.widths:
        raise ValueError(
            f"This model ({family}) has no place for this ViCo concept: it sits at {describe(concept.widths)}; the model's places "
            f"are {describe(widths)}. Use a concept trained on this model, or load the checkpoint that it was trained on."
        )
    return places


def describe(widths: dict[str, int]) -> str:
    return ", ".join(f"{place} (width {width})" for place, width in widths.items())


def distinct_rows(x, timesteps, context, y, transformer_options, run: Run) -> dict:
    """{(t, context's fingerprint): Row}: the batch's rows by what their features depend on, in any order of conditionings.

    By content, not by the prompt's uuid: where prompts have areas, the host gives negative parts the uuid of a positive one.
    """
    uuids = transformer_options["uuids"]
    chunk = x.shape[0] // len(uuids)
    times = timesteps.tolist()
    rows: dict = {}
    for row in range(x.shape[0]):
        if row % chunk == 0 or not same_prompt(context, y, row):
            own = unrepeated(context[row])
            of_row = None if y is None else y[row]
            mark = fingerprint(own, of_row)
        columns = list(run.columns[uuids[row // chunk]])
        key = (times[row], mark, tuple(columns))
        if key not in rows:
            rows[key] = Row([], timesteps[row], own, of_row, columns)
        rows[key].rows.append(row)
    return rows


def same_prompt(context, y, row: int) -> bool:
    """Whether the row has the context of the row before it, as all rows of one prompt mostly do."""
    return torch.equal(context[row], context[row - 1]) and (y is None or torch.equal(y[row], y[row - 1]))


def unrepeated(context: Tensor) -> Tensor:
    """A prompt's own tokens [T, dim]: the host repeats shorter prompts to the length of those beside them in a batch."""
    chunks = context.shape[0] // TOKENS_PER_CHUNK
    for count in range(chunks, 1, -1):
        if context.shape[0] % count == 0:
            parts = context.unflatten(0, (count, -1))
            if torch.equal(parts, parts[:1].expand_as(parts)):
                return parts[0]
    return context


def fingerprint(*tensors: Tensor | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.digest()


def rows_of_equal_length(rows: list[Row]) -> list[list[int]]:
    lengths: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        lengths.setdefault(row.context.shape[0], []).append(i)
    return list(lengths.values())


def as_input(latent: Tensor, channels: int) -> Tensor:
    """The reference as the U-Net's input; for an inpainting model with an empty mask and itself as the picture behind it."""
    if channels == latent.shape[1]:
        return latent
    if channels == 2 * latent.shape[1] + 1:
        return torch.cat([latent, torch.zeros_like(latent[:, :1]), latent], dim=1)
    raise ValueError(
        f"The reference has {latent.shape[1]} latent channels and this model takes {channels}: encode it with the model's own VAE."
    )


def tokens_under(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """mask [H, W] → bool [h·w]: tokens that it covers by half or more; where there is none so, those that it touches."""
    share = F.interpolate(mask[None, None].float(), size=grid, mode="area").flatten()
    half = share >= 0.5
    return half if half.any() else share > 0


def cut(full: Tensor, area) -> Tensor:
    if area is None:
        return full
    height, width, top, left = area
    return full[..., top : top + height, left : left + width]
