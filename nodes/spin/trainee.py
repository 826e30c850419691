"""The model that learns: a LoRA beside the user's own weights, or two copies of all of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from ...spin_core.players import FullPlayer, LoRAPlayer
from ...train_core import gradient_checkpointing
from ...train_core.engine import AUTOCAST_DTYPES
from ..host.copies import load_for_training, training_copy
from ..host.denoiser import ModelDenoiser
from ..host.families import trained_layers, transformer_blocks
from ..host.families.gradients import differentiable
from ..host.frozen import Frozen, borrowed, patched_hash
from .asked import TrainingRun


@dataclass(frozen=True)
class Trainee:
    """patchers: of the models; ready: inside, they can be trained; drawing: inside that, the host may draw with them."""

    patchers: list
    player: FullPlayer | LoRAPlayer
    ready: AbstractContextManager
    drawing: Callable[[], AbstractContextManager]

    @property
    def patcher(self):
        return self.patchers[0]


class LoRATrainee(Trainee):
    """A Trainee whose weights are the user's own."""


def lora_trainee(model, asked: TrainingRun) -> LoRATrainee:
    """A LoRA beside the user's own weights, in the type that they are stored in."""
    patcher = borrowed(model, AUTOCAST_DTYPES.get(asked.options.precision, torch.float32))
    network = patcher.model.diffusion_model
    names = trained_layers(network, asked.layers)
    how = (names, asked.rank, float(asked.rank), asked.settings.seed, patcher.load_device)
    player = LoRAPlayer(ModelDenoiser(patcher), network, patched_hash(patcher), *how)
    sparing = [lambda: gradient_checkpointing(transformer_blocks(network))] if asked.options.checkpointing else []
    frozen = Frozen([patcher], within=sparing)
    return LoRATrainee([patcher], player, frozen, frozen.given_back)


def full_trainee(model, asked: TrainingRun) -> Trainee:
    """Player and opponent as two copies of one model, in float32 whatever the model is in."""
    patchers = [training_copy(model) for _ in range(2)]
    networks = [own.model.diffusion_model.float() for own in patchers]
    player = FullPlayer(*map(ModelDenoiser, patchers), *networks)
    return Trainee(
        patchers, player, full_ready(networks[0], asked.options.checkpointing), partial(copies_away, patchers)
    )


@contextmanager
def full_ready(network: torch.nn.Module, checkpointing: bool) -> Iterator[None]:
    with differentiable(network), gradient_checkpointing(transformer_blocks(network) if checkpointing else []):
        yield


@contextmanager
def copies_away(patchers: list) -> Iterator[None]:
    """Short of memory, drawing displaces the copies: afterwards they are where training needs them."""
    yield
    load_for_training(patchers)
