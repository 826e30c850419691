"""Chance that can be repeated: draws keyed by what they are for, and the random states that a checkpoint keeps."""

import hashlib
import random

import numpy
import torch
from torch import Tensor


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by its key, for instance (seed, "noise", index of the pair).

    What is drawn for a sample then depends neither on the batch that it sits in, nor on the rank, nor on what
    was drawn before: two ranks draw what one would, and a resumed run draws what an uninterrupted one would.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class DataOrder:
    """The endless shuffled stream as batches, each a pure function of its index: a resumed run needs no other state."""

    def __init__(self, count: int, batch_size: int, seed: int, process_index: int = 0, num_processes: int = 1):
        if count < 1:
            raise ValueError("Take a data set with pictures.\nThis one is empty: there is nothing to train on.")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.process_index, self.num_processes = process_index, num_processes
        self._epoch, self._order = -1, []

    def positions(self, index: int) -> range:
        """Places in the stream that batch `index` of this process covers; the processes' batches lie side by side."""
        start = (index * self.num_processes + self.process_index) * self.batch_size
        return range(start, start + self.batch_size)

    def samples(self, index: int) -> list[int]:
        """The samples of batch `index` of this process."""
        return [self._sample(position) for position in self.positions(index)]

    def _sample(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            generator = keyed_generator(self.seed, "order", epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator).tolist()
        return self._order[place]


def random_states(device: torch.device) -> dict:
    """States of python's, numpy's and torch's generators (the device's own included): tensors and JSON values."""
    states = {"python": random.getstate(), "numpy": list(numpy.random.get_state()), "torch": torch.get_rng_state()}
    states["numpy"][1] = states["numpy"][1].tolist()
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def restore_random_states(states: dict, device: torch.device) -> None:
    """Puts back what random_states returned, also after it went through JSON (where tuples become lists)."""
    version, values, gauss = states["python"]
    random.setstate((version, tuple(values), gauss))
    numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if "device" in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])


def weights_hash(weights: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes: equal exactly where every weight is equal."""
    digest = hashlib.sha256()
    with torch.inference_mode():  # outside it, weights that were loaded inside it cannot be viewed as bytes
        for name in sorted(weights):
            weight = weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
