"""People of the Sprite World: what they see in a picture, which of two they choose, and the pairs that come of it.

A person looks at three things, each in the standard deviations that it has among the pictures people are shown: taste (the
drawing's quality, as the world's classifier reads it), prompt (the share of the caption's words that are followed) and
fidelity (how near the picture is to the caption's true scene). How much each counts differs from person to person.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from ..sprite_world.identity import identity
from ..sprite_world.measure import features, measure
from ..sprite_world.pictures import Picture, chosen_pictures, render
from ..sprite_world.vocabulary import CLASSES, COLOURS, POSITIONS, SCENES, SIZES, read_caption

SEEN = ("taste", "prompt", "fidelity")
FINE, CRUDE = (0.8, 1.0), (0.0, 0.2)  # tastes of the two drawings of a scene
STRONGER, LITTLE_BETTER = (0.7, 1.0), (0.5, 1.0)  # tastes of the pictures that people are shown; the base's mean is 0.7
MISREAD, BLUR = 0.15, 0.4  # of those pictures: the share in which one word is not followed, and the most blur
PEOPLE, SHARES = 100, (2.0, 1.0, 1.0)  # how many, and the Dirichlet distribution of what counts for them
TIES = 0.12  # the share of pairs that a person does not tell apart, as in Pick-a-Pic
TRUE_SCENES = 16  # renders that a picture's fidelity is the distance to
OTHERS = {"colour": tuple(COLOURS), "scene": tuple(SCENES), "position": POSITIONS, "size": SIZES, "class_word": CLASSES}


# ---- what is seen --------------------------------------------------------------------------------------------------


def art_of(pictures: list[Picture]) -> np.ndarray:
    return np.stack([render(picture)[0] for picture in pictures])


@cache
def true_scenes(caption: str) -> np.ndarray:
    """Features [16, 64] of drawings of all tastes that show what the caption says."""
    named = {name: value for name, value in read_caption(caption).items() if value is not None}
    fixed = {name: named[name] for name in ("class_word", "colour", "scene")}
    free = {name: value for name, value in named.items() if name in ("position", "size", "count")}
    drawn = itertools.islice(chosen_pictures(5, **fixed, tastes=(0.0, 1.0)), TRUE_SCENES)
    return features(art_of([replace(picture, **free) for picture in drawn]))


def fidelity(art: np.ndarray, captions: list[str]) -> np.ndarray:
    """Minus the distance, in the classifier's features, to the nearest drawing of the caption's true scene: [N]."""
    found = zip(features(art), captions, strict=True)
    return np.array([-np.linalg.norm(true_scenes(caption) - one, axis=1).min() for one, caption in found])


def see(art: np.ndarray, captions: list[str]) -> np.ndarray:
    """Taste, prompt and fidelity of each picture of art [N, 32, 32, 3]: [N, 3]."""
    measured = measure(art, captions)
    taste = [one.shown["taste"] for one in measured]
    prompt = [np.mean(list(one.follows.values())) for one in measured]
    return np.stack([taste, prompt, fidelity(art, captions)], axis=1)


@cache
def spread(used_to: str = "independent") -> np.ndarray:
    """Standard deviations [3] of what is seen among the independent pictures of this kind."""
    drawn = list(itertools.islice(PAIRS[used_to](0), 250))
    shown = [see(np.stack([pair[side] for _, pair in drawn]), [caption for caption, _ in drawn]) for side in (0, 1)]
    return np.concatenate(shown).std(axis=0)


# ---- who chooses ---------------------------------------------------------------------------------------------------


@cache
def people() -> np.ndarray:
    """What counts for each person: [100, 3], rows that sum to one."""
    return np.random.default_rng(0x9E0B1E).dirichlet(SHARES, PEOPLE)


def utility(seen: np.ndarray, weights: np.ndarray | None = None, used_to: str = "independent") -> np.ndarray:
    """What a picture that is seen so [N, 3] is worth to a person with these weights, or to people in the mean: [N].

    used_to: the kind of pairs that they are shown, whose spread is their measure.
    """
    return seen / spread(used_to) @ (people().mean(axis=0) if weights is None else weights)


@cache
def tie_width(used_to: str = "independent") -> float:
    """The difference in a person's utility below which a pair is a tie."""
    differences = np.abs([difference for _, _, difference, _ in judged(used_to, 0, 0.0, 500)])
    return float(np.quantile(differences, TIES))


