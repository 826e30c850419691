"""The losses as pure functions: SPIN by the step and by the trajectory, SePPO, Diffusion-DPO and -KTO, supervised fine-tuning.

beta follows Salesforce's DiffusionDPO: errors are means over C, H, W and kappa = 1/2. (diffusers' script has
no kappa, so its beta is half of this one; SimpleTuner sums over pixels, so its beta is smaller by C·H·W.)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

KAPPA = 0.5


class Errors(NamedTuple):
    """e(p, y) of player (policy) and opponent (reference) on the real and on the generated pictures, [B] each."""

    policy_real: Tensor
    policy_generated: Tensor
    reference_real: Tensor
    reference_generated: Tensor


class PairLoss(NamedTuple):
    """Loss of a batch of pairs. All but `loss`, `per_sample` and `logits` are detached: they are there to be logged.

    weight: the gradient weight sigma(-z) [B], 1/2 while player and opponent are equal, towards 0 for pairs that are won.
    implicit_accuracy: share of pairs with z > 0.
    """

    loss: Tensor
    per_sample: Tensor
    logits: Tensor
    implicit_accuracy: Tensor
    weight: Tensor
    errors: Errors


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """e(p, y): mean of (p - y)² over all axes but the batch. [B, …] -> [B].

    In float32 at least: at beta 5000 the rounding of a bfloat16 error moves the logit by 0.65.
    """
    difference = at_least_float32(prediction) - at_least_float32(target)
    return difference.square().flatten(1).mean(dim=1)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def pair_logits(errors: Errors, beta: float | Tensor, sign: float | Tensor = 1.0) -> Tensor:
    """z = -kappa·beta·{[e(theta; real) - e(theta_k; real)] - sign·[e(theta; gen) - e(theta_k; gen)]}. Returns [B]."""
    real = errors.policy_real - errors.reference_real
    generated = errors.policy_generated - errors.reference_generated
    return -KAPPA * beta * (real - sign * generated)


def anchored_sign(errors: Errors) -> Tensor:
    """SePPO's flip, [B]: -1 where the opponent predicts the real picture better than the player does, else 1.

    The real picture is the anchor (Zhang et al., arXiv 2410.05255): where the player has fallen behind on it, what the
    opponent drew is taken as worth learning too.
    """
    return torch.where(errors.policy_real.detach() > errors.reference_real, -1.0, 1.0)


def pair_loss(
    policy_real: Tensor,
    policy_generated: Tensor,
    reference_real: Tensor,
    reference_generated: Tensor,
    target_real: Tensor,
    target_generated: Tensor,
    beta: float | Tensor,
    *,
    margin_clamp: float | None = None,
    safeguard: float | None = None,
    sft_weight: float = 0.0,
    adaptive: bool = False,
) -> PairLoss:
    """SPIN's step loss (SPIN-Diffusion eq. 4.9): mean over the batch of softplus(-z), for predictions [B, …] of any type.

    With (preferred, rejected) pictures for (real, generated) and a reference that never moves it
    is Diffusion-DPO, to the bit. Swap nothing else: at theta = theta_k the loss is ln 2 whatever the data.

    beta: a number, or one per sample [B]. margin_clamp: |z| beyond it no longer pulls. safeguard: SDPO's
    mu, see safeguard_scale. sft_weight: adds sft_weight·e(theta; real), which holds the player to the data. adaptive:
    SePPO's loss, whose generated side has anchored_sign.
    """
    errors = Errors(
        squared_error(policy_real, target_real),
        squared_error(policy_generated, target_generated),
        squared_error(reference_real, target_real),
        squared_error(reference_generated, target_generated),
    )
    pulling, sign = errors, anchored_sign(errors) if adaptive else torch.ones_like(errors.policy_real)
    if safeguard is not None:
        scale = safeguard_scale(policy_real - target_real, policy_generated - target_generated, safeguard)
        scale = torch.where(sign > 0, scale, 1)  # of pictures that are to be learnt nothing is held back
        pulling = errors._replace(policy_generated=scale_gradient(errors.policy_generated, scale))
    logits = pair_logits(pulling, beta, sign)
    if margin_clamp is not None:
        logits = logits.clamp(-margin_clamp, margin_clamp)
    per_sample = F.softplus(-logits) + sft_weight * errors.policy_real
    return summary(per_sample, logits, errors)


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    target: Tensor,
    liked: Tensor,
    beta: float | Tensor,
    *,
    sft_weight: float = 0.0,
    share: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> PairLoss:
    """Diffusion-KTO (Li et al., arXiv 2404.04465, eq. 8): each picture by itself, liked or not. Predictions [B, …]; liked: bool [B].

    g = e(theta_k) - e(theta); Q = max(0, mean g), without a gradient; z = +-beta·(g - Q); loss = mean of 1 - sigmoid(z), as in
    the authors' code, whose beta has no kappa. At theta = theta_k it is 1/2. share: the mean over all processes' batches.
    sft_weight: adds so much of the liked pictures' mean error. In `errors`, real are those that are liked.
    """
    policy_error, reference_error = squared_error(policy, target), squared_error(reference, target)
    gain = reference_error - policy_error
    threshold = share(gain.mean().detach()).clamp(min=0)
    logits = beta * torch.where(liked, gain - threshold, threshold - gain)
    plain = policy_error * liked * (len(liked) / liked.sum().clamp(min=1))
    errors = Errors(policy_error[liked], policy_error[~liked], reference_error[liked], reference_error[~liked])
    return summary(1 - torch.sigmoid(logits) + sft_weight * plain, logits, errors)


def summary(per_sample: Tensor, logits: Tensor, errors: Errors) -> PairLoss:
    """The batch's mean, and what is logged of it."""
    z = logits.detach()
    won = (z > 0).to(z.dtype).mean()
    detached = Errors(*(error.detach() for error in errors))
    return PairLoss(per_sample.mean(), per_sample, logits, won, torch.sigmoid(-z), detached)


