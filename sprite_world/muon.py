"""Muon: momentum whose update is orthogonalized (Jordan et al. 2024). On short runs it learns several times as fast."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalized(matrices: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards U V^T of each matrix [n, rows, columns], in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices and convolution kernels, these read as [out, in * kh * kw]. Not for embeddings, norms or biases.

    weight_decay: decoupled, as AdamW's. Updates have one length whatever the gradient's: without it weights grow all the time.
    Workers that hold equal gradients can split the orthogonalization: `share` is (this worker, their number) and
    `sum_over_workers` adds a tensor up over them.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        share=(0, 1),
        sum_over_workers=lambda tensor: tensor,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.share, self.sum_over_workers = share, sum_over_workers

    @torch.no_grad()
    def step(self) -> None:
        worker, workers = self.share
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            directions = {p: self._momentum(p, group["momentum"]) for p in params}
            updates = {p: torch.zeros_like(directions[p]) for p in params}
            for same in _by_shape(params).values():
                self._orthogonalize(same[worker::workers], directions, updates)
            flat = self.sum_over_workers(torch.cat([updates[p].flatten() for p in params]))
            for p, update in zip(params, flat.split([p.numel() for p in params]), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view(p.shape), alpha=-group["lr"])

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov's direction, as a matrix."""
        buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum).flatten(1)

    def _orthogonalize(self, params: list[Tensor], directions: dict, updates: dict) -> None:
        """All of one shape as one batch."""
        if not params:
            return
        rows, columns = directions[params[0]].shape
        batch = orthogonalized(torch.stack([directions[p] for p in params])) * max(1, rows / columns) ** 0.5
        for p, update in zip(params, batch, strict=True):
            updates[p] = update


def _by_shape(params: list[Tensor]) -> dict[torch.Size, list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = {}
    for p in params:
        shapes.setdefault(p.shape, []).append(p)
    return shapes
