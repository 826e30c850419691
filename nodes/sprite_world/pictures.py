"""Sprite World Pictures."""

from itertools import islice

import numpy as np
import torch
from comfy_api.latest import io

from ...sprite_world.vocabulary import SCENES, SIZES
from .choices import ANY, class_input, colour_input, given, identity_input


class SpriteWorldPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SpriteWorldPictures",
            display_name="Sprite World Pictures",
            category="ViCo + SPIN/Sprite World",
            description="Draws captioned pictures of the Sprite World: training data whose content is known exactly. "
            "Set an identity to get several views of one and the same creature.",
            search_aliases=["dataset", "synthetic pictures", "captions", "sprite"],
            inputs=[
                io.Int.Input("number", default=4, min=1, max=4096, tooltip="How many pictures."),
                class_input("Only this creature; any: what the seed draws."),
                colour_input("Only this colour family; any: what the seed draws."),
                io.Combo.Input("scene", options=[ANY, *SCENES], default=ANY,
                    tooltip="Only this scene; any: another in each picture."),
                identity_input(
                    "One creature in every picture, by its number: the same number is the same creature again. "
                    "-1: another creature in each."
                ),
                io.Float.Input("taste_from", default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="The crudest drawing: 0 has no outline, flat shading, low contrast and clutter. No "
                    "caption names it."),
                io.Float.Input("taste_to", default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="The finest drawing. Each picture's taste lies between the two."),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, control_after_generate=True,
                    tooltip="The same seed draws the same pictures."),
                io.Combo.Input("size", options=[ANY, *SIZES], default=ANY,
                    tooltip="Only creatures of this size; large: one alone, as in photos for Train ViCo."),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="The pictures, 128 x 128."),
                io.Mask.Output(display_name="MASK", tooltip="Where the creatures are."),
                io.String.Output(display_name="captions", tooltip="One caption a line, in the pictures' order."),
                io.String.Output(display_name="caption list", is_output_list=True,
                    tooltip="The same as a list, for nodes that run once a caption."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, number, creature, colour, scene, identity, taste_from, taste_to, seed, size) -> io.NodeOutput:
        from ...sprite_world.pictures import chosen_pictures, render, show

        drawn = chosen_pictures(
            seed=seed,
            class_word=given(creature),
            colour=given(colour),
            scene=given(scene),
            identity_seed=None if identity < 0 else identity,
            tastes=(taste_from, taste_to),
            size=given(size),
        )
        drawn = list(islice(drawn, number))
        art, masks = (np.stack(parts) for parts in zip(*(render(picture) for picture in drawn), strict=True))
        captions = [picture.caption() for picture in drawn]
        images = torch.from_numpy(show(art)).float() / 255
        mask = torch.from_numpy(show(masks[..., None])[..., 0]).float()
        return io.NodeOutput(images, mask, "\n".join(captions), captions)