def safeguard_scale(residual_real: Tensor, residual_generated: Tensor, mu: float) -> Tensor:
    """Diffusion-SDPO's lambda: the part of the loser's gradient that leaves the winner's loss falling. Returns [B] in [0, 1].

    lambda = (1 - mu)·|g_w|² / (g_l·g_w), with the gradients taken at the output, where each is its residual p - y times
    a common factor; 1 where the two do not point the same way, since the loser's step then helps the winner.
    """
    g_w, g_l = (at_least_float32(r).detach().flatten(1) for r in (residual_real, residual_generated))
    along = (g_l * g_w).sum(dim=1)
    scale = (1 - mu) * g_w.square().sum(dim=1) / along
    return torch.where(along > 0, scale.clamp(0, 1), torch.ones_like(scale))


def scale_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """x itself, with its gradient multiplied by `scale`."""
    return x.detach() + scale * (x - x.detach())


def sft_loss(policy_real: Tensor, target_real: Tensor) -> Tensor:
    """Supervised fine-tuning: e(theta; real) per sample, [B]."""
    return squared_error(policy_real, target_real)


def trajectory_margins(
    policy_real: Tensor,
    policy_generated: Tensor,
    reference_real: Tensor,
    reference_generated: Tensor,
    previous_real: Tensor,
    previous_generated: Tensor,
) -> Tensor:
    """D_t of every step of stored trajectories: means mu(x_t) against the x_{t-1} drawn. All [T, B, …] -> [T, B].

    Sums over pixels, as a log-likelihood ratio has it.
    """
    real = summed_error(policy_real, previous_real) - summed_error(reference_real, previous_real)
    generated = summed_error(policy_generated, previous_generated) - summed_error(
        reference_generated, previous_generated
    )
    return real - generated


def summed_error(mean: Tensor, previous: Tensor) -> Tensor:
    """|x_{t-1} - mu|², [T, B, …] -> [T, B]."""
    return (at_least_float32(mean) - at_least_float32(previous)).square().flatten(2).sum(dim=2)


def trajectory_loss(margins: Tensor, beta_t: Tensor) -> tuple[Tensor, Tensor]:
    """L = mean over the batch of l(-sum_t beta_t/T·D_t) (SPIN-Diffusion eq. 4.8), l(z) = log(1 + e^-z).

    margins: [T, B]; beta_t: [T]. Returns the loss and the logits [B].
    """
    logits = -(beta_t[:, None] * margins).mean(dim=0)
    return F.softplus(-logits).mean(), logits


def trajectory_bound(margins: Tensor, beta_t: Tensor) -> tuple[Tensor, Tensor]:
    """Jensen's upper bound of trajectory_loss, mean over steps and batch of l(-beta_t·D_t): what the step loss trains.

    Returns the bound and the logits [T, B].
    """
    logits = -beta_t[:, None] * margins
    return F.softplus(-logits).mean(), logits


def trajectory_beta(sigma_t: Tensor, strength: float) -> Tensor:
    """beta_t = strength·T/(2·sigma_t²): what the log-likelihood ratio of Gaussian steps of width sigma_t [T] gives."""
    return strength * len(sigma_t) / (2 * sigma_t.square())
