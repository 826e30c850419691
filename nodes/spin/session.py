"""A game in the graph: the player out of a MODEL, and what it has learnt as patches of that MODEL."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import torch
from torch import Tensor

from ...intake import Report
from ...scores.scorer import Scorer
from ...spin_core.batches import Corpus
from ...spin_core.encoding import encode_dataset, taken_by
from ...spin_core.game import Game, OnProgress, Opponent, Progress, Run, play, train_baseline
from ...spin_core.store import TensorStore
from ...train_core import HeldOut, LocalEngine, save_tensors
from ..host.copies import training_mode
from ..host.denoiser import context_of
from ..host.folders import run_name
from ..host.previews import Previews
from ..host.progress import Watch
from .asked import TrainingRun
from .captions import Captions, decoded, host_sampler, picture_encoder, picture_strip
from .checkpoints import FOLDER, STOPPED, file_metadata
from .room import rehearsed
from .trainee import LoRATrainee, Trainee, make_trainee

TOLD_EVERY = 10  # pictures or captions that are encoded
SHOWN = 4  # pictures of the opponent that are shown of those drawn at once, and
PREVIEWED = 2  # captions that are previewed, where nothing else was asked for
INTERRUPTS = (comfy.model_management.InterruptProcessingException,)


@dataclass(frozen=True)
class Trained:
    """Weights as patches of the model that went in: an adapter, or (full) all of the network's weights."""

    lora: dict[str, Tensor] | None
    weights: dict[str, Tensor] | None
    metrics: dict
    report: Report
    outcome: str


def home() -> Path:
    """Where SPIN keeps what it makes: runs, latents, the opponents' pictures."""
    return Path(folder_paths.get_output_directory()) / FOLDER


def shown_by(watch: Watch) -> OnProgress:
    """The game's progress on the node: a bar for the opponent's pictures of each round, and one for its steps."""
    phase = None

    def show(progress: Progress) -> None:
        nonlocal phase
        if (progress.phase, progress.round_number) != phase:
            phase = (progress.phase, progress.round_number)
            watch.begin(progress.total)
        if progress.report:
            watch.step(progress.report, f"Round {progress.round_number}. ")
        else:
            watch.pictures(progress.done, f"Round {progress.round_number}")

    return show


def train(
    model, clip, vae, dataset, asked: TrainingRun, say: Callable[[str], None], scorer: Scorer | None = None
) -> Trained:
    """Plays the rounds, or trains the baseline, beside `model`, which stays as it is. scorer: rates the previews.

    What is learnt when the user interrupts is written to the run's folder before the interrupt goes on.
    """
    with training_mode(), ExitStack() as stack:
        trainee = make_trainee(model, asked)
        captions, report = Captions(clip, TensorStore(home() / "cache")), Report()
        corpus = make_corpus(model.model, captions, vae, dataset, asked, report, say)
        stack.enter_context(trainee.ready)
        stack.enter_context(trainee.player.attached())
        sample = host_sampler(trainee.patcher, captions, asked.opponent)
        previews = make_previews(vae, trainee, sample, corpus, asked, scorer)
        watch = Watch(say, asked.options.preview_every, previews.strip)
        parent = trainee.player.opponent_hash()
        made_from = {**asked.scored, "drawn": asked.made_from()["opponent"]}
        held_out = previews.held_out(asked.options, made_from, from_start=True)
        run = make_run(corpus, asked, trainee, shown_by(watch), parent, held_out)
        if isinstance(trainee, LoRATrainee):
            watch.note = rehearsed(trainee, run, asked, short_drawing(trainee, captions, vae, asked))
        draw = watched(sample, watch, asked.opponent.steps, vae, trainee)
        opponent = Opponent(draw, asked.made_from()["opponent"], asked.opponent.batch, kind=captions.kind)
        game = play_method(trainee.player, opponent, run, asked)
        metrics, outcome = metrics_of(game, asked, parent, run.folder), watch.outcome(steps_of(game))
        trained = Trained(*learnt(trainee.player, asked), metrics, report, outcome)
        if game.stopped_by is not None:
            kept = keep_stopped(trained, run.folder)
            say(
                f"{where_it_stopped(game)}, kept. Queue again to go on.\nIt is {os.path.relpath(kept, home())} in output/spin."
            )
            raise game.stopped_by
        return trained


