"""ViCo's training (§4): an object's word and image attention, learnt from a few photos of it beside a frozen model."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..train_core import DataOrder, NoiseSchedule, Prediction, keyed_generator
from .attention_maps import attention_regularization
from .concept import ViCoConcept
from .image_attention import ImageAttention

REGULARIZATION = 5e-4  # the paper's weight of the attention regularisation
WORD_LR = 5e-3
ATTENTION_LR = 1e-5
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class PlaceShape:
    """Image attention at one place: width of its tokens, and the heads of the host's block there."""

    name: str
    dim: int
    heads: int
    dim_head: int


@contextmanager
def seeded(seed: int):
    """Inside, torch's CPU generator starts from the seed; outside, it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class TrainedConcept(nn.Module):
    """All that is trained: image attention at the places, and the word's vector {text encoder: [1, width]}, in float32.

    learn_word: False keeps the word's vector as it starts. zero_init: image attention begins as the identity (its output
    projections are zero), and not as the paper's, which disturbs the model at first.
    """

    def __init__(
        self,
        places: list[PlaceShape],
        words: dict[str, Tensor],
        seed: int = 0,
        learn_word: bool = True,
        zero_init: bool = False,
    ):
        super().__init__()
        with seeded(seed):
            blocks = {p.name.replace(".", "_"): ImageAttention(p.dim, p.heads, p.dim_head) for p in places}
        for block in blocks.values() if zero_init else ():
            block.begin_as_identity()
        self.places = places
        self.image_attention = nn.ModuleDict(blocks)
        vectors = {encoder: nn.Parameter(v.detach().float().clone(), learn_word) for encoder, v in words.items()}
        self.words = nn.ParameterDict(vectors)

    def groups(self, word_lr: float = WORD_LR, attention_lr: float = ATTENTION_LR) -> list[dict]:
        """The optimiser's parameter groups: the word learns much faster than image attention."""
        groups = [
            {"params": [vector for vector in self.words.values() if vector.requires_grad], "lr": word_lr},
            {"params": list(self.image_attention.parameters()), "lr": attention_lr},
        ]
        return [group for group in groups if group["params"]]

    def optimizer(self, word_lr: float = WORD_LR, attention_lr: float = ATTENTION_LR) -> torch.optim.AdamW:
        """AdamW with weight decay 0.01 on both, as the authors train."""
        return torch.optim.AdamW(self.groups(word_lr, attention_lr), weight_decay=WEIGHT_DECAY, fused=True)

    def concept(self, **description) -> ViCoConcept:
        """What has been learnt so far, as a concept of its own; `description`: its placeholder, initialiser, step …"""
        modules = {p.name: self.image_attention[p.name.replace(".", "_")] for p in self.places}
        modules = {
            name: {k: t.detach().to("cpu", copy=True) for k, t in m.state_dict().items()} for name, m in modules.items()
        }
        words = {encoder: vector.detach().to("cpu", copy=True) for encoder, vector in self.words.items()}
        return ViCoConcept(modules, words, **description)


@dataclass(frozen=True)
class Photos:
    """Photos of one object as the VAE sees them, in the model's scale, encoded once.

    mean, std [P, C, h, w]: the posterior that each step draws from; std None where the VAE has none. masks [P, H, W] in 0..1:
    where the object is, or None.
    """

    mean: Tensor
    std: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return self.mean.shape[0]

    def draw(self, photo: int, generator: torch.Generator) -> Tensor:
        """A sample of the photo's posterior [C, h, w]."""
        if self.std is None:
            return self.mean[photo]
        return self.mean[photo] + self.std[photo] * normal(self.mean.shape[1:], generator)


@dataclass(frozen=True)
class Batch:
    """x0, reference, noise [B, C, h, w]; t int [B]; a caption a row; masks of the references [B, H, W], or None."""

    x0: Tensor
    reference: Tensor
    noise: Tensor
    t: Tensor
    captions: list[str]
    masks: Tensor | None = None

    def to(self, device) -> "Batch":
        masks = None if self.masks is None else self.masks.to(device)
        tensors = (tensor.to(device) for tensor in (self.x0, self.reference, self.noise, self.t))
        return Batch(*tensors, self.captions, masks)


class Draws:
    """The endless stream of batches; each sample is a pure function of its place in it, so that a resumed run sees the same."""

    def __init__(self, photos: Photos, captions: list[str], timesteps: int, batch_size: int, seed: int, device="cpu"):
        self.photos, self.captions, self.timesteps, self.seed = photos, captions, timesteps, seed
        self.order = DataOrder(len(photos), batch_size, seed)
        self.device = device

    def __call__(self, index: int) -> Batch:
        places = zip(self.order.positions(index), self.order.samples(index), strict=True)
        rows = [self.sample(position, photo) for position, photo in places]
        stacked = (torch.stack(column) for column in zip(*(row[:4] for row in rows), strict=True))
        masks = None
        if self.photos.masks is not None:
            masks = torch.stack([self.photos.masks[row[5]] for row in rows])
        return Batch(*stacked, [row[4] for row in rows], masks).to(self.device)

    def sample(self, position: int, photo: int) -> tuple[Tensor, Tensor, Tensor, Tensor, str, int]:
        """(x0, reference, noise, t, caption, the reference's number) of one place in the stream."""
        generator = keyed_generator(self.seed, "vico", position)
        other = another(photo, len(self.photos), generator)
        caption = self.captions[draw_int(len(self.captions), generator)]
        t = torch.randint(self.timesteps, (), generator=generator)
        x0, reference = self.photos.draw(photo, generator), self.photos.draw(other, generator)
        return x0, reference, normal(x0.shape, generator), t, caption, other


def another(photo: int, count: int, generator: torch.Generator) -> int:
    """Another photo of the set as the reference; the same one only if there is no other (ViCo §4)."""
    return photo if count == 1 else (photo + 1 + draw_int(count - 1, generator)) % count


def draw_int(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def normal(shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Predicted:
    """What the two streams give.

    prediction: the noisy stream's; maps: at each place the reference's attention to placeholder and end of text, [B, M] each.
    """

    prediction: Tensor
    maps: list[tuple[Tensor, Tensor]]


class TwoStreams(Protocol):
    """A frozen model with image attention in it, beside itself on the clean reference (same t, same captions)."""

    schedule: NoiseSchedule
    prediction: Prediction

    def predict(self, x_t: Tensor, batch: Batch) -> Predicted: ...


@dataclass(frozen=True)
class ViCoObjective:
    """MSE of the prediction + weight · sum over the places of the attention regularisation (ViCo §3.3)."""

    streams: TwoStreams
    weight: float = REGULARIZATION

    def __call__(self, batch: Batch, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        x_t = self.streams.schedule.q_sample(batch.x0, batch.noise, batch.t)
        target = self.streams.schedule.target(batch.x0, batch.noise, batch.t, self.streams.prediction)
        predicted = self.streams.predict(x_t, batch)
        mse = F.mse_loss(predicted.prediction, target)
        regularization = self.weight * sum(
            (attention_regularization(placeholder, eot) for placeholder, eot in predicted.maps), mse.new_zeros(())
        )
        loss = mse + regularization
        backward(loss)
        return {"loss": loss, "mse": mse, "regularization": regularization}
