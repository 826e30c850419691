"""ViCo's two streams in a ComfyUI model that is being trained beside: what Apply ViCo runs, with gradients.

The frozen weights get none. The reference stream ends after the last place; image attention looks at the kept tokens alone.
"""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from comfy.clip_model import CLIPLayer
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...train_core import Engine, gradient_checkpointing
from ...vico_core import Place, object_mask, read_columns, text_attention
from ...vico_core.training import Batch, Predicted, TrainedConcept
from ..host.copies import own_weights
from ..host.denoiser import ModelDenoiser
from .attach import image_attended
from .capture import AUTOMATIC, Capture, LastPlaceReached, tokens_under
from .places import module_name, places_of
from .trigger import columns_of, make_trigger, with_word

KEY = "vico-training"  # the subject that is being trained
FEATURES = KEY + ".features"  # in transformer_options: the reference's kept tokens of each row


def training_clip(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """A CLIP with weights of its own, LoRAs merged in, that gradients can pass. Call it inside training_mode()."""
    source = clip.patcher
    weights = own_weights(source.model, {})
    keep_residuals(weights)
    own = comfy.model_patcher.ModelPatcher(weights, source.load_device, source.offload_device)
    trained = clip.clone()
    trained.patcher = source.clone(disable_dynamic=True, model_override=own.get_clone_model_override())
    trained.cond_stage_model = weights
    return trained


def keep_residuals(text_encoder: torch.nn.Module) -> None:
    """The host's CLIP adds to its residual stream in place, after a norm has saved it for its gradient: norms read a copy."""
    for layer in text_encoder.modules():
        if isinstance(layer, CLIPLayer):
            for norm in (layer.layer_norm1, layer.layer_norm2):
                norm.register_forward_pre_hook(lambda module, args: (args[0].clone(),))


def spatial_blocks(unet: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that are worth computing twice where memory is short."""
    return [m for m in unet.modules() if type(m).__name__ in ("BasicTransformerBlock", "ResBlock")]


@contextmanager
def checkpointed(unet: torch.nn.Module) -> Iterator[None]:
    """Gradient checkpointing for a U-Net whose blocks read transformer_options: each keeps those of its own moment."""
    blocks = spatial_blocks(unet)
    with gradient_checkpointing(blocks):
        for block in blocks:
            if type(block).__name__ == "BasicTransformerBlock":
                block.forward = partial(with_own_options, block.forward)
        yield


def with_own_options(forward, x, context=None, transformer_options=None):
    return forward(x, context=context, transformer_options=dict(transformer_options))


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


def graded_attention(plain, *args, **kwargs) -> Tensor:
    """torch's own attention: it has a backward pass, which the host's choice for pictures need not have, and no N × N matrix."""
    return attention_pytorch(*args, **kwargs)


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

    def options(self, transformer_options: dict) -> dict:
        return {**super().options(transformer_options), "optimized_attention_override": graded_attention}

    def attend(self, place: Place, q, k, v, extra_options):
        heads = extra_options["n_heads"]
        attention = text_attention(q, k, heads)
        placeholder = read_columns(attention, self.columns)
        self.maps[place.name] = (placeholder, read_columns(attention, self.end_of_text))
        masks = object_mask(placeholder)
        if self.given is not None:
            masks = [tokens_under(mask, extra_options["activations_shape"][-2:]) for mask in self.given]
        self.masks[place.name].update(zip(self.rows, masks, strict=True))
        return attention_pytorch(q, k, v, heads)


class HostStreams:
    """vico_core's TwoStreams out of a ComfyUI model and CLIP (training copies, loaded).

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
        wanted = {place.name for place in trained.places}
        self.places = [place for place in places_of(self.model)[0] if place.name in wanted]
        self.modules = trained.image_attention

    def predict(self, x_t: Tensor, batch: Batch) -> Predicted:
        context, columns, end_of_text = self.encode(batch.captions, x_t)
        timestep = self.denoiser.sampling.timestep(self.denoiser.sampling.sigmas.to(batch.t.device)[batch.t]).float()
        options = {**self.denoiser.transformer_options, "optimized_attention_override": graded_attention}
        with self.engine.autocast(), self.image_attention():
            capture = GradedCapture(self.places, columns, end_of_text, batch.masks)
            if self.places:
                self.run_reference(batch.reference, timestep, context, capture, options)
                names = [place.name for place in self.places]
                kept = [([b], {name: capture.kept(name, b) for name in names}) for b in range(x_t.shape[0])]
                options[FEATURES] = kept
            prediction = self.forward(x_t, timestep, context, options)
        return Predicted(prediction.float(), [capture.maps[place.name] for place in self.places])

    def run_reference(self, reference, timestep, context, capture: GradedCapture, options: dict) -> None:
        """The clean reference through the frozen model, up to the last place."""
        no_gradient = torch.no_grad() if self.detach_reference else contextlib.nullcontext()
        with no_gradient, contextlib.suppress(LastPlaceReached):
            self.forward(reference, timestep, context, capture.options(options))

    def forward(self, x: Tensor, timestep: Tensor, context: dict[str, Tensor], options: dict) -> Tensor:
        conds = {name: value.to(x.device, self.denoiser.dtype) for name, value in context.items()}
        cross_attn = conds.pop("c_crossattn")
        x = x.to(self.denoiser.dtype)
        return self.unet(x, timestep, context=cross_attn, transformer_options=dict(options), **conds)

    def image_attention(self):
        """Inside, image attention runs after the blocks of its places."""
        blocks = [comfy.utils.get_attr(self.unet, place.block) for place in self.places]
        forwards = [
            image_attended(block.forward, place, self) for block, place in zip(blocks, self.places, strict=True)
        ]
        return replaced_forwards(blocks, forwards)

    def attend(self, place: Place, x: Tensor, transformer_options: dict) -> Tensor:
        """Image attention after the place's block, as Apply ViCo runs it: x [B, N, dim] -> [B, N, dim]."""
        kept = [(rows, of_row[place.name]) for rows, of_row in transformer_options[FEATURES]]
        return self.modules[module_name(place)].forward_kept(x, kept)

    def encode(self, captions: list[str], x: Tensor) -> tuple[dict[str, Tensor], list[list[int]], list[list[int]]]:
        """The captions through the text encoder, with its gradient to the word: (context, placeholder's and EOT's columns)."""
        tokens = [self.tokenized(caption) for caption in captions]
        encoded = [encode_loaded(self.clip, of_caption) for of_caption in tokens]
        contexts = [self.conditions(cond, pooled, x) for cond, pooled, *_ in encoded]
        pairs = zip(tokens, encoded, strict=True)
        columns = [columns_of(self.clip.cond_stage_model, *pair, self.trigger) for pair in pairs]
        context = {name: torch.cat([c[name] for c in contexts]) for name in contexts[0]}
        return context, [list(c.trigger) for c in columns], [[c.end_of_text] for c in columns]

    def tokenized(self, caption: str) -> dict:
        if caption not in self.tokens:
            self.tokens[caption] = self.clip.tokenize(caption)
        return self.tokens[caption]

    def conditions(self, cond: Tensor, pooled: Tensor | None, x: Tensor) -> dict[str, Tensor]:
        """What the model reads of an encoded caption (SDXL: size embedding included), gradients kept."""
        scale = self.model.latent_format.spacial_downscale_ratio
        size = {"width": x.shape[-1] * scale, "height": x.shape[-2] * scale}
        conds = self.model.extra_conds(noise=x[:1], device=x.device, cross_attn=cond, pooled_output=pooled, **size)
        return {name: cond.cond.to(x.device) for name, cond in conds.items()}


def encode_loaded(clip: comfy.sd.CLIP, tokens: dict):
    """The host's encode_from_tokens without its look at the memory, which could move the U-Net away in mid-training."""
    encoder = clip.cond_stage_model
    encoder.reset_clip_options()
    if clip.layer_idx is not None:
        encoder.set_clip_options({"layer": clip.layer_idx})
    encoder.set_clip_options({"execution_device": clip.patcher.load_device})
    return encoder.encode_token_weights(tokens)
