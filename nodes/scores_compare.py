"""Compare Models: the same prompts and seeds through several models, scored, with pictures and numbers kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from PIL import Image
from server import PromptServer

from scores.comparison import Duel, Table, duels, tables
from scores.evaluate import evaluate
from scores.pictures import open_picture
from scores.run import Run, write_atomically
from scores.samples import Sample
from scores.sheet import Cell, sheet

from .scores import ScorerSocket, as_image, as_pictures

MODELS = io.Autogrow.TemplatePrefix(io.Model.Input("model"), prefix="model", min=2, max=8)
SCORERS = io.Autogrow.TemplatePrefix(ScorerSocket.Input("scorer"), prefix="scorer", min=1, max=8)
GRID_ROWS, GRID_SEEDS, CELL = 40, 4, 192  # what the grid shows at most; pixels of a picture in it


class Settings(NamedTuple):
    """How every picture is sampled."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    width: int
    height: int


class ScoreCompareModels(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScoreCompareModels",
            display_name="Compare Models",
            category="scores",
            description="Samples the same prompts with the same seeds by every model, scores the pictures, and says how often "
            "each model beats the first, with intervals. Pictures and every number stay in output/scores.",
            search_aliases=["win rate", "a/b test", "evaluation", "benchmark", "grid"],
            is_output_node=True,
            inputs=[
                io.Autogrow.Input(
                    "models", template=MODELS, tooltip="The models, baseline first. A free socket appears."
                ),
                io.Autogrow.Input(
                    "scorers", template=SCORERS, tooltip="From Load Scorer; each gets its own win rates."
                ),
                io.Clip.Input("clip", tooltip="Reads the prompts, for all models."),
                io.Vae.Input("vae", tooltip="Decodes the pictures, for all models."),
                io.String.Input("names", default="base, tuned", tooltip="The models' names in order, between commas."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One prompt a line. Intervals are over prompts: fewer than about 30 can seldom tell models apart.",
                ),
                io.String.Input("negative", default="", tooltip="The negative prompt of every picture."),
                io.Int.Input("pictures", default=4, min=1, max=64, tooltip="Pictures a prompt, at seed, seed + 1, …"),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFF,
                    control_after_generate=False,  # the same question gives the same answer
                    tooltip="The first seed, the same for all models.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."),
                io.Int.Input("width", default=512, min=16, max=4096, step=8, tooltip="Pixels."),
                io.Int.Input("height", default=512, min=16, max=4096, step=8, tooltip="Pixels."),
                io.String.Input(
                    "name", default="comparison", tooltip="The folder in output/scores; a number is added."
                ),
                io.Image.Input("references", optional=True, tooltip="Photos of the real thing, for DINO and CLIP-I."),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="Rows of prompts, columns of models and seeds, the score under each."),
                io.String.Output("run", tooltip="The folder with pictures and scores, for Score Report."),
                io.String.Output("win_rates", tooltip="Every win rate with its interval, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, models, scorers, clip, vae, names, prompts, negative, pictures, name, references=None, **sampling):
        settings, models = Settings(**sampling), named_models(models, names)
        lines = prompt_lines(prompts)
        folder = new_folder(name)
        photos = save_references(folder, references)
        made = sample_all(folder, models, clip, vae, lines, negative, pictures, settings, photos)
        run = score_all(folder, made, list(scorers.values()), settings)
        found = tables(run.rows, list(models))
        fights = duels(found, next(iter(models)))
        write_atomically(folder / "win_rates.json", win_rates_json(fights))
        PromptServer.instance.send_progress_text(sentences(fights), cls.hidden.unique_id)
        grid = as_image(grid_of(found[0]))
        return io.NodeOutput(grid, str(folder), win_rates_json(fights), ui=ui.PreviewImage(grid, cls=cls))


def named_models(models: dict, names: str) -> dict:
    """{name: model} in order; raises where a name is missing or stands twice."""
    given = [name.strip() for name in names.split(",") if name.strip()]
    if len(given) != len(models) or len(set(given)) != len(given):
        raise ValueError(
            f'{len(models)} models need {len(models)} different names between commas; "{names}" is not that.'
        )
    return dict(zip(given, models.values(), strict=True))


def prompt_lines(text: str) -> list[str]:
    """The prompts, each once."""
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise ValueError("Compare Models has no prompts: write one a line.")
    return lines


def new_folder(name: str) -> Path:
    """output/scores/<name>_00001 and so on, inside the output folder whatever the name says."""
    parent, base = Path(folder_paths.get_output_directory()) / "scores", folder_name(name)
    number = 1
    while (folder := parent / f"{base}_{number:05d}").exists():
        number += 1
    folder.mkdir(parents=True)
    return folder


def save_references(folder: Path, references: torch.Tensor | None) -> tuple[Path, ...]:
    """The reference photos as files of the run, so that its numbers can be made again."""
    if references is None:
        return ()
    (folder / "references").mkdir()
    paths = [folder / "references" / f"{i:03d}.png" for i in range(len(references))]
    for path, picture in zip(paths, as_pictures(references), strict=True):
        picture.save(path)
    return tuple(paths)


def sample_all(folder, models, clip, vae, prompts, negative, count, settings, photos) -> list[Sample]:
    """Every model's pictures, a model at a time so that each is loaded once. Returns the samples, saved as PNG."""
    positive, empty = [encode(clip, prompt) for prompt in prompts], encode(clip, negative)
    progress, samples = comfy.utils.ProgressBar(len(models) * len(prompts) * settings.steps), []
    for m, (name, model) in enumerate(models.items()):
        for p, prompt in enumerate(prompts):
            done = (m * len(prompts) + p) * settings.steps
            latents = sample_latents(
                model, positive[p], empty, count, settings, lambda step, d=done: progress.update_absolute(d + step)
            )
            samples += save_pictures(folder, name, p, prompt, decode(vae, latents), settings.seed, photos)
        write_metadata(folder, name, samples)
    return samples


def encode(clip, text: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample_latents(
    model, positive, negative, count: int, settings: Settings, tell: Callable[[int], None]
) -> torch.Tensor:
    """`count` latents of one prompt. Each has the noise that KSampler would give it at its own seed."""
    latent_format = model.get_model_object("latent_format")
    scale = latent_format.spacial_downscale_ratio
    empty = torch.zeros([count, latent_format.latent_channels, settings.height // scale, settings.width // scale])
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    noise = torch.cat([comfy.sample.prepare_noise(empty[i : i + 1], settings.seed + i) for i in range(count)])
    return comfy.sample.sample(
        model,
        noise,
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        positive,
        negative,
        empty,
        callback=lambda step, x0, x, total: tell(step + 1),
        disable_pbar=True,
        seed=settings.seed,
    )


def decode(vae, latents: torch.Tensor) -> list[Image.Image]:
    images = vae.decode(latents)
    return as_pictures(images.flatten(0, 1) if images.ndim == 5 else images)


def save_pictures(folder, model, p, prompt, pictures, seed, photos) -> list[Sample]:
    """One prompt's pictures as <model>/<prompt number>_<seed>.png."""
    place = folder / folder_name(model)
    place.mkdir(exist_ok=True)
    samples = []
    for i, picture in enumerate(pictures):
        path = place / f"{p:05d}_{seed + i}.png"
        picture.save(path, compress_level=4)
        samples.append(Sample(model, path, prompt, str(seed + i), photos))
    return samples


def folder_name(model: str) -> str:
    """The model's name as a folder's: letters, digits, space, point, dash and underscore."""
    return "".join(letter if letter.isalnum() or letter in " .-_" else "_" for letter in model).strip(". ") or "_"


def write_metadata(folder: Path, model: str, samples: Sequence[Sample]) -> None:
    """metadata.jsonl beside a model's pictures, so that `python -m scores evaluate` and trainers can read the folder."""
    mine = [sample for sample in samples if sample.model == model]
    rows = [{"file_name": s.picture.name, "text": s.prompt, "seed": s.seed} for s in mine]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / folder_name(model) / "metadata.jsonl", lines)


def score_all(folder: Path, samples: Sequence[Sample], scorers: Sequence, settings: Settings) -> Run:
    """The run with every scorer's numbers."""
    run = Run(folder)
    run.describe(sampling=settings._asdict())

    def tell(line: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    evaluate(run, samples, [lambda scorer=scorer: scorer for scorer in scorers], tell)
    return run


def win_rates_json(fights: Sequence[Duel]) -> str:
    rows = [fight._asdict() | {"verdict": fight.verdict} for fight in fights]
    return json.dumps(rows, indent=1, ensure_ascii=False).replace("NaN", "null")


def sentences(fights: Sequence[Duel]) -> str:
    """The win rates as lines under the node's picture."""
    return "\n".join(
        f"{fight.model} wins {100 * fight.win_rate:.0f}% of {fight.prompts} prompts against {fight.baseline} by "
        f"{fight.scorer} ({100 * fight.interval.low:.0f}-{100 * fight.interval.high:.0f}%)"
        for fight in fights
    )


def grid_of(table: Table) -> Image.Image:
    """Prompts as rows, models and their seeds as columns, the best of a row standing out."""
    seeds = min(GRID_SEEDS, min(len(row) for row in table.seeds))
    rows = []
    for p in range(min(GRID_ROWS, len(table.prompts))):
        top = max(table.scores[model][p, :seeds].max() for model in table.models)
        rows.append([cell_of(table, model, p, s, top) for model in table.models for s in range(seeds)])
    heads = [model if s == 0 else "" for model in table.models for s in range(seeds)]
    return sheet(rows, table.prompts[: len(rows)], heads, CELL)


def cell_of(table: Table, model: str, p: int, s: int, top: float) -> Cell:
    score = float(table.scores[model][p, s])
    return Cell(open_picture(Path(table.pictures[model][p][s])), f"{score:.4f}", best=score == top)


NODES = [ScoreCompareModels]
