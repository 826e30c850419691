"""A ViCo training in the graph: photos go in, a concept comes out; its files, previews, interrupts and memory."""

import gc
import hashlib
import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import numpy
import torch
from PIL import Image
from torch import Tensor

from train_core import (
    CheckpointFolder,
    LocalEngine,
    LoopSettings,
    StepReport,
    Training,
    TrainingDiverged,
    read_state,
    train,
    weights_hash,
    write_atomically,
)
from train_core.engine import AUTOCAST_DTYPES
from vico_core import ViCoConcept
from vico_core.photos import resize
from vico_core.templates import TEMPLATES
from vico_core.training import (
    ATTENTION_LR,
    REGULARIZATION,
    WORD_LR,
    Draws,
    Photos,
    TrainedConcept,
    ViCoObjective,
)

from .denoiser import as_a_node, load_for_training, model_hash, training_copy, training_mode
from .vico import FOLDER, make_subject
from .vico_attach import AUTOMATIC, GIVEN, Photo, Reference, attach
from .vico_memory import estimate
from .vico_streams import HostStreams, checkpointed, places_of, training_clip
from .vico_text import plain_ids, with_trigger

# What ends a run early without losing what was learnt: the user, and a loss that is no number any more.
STOPS = (comfy.model_management.InterruptProcessingException, TrainingDiverged)
STATES_KEPT = 2  # the newest to go on from, and one before it
THUMBNAIL = 256  # pixels
PREVIEW_STEPS, PREVIEW_CFG = 20, 7.5


@dataclass(frozen=True)
class TrainSettings:
    """What decides the result. Defaults are the paper's (one photo a step, 400 steps)."""

    initialiser: str
    placeholder: str = "*"
    steps: int = 400
    batch_size: int = 1
    accumulation: int = 1
    word_lr: float = WORD_LR
    attention_lr: float = ATTENTION_LR
    regularization: float = REGULARIZATION
    seed: int = 0
    size: int = 512
    precision: str = "no"
    detach_reference: bool = False
    captions: tuple[str, ...] = ()  # none: the paper's templates


@dataclass(frozen=True)
class RunOptions:
    """What does not: where it is kept, what is shown, how much memory it takes."""

    name: str = "concept"
    checkpoint_every: int = 50
    preview_prompts: tuple[str, ...] = ()
    preview_every: int = 0
    checkpointing: bool = False


@dataclass(frozen=True)
class Picture:
    """image [H, W, 3] in 0..1; mask [H, W] in 0..1, or None."""

    image: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run has come to: the concept, the loss of every step, and the run's name under models/vico."""

    concept: ViCoConcept
    losses: list[float]
    run: str


# Photos


def encode_photos(vae, model, pictures: list[Picture], size: int) -> Photos:
    """Every photo through the VAE once: size × size, bicubic, no crop, as the authors train (ViCo §4)."""
    square = [resize(p.image, size, size, Image.Resampling.BICUBIC) for p in pictures]
    posteriors = [posterior(vae, image[None]) for image in square]
    scale = model.model.process_latent_in
    means = torch.cat([scale(mean).float().cpu() for mean, _ in posteriors])
    stds = None
    if all(std is not None for _, std in posteriors):
        stds = torch.cat([(scale(mean + std) - scale(mean)).float().cpu() for mean, std in posteriors])
    masks = None
    if all(p.mask is not None for p in pictures):
        masks = torch.stack([square_mask(p.mask, size) for p in pictures])
    return Photos(means, stds, masks)


