"""Score Pictures."""

import json
from collections.abc import Sequence

from comfy_api.latest import io, ui
from PIL import Image

from ...scores.sheet import Cell, sheet
from ..host.pictures import to_image, to_pictures
from ..host.progress import say
from ..host.sockets import ScorerSocket
from ..host.texts import one_each


class ScorePictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScorePictures",
            display_name="Score Pictures",
            category="scores",
            description="Rates every picture of a batch, shows them best first with their numbers, and passes the "
            "best on.",
            search_aliases=["rank", "best of n", "pick best", "reward", "rate"],
            has_intermediate_output=True,
            inputs=[
                ScorerSocket.Input("scorer", tooltip="From Load Scorer."),
                io.Image.Input("pictures", tooltip="The pictures to rate."),
                io.String.Input("prompts", multiline=True, default="",
                    tooltip="What the pictures were made from: one line for all of them, or a line for each. As plain "
                    "words: weights such as (x:1.2) would be read as letters."),
                io.Int.Input("best", default=1, min=1, max=4096, tooltip="How many of the best pictures to pass on."),
                io.Image.Input("references", optional=True,
                    tooltip="Photos of the real thing, for DINO and CLIP-I: all are compared."),
            ],
            outputs=[
                io.Image.Output("best_pictures", tooltip="The best pictures, best first."),
                io.Float.Output("best_score", tooltip="The number of the best picture."),
                io.String.Output("scores", tooltip="Every picture's number in the order they came, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, scorer, pictures, prompts, best, references=None) -> io.NodeOutput:
        shown = to_pictures(pictures)
        asked = one_each(prompts, len(shown), "prompts") if scorer.needs_prompt else None
        numbers = scorer.score(shown, asked, to_pictures(references) if references is not None else None)
        order = sorted(range(len(numbers)), key=lambda i: -numbers[i])
        say(ranking(scorer.name, numbers, order))
        report = {"scorer": scorer.record(), "scores": numbers, "prompts": asked, "order": order}
        return io.NodeOutput(
            pictures[order[:best]],
            numbers[order[0]],
            json.dumps(report, ensure_ascii=False),
            ui=ui.PreviewImage(to_image(ranked_sheet(shown, numbers, order, best)), cls=cls),
        )


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
