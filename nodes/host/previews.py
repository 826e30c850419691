"""The previews of a training: the same prompts with the same seeds every time, rated where a scorer is connected."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from ...scores.scorer import Scorer
from ...train_core import HeldOut
from .options import TrainingOptions
from .pictures import strip, to_pictures


@dataclass
class Previews:
    """What a preview shows, and what a scorer gives it.

    draw: pictures [B, H, W, 3], a prompt each. drawing: inside, the host may load a scorer's network. prompts: as the scorer
    reads them. references: photos that it compares with, where there are any.
    """

    draw: Callable[[], Tensor]
    drawing: Callable[[], AbstractContextManager]
    prompts: Sequence[str]
    scorer: Scorer | None = None
    references: Sequence[Image.Image] = ()
    last: Tensor | None = field(default=None, init=False)

    def strip(self) -> Image.Image:
        """Side by side; those that were scored, where there is a scorer."""
        return to_pictures(strip(self.draw() if self.scorer is None else self.last))[0]

    def score(self) -> float:
        """The mean over the pictures."""
        self.last = self.draw()
        with self.drawing(), torch.inference_mode():  # as the executor runs nodes: see copies.as_a_node
            return fmean(self.scorer.score(to_pictures(self.last), list(self.prompts), list(self.references) or None))

    def held_out(self, options: TrainingOptions, made_from: dict, from_start: bool = False) -> HeldOut | None:
        """What a training is watched by; None without a scorer. made_from: how the pictures are drawn.

        from_start: where what it begins with is a model that one may keep.
        """
        if self.scorer is None:
            return None
        return HeldOut(self.score, options.preview_every, options.patience, made_from, from_start)


def scored(scorer: Scorer | None, prompts: Sequence[str], options: TrainingOptions, photos: bool = False) -> dict:
    """By what previews are scored, on which prompts and how often; empty without a scorer. photos: are there to compare with.

    Raises: ValueError where there is nothing that it could score.
    """
    if scorer is None:
        return {}
    if not options.preview_every:
        raise ValueError(
            "Set preview_every above 0 in Training Options.\nThe scorer rates previews, and there are none."
        )
    if scorer.needs_references and not photos:
        raise ValueError(f"Connect another scorer.\n{scorer.name} compares with photos, and previews here have none.")
    return {"scorer": scorer.record(), "prompts": tuple(prompts), "every": options.preview_every}
