"""A ViCo training in the graph: photos go in, a concept comes out."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from ...scores.scorer import Scorer
from ...train_core import (
    SCORE,
    HeldOut,
    LocalEngine,
    LoopSettings,
    StepReport,
    Training,
    TrainingDiverged,
    best_step,
    load_trained,
    read_state,
    train,
)
from ...train_core.engine import AUTOCAST_DTYPES
from ...vico_core import ViCoConcept, base_hash
from ...vico_core.placeholder import isolate
from ...vico_core.templates import TEMPLATES
from ...vico_core.training import (
    ATTENTION_LR,
    REGULARIZATION,
    WORD_LR,
    Draws,
    Photos,
    TrainedConcept,
    ViCoObjective,
)
from ..host.copies import as_a_node, model_hash, training_mode
from ..host.frozen import Frozen, borrowed, patched_hash
from ..host.options import BEST, TrainingOptions
from ..host.pictures import to_pictures
from ..host.previews import Previews
from ..host.progress import Watch
from ..host.sampling import Sampling
from .capture import AUTOMATIC, GIVEN
from .drawing import as_usual, draw_with_concept
from .memory import Rehearsal
from .photos import Photo, Reference
from .places import known_family, places_of, share
from .runs import Outcome, RunFiles
from .streams import HostStreams, checkpointed, training_clip
from .training_photos import Picture, encode_photos, pictures_hash, thumbnail
from .trigger import start_words

PREVIEW, SHORT_PREVIEW = Sampling(steps=20), Sampling(steps=2)
FLOW_CFG = 4.0
LARGE_ENCODER = 1_000_000_000  # parameters above which a word is not learnt unless asked for
AUTOMATIC_WORD, LEARNT, FIXED = "automatic", "learnt", "fixed to the initialiser"
# What ends a run early without losing what was learnt: the user, and a loss that is no number any more.
STOPS = (comfy.model_management.InterruptProcessingException, TrainingDiverged)


@dataclass(frozen=True)
class TrainSettings:
    """What decides the result. Defaults are the paper's (one photo a step, 400 steps)."""

    initialiser: str
    placeholder: str = "*"
    steps: int = 400
    batch_size: int = 1
    word_lr: float = WORD_LR
    attention_lr: float = ATTENTION_LR
    regularization: float = REGULARIZATION
    seed: int = 0
    size: int = 512
    detach_reference: bool = False
    captions: tuple[str, ...] = ()  # none: the paper's templates
    word: str = (
        AUTOMATIC_WORD  # learnt, or fixed to the initialiser; automatic: learnt where the text encoder is not large
    )
    zero_init: bool = False  # image attention begins as the identity
    dense: bool = False  # image attention at more places than the paper's


@dataclass(frozen=True)
class TrainingRun:
    """What Train ViCo was asked for. name: of its folder; preview_prompts: each with the placeholder in it.

    scored: by what previews are scored, on which prompts and how often; empty without a scorer.
    """

    settings: TrainSettings
    options: TrainingOptions = field(default_factory=TrainingOptions)
    name: str = "concept"
    preview_prompts: tuple[str, ...] = ()
    scored: dict = field(default_factory=dict)


def train_concept(
    model,
    clip,
    vae,
    pictures: list[Picture],
    asked: TrainingRun,
    say: Callable[[str], None],
    scorer: Scorer | None = None,
) -> Outcome:
    """Learns the object of the photos beside `model`, which itself stays as it is. scorer: rates the previews.

    An interrupt is passed on after what was learnt has been kept. Raises: ValueError, OSError, TrainingDiverged with sentences.
    """
    try:
        with training_mode():
            return _train(model, clip, vae, pictures, asked, say, scorer)
    finally:
        gc.collect()
        comfy.model_management.cleanup_models()
        comfy.model_management.soft_empty_cache()


