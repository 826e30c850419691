"""The judges of the evidence: what is seen in a picture, what people make of it, and a preference model that learnt from them.

The preference model is trained as PickScore is: two towers, picture and prompt, whose cosine is the score, on noisy choices
between two pictures of one prompt. As PickScore's begins as CLIP's, its picture tower begins as the world's classifier.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..scores.statistics import Interval, alike_interval, all_alike, outcomes
from ..sprite_world.classifier import FEATURES, load_classifier
from ..sprite_world.measure import accuracies, features, frechet_distance, measure
from ..sprite_world.pictures import chosen_pictures
from ..train_core import save_tensors
from .spin_people import FINE, PEOPLE, SEEN, art_of, independent, people, see, utility

LABEL_NOISE = 0.2  # of the choices that the preference model learns from
CHOICES = 20_000
EPOCHS, BATCH, RATE = 4, 128, 1e-3
PICTURES = 8  # of each training, for the grid
HELD_OUT = 10  # every tenth caption's choices are kept from training


# ---- the preference model ------------------------------------------------------------------------------------------


class PreferenceModel(nn.Module):
    """Art [B, 3, 32, 32] in -1..1 and captions -> score [B]: the cosine of the two towers' vectors, scaled."""

    def __init__(self, words: list[str]):
        super().__init__()
        self.places = {word: place for place, word in enumerate(words)}
        self.picture = load_classifier().requires_grad_(True)
        self.from_picture = nn.Linear(FEATURES, FEATURES)
        self.words = nn.EmbeddingBag(len(words) + 1, FEATURES, mode="sum")
        self.from_words = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.SiLU(), nn.Linear(FEATURES, FEATURES))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def text(self, captions: list[str]) -> Tensor:
        """Vectors [B, 64] of unit length. A word that no training caption has counts as the last one of the table."""
        bags = [words_of(caption) for caption in captions]
        places = [self.places.get(word, len(self.places)) for bag in bags for word in bag]
        offsets = torch.tensor([0, *np.cumsum([len(bag) for bag in bags[:-1]])])
        return F.normalize(self.from_words(self.words(torch.tensor(places), offsets)), dim=1)

    def forward(self, art: Tensor, captions: list[str]) -> Tensor:
        picture = F.normalize(self.from_picture(self.picture.features(art)), dim=1)
        return self.log_scale.exp() * (picture * self.text(captions)).sum(dim=1)


def words_of(caption: str) -> list[str]:
    return re.findall(r"[a-z]+", caption.lower())


@dataclass(frozen=True)
class Choices:
    """What people chose: of each caption's two pictures [N, 2, 32, 32, 3] uint8, whether the first."""

    captions: list[str]
    art: np.ndarray
    first: np.ndarray

    def at(self, places: np.ndarray) -> "Choices":
        return Choices([self.captions[i] for i in places], self.art[places], self.first[places])