def make_corpus(
    model,
    captions: Captions,
    vae,
    dataset,
    asked: TrainingRun,
    report: Report,
    say: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """All pictures and captions encoded, so that neither encoder moves the model while it is trained. say: what is done."""

    def on_done(done: int, what: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done % TOLD_EVERY == 1:
            say(f"Encoding {what} {done}.")

    corpus = encode_dataset(
        dataset,
        picture_encoder(vae, model, captions.store, asked.resolution),
        lambda prompts, shape: [context_of(model, captions.conditioning(p), shape) for p in prompts],
        report,
        take=taken_by(asked.method, dataset),
        on_picture=lambda done: on_done(done, "picture"),
        seed=asked.settings.seed,
        text_hash=captions.text_hash,
    )
    prompts = dict.fromkeys(["", asked.opponent.negative, *corpus.prompts, *asked.preview_prompts])
    for number, prompt in enumerate(prompts, start=1):
        on_done(number, f"caption (of {len(prompts)})")
        captions.conditioning(prompt)
    return corpus


def short_drawing(trainee: Trainee, captions: Captions, vae, asked: TrainingRun) -> Callable[..., None] | None:
    """Draws in two steps and shows as the run will, to see what it takes; None where the run draws nothing."""
    if asked.method != "spin" and not asked.options.preview_every:
        return None
    sample = host_sampler(trainee.patcher, captions, replace(asked.opponent, steps=min(2, asked.opponent.steps)))

    def draw(prompts: list[str], seeds: list[int], shape: tuple[int, ...]) -> None:
        with trainee.drawing():
            latents = sample(prompts, seeds, shape)
            if asked.options.preview_every:
                picture_strip(vae, trainee.patcher.model, latents[:SHOWN])

    return draw


def make_previews(vae, trainee: Trainee, sample, corpus, asked: TrainingRun, scorer: Scorer | None) -> Previews:
    """Draws the same prompts, or else the data's first captions, with the same seeds whenever it is asked."""
    prompts = asked.preview_prompts or tuple(dict.fromkeys(corpus.prompts))[:PREVIEWED]
    seeds, shape, batch = list(range(len(prompts))), tuple(corpus.shapes[0]), asked.opponent.batch

    def draw() -> Tensor:
        parts = [slice(i, i + batch) for i in range(0, len(prompts), batch)]
        with trainee.drawing():
            latents = torch.cat([sample(list(prompts[part]), seeds[part], shape) for part in parts])
            return torch.cat([decoded(vae, trainee.patcher.model, latents[part]) for part in parts])

    return Previews(draw, trainee.drawing, prompts, scorer)


def watched(sample: Callable[..., Tensor], watch: Watch, steps: int, vae, trainee: Trainee) -> Callable[..., Tensor]:
    """The sampler with its steps and pictures on the node, after which the model is as training needs it."""

    def draw(prompts: list[str], seeds: list[int], shape) -> Tensor:
        with trainee.drawing():
            latents = sample(prompts, seeds, shape, lambda step, drawn: watch.sampling_step(step, steps, drawn))
            watch.drawn(lambda: picture_strip(vae, trainee.patcher.model, latents[:SHOWN]))
            return latents

    return draw


def make_run(
    corpus, asked: TrainingRun, trainee: Trainee, on_progress: OnProgress, parent: str, held_out: HeldOut | None
) -> Run:
    """A run's folder is named after all that it comes from: the same again goes on, anything else starts anew."""
    process = trainee.player.policy.process
    made_from = {**asked.made_from(), "parent": parent, "data": corpus.fingerprint, "process": process}
    name = run_name(asked.name, made_from)
    engine = LocalEngine(trainee.patcher.load_device, asked.options.precision, asked.options.accumulation)
    folder = home() / "runs" / name
    others = tuple(other for other in folder.parent.glob(f"{name.rpartition('-')[0]}-*") if other != folder)
    return Run(
        corpus,
        asked.settings,
        engine,
        folder,
        on_progress,
        INTERRUPTS,
        home() / "pictures",
        process=process,
        earlier=others,
        held_out=held_out,
        keep_best=asked.keeps_best,
    )


def play_method(player, opponent: Opponent, run: Run, asked: TrainingRun) -> Game:
    if asked.method == "spin":
        return play(player, opponent, run, asked.rounds)
    return train_baseline(player, run, asked.method)


def learnt(player, asked: TrainingRun) -> tuple[dict | None, dict | None]:
    """(adapter, None) or (None, all weights)."""
    if asked.rank is not None:
        return player.lora_state_dict(), None
    return None, player.result()


def steps_of(game: Game) -> int:
    return sum(training.step for training in game.rounds)


def where_it_stopped(game: Game) -> str:
    """The round and its step, or the round whose pictures were being drawn."""
    if len(game.rounds) < len(game.opponents):
        return f"Stopped in round {len(game.opponents)}'s pictures"
    return f"Stopped at step {game.rounds[-1].step} of round {len(game.rounds)}"


def keep_stopped(trained: Trained, folder: Path) -> Path:
    """Writes what an interrupted run has learnt so far, as a file that Load SPIN Checkpoint reads."""
    path = folder / STOPPED
    tensors = trained.lora if trained.lora is not None else trained.weights
    save_tensors(
        path, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, file_metadata(trained.metrics)
    )
    return path


def metrics_of(game: Game, asked: TrainingRun, parent: str, folder: Path) -> dict:
    rounds = [[asdict(report) for report in training.history] for training in game.rounds]
    return {
        "method": asked.method,
        "parent": parent,
        "opponents": game.opponents,
        "settings": asdict(asked),
        "folder": os.path.relpath(folder, folder_paths.get_output_directory()),
        "rounds": rounds,
    }


def with_learnt(model, trained: Trained):
    """The model that went in, with what was learnt as the host's own patches."""
    if trained.lora is not None:
        return comfy.sd.load_lora_for_models(model, None, trained.lora, 1.0, 0.0)[0]
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{name}": ("set", (weight,)) for name, weight in trained.weights.items()})
    return patched