def _train(model, clip, vae, pictures: list[Picture], asked: TrainingRun, say, scorer) -> Outcome:
    with torch.no_grad():
        photos = encode_photos(vae, model, pictures, asked.settings.size)
    asked = replace(asked, settings=replace(asked.settings, word=word_of(asked.settings.word, clip)))
    session = start_session(model, clip, asked)
    identity = identity_of(session, vae, pictures, asked)
    files = RunFiles(asked.name, identity)
    if finished := files.finished(asked.settings.steps):
        say(f"Already trained: step {asked.settings.steps} of {files.newest()}.")
        return finished

    base = base_hash(session.streams.unet.named_parameters())

    def concept_now(step: int) -> ViCoConcept:
        concept = describe(session.trained.concept(), step, base, asked.settings, pictures)
        return replace(concept, family=known_family(session.patcher.model))

    keep_lost(files, session.trained, concept_now)
    previews = make_previews(session, vae, photos, pictures, asked, scorer)
    watch = Watch(say, asked.options.preview_every, previews.strip if previews.prompts else None)
    held_out = previews.held_out(asked.options, asked.scored)
    draw = None
    if asked.options.preview_every and previews.prompts:
        draw = preview_drawer(session, vae, photos, pictures, asked.preview_prompts[:1], SHORT_PREVIEW)
    training = run_steps(session, photos, asked, files, watch, concept_now, held_out, draw)
    if training.stopped_by is not None and training.step == 0:
        raise training.stopped_by
    concept = concept_now(training.step)
    path = files.keep(concept)
    if training.stopped_by is not None:
        say(
            f"Stopped at step {training.step}, kept. Queue again to go on.\nIt is {path.parent.name}/{path.name} in models/vico."
        )
        raise training.stopped_by
    told = f"{watch.outcome(training.step)}\nIn models/vico/{files.run}."
    best = best_step(training.history)
    if best is not None:
        told += f"\nBest score {training.history[best - 1].metrics[SCORE]:.4f}, after step {best}."
    if best is not None and asked.options.result == BEST:
        take_state(session.trained, files.states.file(best))
        concept = concept_now(best)
        files.keep(concept)
    say(told)
    return Outcome(concept, [report.metrics for report in training.history], files.run)


@dataclass(frozen=True)
class Session:
    """What a training works on and what it learns.

    patcher: the user's own model; text: a copy of its CLIP where the word is learnt, else the CLIP; frozen: holds them while
    they are trained beside.
    """

    patcher: comfy.model_patcher.ModelPatcher
    text: comfy.sd.CLIP
    trained: TrainedConcept
    streams: HostStreams
    engine: LocalEngine
    frozen: Frozen


def word_of(word: str, clip: comfy.sd.CLIP) -> str:
    """Whether the word is learnt: beside a large text encoder, only when asked for."""
    if word != AUTOMATIC_WORD:
        return word
    size = sum(weight.numel() for weight in clip.cond_stage_model.parameters())
    return FIXED if size > LARGE_ENCODER else LEARNT


def start_session(model, clip, asked: TrainingRun) -> Session:
    settings, options = asked.settings, asked.options
    learn = settings.word == LEARNT
    patcher = borrowed(model, AUTOCAST_DTYPES.get(options.precision, torch.float32))
    text = training_clip(clip) if learn else clip
    shapes, words = places_of(patcher.model, settings.dense)[1], start_words(clip, settings.initialiser)
    trained = TrainedConcept(shapes, words, settings.seed, learn, settings.zero_init).to(patcher.load_device)
    engine = LocalEngine(patcher.load_device, options.precision, options.accumulation)
    streams = HostStreams(patcher, text, trained, settings.placeholder, engine, settings.detach_reference)
    if not learn:
        streams.encode_once(captions_of(settings))
    sparing = [lambda: checkpointed(streams.unet)] if options.checkpointing else []
    frozen = Frozen([patcher, text.patcher] if learn else [patcher], within=sparing)
    return Session(patcher, text, trained, streams, engine, frozen)


def captions_of(settings: TrainSettings) -> list[str]:
    return list(settings.captions) or [template.format(settings.placeholder) for template in TEMPLATES]