def posterior(vae, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """(mean, std) of the VAE's latent of pixels [1, H, W, 3]; std None where it answers with a latent and no distribution."""
    regularization = getattr(vae.first_stage_model, "regularization", None)
    if not isinstance(regularization, comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer):
        return as_a_node(vae.encode, pixels), None
    moments = []
    hook = regularization.register_forward_hook(lambda module, args, out: moments.append(args[0]))
    try:
        mean = as_a_node(vae.encode, pixels)
    finally:
        hook.remove()
    log_variance = moments[-1].chunk(2, dim=1)[1].to(mean)
    whole = len(moments) == 1  # short of memory, the host encodes in tiles, and has no one distribution
    return mean, (0.5 * log_variance.clamp(-30, 20)).exp() if whole else None


def square_mask(mask: Tensor, size: int) -> Tensor:
    return torch.nn.functional.interpolate(mask[None, None].float(), size=(size, size), mode="area")[0, 0].cpu()


def pictures_hash(pictures: list[Picture]) -> str:
    tensors = {f"{i}.image": p.image for i, p in enumerate(pictures)}
    tensors |= {f"{i}.mask": p.mask for i, p in enumerate(pictures) if p.mask is not None}
    return weights_hash(tensors)


def thumbnail(picture: Picture) -> bytes:
    """PNG bytes of a photo, for the concept's file."""
    image = to_image(picture.image)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def to_image(pixels: Tensor) -> Image.Image:
    """[H, W, 3] in 0..1 → a picture."""
    return Image.fromarray((pixels.clamp(0, 1).cpu().numpy() * 255).round().astype(numpy.uint8))


# The word


def start_words(clip, initialiser: str) -> dict[str, Tensor]:
    """{text encoder: [1, width]}: the vector of a word that the model knows. ValueError where it is not one token."""
    words = {}
    for encoder, ids in plain_ids(clip, initialiser.strip()).items():
        if len(ids) != 1 or not isinstance(ids[0], int):
            raise ValueError(
                f'The initialiser word "{initialiser}" is {len(ids)} tokens to this model\'s tokenizer; it must be one. '
                'Choose a single everyday word for what the object is, such as "toy", "dog" or "cup".'
            )
        model = getattr(clip.cond_stage_model, f"clip_{encoder}", clip.cond_stage_model)
        words[encoder] = model.transformer.get_input_embeddings().weight[ids[0]][None].float()
    return words


# The run's files


class RunFiles:
    """Where a run is kept, named after all that it comes from: the same again goes on, anything else starts anew.

    models/vico/<run>/step-….safetensors: concepts, for Load ViCo Concept. output/vico/<run>/: what a run goes on from.
    """

    def __init__(self, name: str, identity: dict):
        made_from = json.dumps(identity, sort_keys=True).encode()
        clean = "".join(letter if letter.isalnum() or letter in "-_ " else "_" for letter in name).strip() or "concept"
        self.run = f"{clean}-{hashlib.sha256(made_from).hexdigest()[:10]}"
        self.concepts = concepts_folder(self.run)
        self.states = CheckpointFolder(
            Path(folder_paths.get_output_directory()) / FOLDER / self.run, STATES_KEPT, identity
        )
        told = json.dumps(identity, indent=1).encode()
        for folder in (self.concepts, self.states.path):  # before the first step: says whether they can be written
            write_atomically(Path(folder) / "settings.json", lambda path: path.write_bytes(told))
        self.states.discard_leftovers()

    def concept_file(self, step: int) -> Path:
        return self.concepts / f"step-{step:05}.safetensors"

    def keep(self, concept: ViCoConcept) -> Path:
        path = self.concept_file(concept.step)
        if not path.is_file():
            write_atomically(path, concept.save)
        return path

    def newest(self) -> int:
        return max(self.states.steps(), default=0)

    def finished(self, steps: int) -> Outcome | None:
        """The concept of step `steps`, where the run has gone further before. ValueError where that one was not kept."""
        newest = self.newest()
        if newest <= steps:
            return None
        if not self.concept_file(steps).is_file():
            kept = ", ".join(str(int(path.stem[5:])) for path in checkpoint_files(self.run))
            raise ValueError(
                f"This training has gone to step {newest} already, and step {steps} was not kept. "
                f"Choose one of the steps {kept}, or give the run another name to start again."
            )
        history = read_state(self.states.file(newest))["history"][:steps]
        losses = [report["metrics"]["loss"] for report in history]
        return Outcome(ViCoConcept.load(self.concept_file(steps)), losses, self.run)


def concepts_folder(run: str) -> Path:
    """models/vico/<run>. ValueError where the name leads elsewhere."""
    home = Path(folder_paths.get_folder_paths(FOLDER)[0]).resolve()
    folder = (home / run).resolve()
    if folder.parent != home:
        raise ValueError(f'"{run}" is not the name of a ViCo run: it must be a folder in {home}.')
    return folder


def checkpoint_files(run: str) -> list[Path]:
    """The kept concepts of a run, by step."""
    return sorted(concepts_folder(run).glob("step-*.safetensors"))


# Pictures while it trains


def draw(model, clip, vae, prompts, seeds, steps: int, cfg: float, latent: Tensor) -> Tensor:
    """Pictures [prompts × seeds, H, W, 3] of the latent's size, by DDIM; each seed's noise is its own, whatever stands beside it."""
    encoded = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("", *prompts)}
    empty = torch.zeros_like(latent[:1])
    noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
    pictures = []
    for prompt in prompts:
        settings = (steps, cfg, "ddim", "ddim_uniform", encoded[prompt], encoded[""])
        start = torch.zeros_like(noise)
        latents = comfy.sample.sample(model, noise, *settings, start, disable_pbar=True, seed=seeds[0])
        pictures.append(vae.decode(latents))
    return torch.cat(pictures)