def judged(kind: str, seed: int, noise: float, number: int) -> Iterator[tuple[str, tuple, float, bool]]:
    """Caption, two pictures, the first one's lead for the person that is asked, and whether their label is wrong.

    The same seed gives the same pairs and people whatever the noise, and a label that is wrong at little noise is wrong at more.
    """
    rng = np.random.default_rng([0x1ABE1, seed])
    for caption, pair in itertools.islice(PAIRS[kind](seed), number):
        weights = people()[rng.integers(PEOPLE)]
        first, second = utility(see(np.stack(pair), [caption] * 2), weights, USED_TO[kind])
        yield caption, pair, float(first - second), bool(rng.random() < noise)


# ---- pairs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """What was chosen: captions, and the winners' and losers' art [N, 32, 32, 3] each."""

    captions: list[str]
    winners: np.ndarray
    losers: np.ndarray


def pairs(kind: str, seed: int, number: int, noise: float) -> Pairs:
    """As many pairs as people could tell apart; the chosen picture is the winner, at `noise` the other one."""
    told = (
        (c, p, d, wrong) for c, p, d, wrong in judged(kind, seed, noise, 10**9) if abs(d) >= tie_width(USED_TO[kind])
    )
    captions, winners, losers = [], [], []
    for caption, (first, second), lead, wrong in itertools.islice(told, number):
        won, lost = (first, second) if (lead > 0) != wrong else (second, first)
        captions.append(caption), winners.append(won), losers.append(lost)
    return Pairs(captions, np.stack(winners), np.stack(losers))


def same_scene(seed: int) -> Iterator[tuple[str, tuple]]:
    """One creature in one scene, drawn finely and crudely: the two differ in taste alone."""
    fine, crude = (chosen_pictures(100 + seed, tastes=tastes) for tastes in (FINE, CRUDE))
    for one, other in zip(fine, crude, strict=True):
        yield one.caption(), (render(one)[0], render(other)[0])


def independent(seed: int, tastes: tuple[float, float] = STRONGER) -> Iterator[tuple[str, tuple]]:
    """Two creatures for one caption by a stronger model with faults: of mixed taste, some off the prompt, some blurred."""
    rng = np.random.default_rng([0x1DE9, seed])
    for picture in chosen_pictures(100 + seed):
        yield picture.caption(), tuple(stronger(picture, tastes, rng) for _ in range(2))


def stronger(asked: Picture, tastes: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Another creature for the caption of this picture, as a stronger model with faults draws it: art [32, 32, 3]."""
    shown = asked.properties()
    if rng.random() < MISREAD:
        named = [name for name in OTHERS if shown[name] is not None and (name != "size" or shown["count"] == 1)]
        wrong = named[rng.integers(len(named))]
        shown[wrong] = rng.choice([value for value in OTHERS[wrong] if value != shown[wrong]])
    who = identity(int(rng.integers(2**31)), str(shown["class_word"]), str(shown["colour"]))
    drawn = replace(
        asked,
        who=who,
        scene=str(shown["scene"]),
        position=shown["position"] or asked.position,
        size=str(shown["size"]),
        taste=rng.uniform(*tastes),
        seed=int(rng.integers(2**31)),
    )
    return blurred(render(drawn)[0], rng.uniform(0, BLUR))


def blurred(art: np.ndarray, amount: float) -> np.ndarray:
    """Art [32, 32, 3] mixed with its mean over 3 x 3 pixels."""
    padded = np.pad(art.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    mean = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1)).mean(axis=(-2, -1))
    return np.round(art + amount * (mean - art)).astype(np.uint8)


PAIRS = {
    "independent": independent,
    "little-better": partial(independent, tastes=LITTLE_BETTER),
    "same-scene": same_scene,
}
# A scene drawn twice differs in taste alone, which has no spread of its own to be a measure.
USED_TO = {"independent": "independent", "little-better": "little-better", "same-scene": "independent"}


def agreement(noise: float, number: int = 1000) -> dict[str, float]:
    """How often two labels of a pair agree, and how often one names the finer drawing, among pairs that people tell apart."""
    rng, alike, finer = np.random.default_rng(3), [], []
    for caption, pair in itertools.islice(independent(1), number):
        seen = see(np.stack(pair), [caption] * 2)
        leads = [np.subtract(*utility(seen, people()[rng.integers(PEOPLE)])) for _ in range(2)]
        if min(map(abs, leads)) >= tie_width():
            alike.append((leads[0] > 0) == (leads[1] > 0))
            finer.append((leads[0] > 0) == (seen[0, 0] > seen[1, 0]))
    unturned = noise**2 + (1 - noise) ** 2  # both labels as meant, or both turned
    return {
        "labels agree": float(np.mean([unturned if same else 1 - unturned for same in alike])),
        "label names the finer": float(np.mean([1 - noise if same else noise for same in finer])),
    }
