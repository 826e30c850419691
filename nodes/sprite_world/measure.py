"""Sprite World Measure."""

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..host.texts import one_each
from .choices import class_input, colour_input, given, identity_input


class SpriteWorldMeasure(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SpriteWorldMeasure",
            display_name="Sprite World Measure",
            category="ViCo + SPIN/Sprite World",
            description="Measures pictures of the Sprite World: do they show what the caption says, is it this very "
            "creature, and how finely are they drawn?",
            search_aliases=["evaluate", "score", "metrics", "identity", "sprite"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Pictures by the Sprite World's model, or its own."),
                io.String.Input("captions", multiline=True, default="",
                    tooltip="One caption a line; a single line counts for all pictures. Words that the world does not "
                    "know are left out."),
                identity_input(
                    "The creature's number in Sprite World Pictures, to measure whether it is this very one. -1: do not."
                ),
                class_input("As it was set in Sprite World Pictures; any: what the identity's number says."),
                colour_input("As it was set in Sprite World Pictures; any: what the identity's number says."),
            ],
            outputs=[
                io.Float.Output(display_name="followed",
                    tooltip="Share of the captions' words (creature, colour, scene, ...) that the pictures show, 0 to "
                    "1."),
                io.Float.Output(display_name="identity",
                    tooltip="Mean similarity with the creature, 0 to 1; 0 where none was asked for."),
                io.Float.Output(display_name="taste", tooltip="Mean taste, 0 crude to 1 fine."),
                io.Image.Output(display_name="table", tooltip="The first dozen pictures and what was read in them."),
                io.String.Output(display_name="text", tooltip="All figures as text."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, captions, identity, creature, colour) -> io.NodeOutput:
        from ...sprite_world.identity import identity as identity_of
        from ...sprite_world.measure import accuracies, measure, to_art
        from ...sprite_world.table import summary, table

        who = None if identity < 0 else identity_of(identity, given(creature), given(colour))
        art = to_art(images)
        measured = measure(
            art, one_each(captions, len(images), "captions") if captions.strip() else [""] * len(images), who
        )
        followed = [right for one in measured for right in one.follows.values()]
        picture = torch.from_numpy(table(art, measured)).float()[None] / 255
        return io.NodeOutput(
            float(np.mean(followed)) if followed else 0.0,
            0.0 if who is None else float(np.mean([one.similarity for one in measured])),
            float(np.mean([one.shown["taste"] for one in measured])),
            picture,
            summary(measured, accuracies(measured)),
            ui=ui.PreviewImage(picture, cls=cls),
        )
