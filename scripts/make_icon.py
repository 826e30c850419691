"""Draws the registry's icon and banner out of the Sprite World: python -m vico_spin.scripts.make_icon

One creature, drawn by the world itself: no model, no training. docs/icon.png is 400 x 400, docs/banner.png 1260 x 540.
"""

import numpy as np
from PIL import Image

from ..sprite_world.pictures import chosen_pictures, render
from .get_host import ROOT

CREATURE = {"identity_seed": 2, "class_word": "rabbit", "colour": "pink", "size": "large"}
REFERENCE, SCENES = "tiles", ("snow", "night", "sunset")
ICON_SCENE, ICON_ART, ICON_PIXEL = "sunset", 25, 16  # art pixels a side, screen pixels each
BANNER_ART, BANNER_PIXEL = (90, 210), 6  # rows, columns
PAPER, PINK, WHITE, GREEN = (26, 24, 40), (255, 150, 205), (244, 244, 250), (156, 196, 72)
FRAME, GAP, ARROW = 1, 4, (9, 14)
TITLE_TOP, PICTURES_TOP, LETTER = 13, 42, 2  # rows; art pixels of a letter's dot
LETTERS = {
    "V": "#...# #...# #...# .#.#. .#.#. .#.#. ..#..",
    "i": "# . # # # # #",
    "C": ".###. #...# #.... #.... #.... #...# .###.",
    "o": "..... ..... .###. #...# #...# #...# .###.",
    "+": "..... ..... ..#.. ..#.. ##### ..#.. ..#..",
    "S": ".###. #...# #.... .###. ....# #...# .###.",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "I": "### .#. .#. .#. .#. .#. ###",
    "N": "#...# ##..# #.#.# #.#.# #..## #...# #...#",
    " ": ".. .. .. .. .. .. ..",
}
TITLE = (("ViCo", PINK), (" + ", WHITE), ("SPIN", GREEN))


def creature_in(scene: str) -> tuple[np.ndarray, np.ndarray]:
    """The creature, alone and in the middle of the scene: colours [32, 32, 3] and its mask [32, 32]."""
    found = chosen_pictures(0, scene=scene, **CREATURE)
    return render(next(picture for picture in found if picture.count == 1 and picture.position == "centre"))


def icon() -> np.ndarray:
    """A square of art [25, 25, 3] with the creature in its middle."""
    art, mask = creature_in(ICON_SCENE)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = ((ends[0] + ends[-1] + 2 - ICON_ART) // 2 for ends in (rows, columns))
    return art[top : top + ICON_ART, left : left + ICON_ART]


def banner() -> np.ndarray:
    """The reference, an arrow, the creature in three scenes, and the pack's name over them: art [90, 210, 3]."""
    art = np.full((*BANNER_ART, 3), PAPER, dtype=np.uint8)
    place(art, picture_row(), PICTURES_TOP)
    place(art, title(), TITLE_TOP)
    return art


def place(art: np.ndarray, part: np.ndarray, top: int) -> None:
    """Puts the part in the middle of the art's width."""
    height, width = part.shape[:2]
    left = (art.shape[1] - width) // 2
    art[top : top + height, left : left + width] = part


def picture_row() -> np.ndarray:
    reference, *scenes = (framed(creature_in(scene)[0]) for scene in (REFERENCE, *SCENES))
    gap = space(len(reference), GAP)
    between = [part for scene in scenes for part in (gap, scene)][1:]
    return np.concatenate([reference, gap, arrow(len(reference)), gap, *between], axis=1)


def framed(art: np.ndarray) -> np.ndarray:
    framed_art = np.full((len(art) + 2 * FRAME, len(art) + 2 * FRAME, 3), WHITE, dtype=np.uint8)
    framed_art[FRAME:-FRAME, FRAME:-FRAME] = art
    return framed_art


def space(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, dtype=np.uint8)


def arrow(height: int) -> np.ndarray:
    """An arrow to the right, in the middle of the height: a shaft of three rows and a pointed head."""
    rows, columns = ARROW
    y, x = np.abs(np.arange(rows) - rows // 2)[:, None], np.arange(columns)[None]
    head = columns - rows // 2 - 1
    shape = ((x < head) & (y <= 1)) | ((x >= head) & (x + y < columns))
    whole = space(height, columns)
    top = (height - rows) // 2
    whole[top : top + rows][shape] = GREEN
    return whole


def title() -> np.ndarray:
    return np.concatenate([letter(sign, colour) for word, colour in TITLE for sign in word], axis=1)


def letter(sign: str, colour: tuple[int, int, int]) -> np.ndarray:
    """The sign's dots in its colour, with a free column behind it: art [14, width, 3]."""
    dots = np.array([[dot == "#" for dot in f"{row}."] for row in LETTERS[sign].split()])
    art = np.where(dots[..., None], colour, PAPER).astype(np.uint8)
    return enlarged(art, LETTER)


def enlarged(art: np.ndarray, pixels: int) -> np.ndarray:
    return art.repeat(pixels, axis=0).repeat(pixels, axis=1)


def main() -> None:
    for name, art, pixels in (("icon", icon(), ICON_PIXEL), ("banner", banner(), BANNER_PIXEL)):
        path = ROOT / "docs" / f"{name}.png"
        Image.fromarray(enlarged(art, pixels)).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
