"""The pictures of Compare Models: sampled, kept with their prompts, scored, and laid out as a grid."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import torch
from PIL import Image

from ...intake import open_picture, write_text
from ...scores.comparison import Table
from ...scores.evaluate import evaluate
from ...scores.run import Run
from ...scores.samples import Sample
from ...scores.sheet import Cell, sheet
from ..host.folders import as_folder_name
from ..host.pictures import to_pictures
from ..host.sampling import Sampling, sample_latents
from ..host.written import view_of

GRID_SEEDS, CELL = 4, 192  # seeds that the grid shows at most; pixels of a picture in it
ROWS_A_COLUMN, FEWEST_ROWS = 2, 4  # of the grid: a higher one is a sliver on the node. Score Report has all prompts

REFERENCES = "references"  # the photos' folder, beside the models'


class Settings(NamedTuple):
    """How every picture is sampled."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    width: int
    height: int


def new_folder(name: str) -> Path:
    """output/scores/<name>_00001 and so on, inside the output folder whatever the name says."""
    parent, base = Path(folder_paths.get_output_directory()) / "scores", as_folder_name(name, "comparison")
    number = 1
    while (folder := parent / f"{base}_{number:05d}").exists():
        number += 1
    folder.mkdir(parents=True)
    return folder


def save_references(folder: Path, references: torch.Tensor | None) -> tuple[Path, ...]:
    """The reference photos as files of the run, so that its numbers can be made again."""
    if references is None:
        return ()
    (folder / REFERENCES).mkdir()
    paths = [folder / REFERENCES / f"{i:03d}.png" for i in range(len(references))]
    for path, picture in zip(paths, to_pictures(references), strict=True):
        picture.save(path)
    return tuple(paths)


def sample_all(folder, models, clip, vae, prompts, negative, count, settings, photos) -> list[Sample]:
    """Every model's pictures, a model at a time so that each is loaded once. Returns the samples, saved as PNG."""
    positive, empty = [encode(clip, prompt) for prompt in prompts], encode(clip, negative)
    how = Sampling(settings.sampler_name, settings.scheduler, settings.steps, settings.cfg)
    seeds = [settings.seed + i for i in range(count)]
    progress, samples = comfy.utils.ProgressBar(len(models) * len(prompts) * settings.steps), []
    for m, (name, model) in enumerate(models.items()):
        shape = latent_shape(model, settings)
        for p, prompt in enumerate(prompts):
            done = (m * len(prompts) + p) * settings.steps
            tell = lambda step, done=done: progress.update_absolute(done + step)  # noqa: E731
            latents = sample_latents(model, shape, seeds, how, positive[p], empty, tell)
            samples += save_pictures(folder, name, p, prompt, decode(vae, latents), settings.seed, photos)
        write_metadata(folder, name, samples)
    return samples


def encode(clip, text: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def latent_shape(model, settings: Settings) -> torch.Size:
    """Of one latent of the pictures' size, as this model has it (some have an axis of time)."""
    latent_format = model.get_model_object("latent_format")
    scale = latent_format.spacial_downscale_ratio
    empty = torch.zeros(1, latent_format.latent_channels, settings.height // scale, settings.width // scale)
    return comfy.sample.fix_empty_latent_channels(model, empty).shape[1:]


def decode(vae, latents: torch.Tensor) -> list[Image.Image]:
    images = vae.decode(latents)
    return to_pictures(images.flatten(0, 1) if images.ndim == 5 else images)


def save_pictures(folder, model, p, prompt, pictures, seed, photos) -> list[Sample]:
    """One prompt's pictures as <model>/<prompt number>_<seed>.png."""
    place = folder / as_folder_name(model, "model")
    place.mkdir(exist_ok=True)
    samples = []
    for i, picture in enumerate(pictures):
        path = place / f"{p:05d}_{seed + i}.png"
        picture.save(path, compress_level=4)
        samples.append(Sample(model, path, prompt, str(seed + i), photos))
    return samples


def write_metadata(folder: Path, model: str, samples: Sequence[Sample]) -> None:
    """metadata.jsonl beside a model's pictures, so that `vico-spin evaluate` and trainers can read the folder."""
    mine = [sample for sample in samples if sample.model == model]
    rows = [{"file_name": s.picture.name, "text": s.prompt, "seed": s.seed} for s in mine]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(folder / as_folder_name(model, "model") / "metadata.jsonl", lines)


def score_all(folder: Path, samples: Sequence[Sample], scorers: Sequence, settings: Settings) -> Run:
    """The run with every scorer's numbers."""
    run = Run(folder)
    run.describe(sampling=settings._asdict())

    def tell(line: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    evaluate(run, samples, [lambda scorer=scorer: scorer for scorer in scorers], tell)
    return run


def compared(samples: Sequence[Sample], names: Sequence[str]) -> dict:
    """The first two models' pictures by prompt and seed, for web/compare_slider.js."""
    first, second = names[:2]
    files = {(sample.model, sample.prompt, sample.seed): view_of(sample.picture) for sample in samples}
    pairs = [
        {"prompt": prompt, "first": file, "second": files[second, prompt, seed]}
        for (model, prompt, seed), file in files.items()
        if model == first
    ]
    return {"names": [first, second], "pairs": pairs}


def grid_of(table: Table) -> Image.Image:
    """Prompts as rows, models and their seeds as columns, the best of a row standing out."""
    seeds = min(GRID_SEEDS, min(len(row) for row in table.seeds))
    rows, most = [], max(FEWEST_ROWS, ROWS_A_COLUMN * seeds * len(table.models))
    for p in range(min(most, len(table.prompts))):
        top = max(table.scores[model][p, :seeds].max() for model in table.models)
        rows.append([cell_of(table, model, p, s, top) for model in table.models for s in range(seeds)])
    heads = [model if s == 0 else "" for model in table.models for s in range(seeds)]
    return sheet(rows, table.prompts[: len(rows)], heads, CELL)


def cell_of(table: Table, model: str, p: int, s: int, top: float) -> Cell:
    path = table.pictures[model][p][s]
    score = float(table.scores[model][p, s])
    return Cell(open_picture(Path(path), path), f"{score:.4f}", best=score == top)
