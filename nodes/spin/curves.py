"""SPIN Curves."""

import json

from comfy_api.latest import io, ui

from ...spin_core.curves import draw_curves, verdict
from ..host.pictures import to_image
from ..host.progress import say


class SPINCurves(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINCurves",
            display_name="SPIN Curves",
            category="ViCo + SPIN/SPIN",
            description="Is it learning? Loss, margin, implicit accuracy, the four errors, gradient weight and drift "
            "over all rounds, with a warning on collapse.",
            search_aliases=["loss curve", "loss graph", "metrics"],
            inputs=[io.String.Input("metrics", force_input=True, tooltip="From Train SPIN or Train Baseline.")],
            outputs=[
                io.Image.Output("curves", tooltip="The curves as one picture."),
                io.String.Output("verdict", display_name="verdict", tooltip="What they say, in a sentence or two."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, metrics) -> io.NodeOutput:
        found = json.loads(metrics)
        text, picture = verdict(found), to_image(draw_curves(found))
        say(text)
        return io.NodeOutput(picture, text, ui=ui.PreviewImage(picture, cls=cls))
