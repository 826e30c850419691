"""The game: opponent frozen -> its pictures -> training -> new opponent, round after round (SPIN-Diffusion algorithm 1).

Everything that a round makes lies in the run's folder, so that a run that stopped anywhere goes on from there:
    pictures/            the opponents' latents, keyed by prompt, seed, sampler and the opponent's hash
    round-1/step-*       the checkpoints of the round's training
    round-1/result       what the round learnt
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..intake import write_atomically
from ..train_core import (
    CheckpointFolder,
    Engine,
    HeldOut,
    LoopSettings,
    MixedPrecision,
    StepReport,
    Training,
    best_step,
    keyed_generator,
    load_trained,
    read_identity,
    save_tensors,
    train,
)
from .batches import BucketOrder, Corpus, PairBatches
from .generation import Kind, Order, Pictures, Sample, any_kind
from .players import Player
from .steps import KtoStep, PairOptions, PairStep, SftStep
from .store import TensorStore
from .trajectories import TrajectoryStep

HIGH_RATE = 0.1


@dataclass(frozen=True)
class RoundSettings:
    """How a round trains. Values that the paper changes from round to round are given one a round; the last one stays.

    beta: see objectives. batch_size counts over all processes; accumulation
    is the engine's. caption_dropout acts on both sides of a pair or on none.
    """

    steps: Sequence[int] = (500,)
    beta: Sequence[float] = (2000.0, 5000.0)
    lr: Sequence[float] = (2e-5,)
    batch_size: int = 4
    warmup_steps: int = 0
    decay: str = "constant"
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    checkpoint_every: int = 100
    share_noise: bool = True
    caption_dropout: float = 0.0
    low_memory: bool = False
    options: PairOptions = field(default_factory=PairOptions)
    seed: int = 0

    def __post_init__(self):
        check_numbers("beta", self.beta, "without it the game has no pull (the paper uses 2000 to 5000)")
        check_numbers("learning rate", self.lr, "a point is written in numbers, as 0.0001, and commas between rounds")
        if max(self.lr) > 1:
            raise ValueError(
                f"Set learning rate to 1 at most.\nIt is {max(self.lr):g}: a point is written in numbers, as 0.0001."
            )
        if max(self.lr) > HIGH_RATE:
            logging.warning(
                "the learning rate %g is very high: most models come apart above %g", max(self.lr), HIGH_RATE
            )
        if not self.steps or min(self.steps) < 1 or self.batch_size < 1:
            raise ValueError(f"Set steps and batch size to 1 at least.\nThey are {self.steps} and {self.batch_size}.")

    def loop(self, round_number: int) -> LoopSettings:
        steps = of_round(self.steps, round_number)
        return LoopSettings(steps, self.warmup_steps, self.decay, self.max_grad_norm, self.checkpoint_every)


def check_numbers(name: str, values: Sequence[float], why: str) -> None:
    """Raises: ValueError where there is none, or one of them is not a finite number above 0."""
    if not values:
        raise ValueError(f"Set {name} above 0.\nIt is empty: {why}.")
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"Set {name} above 0.\nIt is {value:g}: {why}.")


def of_round(values: Sequence, round_number: int):
    """The value of round 1, 2, …: the last one given stays."""
    return values[min(round_number, len(values)) - 1]


@dataclass(frozen=True)
class Opponent:
    """How the opponent draws. sampler: its settings as JSON values, part of every picture's key.

    together: its weights are shared out over the processes, so that all of them draw each picture. kind: of a
    prompt: those of one kind are drawn in one batch.
    """

    sample: Sample
    sampler: dict
    batch_size: int = 4
    together: bool = False
    kind: Kind = any_kind


@dataclass(frozen=True)
class Progress:
    """Where a run stands: pictures in phase "generate", steps in phase "train" (then with the step's report)."""

    phase: str
    round_number: int
    done: int
    total: int
    report: StepReport | None = None


OnProgress = Callable[[Progress], None]


@dataclass
class Game:
    """What was played: the training of every round, the opponents' hashes, and what ended the run early."""

    rounds: list[Training] = field(default_factory=list)
    opponents: list[str] = field(default_factory=list)
    stopped_by: BaseException | None = None


@dataclass(frozen=True)
class Run:
    """What all rounds of a run share.

    sampler: the opponent's, where its pictures are learnt from. process: hash of what the model predicts, and of its noise.
    earlier: folders of runs that it may go on from, where a round is the same.
    held_out: scores what the player draws as it learns. keep_best: a round comes to its best step, and not to its last one:
    to what it began with, where that is scored and no step is better.
    """

    corpus: Corpus
    settings: RoundSettings
    engine: Engine
    folder: Path
    on_progress: OnProgress = lambda progress: None
    return_on: tuple[type[BaseException], ...] = ()
    pictures: Path | None = None
    method: str = "spin"
    sampler: dict | None = None
    process: str = ""
    earlier: tuple[Path, ...] = ()
    held_out: HeldOut | None = None
    keep_best: bool = False

    @property
    def picture_folder(self) -> Path:
        """Shared by several runs where `pictures` names a folder: the keys keep opponents apart."""
        return Path(self.folder) / "pictures" if self.pictures is None else self.pictures

    def round_folder(self, number: int) -> Path:
        return Path(self.folder) / f"round-{number}"


def play(player: Player, opponent: Opponent, run: Run, rounds: int) -> Game:
    """Plays rounds 1 … rounds. What a former run finished is taken from the folder.

    Where the loss is that of trajectories, they are drawn in the steps themselves, with as many sampling steps as the opponent's.

    Raises: RuntimeError where the opponent's weights changed while the player learnt; they never may.
    """
    along = run.settings.options.loss == "trajectory"
    make_step = partial(trajectory_step, opponent.sampler["steps"]) if along else pair_step
    if along:
        run = replace(run, method=f"{run.method} along {opponent.sampler['steps']} steps")
    else:
        run = replace(run, sampler=opponent.sampler)
    game = Game()
    for number in range(1, rounds + 1):
        opponent_hash = player.opponent_hash()
        game.opponents.append(opponent_hash)
        adopt(player, run, number, opponent_hash)
        training = finished(player, run, number, opponent_hash)
        if training is None:
            try:
                other = None if along else generate(opponent, opponent_hash, run, number)
            except run.return_on as stop:
                game.stopped_by = stop
                break
            training = learn(player, run, number, make_step, other, opponent_hash)
        game.rounds.append(training)
        if training.stopped_by is not None:
            game.stopped_by = training.stopped_by
            break
    return game


BASELINES = {"sft": ("sft",), "dpo": ("dpo",), "kto": ("kto",), "sft+dpo": ("sft", "dpo")}  # rounds of each


def train_baseline(player: Player, run: Run, method: str) -> Game:
    """One of BASELINES by the same loop, a round a stage; each round's reference is the model that it starts from.

    Supervised fine-tuning on the real pictures, Diffusion-DPO on pairs, Diffusion-KTO on pairs or on pictures with thumbs, or
    DPO from an SFT start.
    """
    thumbs = method == "kto" and run.corpus.liked is not None
    if method != "sft" and run.corpus.rejected is None and not thumbs:
        raise ValueError(
            "Take a data set with preference pairs.\n"
            f"{method.upper()} trains on them; this one has no second picture and label for its prompts."
        )
    game = Game()
    for number, stage in enumerate(BASELINES[method], start=1):
        training = learn_stage(player, run, number, stage, game)
        game.rounds.append(training)
        if training.stopped_by is not None:
            game.stopped_by = training.stopped_by
            break
    return game


def learn_stage(player: Player, run: Run, number: int, stage: str, game: Game) -> Training:
    """A stage of a baseline, from what a former run has of it."""
    loss = "kto" if stage == "kto" else run.settings.options.loss
    run = replace(run, method=stage, settings=replace(run.settings, options=replace(run.settings.options, loss=loss)))
    other, make_step = (None, sft_step) if stage == "sft" else (run.corpus.rejected, pair_step)
    start = player.opponent_hash()
    game.opponents.append(start)
    adopt(player, run, number, start)
    return finished(player, run, number, start) or learn(player, run, number, make_step, other, start)


def pair_step(player: Player, run: Run, number: int) -> PairStep | KtoStep:
    """The step of the loss that was chosen: of pairs (Diffusion-DPO's too: its reference is the opponent of round 1), or KTO's."""
    policy, reference = (MixedPrecision(model, run.engine) for model in (player.policy, player.reference))
    beta, options, low_memory = of_round(run.settings.beta, number), run.settings.options, run.settings.low_memory
    if options.loss == "kto":
        share = partial(run.engine.reduce, reduction="mean")
        return KtoStep(policy, reference, beta, options.sft_weight, low_memory, share)
    return PairStep(policy, reference, beta, options, low_memory)


def trajectory_step(steps: int, player: Player, run: Run, number: int) -> TrajectoryStep:
    policy, reference = (MixedPrecision(model, run.engine) for model in (player.policy, player.reference))
    settings = run.settings
    beta = of_round(settings.beta, number)
    return TrajectoryStep(policy, reference, beta, steps, settings.share_noise, settings.low_memory)


def sft_step(player: Player, run: Run, number: int) -> SftStep:
    return SftStep(MixedPrecision(player.policy, run.engine))


def generate(opponent: Opponent, opponent_hash: str, run: Run, number: int) -> Callable[[int], Tensor]:
    """Has the opponent draw a picture for every sample's prompt. Returns the latent of sample i."""
    sampler = {**opponent.sampler, "text": run.corpus.text_hash, "process": run.process}
    pictures = Pictures(TensorStore(run.picture_folder), opponent_hash, sampler)
    orders = [
        Order(prompt, picture_seed(run.settings.seed, number, i), tuple(shape))
        for i, (prompt, shape) in enumerate(zip(run.corpus.prompts, run.corpus.shapes, strict=True))
    ]
    share = (0, 1) if opponent.together else (run.engine.process_index, run.engine.num_processes)
    pictures.make(
        orders,
        opponent.sample,
        opponent.batch_size,
        lambda done, total: run.on_progress(Progress("generate", number, done, total)),
        *share,
        run.engine.wait_for_everyone,
        opponent.kind,
    )
    run.engine.wait_for_everyone()
    return lambda i: pictures.latent(orders[i])


def picture_seed(seed: int, number: int, sample: int) -> int:
    """Seed of the opponent's picture: another one for every sample and round."""
    return keyed_generator(seed, "picture", number, sample).initial_seed()


def learn(player: Player, run: Run, number: int, make_step, other, opponent_hash: str) -> Training:
    """One round's training, from its newest checkpoint where there is one; its result is written when all steps are done."""
    settings = run.settings
    checkpoints = CheckpointFolder(
        run.round_folder(number), keep=1, identity=identity(player, run, number, opponent_hash)
    )
    torch.manual_seed(settings.seed)  # for layers that draw for themselves: a run is the same whatever came before it
    with player.round(number):
        parameters = [p for p in player.trained.parameters() if p.requires_grad]
        lr = of_round(settings.lr, number)
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=settings.weight_decay, fused=True)
        training = train(
            make_step(player, run, number),
            batches(player, run, number, other),
            player.trained,
            run.engine.prepare(optimizer),
            settings.loop(number),
            run.engine,
            reporter(run, number),
            checkpoints,
            run.return_on,
            run.held_out,
        )
        run.engine.free_memory()  # the next round has an optimiser of its own
        if player.opponent_hash() != opponent_hash:
            raise RuntimeError(
                "Train again without nodes that change the model meanwhile.\n"
                f"The opponent's weights changed in round {number}: what was learnt is not to be used."
            )
        if training.stopped_by is None:
            if (step := kept_step(run, training.history)) != training.step:
                trained = {name: p for name, p in player.trained.named_parameters() if p.requires_grad}
                load_trained(trained, checkpoints.load(step)["weights"])
            learnt = player.result()
            if run.engine.is_main_process:
                write_result(learnt, player, training, run, number, opponent_hash)
    run.engine.wait_for_everyone()
    return training


