"""The model that learns: a LoRA beside the user's own weights, or two copies of all of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from ...spin_core.players import FullPlayer, LoRAPlayer
from ...train_core import gradient_checkpointing, weights_hash
from ...train_core.engine import AUTOCAST_DTYPES
from ..host.copies import load_for_training, training_copy
from ..host.denoiser import ModelDenoiser
from ..host.families import trained_layers, transformer_blocks
from ..host.families.gradients import differentiable
from ..host.frozen import Frozen, borrowed, patched_hash
from ..host.sharded import sharded
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


def make_trainee(model, asked: TrainingRun, processes: int = 1) -> Trainee:
    """processes: that share the network's weights out among them; 1 keeps them whole."""
    return (full_trainee if asked.rank is None else lora_trainee)(model, asked, processes)


def lora_trainee(model, asked: TrainingRun, processes: int) -> LoRATrainee:
    """A LoRA beside the user's own weights, in the type that they are stored in."""
    patcher = borrowed(model, AUTOCAST_DTYPES.get(asked.options.precision, torch.float32))
    network = patcher.model.diffusion_model
    names, base_hash = trained_layers(network, asked.layers), patched_hash(patcher)
    if processes > 1:
        patcher = sharded(patcher, processes)
    how = (names, asked.rank, float(asked.rank), asked.settings.seed, patcher.load_device)
    player = LoRAPlayer(ModelDenoiser(patcher), network, base_hash, *how)
    sparing = [lambda: gradient_checkpointing(transformer_blocks(network))] if asked.options.checkpointing else []
    frozen = Frozen([patcher], within=sparing)
    return LoRATrainee([patcher], player, frozen, frozen.given_back)


def full_trainee(model, asked: TrainingRun, processes: int) -> Trainee:
    """Player and opponent as two copies of one model, in float32 whatever the model is in. The player alone is shared out."""
    patchers = [training_copy(model) for _ in range(2)]
    networks = [own.model.diffusion_model.float() for own in patchers]
    if processes > 1:
        patchers[0] = sharded(patchers[0], processes)
    moved = patchers if processes == 1 else patchers[1:]
    player = FullPlayer(*map(ModelDenoiser, patchers), *networks)
    ready = full_ready(moved, networks[0], asked.options.checkpointing)
    return Trainee(patchers, player, ready, partial(copies_away, moved))


@contextmanager
def full_ready(moved: list, network: torch.nn.Module, checkpointing: bool) -> Iterator[None]:
    load_for_training(moved)
    with differentiable(network), gradient_checkpointing(transformer_blocks(network) if checkpointing else []):
        yield


@contextmanager
def copies_away(patchers: list) -> Iterator[None]:
    """Short of memory, drawing displaces the copies: afterwards they are where training needs them."""
    yield
    load_for_training(patchers)


def first_opponent(model, asked: TrainingRun) -> tuple:
    """(patcher, hash) of the opponent of round 1 alone, as the run that is asked for would have it."""
    if asked.rank is not None:
        patcher = borrowed(model)
        return patcher, patched_hash(patcher)
    patcher = training_copy(model)
    return patcher, weights_hash(patcher.model.diffusion_model.float().state_dict())
