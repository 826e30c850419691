"""Batches of pairs: which samples, which timestep, which noise; each a pure function of seed and index."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..train_core import Context, keyed_generator, map_context


@dataclass(frozen=True)
class Corpus:
    """What is trained on, one entry a picture, ready for the model. Latents and contexts come from wherever they are kept.

    fingerprint: of captions and pictures together, so that a run is not continued on other data.
    text_hash: of what reads the captions: another text encoder's opponent draws other pictures.
    real(i), rejected(i): latents [C, H, W] (rejected: DPO's loser; None where there are no preference pairs).
    liked(i): the thumb of a picture by itself, for KTO; None where there are none.
    context(prompts, shape): the model's condition beside a latent of that shape (SDXL reads the size), batch first.
    """

    prompts: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    real: Callable[[int], Tensor]
    context: Callable[[list[str], tuple[int, ...]], Context]
    rejected: Callable[[int], Tensor] | None = None
    fingerprint: str = ""
    text_hash: str = ""
    liked: Callable[[int], bool] | None = None

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class PairBatch:
    """B pairs. other is the opponent's or the rejected picture.

    real, other, noise_real, noise_other: [B, C, H, W]; t: int [B]. liked: bool [B], where each real picture has a thumb.
    seeds: of what a step draws for each pair beyond its noise, int [B].
    """

    real: Tensor
    other: Tensor | None
    context: Context
    t: Tensor
    noise_real: Tensor
    noise_other: Tensor
    liked: Tensor | None = None
    seeds: Sequence[int] = ()


class BucketOrder:
    """An endless shuffled order of full batches in which all samples have one shape.

    A bucket's last batch is filled up from the bucket's start.
    `batch_size` counts over all processes; each takes its part.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch_size: int, seed: int):
        if not shapes:
            raise ValueError("Take a data set with pictures.\nThis one is empty: there is nothing to train on.")
        self.buckets: dict[tuple[int, ...], list[int]] = {}
        for sample, shape in enumerate(shapes):
            self.buckets.setdefault(tuple(shape), []).append(sample)
        self.batch_size, self.seed = batch_size, seed
        self.batches_per_epoch = sum(-(-len(bucket) // batch_size) for bucket in self.buckets.values())
        self._epoch, self._batches = -1, []

    def batch(self, index: int) -> list[int]:
        """The samples of batch `index`, over all processes."""
        epoch, place = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        generator = keyed_generator(self.seed, "order", epoch)
        batches = []
        for bucket in self.buckets.values():
            order = [bucket[i] for i in torch.randperm(len(bucket), generator=generator)]
            for start in range(0, len(order), self.batch_size):
                batches.append([order[(start + i) % len(order)] for i in range(self.batch_size)])
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


@dataclass(frozen=True)
class PairBatches:
    """batch_at for the loop: samples, latents, contexts, timesteps and noise of batch `index` of this process.

    other(i): latent of the opponent's (or the rejected) picture for sample i; None for supervised fine-tuning.
    Every draw is keyed by the pair's place in the global batch: two processes of half the size draw what one would.
    """

    corpus: Corpus
    order: BucketOrder
    timesteps: int
    seed: int
    device: torch.device
    other: Callable[[int], Tensor] | None = None
    share_noise: bool = True
    caption_dropout: float = 0.0
    process_index: int = 0
    num_processes: int = 1

    def __call__(self, index: int) -> PairBatch:
        samples = self.order.batch(index)
        size = len(samples) // self.num_processes
        start = self.process_index * size
        draws = [self._draw(index, place, samples[place]) for place in range(start, start + size)]
        real, other, prompts, t, noise_real, noise_other = zip(*draws, strict=True)
        context = self.corpus.context(list(prompts), tuple(self.corpus.shapes[samples[0]]))
        return PairBatch(
            self._stack(real),
            None if self.other is None else self._stack(other),
            map_context(context, lambda tensor: tensor.to(self.device)),
            torch.tensor(t, device=self.device),
            self._stack(noise_real),
            self._stack(noise_other),
            self._liked(samples[start : start + size]),
            [keyed_generator(self.seed, "step", index, place).initial_seed() for place in range(start, start + size)],
        )

    def _liked(self, samples: Sequence[int]) -> Tensor | None:
        if self.corpus.liked is None:
            return None
        return torch.tensor([self.corpus.liked(i) for i in samples], device=self.device)

    def _draw(self, index: int, place: int, sample: int) -> tuple:
        """One pair with its own chance: one t for both sides, one caption (dropped on both sides or on none)."""
        generator = keyed_generator(self.seed, "pair", index, place)
        shape = self.corpus.shapes[sample]
        t = int(torch.randint(self.timesteps, (1,), generator=generator))
        dropped = float(torch.rand(1, generator=generator)) < self.caption_dropout
        noise_real = torch.randn(shape, generator=generator)
        noise_other = noise_real if self.share_noise else torch.randn(shape, generator=generator)
        other = None if self.other is None else self.other(sample)
        return (
            self.corpus.real(sample),
            other,
            "" if dropped else self.corpus.prompts[sample],
            t,
            noise_real,
            noise_other,
        )

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).to(self.device, torch.float32)
