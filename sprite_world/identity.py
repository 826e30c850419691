"""Identities: what makes one creature this one and no other of its class and colour family."""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import dataclass

import numpy as np

from .vocabulary import CLASSES, COLOURS

MARKINGS = ("plain", "stripes", "spots", "patch", "band", "cap")
# Colours of the markings: none of them could be taken for a colour family.
ACCENTS = ((255, 238, 200), (52, 46, 62), (96, 220, 228), (190, 232, 84), (118, 72, 52))
HELD_OUT_SHARE = 10  # one identity in ten is never seen in training


@dataclass(frozen=True)
class Identity:
    """One creature. `shape` are four proportions in [0, 1] whose meaning depends on the class."""

    seed: int
    class_word: str
    colour: str
    body: tuple[int, int, int]
    accent: tuple[int, int, int]
    marking: str
    marking_phase: int
    eyes: int
    shape: tuple[float, float, float, float]


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    rgb = colorsys.hsv_to_rgb(hue / 360 % 1, np.clip(saturation, 0, 1), np.clip(value, 0, 1))
    return tuple(round(255 * channel) for channel in rgb)


def _body_colour(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    hue, saturation, value = COLOURS[colour]
    return _rgb(hue + rng.uniform(-6, 6), saturation + rng.uniform(-0.07, 0.05), value + rng.uniform(-0.06, 0.03))


def identity(seed: int, class_word: str | None = None, colour: str | None = None) -> Identity:
    """The creature of this seed. Class and colour follow from the seed unless they are given."""
    rng = np.random.default_rng([0x5EED, seed])
    drawn_class, drawn_colour = CLASSES[rng.integers(len(CLASSES))], list(COLOURS)[rng.integers(len(COLOURS))]
    class_word, colour = class_word or drawn_class, colour or drawn_colour
    return Identity(
        seed=seed,
        class_word=class_word,
        colour=colour,
        body=_body_colour(rng, colour),
        accent=ACCENTS[rng.integers(len(ACCENTS))],
        marking=MARKINGS[rng.integers(len(MARKINGS))],
        marking_phase=int(rng.integers(4)),
        eyes=int(rng.integers(3)),
        shape=tuple(float(v) for v in rng.random(4)),
    )


def is_held_out(seed: int) -> bool:
    """Whether this identity is kept from training (decided by a hash of its seed)."""
    digest = hashlib.sha256(f"sprite-identity-{seed}".encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0
