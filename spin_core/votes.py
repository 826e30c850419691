"""Votes on pairs of pictures: lines of text that travel in a widget, merged over people, and what they come to."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

VALUE = {"first": 1.0, "second": 0.0, "tie": 0.5}  # of a vote for the first picture


@dataclass(frozen=True)
class Vote:
    """What one voter chose of one pair: first, second or tie."""

    pair: str
    choice: str
    voter: str


def pair_id(first: Image.Image, second: Image.Image, prompt: str) -> str:
    """Twelve hex digits of the two pictures and their prompt: a vote holds for what was seen, wherever it is drawn again."""
    digest = hashlib.sha256(prompt.encode())
    for picture in (first, second):
        digest.update(str(picture.size).encode() + picture.tobytes())
    return digest.hexdigest()[:12]


def parse_votes(text: str) -> list[Vote]:
    """ "<pair> <choice> <voter>" a line, as the node writes it; of a voter's votes on a pair the last one counts.

    Raises: ValueError that names the line.
    """
    votes = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        pair, choice, voter = [*line.strip().split(maxsplit=2), "", ""][:3]
        if choice not in VALUE:
            raise ValueError(
                f'Take line {number} out of the votes.\n"{line}" is no vote: it needs a pair and a choice.'
            )
        votes[pair, voter] = Vote(pair, choice, voter)
    return list(votes.values())


def shares(votes: Iterable[Vote]) -> dict[str, float]:
    """Of every pair that was voted on, how far its first picture won, in 0..1: the mean over its voters, ties half."""
    values: dict[str, list[float]] = {}
    for vote in votes:
        values.setdefault(vote.pair, []).append(VALUE[vote.choice])
    return {pair: sum(of_pair) / len(of_pair) for pair, of_pair in values.items()}
