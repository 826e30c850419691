"""The scores' nodes: load a scorer, score pictures and pick the best, make the report of a comparison."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd1_clip
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from server import PromptServer

from scores import AGGREGATIONS
from scores.load import KINDS, find, load_scorer
from scores.scorer import Scorer
from scores.sheet import Cell, sheet

from .scores_sprite_world import SPRITE_WORLD, sprite_world_scorer

FOLDER = "scorers"
EXTENSIONS = {".safetensors", ".pt", ".pth", ".bin"}
WHOLE_FOLDERS = {"model.safetensors", "pytorch_model.bin"}  # of a model folder: the folder is what one chooses
AUTOMATIC = "automatic"
CLIP_VOCABULARY = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"

ScorerSocket = io.Custom("SCORER")
TITLES = {kind.title: name for name, kind in KINDS.items()}


def register_folder() -> None:
    """models/scorers, and whatever extra_model_paths.yaml named for it before."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | EXTENSIONS)


register_folder()


def scorer_files() -> list[str]:
    """What lies in models/scorers: single files, and model folders by their name."""
    names = folder_paths.get_filename_list(FOLDER)
    return sorted({str(Path(name).parent) if Path(name).name in WHOLE_FOLDERS else name for name in names} - {"."})


def chosen_path(kind: str, file: str) -> Path:
    """Where the chosen file or folder lies; for automatic, the one of the scorer's published name."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]
    if file == AUTOMATIC:
        return find(kind, folders)
    for folder in folders:
        path = (folder / file).resolve()
        if path.exists() and path.is_relative_to(folder.resolve()):
            return path
    raise ValueError(f'There is no "{file}" in models/{FOLDER} any more; choose another file, or "{AUTOMATIC}".')


class HostedScorer(Scorer):
    """A scorer whose network the host loads and offloads; everything else is the scorer's own."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.name, self.formula = scorer.name, scorer.formula
        self.needs_prompt, self.needs_references = scorer.needs_prompt, scorer.needs_references
        devices = comfy.model_management.get_torch_device(), comfy.model_management.text_encoder_offload_device()
        # These are transformers' own layers, which the host cannot cast or stream: they are loaded whole or not at all.
        # The list around them is what the host may set its marks on; a transformers model refuses them.
        held = torch.nn.ModuleList([scorer.module]) if scorer.module is not None else None
        self.patcher = comfy.model_patcher.ModelPatcher(held, *devices) if held is not None else None

    def record(self) -> dict:
        return self.scorer.record()

    def score(self, pictures, prompts=None, references=None) -> list[float]:
        if self.patcher:
            comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.scorer.score(pictures, prompts, references)


def as_pictures(image: torch.Tensor) -> list[Image.Image]:
    """IMAGE as the pictures that Save Image would write, rounding included. image: [B, H, W, 3] in 0..1."""
    pixels = np.clip(255.0 * image[..., :3].cpu().numpy(), 0, 255).astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def as_image(picture: Image.Image) -> torch.Tensor:
    """A picture as IMAGE. Returns [1, H, W, 3]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255.0)[None]


def prompts_for(text: str, pictures: int) -> list[str]:
    """One prompt a picture: the lines of the text, or its one line for all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        return lines * pictures
    if len(lines) != pictures:
        raise ValueError(
            f"{pictures} pictures and {len(lines)} prompts: write one prompt for all, or as many lines as pictures."
        )
    return lines


class ScoreLoadScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScoreLoadScorer",
            display_name="Load Scorer",
            category="scores",
            description="Loads what rates pictures: a preference score, CLIP or DINO similarity, or Sprite World's own "
            "measures. Says which file to put where if it is not there.",
            search_aliases=["pickscore", "hps", "imagereward", "aesthetic", "clip score", "dino", "reward"],
            inputs=[
                io.Combo.Input(
                    "scorer",
                    options=[*TITLES, *SPRITE_WORLD],
                    tooltip="PickScore, HPS and ImageReward say which picture people would prefer for a prompt; Aesthetic "
                    "looks at the picture alone; DINO and CLIP-I compare with reference photos; Sprite World's need no file.",
                ),
                io.Combo.Input(
                    "file",
                    options=[AUTOMATIC, *scorer_files()],
                    default=AUTOMATIC,
                    tooltip="A file or model folder in models/scorers. Automatic takes the one with its published name.",
                ),
            ],
            outputs=[
                ScorerSocket.Output("scorer", tooltip="For Score Pictures and Compare Models."),
                io.String.Output("about", tooltip="What is loaded: file, sha256, preprocessing, formula, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, scorer, file) -> io.NodeOutput:
        if scorer in SPRITE_WORLD:
            loaded = sprite_world_scorer(scorer)
        else:
            loaded = load_scorer(TITLES[scorer], chosen_path(TITLES[scorer], file), CLIP_VOCABULARY)
        hosted = HostedScorer(loaded)
        return io.NodeOutput(hosted, json.dumps(hosted.record(), indent=1, ensure_ascii=False))


class ScorePictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScorePictures",
            display_name="Score Pictures",
            category="scores",
            description="Rates every picture of a batch, shows them best first with their numbers, and passes the best on.",
            search_aliases=["rank", "best of n", "pick best", "reward", "rate"],
            has_intermediate_output=True,
            inputs=[
                ScorerSocket.Input("scorer", tooltip="From Load Scorer."),
                io.Image.Input("pictures", tooltip="The pictures to rate."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="What the pictures were made from: one line for all of them, or a line for each. As plain "
                    "words: weights such as (x:1.2) would be read as letters.",
                ),
                io.Int.Input("best", default=1, min=1, max=4096, tooltip="How many of the best pictures to pass on."),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Photos of the real thing, for DINO and CLIP-I: all are compared.",
                ),
            ],
            outputs=[
                io.Image.Output("best_pictures", tooltip="The best pictures, best first."),
                io.Float.Output("best_score", tooltip="The number of the best picture."),
                io.String.Output("scores", tooltip="Every picture's number in the order they came, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, scorer, pictures, prompts, best, references=None) -> io.NodeOutput:
        shown = as_pictures(pictures)
        asked = prompts_for(prompts, len(shown)) if scorer.needs_prompt else None
        numbers = scorer.score(shown, asked, as_pictures(references) if references is not None else None)
        order = sorted(range(len(numbers)), key=lambda i: -numbers[i])
        PromptServer.instance.send_progress_text(ranking(scorer.name, numbers, order), cls.hidden.unique_id)
        report = {"scorer": scorer.record(), "scores": numbers, "prompts": asked, "order": order}
        return io.NodeOutput(
            pictures[order[:best]],
            numbers[order[0]],
            json.dumps(report, ensure_ascii=False),
            ui=ui.PreviewImage(as_image(ranked_sheet(shown, numbers, order, best)), cls=cls),
        )


def ranking(name: str, numbers: Sequence[float], order: Sequence[int]) -> str:
    """The table under the pictures: rank, picture, number."""
    lines = [f"{rank}.  picture {i + 1}  {numbers[i]:.4f}" for rank, i in enumerate(order, start=1)]
    return "\n".join([name, *lines[:20], *(["…"] if len(lines) > 20 else [])])


def ranked_sheet(
    pictures: Sequence[Image.Image], numbers: Sequence[float], order: Sequence[int], best: int
) -> Image.Image:
    """The pictures best first, four to a row, each with its rank, number and place in the batch."""
    cells = [
        Cell(pictures[i], f"{rank}   {numbers[i]:.4f}   (picture {i + 1})", best=rank <= best)
        for rank, i in enumerate(order, start=1)
    ]
    return sheet([cells[i : i + 4] for i in range(0, len(cells), 4)], (), (), side=256)


class ScoreReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScoreReport",
            display_name="Score Report",
            category="scores",
            description="Makes one web page of a comparison, to open or send: win rates with intervals, pictures side by "
            "side with the worst losses first, and how all of it was measured. With a PNG, JSON and CSV beside it.",
            search_aliases=["html", "win rate", "evaluation", "benchmark"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "run", force_input=True, tooltip="The folder from Compare Models, or of scores evaluate."
                ),
                io.String.Input("title", default="Which model is better?", tooltip="The page's heading."),
                io.String.Input(
                    "baseline", default="", tooltip="The model that the others are held against. Empty: the first."
                ),
                io.Combo.Input(
                    "aggregation",
                    options=list(AGGREGATIONS),
                    default="mean",
                    tooltip="How the pictures of a prompt become one number: the first alone, their mean, their median, or "
                    "the best of them.",
                ),
                io.Boolean.Input(
                    "rounds",
                    default=False,
                    tooltip="The models are rounds of one training, in order: draws the curves.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="The report as one picture."),
                io.String.Output("page", tooltip="Where the web page lies."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, run, title, baseline, aggregation, rounds) -> io.NodeOutput:
        from scores.report import write_report
        from scores.run import Run

        folder = inside_output(run)
        order = Run.existing(folder).about["models"] if rounds else ()
        page, picture, *_ = write_report(
            folder, folder / "report.html", baseline or None, aggregation, rounds=order, title=title
        )
        with Image.open(picture) as drawn:
            image = as_image(drawn)
        PromptServer.instance.send_progress_text(f"The page: {page}", cls.hidden.unique_id)
        return io.NodeOutput(image, str(page), ui=ui.PreviewImage(image, cls=cls))


def inside_output(folder: str) -> Path:
    """The folder, where it lies in the host's output folder: a workflow from elsewhere must not write anywhere else."""
    output, path = Path(folder_paths.get_output_directory()).resolve(), Path(folder).resolve()
    if not path.is_relative_to(output):
        raise ValueError(f'"{folder}" is not in the output folder ({output}); reports are made of runs that lie there.')
    return path


NODES = [ScoreLoadScorer, ScorePictures, ScoreReport]
