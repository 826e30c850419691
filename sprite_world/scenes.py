"""Backgrounds: ten scenes of 32 x 32 art pixels, flat colours and one simple texture each."""

from __future__ import annotations

import numpy as np

ART = 32  # side of a picture in art pixels
HORIZON = 14


def _filled(colour) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype=np.float32), (ART, ART, 3)).copy()


def _split(sky, ground) -> np.ndarray:
    art = _filled(sky)
    art[HORIZON:] = ground
    return art


def _sprinkle(rng, art, colour, number, rows, height=1, width=1):
    """`number` small blocks of one colour at even places within the rows."""
    for _ in range(number):
        top, left = 2 * int(rng.integers(rows[0] // 2, rows[1] // 2)), 2 * int(rng.integers(0, ART // 2))
        art[top : top + height, left : left + width] = colour


def _grass(rng):
    art = _split((150, 205, 240), (104, 184, 84))
    _sprinkle(rng, art, (66, 140, 60), 14, (HORIZON, ART), height=2)
    return art


def _sand(rng):
    art = _split((196, 226, 240), (232, 206, 148))
    art[HORIZON - 4 : HORIZON] = (86, 160, 200)
    _sprinkle(rng, art, (204, 172, 112), 12, (HORIZON, ART), width=2)
    return art


def _snow(rng):
    art = _split((148, 164, 190), (226, 234, 244))
    _sprinkle(rng, art, (255, 255, 255), 12, (0, HORIZON), height=2, width=2)
    return art


def _night(rng):
    art = _split((24, 26, 66), (46, 58, 70))
    _sprinkle(rng, art, (240, 236, 190), 12, (0, HORIZON))
    return art


def _brick(rng):
    art = _filled((150, 76, 62))
    art[3::4] = (196, 178, 166)
    for row in range(0, ART, 4):
        art[row : row + 3, (4 * (row // 4 % 2) + 3) % 8 :: 8] = (196, 178, 166)
    return art


def _water(rng):
    art = _filled((60, 132, 190))
    for row in range(2, ART, 6):
        start = 2 * int(rng.integers(0, 4))
        for left in range(start, ART, 8):
            art[row, left : left + 4] = (150, 208, 232)
    return art


def _forest(rng):
    art = _split((52, 92, 72), (70, 84, 52))
    for left in range(2 * int(rng.integers(0, 4)), ART, 8):
        art[: HORIZON + 2, left : left + 4] = (84, 62, 48)
    return art


def _sunset(rng):
    art = _filled((250, 170, 96))
    art[:6] = (140, 90, 150)
    art[6:10] = (214, 112, 128)
    left = 2 * int(rng.integers(2, 10))
    art[8:HORIZON, left : left + 8] = (255, 236, 150)
    art[HORIZON + 4 :] = (74, 52, 92)
    return art


def _tiles(rng):
    squares = (np.arange(ART)[:, None] // 4 + np.arange(ART)[None, :] // 4) % 2
    return np.where(squares[..., None] == 1, (210, 214, 220), (128, 140, 154)).astype(np.float32)


def _lava(rng):
    art = _split((58, 30, 36), (96, 34, 30))
    for row in range(HORIZON + 2, ART, 4):
        start = 2 * int(rng.integers(0, 5))
        for left in range(start, ART, 10):
            art[row : row + 2, left : left + 6] = (252, 140, 40)
    return art


PAINTERS = {
    "grass": _grass,
    "sand": _sand,
    "snow": _snow,
    "night": _night,
    "brick": _brick,
    "water": _water,
    "forest": _forest,
    "sunset": _sunset,
    "tiles": _tiles,
    "lava": _lava,
}


def paint(scene: str, rng: np.random.Generator) -> np.ndarray:
    """The empty scene: [32, 32, 3] in 0..255."""
    return PAINTERS[scene](rng)
