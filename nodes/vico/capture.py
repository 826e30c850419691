"""The reference pass at the places: its tokens, and which of them are the object."""

from collections.abc import Callable
from functools import partial

import comfy.model_base
import torch
import torch.nn.functional as F
from torch import Tensor

from ...vico_core import Kept, Place, attention_of_heads, keep_tokens, object_mask, read_columns, text_attention
from ..host.denoiser import channels_read
from ..host.families.image_tokens import LATENT, ImageTokens

CAPTURE = "vico_capture"  # in transformer_options while a reference pass runs
OVERRIDE = "optimized_attention_override"
# What of transformer_options a reference pass does not see: other patches, wrappers and control of the main pass.
DROPPED = ("patches", "patches_replace", "wrappers", "callbacks", OVERRIDE)
AUTOMATIC, GIVEN, NO_MASK = "automatic", "given", "none"


class LastPlaceReached(Exception):
    """Ends a reference pass: the rest of the model is never read."""


class Capture:
    """Collects one photo's tokens and object masks at the places while the model runs on it."""

    def __init__(self, places: list[Place], columns: list[list[int]], mask_source: str, mask: Tensor | None):
        self.places = places
        self.columns = columns
        self.mask_source = mask_source
        self.mask = mask
        self.rows: list[int] = []  # those that the present forward holds
        self.text = slice(0)  # of the present forward's context: the prompt's own tokens
        self.tokens: dict[str, dict[int, Tensor]] = {place.name: {} for place in places}
        self.masks: dict[str, dict[int, Tensor]] = {place.name: {} for place in places}
        self.grids: dict[str, tuple[int, int]] = {}

    def options(self, transformer_options: dict, latent: Tensor) -> dict:
        """The reference sees the weights (LoRA included) but no other patch, wrapper or control of the main pass."""
        options = {k: v for k, v in transformer_options.items() if k not in DROPPED}
        return {**options, CAPTURE: self, LATENT: latent.shape}

    def reading(self, place: Place, tokens: ImageTokens, options: dict) -> dict:
        """The options for the block of a place, whose attention to the text is read on the way."""
        if place not in self.places or self.mask_source != AUTOMATIC:
            return options
        return {**options, OVERRIDE: TextAttention(tokens, self.text, options, partial(self.see, place, tokens))}

    @torch.compiler.disable
    def see(self, place: Place, tokens: ImageTokens, attention: Tensor) -> None:
        """attention [B, M, T]: of the picture's tokens to the text; the placeholder's column becomes the object mask (ViCo §3.2)."""
        masks = object_mask(read_columns(attention, self.columns_within(attention.shape[-1], tokens.joint)))
        self.masks[place.name].update(zip(self.rows, masks, strict=True))

    def columns_within(self, length: int, joint: bool) -> list[list[int]]:
        """The rows' columns in a text of this length: a negative prompt may be shorter than the one that has the word.

        Its chunk of 77 is repeated where there is cross-attention; else it ends, and its last token stands for the word.
        """
        within = (lambda column: min(column, length - 1)) if joint else (lambda column: column % length)
        return [[within(column) for column in self.columns[row]] for row in self.rows]

    @torch.compiler.disable
    def take(self, place: Place, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Keeps the picture's tokens [B, N, dim] after the block of a place, and gives them back."""
        if place not in self.places:
            return x
        self.grids[place.name] = grid
        # Copies: some transformers add to their tokens in place.
        self.tokens[place.name].update(zip(self.rows, x.clone(), strict=True))
        if self.mask_source == GIVEN:
            given = tokens_under(self.mask, grid)
            self.masks[place.name].update(dict.fromkeys(self.rows, given))
        if place == self.places[-1]:
            raise LastPlaceReached
        return x

    def kept(self, place: str, row: int) -> Kept:
        return keep_tokens(self.tokens[place][row], self.masks[place].get(row))


class TextAttention:
    """A block's attention as the host's override: computed as ever, and what it says of picture and text is told.

    In a joint attention the text comes first, the picture last (a second attention of the picture alone is not it); else a
    block's second attention is the one to the text.
    """

    def __init__(self, tokens: ImageTokens, text: slice, options: dict, tell: Callable[[Tensor], None]):
        self.tokens, self.text, self.tell = tokens, text, tell
        self.count = tokens.count(options)
        self.calls = 0

    @torch.compiler.disable
    def __call__(self, attention, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        self.calls += 1
        split = kwargs.get("skip_reshape", False)
        if not self.tokens.joint and self.calls % 2 == 0:
            self.tell(attention_of_heads(q, k) if split else text_attention(q, k, heads))
        elif self.tokens.joint and q.shape[-2] >= self.text.stop + self.count:
            self.tell(
                self.of_joint(*((q, k) if split else (heads_of(q, heads), heads_of(k, heads))), kwargs.get("mask"))
            )
        return attention(q, k, v, heads, *args, **kwargs)

    def of_joint(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """q, k [B, heads, text and picture, dim] -> [B, N, T], over the prompt's own tokens alone."""
        start = self.tokens.start_of_last(q.shape[2], self.count)
        padded = None if mask is None else mask[:, None, :, self.text]  # [B, 1, 1, T]
        return attention_of_heads(q[:, :, start : start + self.count], k[:, :, self.text], padded)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads · dim] -> [B, heads, N, dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def text_of(context: Tensor) -> slice:
    """The prompt's own rows in a context [B, T, dim]: the host fills some up to a length with zeros, before them (Flux.2)."""
    filled = context.detach().abs().amax(dim=(0, 2)) > 0
    first = int(filled.float().argmax()) if filled.any() else 0
    return slice(first, context.shape[1])


def as_input(model, raw: Tensor) -> Tensor:
    """A photo's latent, as the VAE gives it, as the model's input (the host's BaseModel).

    For an inpainting model with an empty mask and itself as the picture behind it; for pix2pix, itself as the picture to edit.
    """
    channels, own = channels_read(model), model.latent_format.latent_channels
    if raw.shape[1] != own:
        raise ValueError(
            f"Encode the reference with the model's own VAE.\nIt has {raw.shape[1]} latent channels and the model's have {own}."
        )
    latent = model.process_latent_in(raw)
    if channels == own:
        return latent
    if channels == 2 * own + 1 and "model_channels" in model.model_config.unet_config:
        return torch.cat([latent, torch.zeros_like(latent[:, :1]), latent], dim=1)
    if isinstance(model, comfy.model_base.IP2P):
        return torch.cat([latent, model.process_ip2p_image_in(raw)], dim=1)
    raise ValueError(
        "Load a model that draws, inpaints or edits (pix2pix).\n"
        f"{type(model.model_config).__name__} takes {channels} channels, which ViCo cannot fill from a photo."
    )


def tokens_under(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """mask [H, W] -> bool [h·w]: tokens that it covers by half or more; where there is none so, those that it touches."""
    share = F.interpolate(mask[None, None].float(), size=grid, mode="area").flatten()
    half = share >= 0.5
    return torch.where(half.any(), half, share > 0)
