"""Drawing a creature: mirror-symmetric implicit shapes, sampled on a square of art pixels.

Coordinates: x in [0, 1] is the distance from the mirror axis, y in [-1, 1] grows downwards. A shape is a boolean
array [size, size]; a class gives its silhouette, the region of its belly and where its eyes sit.
"""

from __future__ import annotations

import numpy as np

from .identity import Identity

SIDES = {"small": 16, "large": 22}  # side of a creature's square in art pixels
OUTLINE = np.array([34, 28, 44], dtype=np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = (2 * np.arange(size, dtype=np.float32) + 1 - size) / size  # exactly symmetric
    return np.abs(line)[None, :].repeat(size, 0), line[:, None].repeat(size, 1)


def _ellipse(x, y, cx, cy, rx, ry):
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1


def _box(x, y, x0, x1, y0, y1):
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def _rabbit(x, y, a, b, c, d):
    ears = _ellipse(x, y, 0.32 + 0.14 * c, -0.55, 0.15 + 0.05 * b, 0.40)
    body = _ellipse(x, y, 0, 0.36, 0.60 + 0.24 * a, 0.54)
    feet = _ellipse(x, y, 0.38 + 0.1 * d, 0.82, 0.26, 0.14)
    return ears | body | feet


def _crab(x, y, a, b, c, d):
    body = _ellipse(x, y, 0, 0.26, 0.50 + 0.14 * a, 0.36 + 0.10 * b)
    claws = _ellipse(x, y, 0.72, -0.52, 0.27, 0.28 + 0.14 * c) & ~_box(x, y, 0.64, 0.80, -1, -0.55)
    arms = _box(x, y, 0.64, 0.82, -0.35, 0.26) | _box(x, y, 0.4, 0.82, 0.1, 0.26)
    legs = (
        _box(x, y, 0.24, 0.42, 0.4, 0.98)
        | _box(x, y, 0.72, 0.90, 0.44, 0.74 + 0.24 * d)
        | _box(x, y, 0.4, 0.9, 0.4, 0.58)
    )
    return body | claws | arms | legs


def _butterfly(x, y, a, b, c, d):
    upper = _ellipse(x, y, 0.60, -0.34, 0.38, 0.40 + 0.16 * a)
    lower = _ellipse(x, y, 0.50, 0.52, 0.26 + 0.14 * b, 0.26 + 0.16 * c)
    joints = _box(x, y, 0, 0.4, -0.12, 0.04) | _box(x, y, 0, 0.4, 0.38, 0.54)
    body = _box(x, y, 0, 0.12, -0.5, 0.8) | _ellipse(x, y, 0, -0.52, 0.24, 0.2)
    feelers = _box(x, y, 0.1, 0.22, -0.92 - 0.1 * d, -0.55)
    return upper | lower | joints | body | feelers


def _mushroom(x, y, a, b, c, d):
    cap = _ellipse(x, y, 0, 0.06, 0.78 + 0.18 * a, 0.74 + 0.22 * b) & (y < 0.12)
    stem = _box(x, y, 0, 0.26 + 0.16 * c, 0.1, 0.92)
    foot = _box(x, y, 0, 0.40 + 0.12 * d, 0.74, 0.92)
    return cap | stem | foot


def _robot(x, y, a, b, c, d):
    head = _box(x, y, 0, 0.46 + 0.2 * a, -0.62, 0.02)
    body = _box(x, y, 0, 0.52 + 0.1 * b, 0.10, 0.70) | _box(x, y, 0, 0.2, 0, 0.12)
    arms = _box(x, y, 0.5, 0.94, 0.14, 0.32) | _box(x, y, 0.76, 0.94, 0.14, 0.44 + 0.3 * c)
    legs = _box(x, y, 0.18, 0.46, 0.68, 0.98)
    antenna = _box(x, y, 0, 0.12, -1, -0.6) | _box(x, y, 0, 0.12 + 0.16 * d, -1, -0.80)
    return head | body | arms | legs | antenna


def _ghost(x, y, a, b, c, d):
    width = 0.62 + 0.22 * a
    dome = _ellipse(x, y, 0, -0.22, width, 0.70)
    sheet = _box(x, y, 0, width, -0.22, 0.95) & (y < 0.76 + 0.2 * np.cos(x * (9 + 5 * b)))
    hands = _ellipse(x, y, 0.86, 0.10 + 0.2 * d, 0.16, 0.12 + 0.10 * c)
    return dome | sheet | hands


def _squid(x, y, a, b, c, d):
    mantle = (x < (y + 1.0) * (0.42 + 0.16 * a)) & (y < 0.02) | _ellipse(x, y, 0, 0.0, 0.50 + 0.12 * b, 0.34)
    fins = (x < 0.94) & (y > -0.62) & (y < -0.28 + 0.16 * c) & (x < (y + 0.9) * 1.9)
    inner = _box(x, y, 0.06, 0.24, 0.2, 0.98 - 0.3 * d)
    outer = _box(x, y, 0.44, 0.62, 0.12, 0.80 + 0.18 * d) | _box(x, y, 0.44, 0.84, 0.62, 0.80)
    return mantle | fins | inner | outer


def _cactus(x, y, a, b, c, d):
    width = 0.24 + 0.12 * a
    trunk = _box(x, y, 0, width, -0.72, 0.94) | _ellipse(x, y, 0, -0.70, width, 0.24)
    joint = 0.06 + 0.24 * b
    arms = _box(x, y, 0, 0.86, joint, joint + 0.2) | _box(x, y, 0.62, 0.86, -0.30 - 0.3 * c, joint + 0.2)
    pot = _box(x, y, 0, 0.40 + 0.14 * d, 0.70, 0.94)
    return trunk | arms | pot


SILHOUETTES = {
    "rabbit": _rabbit,
    "crab": _crab,
    "butterfly": _butterfly,
    "mushroom": _mushroom,
    "robot": _robot,
    "ghost": _ghost,
    "squid": _squid,
    "cactus": _cactus,
}
# Class -> (distance of the eyes from the axis, height of the eyes, centre of the belly's patch).
FACES = {
    "rabbit": (0.26, 0.22, 0.62),
    "crab": (0.22, 0.10, 0.42),
    "butterfly": (0.14, -0.50, 0.46),
    "mushroom": (0.26, -0.18, -0.56),
    "robot": (0.24, -0.34, 0.42),
    "ghost": (0.28, -0.26, 0.32),
    "squid": (0.26, -0.04, -0.44),
    "cactus": (0.14, -0.40, 0.30),
}


def _marking(who: Identity, x, y) -> np.ndarray:
    """Where the accent colour lies, before the silhouette cuts it."""
    phase, centre = who.marking_phase, FACES[who.class_word][2]
    return {
        "plain": np.zeros_like(x, dtype=bool),
        "stripes": ((y + 1) * 2.2 + phase / 4) % 1 < 0.34,
        "spots": ((x * 2.4 + (0.5 * ((y + 1) * 2.4 // 1) + phase / 4)) % 1 < 0.5) & (((y + 1) * 2.4) % 1 < 0.5),
        "patch": _ellipse(x, y, 0, centre, 0.26 + 0.05 * phase, 0.26),
        "band": np.abs(y - centre) < 0.10 + 0.03 * phase,
        "cap": y < -0.62 + 0.10 * phase,
    }[who.marking]


def _eyes(who: Identity, x, y) -> tuple[np.ndarray, np.ndarray]:
    """(whites, pupils) of the three kinds of eyes: dots, wide, and tall ones."""
    ex, ey, _ = FACES[who.class_word]
    rx, ry = ((0.10, 0.12), (0.17, 0.13), (0.11, 0.20))[who.eyes]
    whites = _box(x, y, ex - rx, ex + rx, ey - ry, ey + ry)
    pupils = whites if who.eyes == 0 else _box(x, y, ex - 0.09, ex + 0.05, ey - 0.02, ey + ry)
    return whites, pupils


def _shifted(mask: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """The mask moved by (dy, dx), False where nothing moves in."""
    padded = np.pad(mask, 1)
    h, w = mask.shape
    return padded[1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]


def _ring(body: np.ndarray) -> np.ndarray:
    """The pixels around the body, where the outline runs."""
    around = _shifted(body, 1, 0) | _shifted(body, -1, 0) | _shifted(body, 0, 1) | _shifted(body, 0, -1)
    return around & ~body


def silhouette(who: Identity, side: int) -> np.ndarray:
    """[side, side] bool: the creature's body, one pixel of room left around it for the outline."""
    return np.pad(SILHOUETTES[who.class_word](*_grid(side - 2), *who.shape), 1)


def draw(who: Identity, side: int, taste: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A creature on a square of `side` art pixels: colours [side, side, 3] in 0..255, its cover [side, side] in 0..1.

    Taste turns up the dark outline and the shading (light from above).
    """
    x, y = (np.pad(axis, 1, mode="edge") for axis in _grid(side - 2))
    body = silhouette(who, side)
    colours = np.where(_marking(who, x, y)[..., None], who.accent, who.body).astype(np.float32)
    colours *= 1 + taste * np.where(y < -0.45, 0.12, np.where(y > 0.5, -0.22, 0.0))[..., None]
    whites, pupils = _eyes(who, x, y)
    colours[whites] = (250, 250, 250)
    colours[pupils | ~body] = OUTLINE
    return np.clip(colours, 0, 255), np.where(body, 1.0, taste * _ring(body)).astype(np.float32)
