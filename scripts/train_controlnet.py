"""Trains the Sprite World's ControlNet: a Control-LoRA, Stability's form, on edges as the host's Canny node draws them.

    python -m vico_spin.scripts.train_controlnet                # five minutes on one core
    python -m vico_spin.scripts.train_controlnet --measure      # how far drawings follow their map, as a table

The file has the hint block, the zero convolutions and low ranks beside the U-Net's encoder; the host takes the encoder's
own weights from the model that is drawn with.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..intake import write_atomically
from ..sprite_world import CONTROLNET
from ..sprite_world.measure import accuracies, measure, to_art
from ..sprite_world.pictures import pictures, render, show
from ..sprite_world.vocabulary import random_caption
from ..train_core.lora import LoRA, find_layers
from .sprite_world_card import DOCS, World, halves
from .train_sprite_world import (
    BASE,
    DATA_SEED,
    OPTIONS,
    drawn_pictures,
    drawn_timesteps,
    encoded,
    loss_weight,
)

PICTURES, STEPS, BATCH = 1200, 300, 16
RANK = 4
RATE = 1.5e-3
EMPTY = 0.3  # share of samples without a caption: what is drawn must be read off the map
LOW, HIGH = 0.2, 0.2  # Canny's thresholds: pale pictures have edges too, and equal ones need no search along the lines
NEAR = 2  # pixels, half an art pixel: how far an edge may lie from its map's
FIGURES = DOCS / "controlnet.json"


# ---- data ----------------------------------------------------------------------------------------------------------


def edges(images: Tensor) -> Tensor:
    """Images [B, 128, 128, 3] in 0..1 -> the Canny node's maps, of the same shape, 0 or 1."""
    from comfy_extras.nodes_canny import Canny

    return torch.cat([Canny.execute(part, LOW, HIGH).result[0] for part in images.split(64)])


def shown(art: np.ndarray) -> Tensor:
    """Art [B, 32, 32, 3] uint8 as the images [B, 128, 128, 3] in 0..1 that people see."""
    return torch.from_numpy(show(art)).float() / 255


