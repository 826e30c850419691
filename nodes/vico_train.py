"""Train ViCo, and the grid that compares the steps it kept."""

import logging

import numpy
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont
from server import PromptServer

from vico_core import ViCoConcept
from vico_core.curve import loss_curve
from vico_core.placeholder import check_prompt
from vico_core.training import ATTENTION_LR, WORD_LR

from .vico import SMALLEST_SIDE, Concept, ReferenceSocket
from .vico_training import (
    Picture,
    RunOptions,
    TrainSettings,
    checkpoint_files,
    draw_with_concept,
    to_image,
    train_concept,
)

LABEL = 18  # pixels of a grid's label


def flatten_pictures(photos: list, masks: list | None) -> list[Picture]:
    """Batches [B, H, W, 3 or 4] of any sizes, and their masks, as single pictures. ValueError for what cannot be learnt from."""
    images = [image[..., :3].float().cpu() for batch in photos for image in batch]
    areas = [mask.float().cpu() for batch in masks for mask in batch] if masks else [None] * len(images)
    if len(areas) != len(images):
        raise ValueError(
            f"There are {len(images)} photos and {len(areas)} masks: give one mask a photo, or none at all."
        )
    for number, (image, mask) in enumerate(zip(images, areas, strict=True), start=1):
        check_photo(number, image, mask)
    return [Picture(image.clone(), mask) for image, mask in zip(images, areas, strict=True)]


def check_photo(number: int, image: torch.Tensor, mask: torch.Tensor | None) -> None:
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"Photo {number} is {width}×{height} pixels: too small to learn from. Use photos of {SMALLEST_SIDE} pixels or more a side."
        )
    if not torch.isfinite(image).all():
        raise ValueError(f"Photo {number} holds NaN or infinity: the node that made it went wrong.")
    if mask is not None and not mask.max() > 0:
        raise ValueError(f"The mask of photo {number} is empty: paint the object white in it, or connect no masks.")


def to_tensor(image: Image.Image) -> torch.Tensor:
    """A picture → IMAGE [1, H, W, 3]."""
    return torch.from_numpy(numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255)[None]


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


class TrainViCo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoTrain",
            display_name="Train ViCo",
            category="ViCo",
            description="Learns one object from a few photos: a word for it, and image attention that finds its details in a photo. The model itself stays as it is.",
            search_aliases=["personalization", "dreambooth", "textual inversion", "train", "vico"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The checkpoint to learn beside: SD1.x, SD2.x or SDXL. It is not changed."
                ),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Image.Input(
                    "photos",
                    tooltip="3 to 8 photos of the object, in different places and from different sides: a batch, or a list of any sizes. Each is stretched to a square.",
                ),
                io.String.Input(
                    "initialiser",
                    default="toy",
                    tooltip="One everyday word for what the object is (toy, dog, cup). The trigger word starts from its meaning.",
                ),
                io.String.Input(
                    "placeholder",
                    default="*",
                    tooltip="The trigger word: what you will write in prompts where the object should appear. One token, such as * or sks.",
                ),
                io.Int.Input(
                    "steps",
                    default=400,
                    min=1,
                    max=100000,
                    tooltip="The paper takes 400, and keeps 300 and 350 as well: the best differs by object. Raise it and queue again to go on.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, tooltip="Start values, noise, order of the photos."
                ),
                io.String.Input(
                    "name",
                    default="concept",
                    tooltip="Its folder in models/vico; what decides the result is added to it, so that two runs never mix.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the object is in each photo (white). Leave away to have it found by the trigger word's attention.",
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=1536,
                    step=64,
                    tooltip="Photos are trained at size × size: the model's own (512 for SD1.x, 128 for Sprite World).",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=50,
                    min=0,
                    max=100000,
                    tooltip="Keeps the concept every so many steps in models/vico/<run>, for ViCo Checkpoint Grid. 0: only the last.",
                ),
                io.String.Input(
                    "preview_prompts",
                    default="a photo of a *",
                    multiline=True,
                    tooltip="One a line, drawn through Apply ViCo while it trains, with the first photo as the reference.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=50,
                    min=0,
                    max=100000,
                    tooltip="Steps between two previews, each 20 steps of sampling a prompt. 0: none.",
                ),
                io.Float.Input(
                    "word_lr",
                    default=WORD_LR,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    round=False,
                    advanced=True,
                    tooltip="Learning rate of the word's vector. The paper: 0.005 for one photo a step.",
                ),
                io.Float.Input(
                    "attention_lr",
                    default=ATTENTION_LR,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    round=False,
                    advanced=True,
                    tooltip="Learning rate of image attention. The paper: 0.00001.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, advanced=True, tooltip="Photos a step."),
                io.Int.Input(
                    "accumulation",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Batches whose gradients one step takes together: a larger batch in the memory of a small one.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["no", "bf16", "fp16"],
                    advanced=True,
                    tooltip="no: float32. bf16 and fp16 take half the memory; what is learnt stays in float32.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    advanced=True,
                    tooltip="Computes parts twice instead of keeping them: less memory, more time, the same result.",
                ),
                io.Boolean.Input(
                    "detach_reference",
                    default=False,
                    advanced=True,
                    tooltip="Faster, not the paper's: the word does not learn through the reference photo, and the attention regularisation does nothing.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="What the photos show, one caption a line, each with the placeholder (a photo of a large red * on tiles). One is drawn for each photo of a step. Empty: the paper's short templates, which name nothing but the object.",
                ),
            ],
            outputs=[
                Concept.Output("concept", tooltip="For Apply ViCo and Save ViCo Concept."),
                io.Custom("LOSS_MAP").Output(
                    display_name="loss_map", tooltip="The loss of every step, for Plot Loss Graph."
                ),
                io.Image.Output(display_name="loss_curve", tooltip="The same as a picture, with its mean."),
                io.String.Output(
                    display_name="run", tooltip="The run's folder in models/vico, for ViCo Checkpoint Grid."
                ),
            ],
        )

    @classmethod
    def execute(cls, photos, masks=None, **inputs) -> io.NodeOutput:
        given = {name: values[0] for name, values in inputs.items()}
        pictures = flatten_pictures(photos, masks)
        if len(pictures) == 1:
            cls.say(
                "Only one photo: it is its own reference, and its background will be learnt with the object. Add more."
            )
        settings, options = settings_of(given), options_of(given)
        outcome = train_concept(given["model"], given["clip"], given["vae"], pictures, settings, options, cls.say)
        curve = to_tensor(loss_curve(outcome.losses))
        shown = ui.PreviewImage(curve, cls=cls)
        return io.NodeOutput(outcome.concept, {"loss": outcome.losses}, curve, outcome.run, ui=shown)

    @classmethod
    def say(cls, text: str) -> None:
        """Under the node, and in the log where nobody looks at a node."""
        if cls.hidden and cls.hidden.unique_id:
            PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
        logging.debug(text)