def draw_with_concept(model, clip, vae, concept, reference, prompts, seeds, steps, cfg, mask=AUTOMATIC) -> Tensor:
    """The same with the concept, through Apply ViCo itself, at the reference's size."""
    subject = make_subject(model, clip, concept, reference, mask=mask, cache_mb=1024)
    model, clip = attach(model, subject), with_trigger(clip, subject.trigger)
    return draw(model, clip, vae, prompts, seeds, steps, cfg, reference.photos[0].latent)


class Watch:
    """What the user sees of a run: progress, loss, previews; and the concept of every checkpoint on disk."""

    def __init__(self, settings, options: RunOptions, files: RunFiles, concept_now: Callable, preview: Callable, say):
        self.settings, self.options, self.files = settings, options, files
        self.concept_now, self.preview, self.say = concept_now, preview, say
        self.bar = comfy.utils.ProgressBar(settings.steps)

    def __call__(self, report: StepReport) -> None:
        every = self.options.checkpoint_every
        if every and report.step % every == 0:
            self.files.keep(self.concept_now(report.step))
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.say(f"Step {report.step} of {self.settings.steps}: loss {report.loss:.4f}, {report.seconds:.2f} s a step")
        self.bar.update_absolute(report.step, self.settings.steps, self.picture(report.step))

    def picture(self, step: int):
        every = self.options.preview_every
        if not (every and self.options.preview_prompts) or step % every:
            return None
        return ("JPEG", self.preview(self.concept_now(step)), 512)


def make_preview(session: "Session", vae, photos: Photos, pictures: list[Picture], prompts) -> Callable:
    """preview(concept) draws the prompts with the first photo as the reference, then brings the training back to the device."""
    latent = session.patcher.model.process_latent_out(photos.mean[:1])
    mask = None if photos.masks is None else photos.masks[0]
    reference = Reference([Photo(latent, pictures[0].image, mask)])
    source = AUTOMATIC if mask is None else GIVEN

    def preview(concept: ViCoConcept) -> Image.Image:
        parts = (session.patcher, session.text, vae, concept, reference)
        pixels = as_a_node(draw_with_concept, *parts, prompts, [0], PREVIEW_STEPS, PREVIEW_CFG, source)
        load_for_training(session.patchers)
        return to_image(torch.cat(list(pixels), dim=1))

    return preview


# The training


def train_concept(
    model, clip, vae, pictures: list[Picture], settings: TrainSettings, options: RunOptions, say: Callable[[str], None]
) -> Outcome:
    """Learns the object of the photos beside a copy of `model`, which itself stays as it is.

    An interrupt is passed on after what was learnt has been kept. Raises: ValueError, OSError, TrainingDiverged with sentences.
    """
    try:
        with training_mode():
            return _train(model, clip, vae, pictures, settings, options, say)
    finally:
        gc.collect()
        comfy.model_management.cleanup_models()
        comfy.model_management.soft_empty_cache()


