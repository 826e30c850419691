"""The reference pass at the places: its tokens, and which of them are the object."""

from functools import partial

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...vico_core import Place, column_attention, keep_tokens, object_mask

CAPTURE = "vico_capture"  # in transformer_options while a reference pass runs
AUTOMATIC, GIVEN, NO_MASK = "automatic", "given", "none"


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
    """mask [H, W] -> bool [h·w]: tokens that it covers by half or more; where there is none so, those that it touches."""
    share = F.interpolate(mask[None, None].float(), size=grid, mode="area").flatten()
    half = share >= 0.5
    return half if half.any() else share > 0
