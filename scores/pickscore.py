"""PickScore v1 (arXiv 2305.01569): a CLIP ViT-H/14 that learnt which of two pictures people picked for a prompt."""

import math
from pathlib import Path

from .clip import ClipTextScorer, clip_from_folder, tokenizer_for
from .pictures import ShortestSide
from .weights import checkpoint_of


class PickScore(ClipTextScorer):
    """exp(logit_scale) · cosine, about 20 to 22 for real weights; a pair's preference is the softmax of the two."""

    name = "PickScore v1"
    formula = "exp(logit_scale) · cosine(picture, prompt)"

    @property
    def scale(self) -> float:
        return float(self.module.logit_scale.exp())


def load(path: Path, tokenizer: Path | None = None) -> PickScore:
    """path: the folder PickScore_v1 as it is on the hub. tokenizer: a folder with CLIP's vocabulary."""
    model, weights = clip_from_folder(path, PickScore.name)
    size = model.config.vision_config.image_size
    preprocessing = ShortestSide(resize=size, crop=size, odd="transformers")
    words = tokenizer_for(path, tokenizer, PickScore.name)
    return PickScore(model, preprocessing, [checkpoint_of(weights)], words)


def preference(score_a: float, score_b: float) -> float:
    """The probability that people pick a over b (PickScore eq. 2): softmax of the two scores."""
    return 1 / (1 + math.exp(score_b - score_a))
