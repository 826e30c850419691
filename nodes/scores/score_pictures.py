"""Score Pictures."""

import json
from collections.abc import Sequence

from comfy_api.latest import io, ui
from PIL import Image, ImageOps

from ...intake import Report, Unusable
from ...scores.sheet import Cell, sheet
from ..host.pictures import to_image, to_pictures
from ..host.progress import say
from ..host.sockets import DatasetSocket, ScorerSocket
from ..host.texts import lines, one_each
from .made_from import prompt_behind


class ScorePictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScorePictures",
            display_name="Score Pictures",
            category="ViCo + SPIN/Scores",
            description="Rates every picture of a batch or of a data set, shows them best first with their numbers, and "
            "passes the best on.",
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
        if dataset is None:
            told, shown, names = "", to_pictures(pictures), None
            asked = asked_for(cls, prompts, len(shown)) if scorer.needs_prompt else None
        else:
            told, shown, asked, names = read_all(dataset)
        numbers = scorer.score(shown, asked, to_pictures(references) if references is not None else None)
        order = sorted(range(len(numbers)), key=lambda i: -numbers[i])
        say("\n".join(filter(None, [told, ranking(scorer.name, numbers, order)])))
        report = {"scorer": scorer.record(), "scores": numbers, "prompts": asked, "order": order, "pictures": names}
        return io.NodeOutput(
            best_of(shown, order[:best]) if pictures is None else pictures[order[:best]],
            numbers[order[0]],
            json.dumps(report, ensure_ascii=False),
            ui=ui.PreviewImage(to_image(ranked_sheet(shown, numbers, order, best)), cls=cls),
        )


def asked_for(cls, prompts: str, pictures: int) -> list[str]:
    """A prompt for every picture: those that are written, or the one that the graph tells."""
    if not lines(prompts):
        prompts = prompt_behind(cls.hidden.prompt, cls.hidden.unique_id, "pictures") or ""
        prompts = " ".join(lines(prompts))
    return one_each(prompts, pictures, "prompts")


def read_all(dataset) -> tuple[str, list[Image.Image], list[str], list[str]]:
    """(what was found and left out, the pictures, their captions, their names) of a data set, each picture once."""
    report, found = Report(), {}
    for sample in dataset.samples(report):
        if sample.image is None or sample.image.name in found:
            report.kept -= 1
            continue
        try:
            found[sample.image.name] = (sample.image.open(), sample.prompt)
        except Unusable as error:
            report.kept -= 1
            report.leave_out(error.name, error.reason)
    if not found:
        raise ValueError(f"Connect a dataset with pictures.\nNone of it can be scored: {report.in_a_line()}")
    pictures, prompts = zip(*found.values(), strict=True)
    return report.text(), list(pictures), list(prompts), list(found)


def best_of(pictures: Sequence[Image.Image], chosen: Sequence[int]):
    """IMAGE of the chosen pictures, all in the size of the first."""
    size = pictures[chosen[0]].size
    return to_image(*(ImageOps.fit(pictures[i], size) for i in chosen))


def ranking(name: str, numbers: Sequence[float], order: Sequence[int]) -> str:
    """The table under the pictures: rank, picture, number."""
    ranks = [f"{rank}.  picture {i + 1}  {numbers[i]:.4f}" for rank, i in enumerate(order, start=1)]
    return "\n".join([name, *ranks[:20], *(["…"] if len(ranks) > 20 else [])])


def ranked_sheet(
    pictures: Sequence[Image.Image], numbers: Sequence[float], order: Sequence[int], best: int
) -> Image.Image:
    """The pictures best first, four to a row, each with its rank, number and place in the batch."""
    cells = [
        Cell(pictures[i], f"{rank}   {numbers[i]:.4f}   (picture {i + 1})", best=rank <= best)
        for rank, i in enumerate(order, start=1)
    ]
    return sheet([cells[i : i + 4] for i in range(0, len(cells), 4)], (), (), side=256)
