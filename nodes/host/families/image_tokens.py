"""Where the picture's tokens are in the blocks of each family, and where the text is in their attention: what ViCo asks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from comfy.utils import get_attr
from torch import Tensor

LATENT = "vico_latent"  # in transformer_options: the shape of the latent that the forward was given


@dataclass(frozen=True)
class ImageTokens:
    """The picture's tokens in what one block returns, and in its attention.

    dim, heads: of the block. patch: side of a token's part of the latent; None: the host tells the grid (U-Nets).
    stream: number of the image's stream among what the block returns; None: it returns one tensor. after_text: in it the text
    comes first. padding: image tokens are filled up to a multiple of it, and stand last. joint: one attention for text and
    picture, the text first; else the block's second attention is to the text.
    """

    dim: int
    heads: int
    patch: int | None = None
    stream: int | None = None
    after_text: bool = False
    padding: int = 0
    joint: bool = True

    def grid(self, options: dict) -> tuple[int, int]:
        """(rows, columns) of the tokens of a frame."""
        if self.patch is None:
            return tuple(options["activations_shape"][-2:])
        return tuple(math.ceil(side / self.patch) for side in options[LATENT][-2:])

    def count(self, options: dict) -> int:
        """Tokens of the picture, all frames together."""
        frames = options[LATENT][2] if len(options[LATENT]) == 5 else 1
        return frames * math.prod(self.grid(options))

    def start_of_last(self, length: int, count: int) -> int:
        """First image token of a sequence that ends with the picture and its padding."""
        return length - (math.ceil(count / self.padding) * self.padding if self.padding else count)

    def start(self, length: int, count: int, options: dict) -> int:
        """First image token of the image's stream; tokens of reference latents come after the picture, or before padded ones."""
        if self.padding:
            return self.start_of_last(length, count)
        return options["img_slice"][0] if self.after_text else 0

    def changed(self, returned, options: dict, change: Callable[[Tensor], Tensor]):
        """What a block returned, with `change` applied to the picture's tokens [B, N, dim]; the very same where it changes none."""
        stream = returned if self.stream is None else returned[self.stream]
        flat, count = stream.flatten(1, -2), self.count(options)
        start = self.start(flat.shape[1], count, options)
        image = flat[:, start : start + count]
        after = change(image)
        if after is image:
            return returned
        if count < flat.shape[1]:
            after = torch.cat([flat[:, :start], after, flat[:, start + count :]], dim=1)
        flat = after.view(stream.shape)
        return flat if self.stream is None else (*returned[: self.stream], flat, *returned[self.stream + 1 :])


@dataclass(frozen=True)
class Layout:
    """A family's ImageTokens, to be read off its network.

    dim, heads, patch: paths of these numbers from the network down. streams: {list of blocks: number of the image's stream};
    padding: path of the multiple.
    """

    dim: str
    heads: str
    patch: str = "patch_size"
    streams: Mapping[str, int] = field(default_factory=dict)
    padding: str | None = None
    after_text: bool = False
    joint: bool = True

    def tokens(self, network, block: str) -> ImageTokens:
        stream = self.streams.get(block.split(".")[0])
        patch = get_attr(network, self.patch)
        return ImageTokens(
            get_attr(network, self.dim),
            get_attr(network, self.heads),
            patch if isinstance(patch, int) else patch[-1],
            stream,
            self.after_text and stream is None,
            (get_attr(network, self.padding) or 1) if self.padding else 0,
            self.joint,
        )


FLUX = Layout("hidden_size", "num_heads", streams={"double_blocks": 0}, after_text=True)
LAYOUTS = {
    "Flux": FLUX,
    "Chroma": FLUX,
    "HunyuanImage": FLUX,
    "Qwen-Image": Layout("inner_dim", "transformer_blocks.0.num_attention_heads", streams={"transformer_blocks": 1}),
    "Z-Image, Lumina 2": Layout("dim", "n_heads", padding="pad_tokens_multiple"),
    "SD3": Layout("hidden_size", "num_heads", streams={"joint_blocks": 1}),
    "Krea 2": Layout("first.out_features", "heads", "patch", after_text=True),
    "Anima": Layout("model_channels", "num_heads", "patch_spatial", joint=False),
    "Cosmos-Predict2": Layout("model_channels", "num_heads", "patch_spatial", joint=False),
    "Wan": Layout("dim", "num_heads", joint=False),
}