def run_steps(
    session: Session,
    photos: Photos,
    asked: TrainingRun,
    files: RunFiles,
    watch: Watch,
    concept_now,
    held_out: HeldOut | None,
    draw: Callable[[], object] | None,
) -> Training:
    """The steps themselves, by train_core's loop; goes on from the newest state. draw: a preview in few steps, or None."""
    settings, options = asked.settings, asked.options
    trained, streams, engine = session.trained, session.streams, session.engine
    captions = captions_of(settings)
    draws = Draws(photos, captions, len(streams.schedule), settings.batch_size, settings.seed, engine.device)
    optimizer = engine.prepare(trained.optimizer(settings.word_lr, settings.attention_lr))
    objective = ViCoObjective(streams, settings.regularization)
    loop = LoopSettings(settings.steps, options.warmup_steps, options.decay, checkpoint_every=options.checkpoint_every)

    def on_step(report: StepReport) -> None:
        if options.checkpoint_every and report.step % options.checkpoint_every == 0:
            files.keep(concept_now(report.step))
        watch.step(report)

    with session.frozen:
        part = share(trained.places, streams.unet)
        side, caption = photos.mean.shape[-1], max(captions, key=len)
        rehearsal = Rehearsal(session.frozen, streams, trained, caption, side, photos.masks, draw)
        need = rehearsal.told(settings.size, settings.batch_size, options.checkpointing)
        watch.say(f"Image attention at {len(trained.places)} places, {part:.1%} of the model.\n{need}")
        watch.begin(settings.steps)
        return train(objective, draws, trained, optimizer, loop, engine, on_step, files.states, STOPS, held_out)


def keep_lost(files: RunFiles, trained: TrainedConcept, concept_now: Callable) -> None:
    """Concepts of states whose run was killed between the two. Training then goes on from the newest state anyway."""
    for step in files.states.steps():
        if not files.concept_file(step).is_file():
            take_state(trained, files.states.file(step))
            files.keep(concept_now(step))


def take_state(trained: TrainedConcept, file: Path) -> None:
    """A state's weights into what is trained: where the word is fixed, it is in none."""
    load_trained({name: p for name, p in trained.named_parameters() if p.requires_grad}, read_state(file)["weights"])


def identity_of(session: Session, vae, pictures, asked: TrainingRun) -> dict:
    """All that a run's result hangs on.

    The number of steps does not count where the rate is constant, so that a run can go further.
    """
    fixed, options = asdict(asked.settings), asked.options
    if options.decay == "constant":
        del fixed["steps"]
    return {
        "model": patched_hash(session.patcher),
        "process": session.streams.denoiser.process,
        "text encoder": patched_hash(session.text.patcher, ""),
        "layer": session.text.layer_idx,
        "vae": model_hash(vae.first_stage_model),
        "photos": pictures_hash(pictures),
        "precision": options.precision,
        "accumulation": options.accumulation,
        "warmup_steps": options.warmup_steps,
        "decay": options.decay,
        **({"scored": asked.scored} if asked.scored else {}),
        **fixed,
    }


def describe(concept: ViCoConcept, step: int, base: str, settings: TrainSettings, pictures) -> ViCoConcept:
    """The concept with what its file says of its making."""
    concept.placeholder, concept.initialiser = settings.placeholder, settings.initialiser
    concept.base_hash, concept.step = base, step
    concept.settings, concept.thumbnail = asdict(settings), thumbnail(pictures[0])
    return concept


def make_previews(
    session: Session, vae, photos: Photos, pictures: list[Picture], asked: TrainingRun, scorer: Scorer | None
) -> Previews:
    """Draws the prompts with the first photo as the reference, then brings the training back to the device.

    A scorer reads the initialiser for the placeholder, and may compare with the photos.
    """
    settings = asked.settings
    draw = preview_drawer(session, vae, photos, pictures, asked.preview_prompts, PREVIEW)
    told = [isolate(prompt, settings.placeholder, settings.initialiser) for prompt in asked.preview_prompts]
    return Previews(draw, session.frozen.given_back, told, scorer, to_pictures(p.image for p in pictures))


def preview_drawer(
    session: Session, vae, photos: Photos, pictures: list[Picture], prompts: Sequence[str], sampling: Sampling
) -> Callable[[], Tensor]:
    """draw(): a picture for each prompt, with the first photo as the reference; the training is back on the device afterwards."""
    latent = session.patcher.model.process_latent_out(photos.mean[:1])
    mask = None if photos.masks is None else photos.masks[0]
    reference = Reference([Photo(latent, pictures[0].image, mask)])
    source = AUTOMATIC if mask is None else GIVEN

    def draw() -> Tensor:
        concept = session.trained.concept()
        concept.placeholder = session.streams.trigger.word
        parts = (session.patcher, session.text, vae, concept, reference)
        usual = as_usual(sampling, session.patcher, cfg=FLOW_CFG)
        with session.frozen.given_back():
            return as_a_node(draw_with_concept, *parts, prompts, [0], usual, source)

    return draw
