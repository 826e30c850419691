"""Pictures: a creature (or two) in a scene, at a place, drawn with a taste; and the sets they come in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .identity import Identity, identity, is_held_out
from .scenes import ART, paint
from .sprites import SIDES, draw
from .vocabulary import CLASSES, COLOURS, POSITIONS, SCENES, caption

PIXELS = 4  # screen pixels per art pixel: a picture is 128 x 128
CENTRES = {"left": 10, "centre": 16, "right": 22}
TWO_CENTRES = (8, 24)
GROUND = 27  # the row that the creatures stand on, in the mean


@dataclass(frozen=True)
class Picture:
    """All that decides one picture. `taste` in [0, 1]; `seed` draws the scene's texture, the clutter, the jitter."""

    who: Identity
    scene: str
    position: str
    size: str
    count: int
    taste: float
    seed: int

    def properties(self) -> dict:
        """What a caption may name."""
        position = None if self.count == 2 else self.position
        return {
            "class_word": self.who.class_word,
            "colour": self.who.colour,
            "scene": self.scene,
            "position": position,
            "size": self.size,
            "count": self.count,
        }

    def caption(self) -> str:
        return caption(**self.properties())


def _places(picture: Picture, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(top, left) of each creature's square: even numbers, so that art lies alike on the latents' 2 x 2 patches."""
    side = SIDES[picture.size]
    centres = TWO_CENTRES if picture.count == 2 else (CENTRES[picture.position],)
    bottom = GROUND + (1 if picture.size == "large" else -1) + 2 * int(rng.integers(0, 2))
    top = (bottom - side) // 2 * 2
    lefts = [centre - side // 2 + int(rng.integers(-1, 2)) for centre in centres]
    return [(top, int(np.clip(left // 2 * 2, 0, ART - side))) for left in lefts]


def _clutter(art: np.ndarray, taste: float, rng: np.random.Generator) -> None:
    """Crude pictures carry grey specks: five at taste 0, none at taste 1."""
    for _ in range(round(5 * (1 - taste))):
        top, left = 2 * rng.integers(0, ART // 2, size=2)
        art[top : top + 2, left : left + 2] = rng.choice([70, 130, 190])


def contrasted(art: np.ndarray, taste: float) -> np.ndarray:
    """Crude pictures are pale: colours in 0..255 move towards grey, to 60% of their contrast at taste 0."""
    return 128 + (0.6 + 0.4 * taste) * (art - 128)


def render(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """The picture as art: colours [32, 32, 3] uint8 and the creatures' mask [32, 32] bool."""
    rng = np.random.default_rng([0xA27, picture.seed])
    art, mask = paint(picture.scene, rng), np.zeros((ART, ART), dtype=bool)
    colours, cover = draw(picture.who, SIDES[picture.size], picture.taste)
    side = cover.shape[0]
    for top, left in _places(picture, rng):
        square = art[top : top + side, left : left + side]
        square += cover[..., None] * (colours - square)
        mask[top : top + side, left : left + side] |= cover == 1
    _clutter(art, picture.taste, rng)
    return np.round(contrasted(art, picture.taste)).clip(0, 255).astype(np.uint8), mask


def show(art: np.ndarray) -> np.ndarray:
    """Art pixels to screen pixels: [..., 32, 32, 3] -> [..., 128, 128, 3], each shown as 4 x 4."""
    return art.repeat(PIXELS, axis=-3).repeat(PIXELS, axis=-2)


def is_held_out_pair(class_word: str, scene: str) -> bool:
    """One scene for each class is kept from training, so that a creature there is something new."""
    return (3 * CLASSES.index(class_word) + 1) % len(SCENES) == list(SCENES).index(scene)


def is_held_out_prompt(class_word: str, colour: str, scene: str) -> bool:
    """A tenth of the (class, colour, scene) triples, and every held-out pair, are kept from training."""
    digest = hashlib.sha256(f"sprite-prompt-{class_word}-{colour}-{scene}".encode()).digest()
    return is_held_out_pair(class_word, scene) or digest[0] % 10 == 0


def random_picture(rng: np.random.Generator, who: Identity, scene: str, taste: float | None = None) -> Picture:
    """A picture of this creature in this scene; everything else is drawn."""
    count = 2 if rng.random() < 0.2 else 1
    return Picture(
        who=who,
        scene=scene,
        position=POSITIONS[rng.integers(3)],
        size="small" if count == 2 else ("small", "large")[int(rng.random() < 0.65)],
        count=count,
        taste=float(rng.random()) if taste is None else taste,
        seed=int(rng.integers(2**31)),
    )


def pictures(seed: int, held_out: bool = False) -> Iterator[Picture]:
    """An endless stream of pictures: of the training world, or of held-out identities in held-out prompts."""
    rng = np.random.default_rng([0x9A9E, seed])
    scenes = list(SCENES)
    while True:
        who, scene = identity(int(rng.integers(2**31))), scenes[rng.integers(len(scenes))]
        if is_held_out(who.seed) == held_out and is_held_out_prompt(who.class_word, who.colour, scene) == held_out:
            yield random_picture(rng, who, scene)


def chosen_pictures(
    seed: int,
    class_word: str | None = None,
    colour: str | None = None,
    scene: str | None = None,
    identity_seed: int | None = None,
    tastes: tuple[float, float] = (1.0, 1.0),
    size: str | None = None,
) -> Iterator[Picture]:
    """An endless stream of pictures with what is given held fixed: a class, a colour, a scene, one identity, a size."""
    rng = np.random.default_rng([0xC405E, seed])
    while True:
        who_seed = int(rng.integers(2**31)) if identity_seed is None else identity_seed
        place = scene or list(SCENES)[rng.integers(len(SCENES))]
        picture = random_picture(rng, identity(who_seed, class_word, colour), place, rng.uniform(*sorted(tastes)))
        if size in (None, picture.size):
            yield picture


def evaluation_prompts(number: int = 500, seed: int = 7) -> list[str]:
    """The fixed evaluation set: captions whose (class, colour, scene) no training picture has."""
    rng = np.random.default_rng([0xE7A1, seed])
    triples = [(c, k, s) for c in CLASSES for k in COLOURS for s in SCENES if is_held_out_prompt(c, k, s)]
    order = [triples[i % len(triples)] for i in rng.permutation(-(-number // len(triples)) * len(triples))[:number]]
    return [_evaluation_caption(rng, *triple) for triple in order]


def _evaluation_caption(rng: np.random.Generator, class_word: str, colour: str, scene: str) -> str:
    count = 2 if rng.random() < 0.2 else 1
    position = POSITIONS[rng.integers(3)] if rng.random() < 0.5 else None
    return caption(class_word, colour, scene, position=position, size=None, count=count)
