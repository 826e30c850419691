"""Score Pictures."""

import json
from collections.abc import Sequence

import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui
from PIL import Image, ImageOps

from ...intake import Report, Unusable
from ...scores.scorer import Scorer
from ...scores.sheet import Cell, sheet
from ...spin_core.samples import Picture
from ..host.pictures import SHEET_PICTURES, to_image, to_pictures
from ..host.progress import say
from ..host.sockets import DatasetSocket, ScorerSocket
from ..host.texts import lines, one_each
from .made_from import prompt_behind

UNREAD = Image.new("RGB", (64, 64), "grey")


class ScorePictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScorePictures",
            display_name="Score Pictures",
            category="ViCo + SPIN/Scores",
            description="Rates every picture of a batch or of a data set, shows up to 24 of them, best first with their "
            "numbers, and passes the best on.",
            search_aliases=["rank", "best of n", "pick best", "reward", "rate", "aesthetic score"],
            has_intermediate_output=True,
            inputs=[
                ScorerSocket.Input("scorer", tooltip="From Load Scorer."),
                io.Image.Input("pictures", optional=True, tooltip="The pictures to rate."),
                io.String.Input("prompts", multiline=True, default="",
                    tooltip="What the pictures were made from: one line for all of them, or a line for each. As plain "
                    "words: weights such as (x:1.2) would be read as letters. Empty: the prompt of the sampler that "
                    "they come from, or of the ComfyUI picture that is loaded."),
                io.Int.Input("best", default=1, min=1, max=4096, tooltip="How many of the best pictures to pass on."),
                io.Image.Input("references", optional=True,
                    tooltip="Photos of the real thing, for DINO and CLIP-I: all are compared."),
                DatasetSocket.Input("dataset", optional=True,
                    tooltip="Instead of pictures: those of SPIN Dataset, each with its caption as its prompt."),
            ],
            outputs=[
                io.Image.Output("best_pictures", tooltip="The best pictures, best first."),
                io.Float.Output("best_score", tooltip="The number of the best picture."),
                io.String.Output("scores", tooltip="Every picture's number in the order they came, as JSON."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, scorer, prompts, best, pictures=None, references=None, dataset=None) -> io.NodeOutput:
        if (pictures is None) == (dataset is None):
            found = "Neither is" if dataset is None else "Both are"
            raise ValueError(f"Connect either pictures or a dataset.\n{found} connected.")
        photos = to_pictures(references) if references is not None else None
        if dataset is None:
            told, shown, names = "", to_pictures(pictures), None
            asked = asked_for(cls, prompts, len(shown)) if scorer.needs_prompt else None
            numbers = scorer.score(shown, asked, photos)
        else:
            told, found, asked, numbers = score_data_set(scorer, dataset, photos)
            names = [picture.name for picture in found]
        order = sorted(range(len(numbers)), key=lambda i: -numbers[i])
        if dataset is not None:
            shown = {i: found[i].open() for i in order[: max(best, SHEET_PICTURES)]}
        say("\n".join(filter(None, [told, ranking(scorer.name, numbers, order)])))
        report = {"scorer": scorer.record(), "scores": numbers, "prompts": asked, "order": order, "pictures": names}
        return io.NodeOutput(
            best_of(shown, order[:best]) if pictures is None else pictures[order[:best]],
            numbers[order[0]],
            json.dumps(report, ensure_ascii=False),
            ui=ui.PreviewImage(to_image(ranked_sheet(shown, numbers, order[:SHEET_PICTURES], best)), cls=cls),
        )


def asked_for(cls, prompts: str, pictures: int) -> list[str]:
    """A prompt for every picture: those that are written, or the one that the graph tells."""
    if not lines(prompts):
        prompts = prompt_behind(cls.hidden.prompt, cls.hidden.unique_id, "pictures") or ""
        prompts = " ".join(lines(prompts))
    return one_each(prompts, pictures, "prompts")


class Opened(Sequence):
    """A data set's pictures, each opened when a scorer asks for it: a batch of them is decoded, and the person can cancel.

    One that does not decode is grey and in `broken`: its number counts for nothing.
    """

    def __init__(self, pictures: Sequence[Picture]):
        self.pictures, self.broken = pictures, {}
        self.bar = comfy.utils.ProgressBar(len(pictures))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(place + 1)
        try:
            return self.pictures[place].open()
        except Unusable as error:
            self.broken[place] = error
            return UNREAD


def score_data_set(scorer: Scorer, dataset, references) -> tuple[str, list[Picture], list[str], list[float]]:
    """(what was found and left out, the pictures, their captions, their numbers) of a data set, each picture once."""
    report = Report()
    found = each_once(dataset, report)
    opened = Opened([picture for picture, _ in found])
    numbers = scorer.score(opened, [prompt for _, prompt in found], references) if found else []
    for error in opened.broken.values():
        report.kept -= 1
        report.leave_out(error.name, error.reason)
    scored = [(*one, numbers[i]) for i, one in enumerate(found) if i not in opened.broken]
    if not scored:
        raise ValueError(f"Connect a dataset with pictures.\nNone of it can be scored: {report.in_a_line()}")
    pictures, prompts, numbers = zip(*scored, strict=True)
    return report.text(), list(pictures), list(prompts), list(numbers)


def each_once(dataset, report: Report) -> list[tuple[Picture, str]]:
    """A data set's pictures with their captions, without the rejected ones of pairs.

    Pictures of a .tar or .parquet are held as the files' bytes: a scorer reads all captions before the first picture.
    """
    found = {}
    for sample in dataset.samples(report):
        if sample.image is None or sample.image.name in found:
            report.kept -= 1
        else:
            found[sample.image.name] = sample.image, sample.prompt
    return list(found.values())


def best_of(pictures: list[Image.Image] | dict[int, Image.Image], chosen: Sequence[int]):
    """IMAGE of the chosen pictures, all in the size of the first."""
    size = pictures[chosen[0]].size
    return to_image(*(ImageOps.fit(pictures[i], size) for i in chosen))


def ranking(name: str, numbers: Sequence[float], order: Sequence[int]) -> str:
    """The table under the pictures: rank, picture, number."""
    ranks = [f"{rank}.  picture {i + 1}  {numbers[i]:.4f}" for rank, i in enumerate(order, start=1)]
    return "\n".join([name, *ranks[:20], *(["…"] if len(ranks) > 20 else [])])


def ranked_sheet(
    pictures: list[Image.Image] | dict[int, Image.Image], numbers: Sequence[float], order: Sequence[int], best: int
) -> Image.Image:
    """The pictures best first, four to a row, each with its rank, number and place in the batch."""
    cells = [
        Cell(pictures[i], f"{rank}   {numbers[i]:.4f}   (picture {i + 1})", best=rank <= best)
        for rank, i in enumerate(order, start=1)
    ]
    return sheet([cells[i : i + 4] for i in range(0, len(cells), 4)], (), (), side=256)
