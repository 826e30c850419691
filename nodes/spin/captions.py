"""Captions and pictures as the model reads them, and the host's sampler as the opponent."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import comfy.sd
import torch
from PIL import Image
from torch import Tensor

from ...spin_core.encoding import Encoder
from ...spin_core.store import TensorStore, store_key
from ..host.copies import as_a_node, model_hash
from ..host.frozen import patched_hash
from ..host.pictures import strip, to_image, to_pictures
from ..host.sampling import Sampling, sample_latents

HELD = 256  # encodings in memory, of 0.2 MB (SD1.x) to 4 MB (T5) each; all of them lie on disk


@dataclass(frozen=True)
class OpponentSampling(Sampling):
    """How the opponent draws. batch: pictures at once, which is no part of what it draws."""

    negative: str = ""
    batch: int = 4


class Captions:
    """Captions as the model reads them. Each is encoded once and kept on disk under the text encoder's hash."""

    def __init__(self, clip: comfy.sd.CLIP, store: TensorStore):
        self.clip, self.store = clip, store
        self.made_from = {
            "clip": patched_hash(clip.patcher, ""),
            "kind": kind_of(clip),
            "layer": clip.layer_idx,
            "options": dict(clip.tokenizer_options),
        }
        self.seen: dict[str, list] = {}

    @property
    def text_hash(self) -> str:
        """Of the text encoder, its LoRAs and its settings."""
        return store_key(**self.made_from)

    def conditioning(self, prompt: str) -> list:
        """CONDITIONING of one prompt."""
        found = self.seen.pop(prompt, None) or self._kept(prompt)
        self.seen[prompt] = found
        if len(self.seen) > HELD:
            del self.seen[next(iter(self.seen))]  # the one that was asked for longest ago
        return found

    def _kept(self, prompt: str) -> list:
        made_from = {"prompt": prompt, **self.made_from}
        key = store_key(**made_from)
        if self.store.get(key) is None:
            with torch.inference_mode():  # as the executor runs nodes: see copies.as_a_node
                cross_attn, options = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))[0]
            if not cross_attn.isfinite().all():
                raise ValueError(
                    "Connect another CLIP.\nThis one encodes a caption as NaN or infinite: its file is not the one its type needs."
                )
            tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
            self.store.put(key, {"cross_attn": cross_attn} | tensors, made_from)
        tensors = self.store.get(key)
        return [[tensors.pop("cross_attn"), tensors]]

    def kind(self, prompt: str) -> tuple:
        """What the prompt has in common with those that can be drawn beside it in one forward."""
        return batch_kind(self.conditioning(prompt)[0], prompt)

    def together(self, prompts: list[str]) -> list[tuple[list[int], list]]:
        """(places, CONDITIONING) for each part of the prompts that can be drawn as one batch, a row a prompt.

        Prompts whose encodings differ in length, or hold more than tokens and pooled text, are drawn apart.
        """
        parts: dict[tuple, list[int]] = {}
        for place, prompt in enumerate(prompts):
            parts.setdefault(batch_kind(self.conditioning(prompt)[0], place), []).append(place)
        return [(places, joined([self.conditioning(prompts[i])[0] for i in places])) for places in parts.values()]


def kind_of(clip: comfy.sd.CLIP) -> list[str]:
    """What reads the captions, and how: two families may have one text encoder, with other templates and layers."""
    return [
        f"{kind.__module__}.{kind.__qualname__}"
        for part in (clip.cond_stage_model, clip.tokenizer)
        for kind in type(part).__mro__
    ]


def batch_kind(row: list, apart: Hashable) -> tuple:
    """What rows of one batch have in common. `apart` tells apart those that only fit a batch of one prompt."""
    tokens, options = row
    full = [name for name, value in options.items() if name == "attention_mask" and bool(value.all())]
    more = options.keys() - {"pooled_output", *full}
    shapes = tuple((name, value.shape) for name, value in sorted(options.items()))
    return (tokens.shape, shapes, apart if more else None)


def joined(rows: list) -> list:
    """CONDITIONING of several prompts. A mask that hides nothing is left out: models count its ones as one prompt's tokens."""
    if len(rows) == 1:
        return rows
    options = {name: torch.cat([row[1][name] for row in rows]) for name in rows[0][1] if name != "attention_mask"}
    return [[torch.cat([row[0] for row in rows]), options]]


def telling(on_step: Callable[[int, float], None], before: int, now: int, steps: int) -> Callable[[int], None]:
    """Tells the sampling step and the pictures done so far, of `now` pictures at once behind `before` others."""
    return lambda step: on_step(step, before + now * step / steps)


def host_sampler(patcher, captions: Captions, how: OpponentSampling) -> Callable[..., Tensor]:
    """The model as it is now, through KSampler. Each picture's first noise hangs on its own seed alone."""

    def sample(prompts: list[str], seeds: list[int], shape: tuple[int, ...], on_step=None) -> Tensor:
        negative, latents, before = captions.conditioning(how.negative), torch.empty(len(prompts), *shape), 0
        for places, positive in captions.together(prompts):
            wanted = [seeds[i] for i in places]
            told = on_step and telling(on_step, before, len(places), how.steps)
            drawn = as_a_node(sample_latents, patcher, shape, wanted, how, positive, negative, told)
            latents[places] = patcher.model.process_latent_in(drawn)
            before += len(places)
        return latents

    return sample


def picture_encoder(vae: comfy.sd.VAE, model, store: TensorStore, resolution: int) -> Encoder:
    """Pictures to the latents that the model reads."""

    def encode(picture: Image.Image) -> Tensor:
        return model.process_latent_in(as_a_node(vae.encode, to_image(picture)))[0].float()

    multiple = 64 if resolution >= 256 else 16  # the steps of SD's own training sizes; small worlds have small pictures
    return Encoder(encode, model_hash(vae.first_stage_model), store, resolution, multiple)


def decoded(vae: comfy.sd.VAE, model, latents: Tensor) -> Tensor:
    """Latents as pictures: IMAGE [B, H, W, 3]."""
    pictures = as_a_node(vae.decode, model.process_latent_out(latents))  # [B, (T,) H, W, 3]
    return pictures.flatten(0, -4)


def picture_strip(vae: comfy.sd.VAE, model, latents: Tensor) -> Image.Image:
    """Latents as pictures side by side."""
    return to_pictures(strip(decoded(vae, model, latents)))[0]
