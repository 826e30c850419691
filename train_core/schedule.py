"""The noise schedule: how much picture and noise x_t holds at every timestep, and what a model is asked to predict.

One class serves every family, because each is x_t = alpha_t·x0 + sigma_t·eps:
variance preserving (SD1.x, SD2.x, SDXL) alpha = sqrt(abar), sigma = sqrt(1 - abar); flow (SD3, Flux) alpha = 1 - sigma.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "flow"]


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = alpha_t·x0 + sigma_t·eps for t in 0..T-1. alpha, sigma: [T], float64: no precision is lost in the table."""

    alpha: Tensor
    sigma: Tensor

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> "NoiseSchedule":
        """Variance preserving (DDPM eq. 4): alpha = sqrt(abar), sigma = sqrt(1 - abar). alphas_cumprod: [T]."""
        alphas_cumprod = alphas_cumprod.double()
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())

    @classmethod
    def from_flow_sigmas(cls, sigmas: Tensor) -> "NoiseSchedule":
        """Rectified flow: the straight line from the picture (sigma 0) to noise (sigma 1). sigmas: [T], ascending."""
        sigmas = sigmas.double()
        return cls(1 - sigmas, sigmas)

    def __len__(self) -> int:
        return len(self.alpha)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, shaped to multiply `like`.

        t: int [B]; returns two [B, 1, 1, …] of like's dtype and device.
        """
        shape = (-1,) + (1,) * (like.ndim - 1)
        index = t.to(self.alpha.device)
        return tuple(table[index].to(like).view(shape) for table in (self.alpha, self.sigma))

    def q_sample(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t·x0 + sigma_t·eps. x0, noise: [B, …]; t: int [B]."""
        alpha, sigma = self.at(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """What the model should answer to x_t: eps, v = alpha_t·eps - sigma_t·x0, or the flow's velocity eps - x0."""
        if prediction == "epsilon":
            return noise
        if prediction == "flow":
            return noise - x0
        if prediction == "v":
            alpha, sigma = self.at(t, x0)
            return alpha * noise - sigma * x0
        raise ValueError(f'Choose epsilon, v or flow.\nThe prediction type "{prediction}" is unknown.')


def scaled_linear_alphas_cumprod(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Stable Diffusion's own schedule: beta linear in its square root. Returns float64 [steps]."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(dim=0)


def flow_sigmas(steps: int = 1000, shift: float = 1.0) -> Tensor:
    """sigma of timestep t: (t + 1)/steps, moved towards noise by SD3's resolution shift. Returns float64 [steps]."""
    s = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return shift * s / (1 + (shift - 1) * s)


def leading_timesteps(count: int, steps: int = 1000, offset: int = 1) -> tuple[Tensor, Tensor]:
    """The `count` timesteps that SD's own samplers visit, descending, and the one that each leads to (negative: the end)."""
    ratio = steps // count
    timesteps = torch.arange(count - 1, -1, -1) * ratio + offset
    return timesteps, timesteps - ratio


def ddim_sigma(alphas_cumprod: Tensor, t: Tensor, prev_t: Tensor, eta: float) -> Tensor:
    """Standard deviation of a DDIM step (DDIM eq. 16). prev_t < 0 stands for abar of timestep 0, as in SD's configuration."""
    now, before = alphas_cumprod[t], alphas_cumprod[prev_t.clamp(min=0)]
    return eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()


def ddim_noise_coefficient(alphas_cumprod: Tensor, t: Tensor, prev_t: Tensor, eta: float) -> Tensor:
    """h_t of E[x_{t-1} | x_t, x0] - mu_theta(x_t) = h_t·(eps - eps_theta): from an error of the noise to one of the mean."""
    now, before = alphas_cumprod[t], alphas_cumprod[prev_t.clamp(min=0)]
    sigma = ddim_sigma(alphas_cumprod, t, prev_t, eta)
    return (1 - before - sigma**2).sqrt() - (before * (1 - now) / now).sqrt()


def ddim_mean(alphas_cumprod: Tensor, x_t: Tensor, eps: Tensor, t: Tensor, prev_t: Tensor, eta: float) -> Tensor:
    """mu_theta(x_t), the mean of a DDIM step (DDIM eq. 12). x_t, eps: [B, …]; t, prev_t: int [B]."""
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    now, before = (alphas_cumprod[i].to(x_t).view(shape) for i in (t, prev_t.clamp(min=0)))
    sigma = ddim_sigma(alphas_cumprod, t, prev_t, eta).to(x_t).view(shape)
    x0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return before.sqrt() * x0 + (1 - before - sigma**2).sqrt() * eps
