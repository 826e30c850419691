"""ViCo Options."""

from comfy_api.latest import io

from ..host.sockets import ViCoOptionsSocket
from .session import AUTOMATIC_WORD, FIXED, LEARNT


class ViCoOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoOptions",
            display_name="ViCo Options",
            category="ViCo + SPIN/ViCo",
            description="What Train ViCo learns, from where it starts, and at how many places it looks. Without it, as the paper does.",
            search_aliases=["zero init", "freeze text encoder", "textual inversion", "vico", "identity"],
            inputs=[
                io.Combo.Input("word", options=[AUTOMATIC_WORD, LEARNT, FIXED], optional=True,
                    tooltip="Whether the trigger word's vector is learnt, as in the paper, or stays the initialiser's, so "
                    "that the text encoder takes no memory. automatic: learnt beside text encoders of up to a billion "
                    "parameters."),
                io.Boolean.Input("zero_init", default=False, optional=True,
                    tooltip="Image attention begins without a say (its output projections are zero) instead of disturbing "
                    "the model at first, as the paper's does. For high rates and few steps, as on Sprite World's DiT."),
                io.Boolean.Input("dense", default=False, optional=True,
                    tooltip="Image attention after every block of a U-Net's decoder that has attention, where the paper has it "
                    "after every second one; at twice as many places of a transformer. Keeps more of the object in the "
                    "Sprite World's U-Net, for slower steps, more memory and a larger file."),
            ],
            outputs=[ViCoOptionsSocket.Output("vico_options", tooltip="For Train ViCo.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, word=AUTOMATIC_WORD, zero_init=False, dense=False) -> io.NodeOutput:
        return io.NodeOutput({"word": word, "zero_init": zero_init, "dense": dense})