def choices(pools: dict[str, np.ndarray], number: int, seed: int) -> Choices:
    """Noisy choices of people between two pictures of one caption: half from the pools, half between pictures of a stronger model.

    pools: by caption, pictures of the models that are to be judged, at other prompts and seeds than the judged ones.
    """
    rng = np.random.default_rng([0xC401CE, seed])
    captions, art = [], []
    for caption in rng.choice(list(pools), number // 2) if pools else []:
        captions.append(str(caption))
        art.append(pools[caption][rng.choice(len(pools[caption]), 2, replace=False)])
    for caption, pair in islice(independent(500 + seed), number - len(captions)):
        captions.append(caption)
        art.append(np.stack(pair))
    pictures = np.stack(art)
    seen = see(pictures.reshape(-1, 32, 32, 3), [caption for caption in captions for _ in range(2)])
    weights = people()[rng.integers(PEOPLE, size=number)]
    lead = np.array([np.subtract(*utility(two, w)) for two, w in zip(seen.reshape(-1, 2, 3), weights, strict=True)])
    return Choices(captions, pictures, (lead > 0) != (rng.random(number) < LABEL_NOISE))


def is_held_out(caption: str) -> bool:
    return sum(map(ord, caption)) % HELD_OUT == 0


def unit(art: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(art)).movedim(-1, 1).float() / 127.5 - 1


def train_preference_model(found: Choices, seed: int = 0) -> tuple[PreferenceModel, dict[str, float]]:
    """The model, and how often it agrees with held-out choices (of captions that it was not trained on)."""
    torch.manual_seed(seed)
    kept = np.array([is_held_out(caption) for caption in found.captions])
    learnt, held_out = found.at(np.flatnonzero(~kept)), found.at(np.flatnonzero(kept))
    model = PreferenceModel(sorted({word for caption in learnt.captions for word in words_of(caption)}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    steps = EPOCHS * (len(learnt.captions) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = learnt.at(torch.randint(len(learnt.captions), (BATCH,), generator=generator).numpy())
        lead = model(unit(batch.art[:, 0]), batch.captions) - model(unit(batch.art[:, 1]), batch.captions)
        F.binary_cross_entropy_with_logits(lead, torch.from_numpy(batch.first).float()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), held_out_agreement(model, held_out)


def held_out_agreement(model: PreferenceModel, held_out: Choices) -> dict[str, float]:
    """With the noisy choices, and with what people in the mean find better."""
    seen = [see(held_out.art[:, side], held_out.captions) for side in (0, 1)]
    better = utility(seen[0]) > utility(seen[1])
    scores = [preference(model, held_out.art[:, side], held_out.captions) for side in (0, 1)]
    lead = scores[0] > scores[1]
    return {
        "choices": len(held_out.captions),
        "noisy choices": float((lead == held_out.first).mean()),
        "people in the mean": float((lead == better).mean()),
        "best possible with the noisy choices": float((better == held_out.first).mean()),
    }


def save_preference_model(path: Path, model: PreferenceModel, agreement: dict[str, float]) -> None:
    save_tensors(
        path, model.state_dict(), {"words": json.dumps(list(model.places)), "agreement": json.dumps(agreement)}
    )


def load_preference_model(path: Path) -> tuple[PreferenceModel, dict[str, float]]:
    """The model, and what was said of its agreement when it had learnt."""
    with safe_open(path, framework="pt") as file:
        told = {name: json.loads(text) for name, text in file.metadata().items()}
    model = PreferenceModel(told["words"])
    model.load_state_dict(load_file(path))
    return model.eval(), told["agreement"]


@torch.no_grad()
def preference(model: PreferenceModel, art: np.ndarray, captions: list[str]) -> np.ndarray:
    parts = [slice(i, i + 500) for i in range(0, len(art), 500)]
    return torch.cat([model(unit(art[part]), captions[part]) for part in parts]).double().numpy()


# ---- a model's pictures before the judges --------------------------------------------------------------------------


@cache
def fine_features() -> np.ndarray:
    """Of 500 finely drawn pictures: what the Fréchet distance is to."""
    return features(art_of(list(islice(chosen_pictures(1, tastes=FINE), 500))))


def seen_by_third(art: np.ndarray, captions: list[str]) -> np.ndarray:
    """Taste, prompt and fidelity of art [S, P, 32, 32, 3]: [S, P, 3], float32, as they are kept."""
    return np.stack([see(third, captions) for third in art]).astype(np.float32)


@dataclass(frozen=True)
class Shown:
    """One training's pictures before all judges, by its thirds [S] and prompts [P]: what is kept when they are gone.

    seen: of seen_by_third. preferred: the preference model's scores [S, P]. class_word: the share of pictures with the right
    creature [S]. frechet: [S]. pictures: art [8, 32, 32, 3], the first of the last third.
    """

    seen: np.ndarray
    preferred: np.ndarray
    class_word: np.ndarray
    frechet: np.ndarray
    pictures: np.ndarray

    @classmethod
    def of(cls, art: np.ndarray, captions: list[str], preferred: Callable) -> "Shown":
        """art: [S, P, 32, 32, 3]; preferred(art, captions): the preference model."""
        return cls(
            seen_by_third(art, captions),
            np.stack([preferred(third, captions) for third in art]).astype(np.float32),
            np.array([accuracies(measure(third, captions))["class_word"] for third in art]),
            np.array([frechet(third) for third in art]),
            art[-1, :PICTURES],
        )

    def by_judge(self, third: int) -> dict[str, np.ndarray]:
        """Each picture before each judge, [P] each."""
        seen = self.seen[third]
        told = {"people": utility(seen), "preference model": self.preferred[third]}
        return dict(zip(SEEN, seen.T, strict=True)) | told


def frechet(art: np.ndarray) -> float:
    return frechet_distance(features(art), fine_features())


# ---- wins, over prompts and training seeds -------------------------------------------------------------------------


def win(a: np.ndarray, b: np.ndarray, resamples: int = 4000) -> dict[str, float]:
    """a's wins over b, both [P, S] by prompt and training seed, with the interval of both: each is resampled.

    One seed alone shows nothing of the spread between seeds: the interval is then the prompts'.
    """
    won = np.stack([outcomes(a[:, seed], b[:, seed]) for seed in range(a.shape[1])], axis=1)
    low, high = crossed_interval(won, resamples)
    return {"win": float(won.mean()), "low": low, "high": high, "seeds": a.shape[1], "prompts": a.shape[0]}


def crossed_interval(values: np.ndarray, resamples: int = 4000, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean of values [P, S] in [0, 1], prompts and seeds resampled apart."""
    if all_alike(values.ravel()):
        return alike_interval(float(values[0, 0]), len(values), confidence)
    rng, (prompts, seeds) = np.random.default_rng(0), values.shape
    by_prompt = rng.multinomial(prompts, np.full(prompts, 1 / prompts), resamples)  # [R, P]
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)  # [R, S]
    means = np.einsum("rp,ps,rs->r", by_prompt, values, by_seed) / (prompts * seeds)
    return Interval(*map(float, np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])))