def kept_step(run: Run, history: Sequence[StepReport]) -> int:
    """The step that a round comes to."""
    best = best_step(history) if run.keep_best else None
    return len(history) if best is None else best


def batches(player: Player, run: Run, number: int, other: Callable[[int], Tensor] | None) -> PairBatches:
    settings, engine = run.settings, run.engine
    if settings.batch_size % engine.num_processes:
        raise ValueError(
            f"Set batch size to a multiple of {engine.num_processes}.\n"
            f"{settings.batch_size} cannot be shared out over {engine.num_processes} processes evenly."
        )
    seed = keyed_generator(settings.seed, "round", number).initial_seed()
    return PairBatches(
        run.corpus,
        BucketOrder(run.corpus.shapes, settings.batch_size, seed),
        len(player.policy.schedule),
        seed,
        engine.device,
        other,
        settings.share_noise,
        settings.caption_dropout,
        engine.process_index,
        engine.num_processes,
    )


def reporter(run: Run, number: int) -> Callable[[StepReport], None]:
    """Turns the loop's reports into progress."""
    total = of_round(run.settings.steps, number)
    return lambda report: run.on_progress(Progress("train", number, report.step, total, report))


def identity(player: Player, run: Run, number: int, opponent_hash: str) -> dict:
    """What makes two trainings the same: a checkpoint or a result of another one is not continued."""
    settings = asdict(run.settings)
    per_round = {name: of_round(settings.pop(name), number) for name in ("steps", "beta", "lr")}
    if settings["decay"] == "constant":
        del per_round["steps"]  # a longer round begins as a shorter one: it can be extended
    for free in ("checkpoint_every", "low_memory"):  # change how a run is done, and not what it comes to
        del settings[free]
    scored = {"held_out": run.held_out.made_from} if run.held_out else {}
    drawn = {"sampler": run.sampler} if run.sampler else {}
    return {
        **settings,
        **per_round,
        **scored,
        **drawn,
        "method": run.method,
        "player": player.kind,
        "round": number,
        "opponent": opponent_hash,
        "samples": len(run.corpus),
        "data": run.corpus.fingerprint,
        "process": run.process,
        "accumulation": run.engine.gradient_accumulation_steps,
        "precision": run.engine.mixed_precision,
    }


