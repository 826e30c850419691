"""One Apply ViCo while a model samples: the reference pass, its features, and image attention at the places."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_patcher
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from einops import rearrange
from torch import Tensor

from ...vico_core import ImageAttention, Place
from ...vico_core.reference import Features
from ..host.families.image_tokens import LATENT, ImageTokens
from .capture import Capture, LastPlaceReached, as_input, text_of
from .photos import Reference
from .places import module_name
from .prompts import Prompts, find_prompts
from .rows import Call, Row, distinct_rows
from .trigger import Trigger


@dataclass
class Run:
    """What one sampling knows.

    prompts: their mask columns, None where they name other subjects only; patcher: whose weights are on; areas: the part that each prompt covers (None: all).
    """

    prompts: Prompts | None
    patcher: object
    areas: dict = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)


@dataclass
class Subject:
    """One Apply: the concept's modules and word, the reference's latents in the model's scale, and when and how strongly."""

    key: str  # of this Apply, in transformer_options and among the model's wrappers
    trigger: Trigger
    patcher: comfy.model_patcher.ModelPatcher  # of the modules; held here, so that it lives as long as they do
    places: list[Place]
    tokens: dict[str, ImageTokens]  # the picture's, at each place
    strengths: dict[str, float]
    sigmas: tuple[float, float]
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

    def is_active(self, sigma: float) -> bool:
        start, end = self.sigmas
        return end <= sigma <= start and bool(self.active_places)

    def on_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        run = Run(find_prompts(guider.conds, self.trigger, self.others(guider.model_patcher)), guider.model_patcher)
        guider.model_options["transformer_options"][self.key] = run
        self.reference.bank.begin_run()
        return executor(*args, **kwargs)

    def others(self, patcher) -> list[Trigger]:
        """The words of other subjects on the model."""
        owners = (getattr(f, "__self__", None) for f in patcher.get_all_wrappers(WrappersMP.OUTER_SAMPLE))
        triggers = [owner.trigger for owner in owners if isinstance(owner, Subject)]
        return [trigger for trigger in triggers if trigger.identity != self.trigger.identity]

    def on_prompts(self, executor, model, conds, x_in, timestep, model_options):
        run = model_options["transformer_options"][self.key]
        run.areas = {c["uuid"]: c.get("area") for part in conds for c in part or []}
        run.size = tuple(x_in.shape[-2:])
        return executor(model, conds, x_in, timestep, model_options)

    @torch.compiler.disable(recursive=False)
    def on_forward(self, executor, *args, **kwargs):
        call = Call.of(executor.original, args, kwargs)
        prompts = call.options[self.key].prompts
        if prompts is not None and self.is_active(float(call.options["sigmas"][0])):
            repeats = not any(tokens.joint for tokens in self.tokens.values())
            rows = distinct_rows(call, prompts, repeats)
            seen = {self.key + ".features": self.features(call, rows), LATENT: call.x.shape}
            return call.on(executor, call.options | seen)
        return executor(*args, **kwargs)

    def features(self, call: Call, rows: dict) -> list[tuple[list[int], Features]]:
        """[(rows of x, their features)]: from the bank, and by one reference pass for all that it lacks."""
        x, run = call.x, call.options[self.key]
        names = tuple(place.name for place in self.active_places)
        weights = run.patcher.patches_uuid
        keys = {k: (k, self.mask_source, names, weights, x.dtype) for k in rows}
        # Hooks (a LoRA on a schedule) change the weights from step to step without the uuid telling: nothing is kept then.
        budget = self.budget if run.patcher.current_hooks is None else 0
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
        x_ref = as_input(latent, call.x)
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

    def weights(self, x: Tensor, place: Place, transformer_options: dict) -> Tensor:
        """The effect mask at this place's tokens [B, N, 1], cut to the part of the picture that each prompt covers."""
        run, grid = transformer_options[self.key], self.tokens[place.name].grid(transformer_options)
        full = F.interpolate(
            self.effect_mask[None, :1].float(), size=run.size, mode="bilinear"
        )  # [1, 1, H, W] of the latent
        uuids = transformer_options["uuids"]
        parts = [F.interpolate(cut(full, run.areas[u]), size=grid, mode="area") for u in uuids]
        tokens = rearrange(torch.cat(parts), "prompts 1 h w -> prompts (h w) 1")
        frames = x.shape[1] // tokens.shape[1]
        return tokens.repeat(1, frames, 1).repeat_interleave(x.shape[0] // len(uuids), 0).to(x)


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
