"""One Apply ViCo while a model samples: the reference pass, its features, and image attention at the places."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_patcher
import comfy.model_prefetch
import torch
from comfy.model_base import BaseModel
from comfy.model_management import get_free_memory
from comfy.patcher_extension import WrappersMP
from comfy.utils import repeat_to_batch_size
from einops import rearrange
from torch import Tensor

from ...vico_core import Features, ImageAttention, Kept, Place, side_by_side
from ...vico_core.image_attention import put_rows, take_rows
from ..host.families.image_tokens import LATENT, ImageTokens
from .capture import Capture, LastPlaceReached
from .evaluations import Evaluations, Walks
from .forward_key import forward_key
from .masks import resized, tile_of
from .photos import Reference
from .places import module_name
from .prompts import Prompts, find_prompts
from .rows import Call, Conditionings, Row, distinct_rows, read_rows
from .trigger import Trigger

SHARE = 4  # a quarter of the device's free memory is for the reference's features


@dataclass
class Run:
    """What one sampling knows.

    prompts: their mask columns, None where they name other subjects only; patcher: whose weights are on; evaluations: which
    sigma is asked for; window: first and last sigma of image attention; latents, masks: the photos' on the model's device;
    effect: the effect mask there. Of the present evaluation: conds, by their number and uuid; whole: its noisy latent;
    sigma: None where only the device knows it; foreign: whether another node may have made a batch of its own.
    """

    prompts: Prompts | None
    patcher: object
    evaluations: Evaluations
    window: tuple[float, float]
    latents: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    effect: Tensor | None = None
    conditionings: Conditionings = field(default_factory=Conditionings)
    conds: dict = field(default_factory=dict)
    whole: Tensor | None = None
    sigma: float | None = None
    foreign: bool = False


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
    walks: Walks = field(default_factory=dict)
    on_masks: Callable | None = None  # called with every photo's Capture, for previews

    @property
    def modules(self) -> torch.nn.ModuleDict:
        return self.patcher.model

    @property
    def active_places(self) -> list[Place]:
        return [place for place in self.places if self.strengths[place.name] != 0]

    def is_active(self, run: Run, sigma: float) -> bool:
        start, end = run.window
        return run.prompts is not None and end <= sigma <= start and bool(self.active_places)

    def on_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        patcher = guider.model_patcher
        sampling = patcher.get_model_object("model_sampling")  # now: a node after Apply ViCo may have changed it
        run = Run(
            prompts=find_prompts(guider.conds, self.trigger, self.others(patcher)),
            patcher=patcher,
            evaluations=Evaluations(sampler, sigmas, sampling, self.walks),
            window=tuple(float(sampling.percent_to_sigma(percent)) for percent in self.percents),
        )
        guider.model_options["transformer_options"][self.key] = run
        with unrecorded():
            sampled = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        run.evaluations.end()
        return sampled

    def others(self, patcher) -> list[Trigger]:
        """The words of other subjects on the model."""
        owners = (getattr(f, "__self__", None) for f in patcher.get_all_wrappers(WrappersMP.OUTER_SAMPLE))
        triggers = [owner.trigger for owner in owners if isinstance(owner, Subject)]
        return [trigger for trigger in triggers if trigger.identity != self.trigger.identity]

    def on_sampler(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """The models are loaded and the prompts encoded: whatever the steps need of the host is brought now."""
        run = guider.model_options["transformer_options"][self.key]
        device, dtype = noise.device, guider.inner_model.get_dtype_inference()
        run.latents = [latent.to(device, dtype) for latent in self.latents]
        run.masks = [None if photo.mask is None else photo.mask.to(device) for photo in self.reference.photos]
        run.effect = None if self.effect_mask is None else self.effect_mask.to(device)
        for cond in (cond for conds in guider.conds.values() for cond in conds):
            for row in range(noise.shape[0]):
                run.conditionings.prompt(cond, row)
        bank = self.reference.bank
        bank.begin_run((get_free_memory(device) + bank.device_nbytes) // SHARE)
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)

    def on_evaluation(self, executor, x, timestep, *args, **kwargs):
        executor.class_obj.model_options["transformer_options"][self.key].evaluations.begin(timestep)
        return executor(x, timestep, *args, **kwargs)

    def on_prompts(self, executor, model, conds, x_in, timestep, model_options):
        run = model_options["transformer_options"][self.key]
        run.conds = {(i, c["uuid"]): c for i, part in enumerate(conds) for c in part or []}
        run.whole = x_in
        run.sigma = run.evaluations.sigma(timestep)
        run.foreign = "model_function_wrapper" in model_options or self.is_wrapped(run.patcher)
        return executor(model, conds, x_in, timestep, model_options)

    def is_wrapped(self, patcher) -> bool:
        """Whether another pack's node changes what the model is called with."""
        wrappers = patcher.get_all_wrappers(WrappersMP.APPLY_MODEL)
        own = (isinstance(getattr(f, "__self__", None), Subject) or f.__module__.startswith("comfy") for f in wrappers)
        return not all(own)

    def on_apply(self, executor, x, sigma, c_concat, c_crossattn, control, options, **more):
        run = options[self.key]
        now = float(options["sigmas"][0]) if run.sigma is None else run.sigma
        if not self.is_active(run, now):
            return executor(x, sigma, c_concat, c_crossattn, control, options, **more)
        call = Call.of(executor.class_obj, x, sigma, c_crossattn, options, more)
        options = options | {self.key + ".features": self.features(call, self.rows(call, run, now)), LATENT: x.shape}
        if run.effect is not None:
            options[self.key + ".weights"] = self.mask_rows(run, x, options)
        return executor(x, sigma, c_concat, c_crossattn, control, options, **more)

    def rows(self, call: Call, run: Run, now: float) -> dict:
        """The call's distinct rows: by the host's own batch of known prompts, or read off one that another node made."""
        repeats = not any(tokens.joint for tokens in self.tokens.values())
        if run.foreign:
            of_row, sigmas = read_rows(call, repeats), call.sigma.tolist()
        else:
            keys = chunks(call.options)
            chunk = call.x.shape[0] // len(keys)
            of_row = [run.conditionings.prompt(run.conds[key], row) for key in keys for row in range(chunk)]
            sigmas = [now] * len(of_row)
        return distinct_rows(call, run.prompts, of_row, sigmas, repeats)

    def features(self, call: Call, rows: dict) -> list[tuple[list[int], Features]]:
        """[(rows of x, their features)]: from the bank, and by one reference pass for all that it lacks."""
        run, bank = call.options[self.key], self.reference.bank
        names = tuple(place.name for place in self.active_places)
        model = forward_key(run.patcher)
        keys = {k: (k, self.mask_source, names, model, run.latents[0].dtype) for k in rows}
        budget = self.budget if model is not None else 0
        found = {k: bank.get(keys[k], call.x.device) if budget else None for k in rows}
        missing = [k for k in rows if found[k] is None]
        if missing:
            computed = self.reference_pass(call, [rows[k] for k in missing])
            for k, features in zip(missing, computed, strict=True):
                found[k] = features
                bank.put(keys[k], features, budget)
        return [(rows[k].rows, found[k]) for k in rows]

    def reference_pass(self, call: Call, rows: list[Row]) -> list[Features]:
        """Runs the bare model on the clean photos, once a distinct context, up to the last place.

        A context at a time: what stands beside it in a batch changes its last bits, and a picture must not hang on what
        the bank happened to hold.
        """
        run = call.options[self.key]
        captures = [self.capture(call, *photo, rows) for photo in zip(run.latents, run.masks, strict=True)]
        if self.on_masks:
            self.on_masks(captures)
        names = [place.name for place in self.active_places]
        return [
            {name: side_by_side([c.kept(name, row) for c in captures]) for name in names} for row in range(len(rows))
        ]

    def capture(self, call: Call, latent, mask, rows: list[Row]) -> "Capture":
        capture = Capture(self.active_places, [row.columns for row in rows], self.mask_source, mask)
        model = with_latent(call.model, latent)
        for i, row in enumerate(rows):
            capture.rows, capture.text = [i], row.text
            options = capture.options(call.options, latent)
            with contextlib.suppress(LastPlaceReached):
                model._apply_model(row.x, row.sigma, transformer_options=options, **row.given)
        return capture

    def attend(self, place: Place, x: Tensor, transformer_options: dict) -> Tensor:
        """Image attention after the place's block: x [B, N, dim] -> [B, N, dim]. Unchanged outside the active steps."""
        features = transformer_options.get(self.key + ".features")
        strength = self.strengths[place.name]
        if features is None or strength == 0:
            return x
        kept = [(rows, of_row[place.name].here()) for rows, of_row in features]
        out = attended(self.modules[module_name(place)], x, kept)
        if self.effect_mask is not None:
            return torch.lerp(x, out, self.weights(x, place, transformer_options) * strength)
        return out if strength == 1 else torch.lerp(x, out, strength)

    def mask_rows(self, run: Run, x: Tensor, transformer_options: dict) -> Tensor:
        """The effect mask over each row of x [B, h, w], cut to the part of the picture that its prompt covers, or its tile."""
        full = repeat_to_batch_size(resized(run.effect, run.whole.shape[-2:]), run.whole.shape[0])  # [B, H, W]
        parts = [cut(full, run.conds[key].get("area")) for key in chunks(transformer_options)]
        if parts[0].shape[-2:] == x.shape[-2:]:
            return torch.cat(parts)
        tiles = [tile_of(run.whole.flatten(1, -3), tile.flatten(0, -3)) for tile in x]
        if None in tiles:
            raise ValueError(
                "Take off the effect mask, or the node that draws in tiles.\nIts tiles cannot be found in the picture."
            )
        height, width = x.shape[-2:]
        return torch.stack([full[row, top : top + height, left : left + width] for row, top, left in tiles])

    def weights(self, x: Tensor, place: Place, transformer_options: dict) -> Tensor:
        """The effect mask at this place's tokens [B, N, 1]."""
        grid = self.tokens[place.name].grid(transformer_options)
        tokens = rearrange(resized(transformer_options[self.key + ".weights"], grid), "b h w -> b (h w) 1")
        return tokens.repeat(1, x.shape[1] // tokens.shape[1], 1).to(x)


def unrecorded() -> contextlib.AbstractContextManager:
    """Hosts from 0.34 on record what a block allocates, and take it back after the block: not what the reference leaves."""
    return getattr(comfy.model_prefetch, "pause_malloc_graph", contextlib.nullcontext)()


def chunks(options: dict) -> list[tuple]:
    """Which conditionings the host has put into a batch, in its order: (which list of them, uuid)."""
    return list(zip(options["cond_or_uncond"], options["uuids"], strict=True))


def with_latent(model: BaseModel, latent: Tensor) -> BaseModel:
    """The host's model, whose network is given this latent [1, C, h, w] whatever is drawn: what it makes of prompts stays."""
    network = getattr(
        model.diffusion_model, "_orig_mod", model.diffusion_model
    )  # a compiled one would be compiled anew
    other = object.__new__(type(model))
    other.__dict__ = {**model.__dict__, "_modules": {**model._modules}}
    del other._modules["diffusion_model"]
    other.__dict__["diffusion_model"] = WithLatent(network, latent)
    return other


class WithLatent:
    """A network that draws nothing but its own latent."""

    def __init__(self, network: torch.nn.Module, latent: Tensor):
        self.network, self.latent = network, latent

    def __getattr__(self, name: str):
        return getattr(self.network, name)

    def __call__(self, x: Tensor, timesteps: Tensor, **given):
        return self.network(self.latent, timesteps, **given)


def attended(module: ImageAttention, x: Tensor, kept: list[tuple[list[int], Kept]]) -> Tensor:
    """Image attention in the rows of x that have kept tokens; rows of prompts that leave the subject off stay as they are."""
    on = sorted(row for rows, _ in kept for row in rows)
    if len(on) == x.shape[0]:
        return module.forward_kept(x, kept)
    out = x.clone()
    if on:
        among = [([on.index(row) for row in rows], tokens) for rows, tokens in kept]
        put_rows(out, on, module.forward_kept(take_rows(x, on), among))
    return out


def cut(full: Tensor, area) -> Tensor:
    """area: sizes, then starts, along the latent's axes; the last two are height and width."""
    if area is None:
        return full
    axes = len(area) // 2
    (height, width), (top, left) = area[axes - 2 : axes], area[-2:]
    return full[..., top : top + height, left : left + width]
