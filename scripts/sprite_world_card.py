"""The shipped files of the Sprite World out of a training's checkpoint, pictures drawn by them, and the card.

python -m scripts.sprite_world_card --export      # weights/base.safetensors from the averaged weights so far
python -m scripts.sprite_world_card --grid G.png  # a grid of samples
python -m scripts.sprite_world_card               # 500 held-out prompts, every figure, CARD.md and its pictures
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.train_sprite_world import ROOT, WORK, encoded, load_world_model, to_unit, write_atomically
from sprite_world.autoencoder import SpriteAutoencoder
from sprite_world.pictures import evaluation_prompts, pictures, render

BASE = ROOT / "sprite_world" / "weights" / "base.safetensors"
STEPS, CFG = 25, 5.0


def latent_colours(codec: SpriteAutoencoder) -> Tensor:
    """[5, 3]: the linear map from a latent of the VAE (and one) to the colour of its 8 x 8 pixels, for previews."""
    art = np.stack([render(picture)[0] for picture in itertools.islice(pictures(3), 256)])
    colours = torch.from_numpy(art).permute(0, 3, 1, 2)
    latent = encoded(codec, colours).movedim(1, -1).flatten(0, -2)
    target = torch.nn.functional.avg_pool2d(to_unit(colours), 2).movedim(1, -1).flatten(0, -2)
    return torch.linalg.lstsq(torch.cat([latent, torch.ones(len(latent), 1)], 1), target).solution


def exported(state: dict, codec: SpriteAutoencoder) -> dict[str, Tensor]:
    """The shipped tensors: the averaged U-Net and text encoder under the host's names, the VAE; halves."""
    average = state["average"]
    weights = {key: value for key, value in average.items() if key.startswith("unet.")}
    for key, value in average.items():
        if key.startswith("text.layers."):
            weights[key.replace("text.layers.", "text.text_model.encoder.layers.")] = value
    for end in ("weight", "bias"):
        weights[f"text.text_model.final_layer_norm.{end}"] = average[f"text.final_layer_norm.{end}"]
    weights["text.text_model.embeddings.position_embedding.weight"] = average["text.position_embedding.weight"]
    weights["token_rows"] = average["text.token_embedding.weight"]
    weights |= {f"vae.{key}": value for key, value in codec.state_dict().items()}
    weights["latent_rgb"] = latent_colours(codec)
    halves = {key: value.detach().half().contiguous() for key, value in weights.items()}
    return halves | {"token_ids": torch.tensor(state["token_ids"], dtype=torch.int32)}


def export(work: Path, path: Path) -> None:
    codec = SpriteAutoencoder()
    codec.load_state_dict(load_file(work / "autoencoder.safetensors"))
    state = torch.load(work / "state.pt", weights_only=True)
    metadata = {"format": "sprite-world-1", "step": str(state["step"]), "minutes": f"{state['minutes']:.1f}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: save_file(exported(state, codec.eval()), p, metadata))


class World:
    """MODEL, CLIP and VAE as the node gives them, and a batch sampler on top."""

    def __init__(self, path: Path):
        host = load_world_model("cpu")
        self.model, self.clip = host.load_model(str(path)), host.load_clip(str(path))
        self.vae = host.load_vae(str(path), SpriteAutoencoder())

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(prompt)) for prompt in prompts])

    @torch.inference_mode()
    def draw(
        self, prompts: list[str], seed: int, steps: int = STEPS, cfg: float = CFG, sampler: str = "euler"
    ) -> Tensor:
        """One picture a prompt: [B, 128, 128, 3] in 0..1."""
        import comfy.sample

        latent = torch.zeros(len(prompts), 4, 16, 16)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        positive, negative = [[self.encode(prompts), {}]], [[self.encode([""]), {}]]
        samples = comfy.sample.sample(
            self.model, noise, steps, cfg, sampler, "normal", positive, negative, latent, seed=seed, disable_pbar=True
        )
        return self.vae.decode(samples)


def tiled(images: np.ndarray, columns: int) -> Image.Image:
    """[N, H, W, 3] uint8 as one picture, row by row."""
    rows = [np.concatenate(list(images[i : i + columns]), 1) for i in range(0, len(images), columns)]
    return Image.fromarray(np.concatenate(rows, 0))


def grid(world: World, path: Path, number: int = 40, columns: int = 8) -> None:
    images = world.draw(evaluation_prompts()[:number], seed=1)
    tiled((images.numpy() * 255).round().astype(np.uint8), columns).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--weights", type=Path, default=BASE)
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--grid", type=Path)
    options = parser.parse_args()
    if options.export:
        export(options.work, options.weights)
    if options.grid:
        grid(World(options.weights), options.grid)


if __name__ == "__main__":
    main()
