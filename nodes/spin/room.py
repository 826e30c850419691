"""Room for a training: what it needs is told on the node, with the setting that would fit, and kept free on the device."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from ...spin_core.batches import Corpus
from ...spin_core.game import Run
from ...train_core import MixedPrecision, gradient_checkpointing
from ..host.families import transformer_blocks
from ..host.memory import Need, make_room
from .asked import TrainingRun
from .rehearsal import Rehearsal
from .trainee import LoRATrainee


def rehearsed(trainee: LoRATrainee, run: Run, asked: TrainingRun, drawing: Callable[..., None] | None) -> str:
    """Rehearses the run and keeps free what it needs. Returns what it needs and, where that is too much, what would fit.

    drawing: draws pictures in few steps, where the run draws any.
    """
    largest = max(run.corpus.shapes, key=lambda shape: shape[-1] * shape[-2])
    prompts = list(run.corpus.prompts[: asked.opponent.batch])
    prompts += prompts[:1] * (2 - len(prompts))

    def draw(count: int) -> None:
        drawing(prompts[:count], list(range(count)), tuple(largest))

    policy = MixedPrecision(trainee.player.policy, run.engine)
    drawn = min(asked.opponent.batch, len(run.corpus)) if drawing else 0
    rehearsal = Rehearsal(trainee.player, policy, run.corpus, draw, drawn)
    area = largest[-1] * largest[-2]
    need, wanted = rehearsal.need(trainee.patcher.model_size(), asked.adapters), rows(asked, run.corpus)
    fitting = savings(trainee, rehearsal, need, wanted, area, asked)
    return make_room(trainee.ready, need, wanted, area, fitting, "use a smaller model.")


def rows(asked: TrainingRun, corpus: Corpus) -> int:
    """Rows of one forward: both sides of each pair at once, unless memory is short."""
    paired = (asked.method == "spin" or corpus.rejected is not None) and not asked.settings.low_memory
    return asked.settings.batch_size * (2 if paired else 1)


def savings(
    trainee: LoRATrainee, rehearsal: Rehearsal, need: Need, wanted: int, area: int, asked: TrainingRun
) -> Iterator[tuple[str, int]]:
    """Settings that need less, each with those before it, and the bytes beside the model with them. wanted: rows of a step."""
    words, now = [], need
    if not asked.options.checkpointing:
        words.append("gradient_checkpointing")
        with gradient_checkpointing(transformer_blocks(trainee.player.model)):
            now = replace(need, growth=rehearsal.growth())  # a drawing would take the blocks' forwards off and on again
        yield words[0], now.beside(wanted, area)
    if asked.method == "spin" and not asked.settings.low_memory:  # the baselines have no SPIN Options
        words.append("low_memory in SPIN Options")
        wanted //= 2
        yield " and ".join(words), now.beside(wanted, area)
    if asked.settings.batch_size > 1:
        words.append(f"batch_size 1 and accumulation {asked.options.accumulation * asked.settings.batch_size}")
        wanted //= asked.settings.batch_size
        yield ", ".join(words), now.beside(wanted, area)
    for resolution in range(asked.resolution - 64, 63, -64):
        smaller = round(area * (resolution / asked.resolution) ** 2)
        yield ", ".join([*words, f"resolution {resolution}"]), now.beside(wanted, smaller)
