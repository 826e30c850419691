"""The words of the Sprite World: what a caption may say, how it says it, and how it is read back."""

from __future__ import annotations

import re

import numpy as np

CLASSES = ("rabbit", "crab", "butterfly", "mushroom", "robot", "ghost", "squid", "cactus")
PLURALS = {"butterfly": "butterflies", "cactus": "cacti"}

# Family name -> hue in degrees, saturation, value of the family's middle; identities vary a little around it.
COLOURS = {
    "red": (2, 0.80, 0.86),
    "orange": (30, 0.88, 0.97),
    "yellow": (51, 0.76, 0.97),
    "green": (128, 0.66, 0.66),
    "blue": (218, 0.76, 0.88),
    "purple": (274, 0.62, 0.72),
    "pink": (331, 0.40, 0.98),
    "white": (40, 0.03, 0.96),
}

# Scene name -> the words that a caption uses for it.
SCENES = {
    "grass": "on grass",
    "sand": "on sand",
    "snow": "in snow",
    "night": "at night",
    "brick": "by a brick wall",
    "water": "in water",
    "forest": "in a forest",
    "sunset": "at sunset",
    "tiles": "on tiles",
    "lava": "on lava",
}
POSITIONS = ("left", "centre", "right")
SIZES = ("small", "large")

_PLACE_WORDS = {"left": "on the left", "centre": "in the centre", "right": "on the right"}
OPENINGS = ("{}", "{}", "a photo of {}", "a picture of {}")


def plural(class_word: str) -> str:
    return PLURALS.get(class_word, class_word + "s")


def caption(
    class_word: str,
    colour: str,
    scene: str,
    position: str | None = None,
    size: str | None = None,
    count: int = 1,
    opening: str = "{}",
) -> str:
    """The caption that names these properties; None leaves one out. Two creatures have no position."""
    noun = plural(class_word) if count == 2 else class_word
    words = ["two" if count == 2 else "a", size, colour, noun]
    place = None if count == 2 or position is None else _PLACE_WORDS[position]
    phrase = " ".join(word for word in words if word)
    return opening.format(" ".join(part for part in (phrase, place, SCENES[scene]) if part))


def random_caption(rng: np.random.Generator, properties: dict) -> str:
    """A caption of a picture: class, colour and scene always; size and position each in half of the captions."""
    named = dict(properties)
    for optional in ("position", "size"):
        if rng.random() < 0.5:
            named[optional] = None
    return caption(**named, opening=str(rng.choice(OPENINGS)))


def read_caption(text: str) -> dict:
    """The properties that a caption names, None for those that it leaves open (ViCo's placeholder names no class)."""
    words = re.findall(r"[a-z]+", text.lower())
    plurals = {plural(c): c for c in CLASSES}
    classes = [plurals.get(w, w) for w in words if w in CLASSES or w in plurals]
    joined = " ".join(words)
    return {
        "class_word": classes[0] if classes else None,
        "colour": next((w for w in words if w in COLOURS), None),
        "scene": next((s for s, phrase in SCENES.items() if phrase in joined), None),
        "position": next((p for p, phrase in _PLACE_WORDS.items() if phrase in joined), None),
        "size": next((w for w in words if w in SIZES), None),
        "count": (2 if "two" in words or any(w in plurals for w in words) else 1) if classes else None,
    }
