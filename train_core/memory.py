"""Memory: gradient checkpointing (Chen et al. 2016: keep a block's inputs, compute its inside again), and what is held counted."""

import weakref
from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint


@contextmanager
def gradient_checkpointing(blocks: Iterable[nn.Module]):
    """Inside, each block keeps only what goes in. Same gradients from less memory, at a second forward."""
    patched = [(block, block.__dict__.get("forward")) for block in blocks]
    for block, _ in patched:
        block.forward = _checkpointed(block.forward)
    try:
        yield
    finally:
        for block, before in patched:
            del block.forward  # the class's own is visible again …
            if before is not None:
                block.forward = before  # … or the patch that somebody had put there


def _checkpointed(forward):
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


class Allocated(TorchDispatchMode):
    """Inside, every storage that an operation makes counts until it is freed: the same bytes on every device.

    held: bytes now; peak: their most; largest: of one allocation. What was there before does not count.
    """

    def __init__(self):
        super().__init__()
        self.held = self.peak = self.largest = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        before = {self.address(t) for t in leaves if isinstance(t, Tensor)}
        before |= {
            given._cdata for given in leaves if isinstance(given, torch.UntypedStorage)
        }  # a view over bytes that are there
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and self.address(tensor) not in before:
                self.count(tensor.untyped_storage())
        return made

    @staticmethod
    def address(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.ref(storage, lambda gone: self.free(key, size))
        self.held += size
        self.peak, self.largest = max(self.peak, self.held), max(self.largest, size)

    def free(self, key: int, size: int) -> None:
        del self.known[key]
        self.held -= size
