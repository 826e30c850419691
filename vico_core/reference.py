"""The reference's features: the tokens that image attention looks at, chosen by the mask, and the bank that keeps them."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """Reference tokens [K, dim] of one place, and which of them are the object, bool [K]; None: all of them."""

    tokens: Tensor
    mask: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + (0 if self.mask is None else self.mask.nbytes)

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    def here(self) -> "Kept":
        return self


class Arriving(NamedTuple):
    """Kept tokens on their way to a GPU on a stream of their own; who needs them waits there, and the host never."""

    kept: Kept
    arrived: torch.cuda.Event

    @property
    def nbytes(self) -> int:
        return self.kept.nbytes

    @property
    def device(self) -> torch.device:
        return self.kept.device

    @torch.compiler.disable
    def here(self) -> Kept:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self.arrived)
        for part in self.kept:
            if part is not None:
                part.record_stream(stream)
        return self.kept


Features = dict[str, Kept | Arriving]  # by place name


def keep_tokens(tokens: Tensor, mask: Tensor | None) -> Kept:
    """tokens [M, dim] and mask bool [M] (None: all): those under the mask. Attending to them equals attending under the mask.

    How many there are is known only where the mask is. On the CPU they are gathered; a device would have to be waited for,
    so there all tokens stay, with the mask beside them.
    """
    if mask is None or tokens.device.type != "cpu":
        return Kept(tokens, mask)
    return gather_tokens(tokens, mask)


def gather_tokens(tokens: Tensor, mask: Tensor | None) -> Kept:
    """The same, gathered on any device, which has to be waited for."""
    if mask is None:
        return Kept(tokens)
    count = int(mask.numpy().sum() if mask.device.type == "cpu" else mask.sum())
    return Kept(tokens[(~mask).to(torch.uint8).argsort(stable=True)[:count]])


def side_by_side(photos: list[Kept]) -> Kept:
    """The kept tokens of several photos as one."""
    tokens = torch.cat([kept.tokens for kept in photos])
    if all(kept.mask is None for kept in photos):
        return Kept(tokens)
    masks = [torch.ones_like(k.tokens[:, 0], dtype=torch.bool) if k.mask is None else k.mask for k in photos]
    return Kept(tokens, torch.cat(masks))


def feature_bytes(tokens_and_widths: list[tuple[int, int]], element_size: int) -> int:
    """Bytes of one step's features of one context, all keys kept: sum of M·dim over the places [(M, dim), …]."""
    return sum(tokens * dim for tokens, dim in tokens_and_widths) * element_size


def nbytes(features: Features) -> int:
    return sum(kept.nbytes for kept in features.values())


@dataclass
class Entry:
    features: Features
    run: int
    on_device: bool


class FeatureBank:
    """Reference features within a budget of bytes, kept across seeds.

    On the device where they were made while they fit a run's share of it, in system memory beyond that. What the running
    picture uses is never evicted by it: past the budget, later steps are simply not kept. Otherwise least recently used
    first.
    """

    def __init__(self):
        self.entries: dict[Hashable, Entry] = {}
        self.nbytes = 0
        self.device_nbytes = 0
        self.run = 0
        self.share = 0

    def begin_run(self, share: int) -> None:
        """A new picture starts: what it does not touch may be evicted for it. share: bytes on the device, at most."""
        self.run += 1
        self.share = share

    def get(self, key: Hashable, device: torch.device) -> Features | None:
        entry = self.entries.pop(key, None)
        if entry is None:
            return None
        self.entries[key] = entry
        entry.run = self.run
        features = {p: kept if kept.device == device else fetch(kept, device) for p, kept in entry.features.items()}
        if not entry.on_device and self.has_room(
            nbytes(features)
        ):  # the host's manager had taken the device's memory back
            entry.features, entry.on_device = features, True
            self.device_nbytes += nbytes(features)
        return features

    def has_room(self, size: int) -> bool:
        return self.device_nbytes + size <= self.share

    def put(self, key: Hashable, features: Features, budget: int) -> None:
        size = nbytes(features)
        self.shrink(budget - size)
        if self.nbytes + size > budget:
            return
        on_device = self.has_room(size)
        kept = features if on_device else in_system_memory(features)
        self.entries[key] = Entry(kept, self.run, on_device)
        self.nbytes += size
        self.device_nbytes += size * on_device

    def shrink(self, budget: int) -> None:
        """Evicts entries that this run has not used, oldest first, until `budget` bytes hold the rest."""
        stale = [key for key, entry in self.entries.items() if entry.run != self.run]
        for key in stale:
            if self.nbytes <= budget:
                return
            entry = self.entries.pop(key)
            self.nbytes -= nbytes(entry.features)
            self.device_nbytes -= nbytes(entry.features) * entry.on_device

    def leave_device(self) -> None:
        """Moves everything to system memory: the device is wanted for something else."""
        for entry in self.entries.values():
            if entry.on_device:
                entry.features, entry.on_device = in_system_memory(entry.features), False
        self.device_nbytes = 0


def in_system_memory(features: Features) -> Features:
    """Copies that a GPU can read and write without the host: pinned, and not waited for. On the CPU, the very same."""
    return {
        place: Kept(*(None if part is None else unloaded(part) for part in kept.here()))
        for place, kept in features.items()
    }


def unloaded(part: Tensor) -> Tensor:
    if part.device.type == "cpu":
        return part
    pinned = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.device.type == "cuda")
    return pinned.copy_(part, non_blocking=part.device.type == "cuda")


STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def fetch(kept: Kept, device: torch.device) -> Kept | Arriving:
    """Kept tokens out of system memory."""
    if device.type != "cuda":
        return Kept(*(None if part is None else part.to(device) for part in kept))
    if device not in STREAMS:
        STREAMS[device] = torch.cuda.Stream(device)
    stream = STREAMS[device]
    stream.wait_stream(torch.cuda.current_stream(device))  # they may still be on their way out
    with torch.cuda.stream(stream):
        moved = Kept(*(None if part is None else part.to(device, non_blocking=True) for part in kept))
        return Arriving(moved, stream.record_event())
