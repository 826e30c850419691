"""Score Report."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from PIL import Image

from ...scores import AGGREGATIONS
from ..host.pictures import to_image
from ..host.written import written


class ScoreReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScoreReport",
            display_name="Score Report",
            category="ViCo + SPIN/Scores",
            description="Makes one web page of a comparison, to open or send: win rates with intervals, pictures side "
            "by side with the worst losses first, and how all of it was measured. With a PNG, JSON and CSV beside it.",
            search_aliases=["html", "win rate", "evaluation", "benchmark"],
            is_output_node=True,
            inputs=[
                io.String.Input("run", force_input=True,
                    tooltip="The folder from Compare Models, or of vico-spin evaluate."),
                io.String.Input("title", default="Which model is better?", tooltip="The page's heading."),
                io.String.Input("baseline", default="",
                    tooltip="The model that the others are held against. Empty: the first."),
                io.Combo.Input("aggregation", options=list(AGGREGATIONS), default="mean",
                    tooltip="How the pictures of a prompt become one number: the first alone, their mean, their "
                    "median, or the best of them."),
                io.Boolean.Input("rounds", default=False,
                    tooltip="The models are rounds of one training, in order: draws the curves."),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="The report as one picture."),
                io.String.Output("page", tooltip="Where the web page lies."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, run, title, baseline, aggregation, rounds) -> io.NodeOutput:
        from ...scores.report import write_report
        from ...scores.run import Run

        folder = inside_output(run)
        order = Run.existing(folder).about["models"] if rounds else ()
        page, picture, *_ = write_report(
            folder, folder / "report.html", baseline or None, aggregation, rounds=order, title=title
        )
        with Image.open(picture) as drawn:
            image = to_image(drawn)
        shown = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(image, str(page), ui={**shown, **written(page)})


def inside_output(folder: str) -> Path:
    """The folder, where it lies in the host's output folder: a workflow from elsewhere must not write anywhere else."""
    output, path = Path(folder_paths.get_output_directory()).resolve(), Path(folder).resolve()
    if not path.is_relative_to(output):
        raise ValueError(
            f'Connect the run of Compare Models.\n"{folder}" is not in the output folder, where such runs lie.'
        )
    return path
