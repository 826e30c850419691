"""A small network that reads a picture: class, colour, scene, count, position, size, taste; and its features.

python -m vico_spin.sprite_world.classifier          # trains it on renders (minutes on a CPU) and replaces the shipped weights
"""

from __future__ import annotations

import argparse
import os
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .muon import Muon
from .pictures import Picture, pictures, render
from .vocabulary import CLASSES, COLOURS, POSITIONS, SCENES, SIZES

WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"
# What each head tells apart, in the order of its logits.
HEADS = {
    "class_word": CLASSES,
    "colour": tuple(COLOURS),
    "scene": tuple(SCENES),
    "count": (1, 2),
    "position": (*POSITIONS, None),
    "size": SIZES,
}
FEATURES = 64


def _stage(wide_in: int, wide_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1), nn.GroupNorm(8, wide_out), nn.SiLU()
    )


class SpriteClassifier(nn.Module):
    """Art [B, 3, 32, 32] in -1..1 -> features [B, 64]; heads on them give logits, and taste in 0..1."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            _stage(3, 48, 2),
            _stage(48, 64, 1),
            _stage(64, 96, 2),
            _stage(96, 96, 1),
            nn.Conv2d(96, 16, 1),
        )
        self.to_features = nn.Linear(16 * 8 * 8, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values)) for name, values in HEADS.items()})
        self.taste = nn.Linear(FEATURES, 1)

    def features(self, art: Tensor) -> Tensor:
        return F.silu(self.to_features(self.body(art).flatten(1)))

    def forward(self, art: Tensor) -> dict[str, Tensor]:
        features = self.features(art)
        return {name: head(features) for name, head in self.heads.items()} | {"taste": self.taste(features)[:, 0]}


def labels(drawn: list[Picture]) -> dict[str, Tensor]:
    """The truth that the heads learn: indices [N] for each head, taste [N]."""
    truth = {name: torch.tensor([values.index(p.properties()[name]) for p in drawn]) for name, values in HEADS.items()}
    return truth | {"taste": torch.tensor([p.taste for p in drawn])}


def classifier_loss(out: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Cross entropies of the heads, and ten times the squared error of the taste."""
    heads = sum(F.cross_entropy(out[name], truth[name]) for name in HEADS)
    return heads + 10 * F.mse_loss(out["taste"], truth["taste"])


def roughened(art: Tensor, generator: torch.Generator) -> Tensor:
    """Art in -1..1 with the faults of a generated picture: noise, in half of the pictures a slight blur."""
    blurred = F.avg_pool2d(F.pad(art, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = (
        0.6
        * torch.rand(len(art), 1, 1, 1, generator=generator)
        * (torch.rand(len(art), 1, 1, 1, generator=generator) < 0.5)
    )
    level = 0.15 * torch.rand(len(art), 1, 1, 1, generator=generator)
    return art.lerp(blurred, amount) + level * torch.randn(art.shape, generator=generator)


def train_classifier(
    art: Tensor, drawn: list[Picture], steps: int, log, batch: int = 64, seed: int = 1
) -> SpriteClassifier:
    """Trains on these renders [N, 3, 32, 32] uint8 with a rate that falls linearly to nothing."""
    torch.manual_seed(seed)
    model, generator, truth = SpriteClassifier(), torch.Generator().manual_seed(seed), labels(drawn)
    kernels = [p for p in model.parameters() if p.ndim == 4]
    rest = [p for p in model.parameters() if p.ndim != 4]
    optimizers = [Muon(kernels, lr=0.02), torch.optim.AdamW(rest, lr=2e-3, weight_decay=0.0)]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / 50, 1 - step / steps)) for o in optimizers
    ]
    for step in range(steps):
        index = torch.randint(len(art), (batch,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(roughened(art[index].float() / 127.5 - 1, generator))
        loss = classifier_loss(
            {name: value.float() for name, value in out.items()}, {n: t[index] for n, t in truth.items()}
        )
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if (step + 1) % 50 == 0:
            log(part="classifier", step=step + 1, loss=loss.item())
    return model.eval()


def load_classifier() -> SpriteClassifier:
    model = SpriteClassifier()
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return model.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the classifier of the measures.")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    drawn = list(islice(pictures(2), options.pictures))
    art = torch.from_numpy(np.stack([render(picture)[0] for picture in drawn])).movedim(-1, 1).contiguous()
    model = train_classifier(art, drawn, options.steps, log=lambda **entry: print(entry, flush=True))
    partial = WEIGHTS.with_suffix(".partial")
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, partial)
    os.replace(partial, WEIGHTS)


if __name__ == "__main__":
    main()