def write_result(
    learnt: dict[str, Tensor], player: Player, training: Training, run: Run, number: int, opponent_hash: str
) -> None:
    """What the round learnt, with its identity and its history."""
    metadata = {
        "identity": json.dumps(identity(player, run, number, opponent_hash)),
        "history": json.dumps([asdict(report) for report in training.history]),
        "step": str(kept_step(run, training.history)),
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in learnt.items()}
    save_tensors(run.round_folder(number) / "result.safetensors", contiguous, metadata)


def adopt(player: Player, run: Run, number: int, opponent_hash: str) -> None:
    """Begins a round where an earlier run with other steps or rounds left it: by copies of its newest checkpoint and its best."""
    if run.round_folder(number).exists():
        return
    wanted, steps = identity(player, run, number, opponent_hash), of_round(run.settings.steps, number)
    found = [
        (step, folder.file(step))
        for folder in (CheckpointFolder(other / f"round-{number}") for other in run.earlier)
        for step in folder.steps()
        if step <= steps and is_same(read_identity(folder.file(step)), wanted)
    ]
    if found and run.engine.is_main_process:
        _, newest = max(found)
        for file in sorted(file for _, file in found if file.parent == newest.parent):
            write_atomically(run.round_folder(number) / file.name, partial(shutil.copyfile, file))
    run.engine.wait_for_everyone()


