"""One training step of each method: from a batch of pairs to the backward pass and what is logged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..train_core import Context, Denoiser, cat_contexts
from .batches import PairBatch
from .objectives import PairLoss, kto_loss, pair_loss, sft_loss

Loss = Literal["pair", "seppo", "trajectory", "kto"]


@dataclass(frozen=True)
class PairOptions:
    """Which loss, and what may be changed in it: see objectives.

    loss: of pairs by the step (SPIN's and DPO's, or SePPO's), of their trajectories, or KTO's.
    """

    margin_clamp: float | None = None
    safeguard: float | None = None
    sft_weight: float = 0.0
    loss: Loss = "pair"

    def __post_init__(self):
        if self.loss in ("trajectory", "kto") and (self.margin_clamp, self.safeguard) != (None, None):
            raise ValueError(
                "Set margin_clamp to 0 and safeguard to -1 in SPIN Options.\nThey are defined for pairs, step by step."
            )
        if self.loss == "trajectory" and self.sft_weight:
            raise ValueError("Set sft_weight to 0 in SPIN Options.\nTrajectories have no plain denoising loss.")


@dataclass(frozen=True)
class PairStep:
    """SPIN's and SePPO's step (real against the opponent's picture) and Diffusion-DPO's (preferred against rejected).

    low_memory: the same gradient with the activations of one
    side at a time; costs one forward of the generated side more.
    """

    policy: Denoiser
    reference: Denoiser
    beta: float
    options: PairOptions = field(default_factory=PairOptions)
    low_memory: bool = False

    def __call__(self, batch: PairBatch, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        real, other, targets = noised_pair(self.policy, batch)
        reference = self._reference(real, other, batch)
        step = self._in_halves if self.low_memory else self._whole
        found, drift = step(real, other, reference, targets, batch, backward)
        return pair_metrics(found) | {"drift": drift}

    def _reference(self, real: Tensor, other: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return predict_both(self.reference, real, other, batch.t, batch.context)

    def _whole(self, real, other, reference, targets, batch, backward) -> tuple[PairLoss, Tensor]:
        """Both sides in one forward of 2B."""
        policy = predict_both(self.policy, real, other, batch.t, batch.context)
        found = self._loss(policy, reference, targets)
        backward(found.loss)
        return found, drift(policy, reference)

    def _in_halves(self, real, other, reference, targets, batch, backward) -> tuple[PairLoss, Tensor]:
        """Loss depends on the two predictions apart, so each side's gradient needs the other one only as numbers."""
        with torch.no_grad():
            policy_other = self.policy.predict(other, batch.t, batch.context)
        policy_real = self.policy.predict(real, batch.t, batch.context)
        found = self._loss((policy_real, policy_other), reference, targets)
        backward(found.loss)
        policy_real = policy_real.detach()  # lets the first half's graph go before the second is built
        policy_other = self.policy.predict(other, batch.t, batch.context)
        backward(self._loss((policy_real, policy_other), reference, targets).loss)
        return found, drift((policy_real, policy_other), reference)

    def _loss(self, policy, reference, targets) -> PairLoss:
        options = self.options
        return pair_loss(
            *policy,
            *reference,
            *targets,
            self.beta,
            margin_clamp=options.margin_clamp,
            safeguard=options.safeguard,
            sft_weight=options.sft_weight,
            adaptive=options.loss == "seppo",
        )


class Side(NamedTuple):
    """Noisy pictures and what is asked of them: x_t, target [B, …], t int [B], context, liked bool [B]."""

    x_t: Tensor
    target: Tensor
    t: Tensor
    context: Context
    liked: Tensor


@dataclass(frozen=True)
class KtoStep:
    """Diffusion-KTO's step: each picture by itself, liked or not. Of a pair the real picture is liked, the other one not.

    low_memory: the same gradient from one side of the pairs at a time. share: the mean of a number over all processes.
    """

    policy: Denoiser
    reference: Denoiser
    beta: float
    sft_weight: float = 0.0
    low_memory: bool = False
    share: Callable[[Tensor], Tensor] = lambda mean: mean

    def __call__(self, batch: PairBatch, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        sides = kto_sides(self.policy, batch)
        whole = cat_sides(sides)
        parts = sides if self.low_memory else [whole]
        with torch.no_grad():
            reference = self.reference.predict(whole.x_t, whole.t, whole.context)
            known = [None, *(self.policy.predict(part.x_t, part.t, part.context) for part in parts[1:])]
        for place, part in enumerate(parts):
            graded = self.policy.predict(part.x_t, part.t, part.context)
            policy = torch.cat([*known[:place], graded, *known[place + 1 :]])
            found = self._loss(policy, reference, whole)
            backward(found.loss)
            known[place] = graded.detach()
        return pair_metrics(found) | {"drift": drift((policy,), (reference,))}

    def _loss(self, policy: Tensor, reference: Tensor, whole: Side) -> PairLoss:
        options = {"sft_weight": self.sft_weight, "share": self.share}
        return kto_loss(policy, reference, whole.target, whole.liked, self.beta, **options)


def kto_sides(model: Denoiser, batch: PairBatch) -> list[Side]:
    """The pictures of the batch: both sides of its pairs, or one side with a thumb for each picture."""
    real = noised(model, batch.real, batch.noise_real, batch.t)
    if batch.liked is not None:
        return [Side(*real, batch.t, batch.context, batch.liked)]
    other = noised(model, batch.other, batch.noise_other, batch.t)
    liked = torch.ones_like(batch.t, dtype=torch.bool)
    return [Side(*real, batch.t, batch.context, liked), Side(*other, batch.t, batch.context, ~liked)]


def cat_sides(sides: list[Side]) -> Side:
    x_t, target, t, context, liked = zip(*sides, strict=True)
    return Side(torch.cat(x_t), torch.cat(target), torch.cat(t), cat_contexts(list(context)), torch.cat(liked))


@dataclass(frozen=True)
class SftStep:
    """Supervised fine-tuning on the real pictures alone, by the same noise, timesteps and loop."""

    policy: Denoiser

    def __call__(self, batch: PairBatch, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        x_t, target = noised(self.policy, batch.real, batch.noise_real, batch.t)
        loss = sft_loss(self.policy.predict(x_t, batch.t, batch.context), target).mean()
        backward(loss)
        return {"loss": loss.detach()}


def noised(model: Denoiser, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the target of the model's prediction type."""
    return model.schedule.q_sample(x0, noise, t), model.schedule.target(x0, noise, t, model.prediction)


def noised_pair(model: Denoiser, batch: PairBatch) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """x_t of both sides, and the two targets."""
    real, target_real = noised(model, batch.real, batch.noise_real, batch.t)
    other, target_other = noised(model, batch.other, batch.noise_other, batch.t)
    return real, other, (target_real, target_other)


def predict_both(model: Denoiser, real: Tensor, other: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Predictions for both sides, out of one forward of 2B."""
    both = model.predict(torch.cat([real, other]), torch.cat([t, t]), cat_contexts([context, context]))
    return both.chunk(2)


def drift(policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> Tensor:
    """How far the player has moved from its opponent: mean (eps_theta - eps_theta_k)² over both sides."""
    return torch.stack(
        [(p.detach() - r).float().square().mean() for p, r in zip(policy, reference, strict=True)]
    ).mean()


def pair_metrics(found: PairLoss) -> dict[str, Tensor]:
    """What a flat loss of 0.69 does not say. Accuracy counts a tie as half, so that a round starts at 0.5."""
    z = found.logits.detach()
    return {
        "loss": found.loss.detach(),
        "z": z.mean(),
        "implicit_accuracy": found.implicit_accuracy + 0.5 * (z == 0).to(z.dtype).mean(),
        "weight": found.weight.mean(),
        "error_policy_real": found.errors.policy_real.mean(),
        "error_policy_generated": found.errors.policy_generated.mean(),
        "error_reference_real": found.errors.reference_real.mean(),
        "error_reference_generated": found.errors.reference_generated.mean(),
    }
