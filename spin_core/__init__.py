"""SPIN-Diffusion: self-play fine-tuning of text-to-image models (Yuan et al., arXiv 2402.10210)."""

from .objectives import (
    Errors,
    PairLoss,
    kto_loss,
    pair_loss,
    sft_loss,
    trajectory_beta,
    trajectory_bound,
    trajectory_loss,
    trajectory_margins,
)

__all__ = [
    "Errors",
    "PairLoss",
    "kto_loss",
    "pair_loss",
    "sft_loss",
    "trajectory_beta",
    "trajectory_bound",
    "trajectory_loss",
    "trajectory_margins",
]
