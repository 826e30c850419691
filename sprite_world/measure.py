"""What a picture shows, measured against the world's ground truth.

    python -m vico_spin.sprite_world.measure          # the measures' own accuracy on held-out renders, as a table

Pictures come as art [B, 32, 32, 3] uint8 (`to_art` makes it of any image). A matching against renders tells one identity
from another; a small classifier reads the caption's properties and the taste, and its features give a Fréchet distance.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .classifier import HEADS, SpriteClassifier, load_classifier
from .identity import Identity, identity, is_held_out
from .pictures import Picture, contrasted, pictures, random_picture, render
from .scenes import ART
from .sprites import SIDES, draw
from .vocabulary import SCENES, read_caption

TEMPLATE_TASTES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RIVALS = range(2**30, 2**30 + 40)  # the seeds of the creatures that an identity is told apart from
MATCH_SCALE = 45.0  # root mean square colour error (of 255) at which the similarity has fallen to exp(-1)


def to_art(images: Tensor) -> np.ndarray:
    """Images [B, H, W, 3] in 0..1, of any size, as art [B, 32, 32, 3] uint8: the mean of each of 32 x 32 blocks."""
    small = F.adaptive_avg_pool2d(images[..., :3].movedim(-1, 1).float(), ART)
    return (small * 255).round().clamp(0, 255).byte().movedim(1, -1).cpu().numpy()


def _channels_first(art: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(art)).movedim(-1, 1).float()


# ---- identity ------------------------------------------------------------------------------------------------------


def _match(art: Tensor, colours: np.ndarray, weight: np.ndarray) -> Tensor:
    """Least weighted mean square colour error [B] of a template [s, s, 3] over all places in art [B, 3, 32, 32].

    sum w (I - T)² = sum w I² - 2 sum w T I + sum w T², the first two by correlation.
    """
    template = torch.from_numpy(colours).float().movedim(-1, 0)[None]  # [1, 3, s, s]
    w = torch.from_numpy(weight).float().expand_as(template[0])[None]  # [1, 3, s, s]
    error = F.conv2d(art.square(), w) - 2 * F.conv2d(art, w * template) + (w * template.square()).sum()
    return error.flatten(1).amin(1) / w.sum()


@torch.no_grad()
def identity_similarity(art: np.ndarray, who: Identity) -> np.ndarray:
    """How surely each picture of art [B, 32, 32, 3] shows this creature: [B] in [0, 1].

    The creature is drawn at each size and at some tastes and matched at every place; the background does not count.
    exp(-error² / MATCH_SCALE²) of the best match, so a true picture is near 1 and another creature well below.
    """
    pictures_255 = _channels_first(art)
    errors = []
    for side, taste in itertools.product(SIDES.values(), TEMPLATE_TASTES):
        colours, cover = draw(who, side, taste)
        errors.append(_match(pictures_255, contrasted(colours, taste), cover))
    best = torch.stack(errors).amin(0).clamp(min=0)
    return torch.exp(-best / MATCH_SCALE**2).numpy()


def recognition(art: np.ndarray, who: Identity) -> np.ndarray:
    """The share of 40 other creatures of this class and colour that each picture of art [B, 32, 32, 3] resembles less: [B] in [0, 1].

    1 where a picture shows this creature; about a half, over many creatures, where it shows any of the class and colour.
    A blurred or pale drawing lowers it less than the similarity, since it lowers the others' similarities too.
    """
    return _told_from(art, who, [identity(seed, who.class_word, who.colour) for seed in RIVALS])


def told_from_twins(art: np.ndarray, who: Identity) -> dict[str, np.ndarray]:
    """By one part at a time, the share of twins, other in that part alone, that each picture resembles less: {part: [B] in [0, 1]}.

    Parts: marking (its kind, place and colour), shape, eyes, and the body's colour within its family. The twins have the parts
    of the creatures that `recognition` goes by; one that is drawn alike (plain, whatever the marking's colour) is none.
    """
    others = [identity(seed, who.class_word, who.colour) for seed in RIVALS]
    parts = {
        "marking": ("marking", "marking_phase", "accent"),
        "shape": ("shape",),
        "eyes": ("eyes",),
        "colour": ("body",),
    }
    twins = {
        part: {replace(who, **{name: getattr(other, name) for name in names}) for other in others}
        for part, names in parts.items()
    }
    own = draw(who, SIDES["large"], 1.0)[0]
    seen = {
        part: [twin for twin in sorted(of, key=repr) if (draw(twin, SIDES["large"], 1.0)[0] != own).any()]
        for part, of in twins.items()
    }
    return {part: _told_from(art, who, of) for part, of in seen.items()}


def _told_from(art: np.ndarray, who: Identity, others: list[Identity]) -> np.ndarray:
    own = identity_similarity(art, who)
    return np.mean([identity_similarity(art, other) < own for other in others], axis=0)


# ---- what the classifier reads -------------------------------------------------------------------------------------


@cache
def _classifier() -> SpriteClassifier:
    return load_classifier()


def _unit(art: np.ndarray) -> Tensor:
    return _channels_first(art) / 127.5 - 1


@torch.no_grad()
def read_pictures(art: np.ndarray) -> list[dict]:
    """What each picture shows: class_word, colour, scene, count, position, size, and its taste in 0..1."""
    out = _classifier()(_unit(art))
    chosen = {name: [values[i] for i in out[name].argmax(1).tolist()] for name, values in HEADS.items()}
    taste = out["taste"].clamp(0, 1).tolist()
    return [{name: values[i] for name, values in chosen.items()} | {"taste": taste[i]} for i in range(len(art))]


@torch.no_grad()
def features(art: np.ndarray) -> np.ndarray:
    """The classifier's features [B, 64]."""
    return _classifier().features(_unit(art)).double().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^½) of two sets of features [N, d] (Heusel et al. 2017, eq. 6)."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    middle = np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(min=0)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(middle).sum())