@torch.no_grad()
def samples(world: World, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [N, 4, 16, 16], contexts [N, 77, 64], maps [N, 1, 128, 128] uint8 of pictures that the base trained on too."""
    art, drawn = drawn_pictures(number)
    rng = np.random.default_rng(DATA_SEED)
    captions = ["" if rng.random() < EMPTY else random_caption(rng, picture.properties()) for picture in drawn]
    maps = [edges(shown(part.movedim(1, -1).numpy()))[..., :1].movedim(-1, 1).byte() for part in art.split(256)]
    return encoded(world.vae.first_stage_model, art), world.encode(captions), torch.cat(maps)


# ---- training ------------------------------------------------------------------------------------------------------


class ControlLora(nn.Module):
    """The host's ControlNet with the base's encoder, which is frozen; hint block, zero convolutions and ranks learn."""

    def __init__(self, base):
        import comfy.cldm.cldm
        import comfy.ops

        super().__init__()
        config = {**base.model_config.unet_config, "hint_channels": 3, "operations": comfy.ops.disable_weight_init}
        del config["out_channels"]
        self.net = comfy.cldm.cldm.ControlNet(**config)
        self.net.load_state_dict(base.diffusion_model.state_dict(), strict=False)
        self.net.requires_grad_(False)
        self.lora = LoRA(self.net, find_layers(self.net, r"^\.(input_blocks|middle_block)\."), RANK)
        torch.manual_seed(DATA_SEED)
        for name, module in self.own().items():
            module.requires_grad_(True)
            scale = nn.init.kaiming_normal_ if name.startswith("input_hint_block") else nn.init.zeros_
            scale(module.weight)
            nn.init.zeros_(module.bias)

    def own(self) -> dict[str, nn.Module]:
        """The layers that the base has none of."""
        starts = ("input_hint_block", "zero_convs", "middle_block_out")
        named = self.net.named_modules()
        return {name: m for name, m in named if name.startswith(starts) and isinstance(m, nn.Conv2d)}

    def forward(self, x_t: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> dict[str, list[Tensor]]:
        """What is added to the U-Net's skips and middle. hint: [B, 3, 128, 128] in 0..1."""
        with self.lora.attached():
            return self.net(x_t, hint, t, context)

    def exported(self) -> dict[str, Tensor]:
        """The file's tensors, halves, by the host's names."""
        tensors = {f"{name}.{key}": p for name, module in self.own().items() for key, p in module.named_parameters()}
        for name, layer in self.lora.layers().items():
            tensors |= {f"{name}.up": layer.up, f"{name}.down": layer.down}
        return halves({"lora_controlnet": torch.zeros(0), **tensors})


def loss(control: ControlLora, base, latent: Tensor, context: Tensor, hint: Tensor, generator) -> Tensor:
    """The base's own loss, the error of v with min-SNR weights, drawn with the map."""
    t = drawn_timesteps(len(latent), generator)
    eps = torch.randn(latent.shape, generator=generator)
    snr = 1 / base.model_sampling.sigmas[t].square()
    signal, noise = (snr / (1 + snr)).sqrt()[:, None, None, None], (1 / (1 + snr)).sqrt()[:, None, None, None]
    x_t = (signal * latent + noise * eps).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        added = control(x_t, hint, t.float(), context)
        predicted = base.diffusion_model(x_t, t.float(), context=context, control=added, transformer_options=OPTIONS)
    return (loss_weight(snr) * (predicted.float() - eps).square().mean((1, 2, 3))).mean()


def train(world: World, steps: int) -> ControlLora:
    base, data = world.model.model, samples(world, PICTURES)
    base.diffusion_model.requires_grad_(False).to(memory_format=torch.channels_last)
    control = ControlLora(base).to(memory_format=torch.channels_last)
    learning = [p for p in control.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, betas=(0.9, 0.98), weight_decay=0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1, cycle_momentum=False)
    generator, losses = torch.Generator().manual_seed(DATA_SEED), []
    for step in range(steps):
        chosen = torch.randint(PICTURES, (BATCH,), generator=generator)
        latent, context, maps = (part[chosen] for part in data)
        error = loss(control, base, latent, context, maps.float().expand(-1, 3, -1, -1), generator)
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        losses.append(error.item())
        if step % 10 == 9:
            print(f"step {step + 1} of {steps}, loss {sum(losses[-10:]) / 10:.4f}", flush=True)
    return control


# ---- measuring -----------------------------------------------------------------------------------------------------


def agreement(drawn: Tensor, wanted: Tensor) -> Tensor:
    """F1 of two sets of edges, each [B, H, W] of 0 and 1, an edge found where the other has one within NEAR pixels: [B]."""
    near = lambda edge: F.max_pool2d(edge[:, None], 2 * NEAR + 1, 1, NEAR)[:, 0]  # noqa: E731
    share = lambda part, whole: (part * whole).sum((1, 2)) / whole.sum((1, 2)).clamp(min=1)  # noqa: E731
    precision, recall = share(near(wanted), drawn), share(near(drawn), wanted)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-6)


def figures(world: World, path: Path, number: int = 40) -> dict[str, float]:
    """Held-out pictures' captions, drawn with and without the map of their picture, from the same noise."""
    import comfy.controlnet

    wanted = list(islice(pictures(11, held_out=True), number))
    captions = [picture.caption() for picture in wanted]
    maps = edges(shown(np.stack([render(picture)[0] for picture in wanted])))
    control = comfy.controlnet.load_controlnet(str(path)).set_cond_hint(maps.movedim(-1, 1))
    rows, fits = {}, {}
    for name, more in (("without", {}), ("with", {"control": control})):
        images = world.draw(captions, seed=0, more=more)
        drawn = edges(images)[..., 0]
        fits[name] = torch.stack([agreement(drawn, one.expand_as(drawn)) for one in maps[..., 0]], 1)  # [drawing, map]
        rows[f"edges' agreement with the map (F1), {name}"] = fits[name].diagonal().mean().item()
        own = fits[name].argmax(1) == torch.arange(number)
        rows[f"of {number} drawings, fit their own map best of {number}, {name}"] = own.sum().item()
        follows = accuracies(measure(to_art(images), captions))
        rows |= {f"{key}, {name}": follows[key] for key in ("class_word", "colour", "scene")}
    better = fits["with"].diagonal() > fits["without"].diagonal()
    return {f"of {number} drawings, nearer to the map with the ControlNet": better.sum().item(), **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=CONTROLNET)
    parser.add_argument("--measure", action="store_true", help="only measure the file that is there")
    options = parser.parse_args()
    world = World(BASE)
    if not options.measure:
        control = train(world, options.steps)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.output, lambda p: save_file(control.exported(), p))
        print(f"{options.output} ({options.output.stat().st_size / 2**20:.2f} MB)")
    measured = figures(world, options.output)
    print("\n".join(f"{value:8.3f}  {name}" for name, value in measured.items()))
    if options.output == CONTROLNET:
        FIGURES.write_text(json.dumps(measured, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