def is_same(found: dict, wanted: dict) -> bool:
    return found == json.loads(json.dumps(wanted))


def finished(player: Player, run: Run, number: int, opponent_hash: str) -> Training | None:
    """The round as a former run finished it, applied to the player; None where it has yet to be played, extended or chosen from.

    Raises: ValueError where it has more steps than are asked for, or a round after it stands in the way of more.
    """
    path = run.round_folder(number) / "result.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
    except SafetensorError as error:
        logging.warning('"%s" is damaged (%s): round %d is played again from its checkpoints', path, error, number)
        return None
    CheckpointFolder(path.parent, identity=identity(player, run, number, opponent_hash)).check(
        json.loads(metadata["identity"]), path
    )
    history, steps = (
        [StepReport(**report) for report in json.loads(metadata["history"])],
        of_round(run.settings.steps, number),
    )
    over = len(history) == steps or (len(history) < steps and run.held_out and run.held_out.is_over(history))
    same = over and kept_step(run, history) == int(metadata.get("step", len(history)))
    if not same and len(history) <= steps and not run.round_folder(number + 1).exists():
        return None
    if not same:
        raise ValueError(
            f"Set steps to {len(history)}, or name another run.\n"
            f'Round {number} in "{run.folder}" has as many, and {steps} are asked for: only the last round can go on longer.'
        )
    player.take(load_file(path))
    return Training(len(history), history)
