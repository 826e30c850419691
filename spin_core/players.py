"""Player and opponent in one model (LoRA) or in two (full fine-tune), and what a round does to them."""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..train_core import (
    Denoiser,
    LoRA,
    NoiseSchedule,
    Prediction,
    load_weights,
    stack_lora,
    weights_hash,
    whole,
)


class Player(Protocol):
    """Who learns.

    Inside round(k) `policy` and `trained` are the player, `reference` is the opponent, which never moves.
    """

    kind: str  # what is learnt, in words: a run of another kind is not continued
    policy: Denoiser
    reference: Denoiser
    trained: nn.Module

    def round(self, number: int): ...
    def opponent_hash(self) -> str: ...
    def result(self) -> dict[str, Tensor]: ...
    def take(self, result: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class AdapterOff:
    """The model without its newest adapter: the opponent, at no second copy of the weights."""

    denoiser: Denoiser
    adapter: LoRA

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    @property
    def prediction(self) -> Prediction:
        return self.denoiser.prediction

    def predict(self, x_t: Tensor, t: Tensor, context) -> Tensor:
        with self.adapter.off():
            return self.denoiser.predict(x_t, t, context)


class LoRAPlayer:
    """Learns an adapter a round: the base is frozen, and earlier rounds' adapters stay applied under the new one.

    model: the module that `denoiser` runs, whose layers of these names are adapted. base_hash: of the weights that `denoiser`
    runs with. device: where the adapters lie; by default where their layers do.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        model: nn.Module,
        base_hash: str,
        names: list[str],
        rank: int,
        alpha: float,
        seed: int,
        device: torch.device | None = None,
    ):
        self.policy, self.model, self.base_hash, self.names = denoiser, model, base_hash, names
        self.rank, self.alpha, self.seed, self.device = rank, alpha, seed, device
        self.kind = f"LoRA of rank {rank}, alpha {alpha:g}, on {len(self.names)} layers"
        self.earlier: list[LoRA] = []
        self.trained: LoRA | None = None
        self.stack = ExitStack()

    @contextmanager
    def attached(self):
        """Inside, earlier rounds' adapters act on the model; afterwards the model is as it was."""
        with self.stack:
            yield self

    @contextmanager
    def round(self, number: int):
        """Inside, a fresh adapter acts on top.

        It stays applied after the round, frozen, if the round was `take`n or finished.
        """
        self.trained = self.adapter(self.seed + number)
        self.reference = AdapterOff(self.policy, self.trained)
        with self.trained.attached():
            yield self
        self._freeze(self.trained)

    def adapter(self, seed: int) -> LoRA:
        return LoRA(self.model, self.names, self.rank, self.alpha, seed, self.device)

    def _freeze(self, adapter: LoRA) -> None:
        adapter.requires_grad_(False)
        self.stack.enter_context(adapter.attached())
        self.earlier.append(adapter)

    def opponent_hash(self) -> str:
        """Of everything that the opponent computes with: the base and the earlier rounds' adapters."""
        parts = [weights_hash(adapter.lora_state_dict()) for adapter in self.earlier]
        return ":".join([self.base_hash, *parts]) if parts else self.base_hash

    def result(self) -> dict[str, Tensor]:
        """The newest adapter, in ComfyUI's LoRA naming."""
        return self.trained.lora_state_dict()

    def take(self, result: dict[str, Tensor]) -> None:
        """Applies a finished round's adapter, as if it had just been trained."""
        adapter = self.adapter(self.seed)
        adapter.load_lora_state_dict(result)
        self._freeze(adapter)

    def lora_state_dict(self) -> dict[str, Tensor]:
        """All rounds as one adapter."""
        return stack_lora([adapter.lora_state_dict() for adapter in self.earlier])


class FullPlayer:
    """Learns all weights. Two modules of one architecture: `model` is the player (sharded or not), `frozen` the opponent.

    Outside a round both hold the same weights.
    """

    kind = "all weights"

    def __init__(self, policy: Denoiser, reference: Denoiser, model: nn.Module, frozen: nn.Module):
        self.policy, self.reference, self.trained, self.frozen = policy, reference, model, frozen
        frozen.requires_grad_(False)
        self._agree()

    @contextmanager
    def attached(self):
        yield self

    @contextmanager
    def round(self, number: int):
        """Inside, the player moves; afterwards the opponent has become what the player is."""
        self.trained.requires_grad_(True)
        yield self
        self.trained.requires_grad_(False)
        self._agree()

    @torch.no_grad()
    def _agree(self) -> None:
        self.frozen.load_state_dict(whole(self.trained.state_dict()))

    def opponent_hash(self) -> str:
        return weights_hash(self.frozen.state_dict())

    def result(self) -> dict[str, Tensor]:
        return {name: whole(tensor.detach()).clone() for name, tensor in self.trained.state_dict().items()}

    def take(self, result: dict[str, Tensor]) -> None:
        load_weights(self.trained, result)
        self._agree()