def _train(model, clip, vae, pictures, settings: TrainSettings, options: RunOptions, say) -> Outcome:
    with torch.no_grad():
        photos = encode_photos(vae, model, pictures, settings.size)
    session = start_session(model, clip, settings)
    identity = identity_of(session, vae, pictures, settings)
    files = RunFiles(options.name, identity)
    if finished := files.finished(settings.steps):
        return finished

    def concept_now(step: int) -> ViCoConcept:
        return describe(session.trained.concept(), step, identity["model"], settings, pictures)

    keep_lost(files, session.trained, concept_now)
    preview = make_preview(session, vae, photos, pictures, options.preview_prompts)
    watch = Watch(settings, options, files, concept_now, preview, say)
    training = run_steps(session, photos, settings, options, files, watch)
    if training.stopped_by is not None and training.step == 0:
        raise training.stopped_by
    concept = concept_now(training.step)
    path = files.keep(concept)
    if training.stopped_by is not None:
        say(f"Stopped after step {training.step}, which is kept in {path}. Queue again to go on from there.")
        raise training.stopped_by
    return Outcome(concept, [report.loss for report in training.history], files.run)


@dataclass(frozen=True)
class Session:
    """The copies of the model and of its CLIP that a training works on, and what it learns."""

    patcher: comfy.model_patcher.ModelPatcher
    text: comfy.sd.CLIP
    trained: TrainedConcept
    streams: HostStreams
    engine: LocalEngine

    @property
    def patchers(self) -> list:
        return [self.patcher, self.text.patcher]


def start_session(model, clip, settings: TrainSettings) -> Session:
    patcher, text = training_copy(model, AUTOCAST_DTYPES.get(settings.precision, torch.float32)), training_clip(clip)
    load_for_training([patcher, text.patcher])
    shapes, words = places_of(patcher.model.diffusion_model)[1], start_words(text, settings.initialiser)
    trained = TrainedConcept(shapes, words, settings.seed).to(patcher.load_device)
    engine = LocalEngine(patcher.load_device, settings.precision, settings.accumulation)
    streams = HostStreams(patcher, text, trained, settings.placeholder, engine, settings.detach_reference)
    return Session(patcher, text, trained, streams, engine)


def run_steps(session: Session, photos: Photos, settings: TrainSettings, options: RunOptions, files, watch) -> Training:
    """The steps themselves, by train_core's loop; goes on from the newest state."""
    trained, streams, engine = session.trained, session.streams, session.engine
    captions = settings.captions or [template.format(settings.placeholder) for template in TEMPLATES]
    draws = Draws(photos, captions, len(streams.schedule), settings.batch_size, settings.seed, engine.device)
    optimizer = engine.prepare(trained.optimizer(settings.word_lr, settings.attention_lr))
    objective = ViCoObjective(streams, settings.regularization)
    loop = LoopSettings(settings.steps, checkpoint_every=options.checkpoint_every)
    with checkpointed(streams.unet) if options.checkpointing else nullcontext():
        needs = estimate(streams, trained, captions[0], settings.size, settings.batch_size, options.checkpointing)
        watch.say(needs)
        return train(objective, draws, trained, optimizer, loop, engine, watch, files.states, STOPS)


def keep_lost(files: RunFiles, trained: TrainedConcept, concept_now: Callable) -> None:
    """Concepts of states whose run was killed between the two. Training then goes on from the newest state anyway."""
    for step in files.states.steps():
        if not files.concept_file(step).is_file():
            trained.load_state_dict(read_state(files.states.file(step))["weights"])
            files.keep(concept_now(step))


def identity_of(session: Session, vae, pictures, settings: TrainSettings) -> dict:
    """All that a run's result hangs on; the number of steps does not count, so that a run can go further."""
    fixed = {name: value for name, value in asdict(settings).items() if name != "steps"}
    return {
        "model": model_hash(session.streams.unet),
        "text encoder": model_hash(session.text.patcher.model),
        "layer": session.text.layer_idx,
        "vae": model_hash(vae.first_stage_model),
        "photos": pictures_hash(pictures),
        **fixed,
    }


def describe(concept: ViCoConcept, step: int, base_hash: str, settings: TrainSettings, pictures) -> ViCoConcept:
    """The concept with what its file says of its making."""
    concept.placeholder, concept.initialiser = settings.placeholder, settings.initialiser
    concept.base_hash, concept.step = base_hash, step
    concept.settings, concept.thumbnail = asdict(settings), thumbnail(pictures[0])
    return concept
