"""Load Sprite World, Sprite World Pictures, Sprite World Measure."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io, ui

import sprite_world
from sprite_world.vocabulary import CLASSES, COLOURS, SCENES, SIZES

CATEGORY = "Sprite World"
ANY = "any"
WEIGHTS = Path(sprite_world.__file__).parent / "weights" / "base.safetensors"


def _given(choice: str) -> str | None:
    """A combo's choice, None for "any"."""
    return None if choice == ANY else choice


def _class_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("creature", options=[ANY, *CLASSES], default=ANY, tooltip=tooltip)


def _colour_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("colour", options=[ANY, *COLOURS], default=ANY, tooltip=tooltip)


def _identity_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("identity", default=-1, min=-1, max=2**31 - 1, tooltip=tooltip)


class SpriteWorldLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SpriteWorldLoad",
            display_name="Load Sprite World",
            category=CATEGORY,
            description="A tiny text-to-image model of SD1.x's layout that comes with this pack: pixel-art creatures in ten "
            "scenes, 128 x 128, a second or two a picture on a CPU. For trying things out, tests and teaching.",
            search_aliases=["tiny model", "toy model", "test checkpoint", "sprite"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The U-Net: SD1.x's blocks at a tenth of the width."),
                io.Clip.Output(tooltip="Its text encoder, behind the tokenizer of SD1.x. Try: a red crab on sand"),
                io.Vae.Output(tooltip="Its autoencoder, factor 8. Use 128 x 128 pixels for an empty latent."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from sprite_world.autoencoder import SpriteAutoencoder

        from .sprite_world_model import load_clip, load_model, load_vae, require_weights

        path = require_weights(WEIGHTS)
        return io.NodeOutput(load_model(path), load_clip(path), load_vae(path, SpriteAutoencoder()))


class SpriteWorldPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SpriteWorldPictures",
            display_name="Sprite World Pictures",
            category=CATEGORY,
            description="Draws captioned pictures of the Sprite World: training data whose content is known exactly. "
            "Set an identity to get several views of one and the same creature.",
            search_aliases=["dataset", "synthetic pictures", "captions", "sprite"],
            inputs=[
                io.Int.Input("number", default=4, min=1, max=4096, tooltip="How many pictures."),
                _class_input("Only this creature; any: what the seed draws."),
                _colour_input("Only this colour family; any: what the seed draws."),
                io.Combo.Input(
                    "scene",
                    options=[ANY, *SCENES],
                    default=ANY,
                    tooltip="Only this scene; any: another in each picture.",
                ),
                _identity_input(
                    "One creature in every picture, by its number: the same number is the same creature again. "
                    "-1: another creature in each."
                ),
                io.Float.Input(
                    "taste_from",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The crudest drawing: 0 has no outline, flat shading, low contrast and clutter. No caption names it.",
                ),
                io.Float.Input(
                    "taste_to",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The finest drawing. Each picture's taste lies between the two.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    control_after_generate=True,
                    tooltip="The same seed draws the same pictures.",
                ),
                io.Combo.Input(
                    "size",
                    options=[ANY, *SIZES],
                    default=ANY,
                    tooltip="Only creatures of this size; large: one alone, as in photos for Train ViCo.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="The pictures, 128 x 128."),
                io.Mask.Output(display_name="MASK", tooltip="Where the creatures are."),
                io.String.Output(display_name="captions", tooltip="One caption a line, in the pictures' order."),
                io.String.Output(
                    display_name="caption list",
                    is_output_list=True,
                    tooltip="The same as a list, for nodes that run once a caption.",
                ),
            ],
        )

    @classmethod
    def execute(cls, number, creature, colour, scene, identity, taste_from, taste_to, seed, size) -> io.NodeOutput:
        from sprite_world.pictures import chosen_pictures, render, show

        drawn = chosen_pictures(
            seed=seed,
            class_word=_given(creature),
            colour=_given(colour),
            scene=_given(scene),
            identity_seed=None if identity < 0 else identity,
            tastes=(taste_from, taste_to),
            size=_given(size),
        )
        drawn = list(islice(drawn, number))
        art, masks = (np.stack(parts) for parts in zip(*(render(picture) for picture in drawn), strict=True))
        captions = [picture.caption() for picture in drawn]
        images = torch.from_numpy(show(art)).float() / 255
        mask = torch.from_numpy(show(masks[..., None])[..., 0]).float()
        return io.NodeOutput(images, mask, "\n".join(captions), captions)


class SpriteWorldMeasure(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SpriteWorldMeasure",
            display_name="Sprite World Measure",
            category=CATEGORY,
            description="Measures pictures of the Sprite World: do they show what the caption says, is it this very creature, "
            "and how finely are they drawn?",
            search_aliases=["evaluate", "score", "metrics", "identity", "sprite"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Pictures by the Sprite World's model, or its own."),
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="",
                    tooltip="One caption a line; a single line counts for all pictures. Words that the world does not know are left out.",
                ),
                _identity_input(
                    "The creature's number in Sprite World Pictures, to measure whether it is this very one. -1: do not."
                ),
                _class_input("As it was set in Sprite World Pictures; any: what the identity's number says."),
                _colour_input("As it was set in Sprite World Pictures; any: what the identity's number says."),
            ],
            outputs=[
                io.Float.Output(
                    display_name="followed",
                    tooltip="Share of the captions' words (creature, colour, scene, ...) that the pictures show, 0 to 1.",
                ),
                io.Float.Output(
                    display_name="identity",
                    tooltip="Mean similarity with the creature, 0 to 1; 0 where none was asked for.",
                ),
                io.Float.Output(display_name="taste", tooltip="Mean taste, 0 crude to 1 fine."),
                io.Image.Output(display_name="table", tooltip="The first dozen pictures and what was read in them."),
                io.String.Output(display_name="text", tooltip="All figures as text."),
            ],
        )

    @classmethod
    def execute(cls, images, captions, identity, creature, colour) -> io.NodeOutput:
        from sprite_world.identity import identity as identity_of
        from sprite_world.measure import accuracies, measure, to_art
        from sprite_world.table import summary, table

        who = None if identity < 0 else identity_of(identity, _given(creature), _given(colour))
        art = to_art(images)
        measured = measure(art, captions_of(captions, len(images)), who)
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


def captions_of(text: str, number: int) -> list[str]:
    """One caption for each picture, out of lines; one line serves all.

    Raises ValueError where lines and pictures differ in number.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if len(lines) == 1:
        return lines * number
    if len(lines) != number:
        raise ValueError(
            f"Sprite World Measure got {len(lines)} captions for {number} pictures: give one line for each picture, in their "
            "order, or one line for all."
        )
    return lines


NODES = [SpriteWorldLoad, SpriteWorldPictures, SpriteWorldMeasure]