# ---- pictures against their captions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One picture against its caption: `follows` has True or False for each property that the caption names."""

    caption: str
    shown: dict
    follows: dict[str, bool]
    similarity: float | None = None


def measure(art: np.ndarray, captions: list[str], who: Identity | None = None) -> list[Measured]:
    """Each picture of art [B, 32, 32, 3] against its caption, and against an identity where one is given."""
    similarities = [None] * len(art) if who is None else identity_similarity(art, who).tolist()
    measured = []
    for shown, text, similarity in zip(read_pictures(art), captions, similarities, strict=True):
        named = {name: value for name, value in read_caption(text).items() if value is not None}
        follows = {name: shown[name] == value for name, value in named.items()}
        measured.append(Measured(text, shown, follows, similarity))
    return measured


def accuracies(measured: list[Measured]) -> dict[str, float]:
    """The share of pictures that follow their caption, for each property that any caption names."""
    named = {name for one in measured for name in one.follows}
    shares = {name: [one.follows[name] for one in measured if name in one.follows] for name in HEADS if name in named}
    return {name: sum(values) / len(values) for name, values in shares.items()}


# ---- the measures' own accuracy ------------------------------------------------------------------------------------


def _drawn(number: int, held_out: bool, seed: int) -> tuple[list[Picture], np.ndarray]:
    drawn = list(itertools.islice(pictures(seed, held_out), number))
    return drawn, np.stack([render(picture)[0] for picture in drawn])


def _similarities(number: int, seed: int) -> dict[str, float]:
    """Own identity, and another of the same class and colour, of the same class, and of any: means and tails."""
    rng = np.random.default_rng(seed)
    found, told = {"own": [], "same class and colour": [], "same class": [], "any": []}, []
    seeds = (s for s in rng.integers(2**31, size=20 * number).tolist() if is_held_out(s))
    for own_seed in itertools.islice(seeds, number):
        who, other = identity(own_seed), own_seed + 1
        art = render(random_picture(rng, who, list(SCENES)[rng.integers(len(SCENES))]))[0][None]
        rivals = {
            "own": who,
            "same class and colour": identity(other, who.class_word, who.colour),
            "same class": identity(other, who.class_word),
            "any": identity(other),
        }
        for name, rival in rivals.items():
            found[name].append(float(identity_similarity(art, rival)[0]))
        if len(told) < number // 10:  # forty matchings each
            told.append(recognition(art, who)[0])
    rows = {f"similarity, {name}: mean": float(np.mean(values)) for name, values in found.items()}
    own, rival = np.array(found["own"]), np.array(found["same class and colour"])
    return rows | {
        "recognition, own: mean": float(np.mean(told)),
        "similarity, own: 5th percentile": float(np.percentile(own, 5)),
        "own beats same class and colour": float((own > rival).mean()),
    }


def report(number: int = 1000, seed: int = 99) -> dict[str, float]:
    """The measures on held-out renders: accuracies, taste's error and correlation, similarities, distances."""
    drawn, art = _drawn(number, held_out=True, seed=seed)
    shown = read_pictures(art)
    rows = {
        f"accuracy, {name}": float(
            np.mean([s[name] == p.properties()[name] for s, p in zip(shown, drawn, strict=True)])
        )
        for name in HEADS
    }
    taste, truth = np.array([s["taste"] for s in shown]), np.array([p.taste for p in drawn])
    rows |= {
        "taste: mean error": float(np.abs(taste - truth).mean()),
        "taste: correlation": float(np.corrcoef(taste, truth)[0, 1]),
    }
    rows |= _similarities(min(number, 300), seed)
    half = number // 2
    rows["Fréchet distance, two halves of held-out renders"] = frechet_distance(
        features(art[:half]), features(art[half:])
    )
    crude, fine = art[truth < 0.5], art[truth >= 0.5]
    rows["Fréchet distance, crude against fine renders"] = frechet_distance(features(crude), features(fine))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="The measures' own accuracy on held-out renders.")
    parser.add_argument("--number", type=int, default=1000, help="held-out renders")
    parser.add_argument("--json", action="store_true", help="as JSON instead of a table")
    options = parser.parse_args()
    rows = report(options.number)
    print(
        json.dumps(rows, indent=1)
        if options.json
        else "\n".join(f"{value:8.4f}  {name}" for name, value in rows.items())
    )


if __name__ == "__main__":
    main()
