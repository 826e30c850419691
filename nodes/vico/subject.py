"""One Apply ViCo while a model samples: the reference pass, its features, and image attention at the places."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_patcher
import comfy.model_prefetch
import torch
from comfy.patcher_extension import WrappersMP
from comfy.utils import repeat_to_batch_size
from einops import rearrange
from torch import Tensor

from ...vico_core import ImageAttention, Place
from ...vico_core.reference import Features
from ..host.families.image_tokens import LATENT, ImageTokens
from .capture import Capture, LastPlaceReached, text_of
from .forward_key import forward_key
from .masks import resized, tile_of
from .photos import Reference
from .places import module_name
from .prompts import Prompts, find_prompts
from .rows import Call, Row, distinct_rows
from .trigger import Trigger


@dataclass
class Run:
    """What one sampling knows.

    prompts: their mask columns, None where they name other subjects only; patcher: whose weights are on; sigmas: first and last; areas: the part that each prompt covers (None: all);
    whole: the noisy latent; weights: the effect mask over each row of what the model is given now, at the latent's size.
    """

    prompts: Prompts | None
    patcher: object
    sigmas: tuple[float, float] = (math.inf, 0.0)
    areas: dict = field(default_factory=dict)
    whole: Tensor | None = None
    weights: Tensor | None = None


@dataclass
class Subject:
    """One Apply: the concept's modules and word, the reference's latents in the model's scale, and when and how strongly."""

    key: str  # of this Apply, in transformer_options and among the model's wrappers
    trigger: Trigger
    patcher: comfy.model_patcher.ModelPatcher  # of the modules; held here, so that it lives as long as they do
    places: list[Place]
    tokens: dict[str, ImageTokens]  # the picture's, at each place
    strengths: dict[str, float]
    percents: tuple[float, float]  # of the sampling: start, end
    mask_source: str
    effect_mask: Tensor | None
    reference: Reference
    latents: list[Tensor]
    budget: int
    on_masks: Callable | None = None  # called with every photo's Capture, for previews

    @property
    def modules(self) -> torch.nn.ModuleDict:
        return self.patcher.model

    @property
    def active_places(self) -> list[Place]:
        return [place for place in self.places if self.strengths[place.name] != 0]

    def is_active(self, run: Run, sigma: float) -> bool:
        start, end = run.sigmas
        return run.prompts is not None and end <= sigma <= start and bool(self.active_places)

    def on_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        patcher = guider.model_patcher
        sampling = patcher.get_model_object("model_sampling")  # now: a node after Apply ViCo may have changed it
        sigmas = tuple(float(sampling.percent_to_sigma(percent)) for percent in self.percents)
        run = Run(find_prompts(guider.conds, self.trigger, self.others(patcher)), patcher, sigmas)
        guider.model_options["transformer_options"][self.key] = run
        self.reference.bank.begin_run()
        with unrecorded():
            return executor(*args, **kwargs)

    def others(self, patcher) -> list[Trigger]:
        """The words of other subjects on the model."""
        owners = (getattr(f, "__self__", None) for f in patcher.get_all_wrappers(WrappersMP.OUTER_SAMPLE))
        triggers = [owner.trigger for owner in owners if isinstance(owner, Subject)]
        return [trigger for trigger in triggers if trigger.identity != self.trigger.identity]

    def on_prompts(self, executor, model, conds, x_in, timestep, model_options):
        run = model_options["transformer_options"][self.key]
        run.areas = {c["uuid"]: c.get("area") for part in conds for c in part or []}
        run.whole = x_in
        return executor(model, conds, x_in, timestep, model_options)

    @torch.compiler.disable(recursive=False)
    def on_forward(self, executor, *args, **kwargs):
        call = Call.of(executor.original, args, kwargs)
        run = call.options[self.key]
        if self.is_active(run, float(call.options["sigmas"][0])):
            repeats = not any(tokens.joint for tokens in self.tokens.values())
            rows = distinct_rows(call, run.prompts, repeats)
            seen = {self.key + ".features": self.features(call, rows), LATENT: call.x.shape}
            if self.effect_mask is not None:
                run.weights = self.mask_rows(run, call.x, call.options)
            return call.on(executor, call.options | seen)
        return executor(*args, **kwargs)

    def features(self, call: Call, rows: dict) -> list[tuple[list[int], Features]]:
        """[(rows of x, their features)]: from the bank, and by one reference pass for all that it lacks."""
        x, run = call.x, call.options[self.key]
        names = tuple(place.name for place in self.active_places)
        model = forward_key(run.patcher)
        keys = {k: (k, self.mask_source, names, model, x.dtype) for k in rows}
        budget = self.budget if model is not None else 0
        found = {k: self.reference.bank.get(keys[k], x.device) if budget else None for k in rows}
        missing = [k for k in rows if found[k] is None]
        if missing:
            computed = self.reference_pass(call, [rows[k] for k in missing])
            for k, features in zip(missing, computed, strict=True):
                found[k] = features
                self.reference.bank.put(keys[k], features, budget)
        return [(rows[k].rows, found[k]) for k in rows]

    def reference_pass(self, call: Call, rows: list[Row]) -> list[Features]:
        """Runs the bare model on the clean photos, once a distinct context, up to the last place.

        A context at a time: what stands beside it in a batch changes its last bits, and a picture must not hang on what
        the bank happened to hold.
        """
        photos = zip(self.latents, self.reference.photos, strict=True)
        captures = [self.capture(call, latent, photo, rows) for latent, photo in photos]
        if self.on_masks:
            self.on_masks(captures)
        names = [place.name for place in self.active_places]
        return [{name: torch.cat([c.kept(name, row) for c in captures]) for name in names} for row in range(len(rows))]

    def capture(self, call: Call, latent, photo, rows: list[Row]) -> "Capture":
        capture = Capture(self.active_places, [row.columns for row in rows], self.mask_source, photo.mask)
        x_ref = latent.to(call.x)
        for i, row in enumerate(rows):
            capture.rows, capture.text = [i], text_of(row.conditions["context"])
            options = {"transformer_options": capture.options(call.options, x_ref)}
            with contextlib.suppress(LastPlaceReached):
                call.forward(x_ref, row.t, **row.conditions, **options)
        return capture

    @torch.compiler.disable
    def attend(self, place: Place, x: Tensor, transformer_options: dict) -> Tensor:
        """Image attention after the place's block: x [B, N, dim] -> [B, N, dim]. Unchanged outside the active steps."""
        features = transformer_options.get(self.key + ".features")
        strength = self.strengths[place.name]
        if features is None or strength == 0:
            return x
        kept = [(rows, of_row[place.name]) for rows, of_row in features]
        out = attended(self.modules[module_name(place)], x, kept)
        if self.effect_mask is not None:
            return torch.lerp(x, out, self.weights(x, place, transformer_options) * strength)
        return out if strength == 1 else torch.lerp(x, out, strength)

    def mask_rows(self, run: Run, x: Tensor, transformer_options: dict) -> Tensor:
        """The effect mask over each row of x [B, h, w], cut to the part of the picture that its prompt covers, or its tile."""
        uuids, size = transformer_options["uuids"], run.whole.shape[-2:]
        full = repeat_to_batch_size(resized(self.effect_mask, size), run.whole.shape[0])  # [B, H, W]
        parts = [cut(full, run.areas.get(uuid)) for uuid in uuids]
        if parts[0].shape[-2:] == x.shape[-2:]:
            return torch.cat(parts)
        sampling, sigma = run.patcher.get_model_object("model_sampling"), transformer_options["sigmas"]
        whole = sampling.calculate_input(sigma, run.whole).to(x.dtype).flatten(1, -3)  # what the model is given of it
        tiles = [tile_of(whole, tile.flatten(0, -3)[: whole.shape[1]]) for tile in x]
        if None in tiles:
            raise ValueError(
                "Take off the effect mask, or the node that draws in tiles.\nIts tiles cannot be found in the picture."
            )
        height, width = x.shape[-2:]
        return torch.stack([full[row, top : top + height, left : left + width] for row, top, left in tiles])

    def weights(self, x: Tensor, place: Place, transformer_options: dict) -> Tensor:
        """The effect mask at this place's tokens [B, N, 1]."""
        grid = self.tokens[place.name].grid(transformer_options)
        tokens = rearrange(resized(transformer_options[self.key].weights, grid), "b h w -> b (h w) 1")
        return tokens.repeat(1, x.shape[1] // tokens.shape[1], 1).to(x)


def unrecorded() -> contextlib.AbstractContextManager:
    """Hosts from 0.34 on record what a block allocates, and take it back after the block: not what the reference leaves."""
    return getattr(comfy.model_prefetch, "pause_malloc_graph", contextlib.nullcontext)()


def attended(module: ImageAttention, x: Tensor, kept: list[tuple[list[int], Tensor]]) -> Tensor:
    """Image attention in the rows of x that have kept tokens; rows of prompts that leave the subject off stay as they are."""
    on = sorted(row for rows, _ in kept for row in rows)
    if len(on) == x.shape[0]:
        return module.forward_kept(x, kept)
    out = x.clone()
    if on:
        out[on] = module.forward_kept(x[on], [([on.index(row) for row in rows], tokens) for rows, tokens in kept])
    return out


def cut(full: Tensor, area) -> Tensor:
    """area: sizes, then starts, along the latent's axes; the last two are height and width."""
    if area is None:
        return full
    axes = len(area) // 2
    (height, width), (top, left) = area[axes - 2 : axes], area[-2:]
    return full[..., top : top + height, left : left + width]
