"""The reference's features: the tokens that image attention looks at, gathered by the mask, and the bank that keeps them."""

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

Features = dict[str, Tensor]  # {place name: kept reference tokens [K, dim]}


def keep_tokens(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """tokens [M, dim] and mask bool [M] (None: all) -> [K, dim]. Attending to these equals attending to all under the mask."""
    return tokens if mask is None else tokens[mask]


def feature_bytes(tokens_and_widths: list[tuple[int, int]], element_size: int) -> int:
    """Bytes of one step's features of one context, all keys kept: sum of M·dim over the places [(M, dim), …]."""
    return sum(tokens * dim for tokens, dim in tokens_and_widths) * element_size


def nbytes(features: Features) -> int:
    return sum(tokens.nbytes for tokens in features.values())


@dataclass
class Entry:
    features: Features
    run: int


class FeatureBank:
    """Reference features in system memory, within a budget of bytes, kept across seeds.

    What the running picture uses is never evicted by it: past the budget, later steps are simply not kept. Otherwise least
    recently used first.
    """

    def __init__(self):
        self.entries: dict[Hashable, Entry] = {}
        self.nbytes = 0
        self.run = 0

    def begin_run(self) -> None:
        """A new picture starts: what it does not touch may be evicted for it."""
        self.run += 1

    def get(self, key: Hashable, device) -> Features | None:
        entry = self.entries.pop(key, None)
        if entry is None:
            return None
        self.entries[key] = Entry(entry.features, self.run)
        return {place: tokens.to(device) for place, tokens in entry.features.items()}

    def put(self, key: Hashable, features: Features, budget: int) -> None:
        size = nbytes(features)
        self.shrink(budget - size)
        if self.nbytes + size > budget:
            return
        self.entries[key] = Entry({place: tokens.to("cpu", copy=True) for place, tokens in features.items()}, self.run)
        self.nbytes += size

    def shrink(self, budget: int) -> None:
        """Evicts entries that this run has not used, oldest first, until `budget` bytes hold the rest."""
        stale = [key for key, entry in self.entries.items() if entry.run != self.run]
        for key in stale:
            if self.nbytes <= budget:
                return
            self.nbytes -= nbytes(self.entries.pop(key).features)
