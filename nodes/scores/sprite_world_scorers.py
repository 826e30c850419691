"""Sprite World's own measures as scorers: what its pictures show is known, so nothing has to be downloaded."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ...scores.scorer import Scorer
from ...scores.weights import checkpoint_of

PREPROCESSING = "mean of each of 32 x 32 blocks"


class SpriteWorldScorer(Scorer):
    """What the two have in common: the world's classifier, which comes with the pack."""

    def record(self) -> dict:
        from ...sprite_world.classifier import WEIGHTS

        return {**super().record(), "checkpoints": [checkpoint_of(WEIGHTS)._asdict()], "preprocessing": PREPROCESSING}


class SpriteWorldTaste(SpriteWorldScorer):
    """How finely a picture is drawn, 0 crude to 1 fine: what captions never name and people would prefer."""

    name = "Sprite World taste"
    formula = "taste as the world's classifier reads it, 0..1"

    def score(self, pictures, prompts=None, references=None) -> list[float]:
        from ...sprite_world.measure import read_pictures

        return [shown["taste"] for shown in read_pictures(as_art(pictures))]


class SpriteWorldPrompt(SpriteWorldScorer):
    """The share of what the caption names (creature, colour, scene, count, place, size) that the picture shows."""

    name = "Sprite World prompt"
    formula = "share of the caption's properties that the classifier finds, 0..1"
    needs_prompt = True

    def score(self, pictures, prompts=None, references=None) -> list[float]:
        from ...sprite_world.measure import measure

        self.check(pictures, prompts, references)
        return [float(np.mean(list(one.follows.values()))) for one in measure(as_art(pictures), list(prompts))]


SPRITE_WORLD = {scorer.name: scorer for scorer in (SpriteWorldTaste, SpriteWorldPrompt)}


def sprite_world_scorer(name: str) -> Scorer:
    return SPRITE_WORLD[name]()


def as_art(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of any sizes as the world's art. Returns [B, 32, 32, 3] uint8."""
    from ...sprite_world.measure import to_art

    pixels = (torch.from_numpy(np.asarray(picture.convert("RGB")).copy())[None] / 255 for picture in pictures)
    return np.concatenate([to_art(one) for one in pixels])