def settings_of(given: dict) -> TrainSettings:
    names = ("initialiser", "placeholder", "steps", "seed", "size", "word_lr", "attention_lr", "batch_size")
    names += ("accumulation", "precision", "detach_reference")
    chosen = {name: given[name] for name in names}
    chosen["placeholder"] = chosen["placeholder"].strip()
    captions = lines(given["captions"])
    for caption in captions:
        check_prompt(caption, chosen["placeholder"])
    return TrainSettings(**chosen, captions=captions)


def options_of(given: dict) -> RunOptions:
    prompts = lines(given["preview_prompts"])
    if given["preview_every"]:
        for prompt in prompts:
            check_prompt(prompt, given["placeholder"].strip())
    every, checkpointing = given["checkpoint_every"], given["gradient_checkpointing"]
    return RunOptions(given["name"], every, prompts, given["preview_every"], checkpointing)


class ViCoCheckpointGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoCheckpointGrid",
            display_name="ViCo Checkpoint Grid",
            category="ViCo",
            description="Draws the same prompts with the same seeds by every step that Train ViCo kept: the best step differs by object.",
            search_aliases=["compare", "xy plot", "vico"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that the concept was trained on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                ReferenceSocket.Input("reference", tooltip="From ViCo Reference. Pictures get the reference's size."),
                io.String.Input("run", tooltip="From Train ViCo: the folder in models/vico."),
                io.String.Input(
                    "prompts",
                    default="a photo of a *",
                    multiline=True,
                    tooltip="One a line, with the trigger word in each.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, tooltip="The first seed."),
                io.Int.Input("seeds", default=1, min=1, max=16, tooltip="Pictures a prompt, each with the next seed."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of sampling (DDIM)."),
                io.Float.Input(
                    "cfg", default=7.5, min=1.0, max=100.0, step=0.1, tooltip="Guidance; the paper takes 7.5."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="grid",
                    tooltip="A row a checkpoint, labelled by its step; load the best with Load ViCo Concept: <run>/step-….",
                )
            ],
        )

    @classmethod
    def execute(cls, model, clip, vae, reference, run, prompts, seed, seeds, steps, cfg) -> io.NodeOutput:
        files = checkpoint_files(run)
        if not files:
            raise ValueError(
                f'There is no checkpoint in models/vico/{run}. Take the name from Train ViCo\'s output "run".'
            )
        chosen, drawn_seeds = lines(prompts), [seed + i for i in range(seeds)]
        rows = []
        for file in files:
            concept = ViCoConcept.load(file)
            for prompt in chosen:
                check_prompt(prompt, concept.placeholder)
            pixels = draw_with_concept(model, clip, vae, concept, reference, chosen, drawn_seeds, steps, cfg)
            rows.append(labelled_row(f"step {concept.step}", pixels))
        grid = torch.cat(rows, dim=1)
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))


def labelled_row(label: str, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures [B, H, W, 3] side by side under a label → IMAGE [1, H + LABEL, B·W, 3]."""
    row = to_image(torch.cat(list(pixels), dim=1))
    picture = Image.new("RGB", (row.width, row.height + LABEL), "white")
    picture.paste(row, (0, LABEL))
    ImageDraw.Draw(picture).text((4, 2), label, font=ImageFont.load_default(), fill="black")
    return to_tensor(picture)


NODES = [TrainViCo, ViCoCheckpointGrid]
