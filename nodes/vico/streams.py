"""ViCo's two streams in a ComfyUI model that is being trained beside: what Apply ViCo runs, with gradients.

The frozen weights get none. The reference stream ends after the last place; image attention looks at the kept tokens alone.
"""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.clip_model import CLIPLayer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.utils import get_attr
from torch import Tensor

from ...train_core import Engine, cat_contexts, gradient_checkpointing
from ...vico_core import Kept, Place, gather_tokens, object_mask, read_columns
from ...vico_core.training import Batch, Predicted, TrainedConcept
from ..host.copies import own_weights
from ..host.denoiser import ModelDenoiser, alike, graded_attention, in_order
from ..host.families import transformer_blocks
from ..host.families.gradients import read_copies
from ..host.families.image_tokens import LATENT, ImageTokens
from .attach import image_attended
from .capture import AUTOMATIC, OVERRIDE, Capture, LastPlaceReached, text_of, tokens_under
from .places import module_name, possible_places, tokens_of
from .trigger import columns_of, make_trigger, with_word

KEY = "vico-training"  # the subject that is being trained
FEATURES = KEY + ".features"  # in transformer_options: the reference's kept tokens of each row


def training_clip(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """A CLIP with weights of its own, LoRAs merged in, that gradients can pass. Call it inside training_mode()."""
    source = clip.patcher
    with torch.inference_mode():
        comfy.model_management.unload_model_and_clones(source)  # takes another node's LoRAs out of the shared weights
    weights = own_weights(source.model, {})
    layers = (layer for layer in weights.modules() if isinstance(layer, CLIPLayer))
    read_copies(norm for layer in layers for norm in (layer.layer_norm1, layer.layer_norm2))
    own = comfy.model_patcher.ModelPatcher(weights, source.load_device, source.offload_device)
    trained = clip.clone()
    trained.patcher = source.clone(disable_dynamic=True, model_override=own.get_clone_model_override())
    trained.cond_stage_model = weights
    return trained


@contextmanager
def checkpointed(network: torch.nn.Module) -> Iterator[None]:
    """Gradient checkpointing for blocks that read transformer_options: each keeps those of its own moment."""
    blocks = transformer_blocks(network)
    convolutions = [module for module in network.modules() if isinstance(module, ResBlock)]
    with gradient_checkpointing([*blocks, *convolutions]):
        for block in blocks:
            block.forward = partial(with_own_options, block.forward)
        yield


def with_own_options(forward, *args, transformer_options, **kwargs):
    return forward(*args, transformer_options=dict(transformer_options), **kwargs)


@contextmanager
def replaced_forwards(blocks: Iterable[torch.nn.Module], forwards: Iterable) -> Iterator[None]:
    """Inside, each block runs the given forward; afterwards whatever it ran before."""
    before = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for (block, _), forward in zip(before, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, own in before:
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own


class GradedCapture(Capture):
    """The reference's tokens and masks, a photo a row, with gradients; and the maps that the regularisation reads.

    columns, end_of_text: each row's token positions; masks [B, H, W] of the photos instead of the automatic ones, or None.
    """

    def __init__(self, places, columns, end_of_text, masks: Tensor | None):
        super().__init__(places, columns, AUTOMATIC, None)
        self.end_of_text = end_of_text
        self.given = masks
        self.rows = list(range(len(columns)))
        self.maps: dict[str, tuple[Tensor, Tensor]] = {}

    def options(self, transformer_options: dict, latent: Tensor) -> dict:
        return {**super().options(transformer_options, latent), OVERRIDE: graded_attention}

    def reading(self, place: Place, tokens: ImageTokens, options: dict) -> dict:
        read = super().reading(place, tokens, options)
        return {**read, OVERRIDE: partial(with_graded_attention, read[OVERRIDE])}

    def see(self, place: Place, tokens: ImageTokens, attention: Tensor) -> None:
        placeholder = read_columns(attention, self.columns)
        self.maps[place.name] = (placeholder, read_columns(attention, self.end_of_text))
        if self.given is None:
            self.masks[place.name].update(zip(self.rows, object_mask(placeholder), strict=True))

    def take(self, place: Place, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.given is not None:
            masks = [tokens_under(mask, grid) for mask in self.given]
            self.masks[place.name].update(zip(self.rows, masks, strict=True))
        return super().take(place, x, grid)

    def kept(self, place: str, row: int) -> Kept:
        return gather_tokens(self.tokens[place][row], self.masks[place].get(row))


def with_graded_attention(override, chosen, *args, **kwargs) -> Tensor:
    """An override of attention that has torch's own below it, whatever the host chose."""
    return override(partial(graded_attention, chosen), *args, **kwargs)


@dataclass(frozen=True)
class Caption:
    """A caption as the model reads it, batch of 1, and the positions of the placeholder and of the end of text in its context."""

    conditions: dict
    columns: list[int]
    end_of_text: list[int]


class HostStreams:
    """vico_core's TwoStreams out of a ComfyUI model and CLIP, loaded for training.

    detach_reference: the reference stream gives no gradient to the word, which then learns from the noisy stream alone.
    """

    def __init__(
        self, patcher, clip, trained: TrainedConcept, placeholder: str, engine: Engine, detach_reference: bool = False
    ):
        self.denoiser = ModelDenoiser(patcher)
        self.schedule, self.prediction = self.denoiser.schedule, self.denoiser.prediction
        self.model, self.unet = patcher.model, patcher.model.diffusion_model
        self.engine = engine
        self.detach_reference = detach_reference
        self.trigger = make_trigger(clip, KEY, placeholder, dict(trained.words))
        self.clip = with_word(clip, self.trigger)
        self.tokens: dict[str, dict] = {}
        self.encoded: dict[str, tuple] = {}
        wanted = {place.name for place in trained.places}
        self.places = [place for place in possible_places(self.unet) if place.name in wanted]
        self.image_tokens = {place.name: tokens_of(self.unet, place) for place in self.places}
        self.modules = trained.image_attention

    def predict(self, x_t: Tensor, batch: Batch) -> Predicted:
        captions = [self.encode(caption, x_t) for caption in batch.captions]
        timestep = self.denoiser.timestep(batch.t)
        groups = alike([caption.conditions for caption in captions])
        parts = [self.predict_alike(rows, x_t, timestep, batch, captions) for rows in groups]
        return parts[0] if len(parts) == 1 else joined(parts, groups)

    def predict_alike(self, rows: list[int], x_t, timestep, batch: Batch, captions: list[Caption]) -> Predicted:
        """Of the rows whose captions have one length: what their noisy stream predicts, and their maps."""
        captions = [captions[row] for row in rows]
        conditions = cat_contexts([caption.conditions for caption in captions])
        options = {**self.denoiser.transformer_options, LATENT: x_t.shape}
        masks = None if batch.masks is None else batch.masks[rows]
        with self.engine.autocast(), self.image_attention():
            capture = GradedCapture(
                self.places, [c.columns for c in captions], [c.end_of_text for c in captions], masks
            )
            if self.places:
                self.run_reference(batch.reference[rows], timestep[rows], conditions, capture, options)
                names = [place.name for place in self.places]
                options[FEATURES] = [([b], {name: capture.kept(name, b) for name in names}) for b in range(len(rows))]
            prediction = self.denoiser.forward(x_t[rows], timestep[rows], conditions, options)
        return Predicted(prediction.float(), [capture.maps[place.name] for place in self.places])

    def run_reference(self, reference, timestep, conditions, capture: GradedCapture, options: dict) -> None:
        """The clean reference through the frozen model, up to the last place."""
        capture.text = text_of(conditions["c_crossattn"])
        no_gradient = torch.no_grad() if self.detach_reference else contextlib.nullcontext()
        with no_gradient, contextlib.suppress(LastPlaceReached):
            self.denoiser.forward(reference, timestep, conditions, capture.options(options, reference))

    def image_attention(self):
        """Inside, image attention runs after the blocks of its places."""
        blocks = [get_attr(self.unet, place.block) for place in self.places]
        pairs = zip(blocks, self.places, strict=True)
        forwards = [image_attended(block.forward, place, self.image_tokens[place.name], self) for block, place in pairs]
        return replaced_forwards(blocks, forwards)

    def attend(self, place: Place, x: Tensor, transformer_options: dict) -> Tensor:
        """Image attention after the place's block, as Apply ViCo runs it: x [B, N, dim] -> [B, N, dim]."""
        kept = [(rows, of_row[place.name]) for rows, of_row in transformer_options[FEATURES]]
        return self.modules[module_name(place)].forward_kept(x, kept)

    def encode_once(self, captions: list[str]) -> None:
        """Where the word is not learnt: all captions, by the host's CLIP as a node would, so that it can go afterwards."""
        with torch.inference_mode():
            self.clip.load_model()
            encoded = {caption: encode_loaded(self.clip, self.clip.tokenize(caption)) for caption in captions}
        self.encoded = {caption: tuple(map(ordinary, parts)) for caption, parts in encoded.items()}

    def encode(self, caption: str, x: Tensor) -> Caption:
        """A caption through the text encoder, with its gradient to the word where that is learnt."""
        if caption not in self.tokens:
            self.tokens[caption] = self.clip.tokenize(caption)
        encoded = self.encoded.get(caption) or encode_loaded(self.clip, self.tokens[caption])
        columns = columns_of(self.clip.cond_stage_model, self.tokens[caption], encoded, self.trigger)
        return Caption(self.conditions(*encoded, x=x), list(columns.trigger), [columns.end_of_text])

    def conditions(self, cond: Tensor, pooled: Tensor | None, extra: dict | None = None, *, x: Tensor) -> dict:
        """What the model reads of an encoded caption (SDXL: size embedding included), gradients kept."""
        scale = self.model.latent_format.spacial_downscale_ratio
        size = {"width": x.shape[-1] * scale, "height": x.shape[-2] * scale}
        given = {"cross_attn": cond, "pooled_output": pooled, **size, **(extra or {})}
        conds = self.model.extra_conds(noise=x[:1], device=x.device, **given)
        return {name: c.cond.to(x.device) if isinstance(c.cond, Tensor) else c.cond for name, c in conds.items()}


def joined(parts: list[Predicted], groups: list[list[int]]) -> Predicted:
    """The parts' rows in the batch's order."""
    of_places = zip(*(part.maps for part in parts), strict=True)
    maps = [tuple(in_order(side, groups) for side in zip(*place, strict=True)) for place in of_places]
    return Predicted(in_order([part.prediction for part in parts], groups), maps)


def ordinary(value):
    """What a text encoder gave under inference mode, as tensors that training may use."""
    if isinstance(value, dict):
        return {name: ordinary(part) for name, part in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def encode_loaded(clip: comfy.sd.CLIP, tokens: dict) -> tuple[Tensor, Tensor | None, dict]:
    """The host's encode_from_tokens without its look at the memory, which could move the U-Net away in mid-training."""
    encoder = clip.cond_stage_model
    encoder.reset_clip_options()
    if clip.layer_idx is not None:
        encoder.set_clip_options({"layer": clip.layer_idx})
    encoder.set_clip_options({"execution_device": clip.patcher.load_device})
    return encoder.encode_token_weights(tokens)
