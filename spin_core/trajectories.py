"""SPIN's exact objective: whole trajectories of the opponent's own sampler, told from those that end in the real pictures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..train_core import Context, Denoiser, cat_contexts
from ..train_core.schedule import ddim_mean, ddim_noise_coefficient, ddim_sigma, leading_timesteps
from .batches import PairBatch
from .objectives import KAPPA, summed_error, trajectory_loss

ETA = 1.0  # DDIM's: a step without noise has no probability under another model


class Walked(NamedTuple):
    """A step of 2B trajectories, the real ones first: from x_t to x_prev [2B, …], timesteps as int [2B] on the CPU.

    beta: beta_t. errors: |x_prev - mu|² of player and opponent on real and generated, [2, 2, B]. drift: mean (eps_theta - eps_k)².
    """

    x_t: Tensor
    x_prev: Tensor
    t: Tensor
    prev_t: Tensor
    beta: float
    errors: Tensor
    drift: Tensor


@dataclass(frozen=True)
class TrajectoryStep:
    """SPIN-Diffusion eq. 4.8 along `steps` steps of DDIM with eta 1: every step of both trajectories counts in one logit.

    The opponent's trajectory is drawn as it is judged, x'_{t-1} = mu_k(x'_t) + sigma_t·z, without guidance; the real one is the
    forward process's, given its picture. beta_t = kappa·beta/(h_t²·C·H·W) makes D_t the step loss's margin of the predictions, so
    that the step loss of the same beta is its Jensen bound. share_noise: both trajectories get the same z.
    Costs three forwards and a backward of a step. low_memory: the same gradient from one side at a time.
    """

    policy: Denoiser
    reference: Denoiser
    beta: float
    steps: int
    share_noise: bool = True
    low_memory: bool = False

    def __post_init__(self):
        if self.policy.prediction == "flow":
            raise ValueError(
                "Choose SPIN as the loss in SPIN Options.\n"
                "A trajectory has a probability where its steps draw noise, and a flow model's draw none."
            )
        if self.steps >= (timesteps := len(self.policy.schedule)):
            raise ValueError(
                f"Set the opponent's steps to {timesteps - 1} at most.\n"
                f"They are {self.steps}, and a trajectory's steps lie between the schedule's {timesteps} timesteps."
            )

    def __call__(self, batch: PairBatch, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        with torch.no_grad():
            walked = list(self._walk(batch))
        errors = torch.stack([step.errors for step in walked])  # [T, 2, 2, B]
        beta_t = torch.tensor([step.beta for step in walked], dtype=errors.dtype, device=errors.device)
        change = errors[:, 0] - errors[:, 1]
        loss, logits = trajectory_loss(change[:, 0] - change[:, 1], beta_t)
        weight = torch.sigmoid(-logits)
        for step in walked:  # dL/dD_t = sigma(-z)·beta_t/T/B: what one graph of all steps would give
            self._learn(step, batch.context, weight * step.beta / len(walked) / len(weight), backward)
        drift = torch.stack([step.drift for step in walked]).mean()
        return trajectory_metrics(loss, logits, errors, beta_t / (KAPPA * self.beta)) | {"drift": drift}

    def _walk(self, batch: PairBatch) -> Iterator[Walked]:
        """Both trajectories from noise to picture."""
        abar, pairs = self.policy.schedule.alpha**2, len(batch.real)
        context = cat_contexts([batch.context, batch.context])
        steps = list(zip(*leading_timesteps(self.steps, len(abar)), strict=True))
        first = steps[0][0].expand(pairs)
        x_t = torch.cat([self.policy.schedule.q_sample(batch.real, batch.noise_real, first), batch.noise_other])
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        for now, before in steps:
            t, prev_t = now.expand(2 * pairs), before.expand(2 * pairs)
            found = [noise_in(model, x_t, t, context) for model in (self.policy, self.reference)]
            policy, reference = (ddim_mean(abar, x_t, eps, t, prev_t, ETA) for eps in found)
            mean = torch.cat([self._towards(batch.real, x_t[:pairs], t[:pairs], prev_t[:pairs]), reference[pairs:]])
            x_prev = mean + ddim_sigma(abar, now, before, ETA).to(x_t) * self._noise(x_t, generators)
            h_t = float(ddim_noise_coefficient(abar, now, before, ETA))
            errors = torch.stack([squared_distance(mu, x_prev).view(2, pairs) for mu in (policy, reference)])
            drift = (found[0] - found[1]).square().mean()
            yield Walked(x_t, x_prev, t, prev_t, KAPPA * self.beta / (h_t**2 * x_t[0].numel()), errors, drift)
            x_t = x_prev

    def _towards(self, x0: Tensor, x_t: Tensor, t: Tensor, prev_t: Tensor) -> Tensor:
        """The mean of the forward process's x_{t-1}, given x_t and the picture that it came from."""
        alpha, sigma = self.policy.schedule.at(t, x0)
        return ddim_mean(self.policy.schedule.alpha**2, x_t, (x_t - alpha * x0) / sigma, t, prev_t, ETA)

    def _noise(self, x_t: Tensor, generators: list[torch.Generator]) -> Tensor:
        """z for all 2B, each pair's by its own chance."""
        z = torch.stack([torch.randn(x_t.shape[1:], generator=generator) for generator in generators])
        if self.share_noise:
            return torch.cat([z, z]).to(x_t)
        other = torch.stack([torch.randn(x_t.shape[1:], generator=generator) for generator in generators])
        return torch.cat([z, other]).to(x_t)

    def _learn(self, step: Walked, context: Context, weight: Tensor, backward: Callable[[Tensor], None]) -> None:
        """One step's part of the gradient: weight·(error on real - error on generated), summed over the pairs. weight: [B]."""
        pull, pairs = torch.cat([weight, -weight]), len(weight)
        both = cat_contexts([context, context])
        parts = (
            [(slice(0, pairs), context), (slice(pairs, None), context)] if self.low_memory else [(slice(None), both)]
        )
        for part, told in parts:
            x_t, x_prev, t, prev_t = (tensor[part] for tensor in step[:4])
            eps = noise_in(self.policy, x_t, t, told)
            mean = ddim_mean(self.policy.schedule.alpha**2, x_t, eps, t, prev_t, ETA)
            backward((pull[part] * squared_distance(mean, x_prev)).sum())


def noise_in(model: Denoiser, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
    """The noise that the model sees in x_t. v = alpha·eps - sigma·x0, so eps = sigma·x_t + alpha·v."""
    answer = model.predict(x_t, t.to(x_t.device), context)
    if model.prediction == "epsilon":
        return answer
    alpha, sigma = model.schedule.at(t, x_t)
    return sigma * x_t + alpha * answer


def squared_distance(mean: Tensor, x_prev: Tensor) -> Tensor:
    """|x_{t-1} - mu|² of one step, [B, …] -> [B]."""
    return summed_error(mean[None], x_prev[None])[0]


def trajectory_metrics(loss: Tensor, logits: Tensor, errors: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """What is logged. errors: [T, 2, 2, B]; scale: [T], which makes them means over pixels of the noise's error."""
    (policy_real, policy_generated), (real, generated) = (errors * scale[:, None, None, None]).mean(dim=(0, 3))
    return {
        "loss": loss,
        "z": logits.mean(),
        "implicit_accuracy": ((logits > 0).float() + 0.5 * (logits == 0).float()).mean(),
        "weight": torch.sigmoid(-logits).mean(),
        "error_policy_real": policy_real,
        "error_policy_generated": policy_generated,
        "error_reference_real": real,
        "error_reference_generated": generated,
    }
