"""The opponent's pictures: in batches, kept on disk, resumable at any point, shared out over the ranks."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from .store import TensorStore, store_key

# sample(prompts, seeds, shape) -> latents [B, C, H, W]. One seed
# alone decides a picture's noise, whatever batch it is in.
Sample = Callable[[list[str], list[int], tuple[int, ...]], Tensor]
Kind = Callable[[str], Hashable]  # of a prompt: those of one kind can be drawn in one forward


def any_kind(prompt: str) -> Hashable:
    return None


@dataclass(frozen=True)
class Order:
    """One picture to be made. shape: of its latent, [C, H, W]."""

    prompt: str
    seed: int
    shape: tuple[int, ...]

    def made_from(self, model_hash: str, sampler: dict) -> dict:
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "shape": list(self.shape),
            "model": model_hash,
            "sampler": sampler,
        }


@dataclass(frozen=True)
class Pictures:
    """One opponent's pictures: its weights' hash, its sampler's settings (JSON values), where the latents lie."""

    store: TensorStore
    model_hash: str
    sampler: dict

    def key(self, order: Order) -> str:
        return store_key(**order.made_from(self.model_hash, self.sampler))

    def latent(self, order: Order) -> Tensor:
        """The finished picture's latent, [C, H, W]. Raises: ValueError where it was never made."""
        found = self.store.get(self.key(order))
        if found is None:
            raise ValueError(
                "Run the generation again.\n"
                f'The opponent\'s picture for "{order.prompt}" (seed {order.seed}) is missing.'
            )
        return found["latent"]

    def make(
        self,
        orders: Sequence[Order],
        sample: Sample,
        batch_size: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        process_index: int = 0,
        num_processes: int = 1,
        wait: Callable[[], None] = lambda: None,
        kind: Kind = any_kind,
    ) -> None:
        """Makes what is missing.

        Batches are the same whatever is there already, so that a resumed run gets the same bits.
        on_progress(done, total) is called before the first and after
        every batch, and may raise to stop: what is made stays. wait: until all processes have seen what is missing.
        """
        batches = list(batches_alike(orders, batch_size, kind))[process_index::num_processes]
        missing = [not all(self.key(order) in self.store for order in batch) for batch in batches]
        wait()
        done, total = 0, sum(map(len, batches))
        on_progress(done, total)
        for batch, is_missing in zip(batches, missing, strict=True):
            if is_missing:
                self._make_batch(batch, sample)
            done += len(batch)
            on_progress(done, total)

    def _make_batch(self, batch: list[Order], sample: Sample) -> None:
        latents = sample([order.prompt for order in batch], [order.seed for order in batch], batch[0].shape)
        for order, latent in zip(batch, latents, strict=True):
            self.store.put(self.key(order), {"latent": latent}, order.made_from(self.model_hash, self.sampler))


def batches_alike(orders: Sequence[Order], batch_size: int, kind: Kind = any_kind) -> Iterator[list[Order]]:
    """The orders in batches whose latents have one shape and whose prompts are of one kind, each order once."""
    groups: dict[tuple, list[Order]] = {}
    for order in dict.fromkeys(orders):
        groups.setdefault((order.shape, kind(order.prompt)), []).append(order)
    for alike in groups.values():
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]
