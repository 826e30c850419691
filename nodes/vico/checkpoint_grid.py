"""ViCo Checkpoint Grid."""

from comfy_api.latest import io, ui

from ...scores.sheet import Cell, sheet
from ...vico_core import ViCoConcept, check_prompt
from ..host.folders import marks
from ..host.pictures import to_image, to_pictures
from ..host.sampling import Sampling
from ..host.sockets import ReferenceSocket
from ..host.texts import lines
from .drawing import draw_with_concept
from .runs import checkpoint_files, existing_checkpoints

SMALLEST_CELL = 256  # pixels: small pictures are shown larger, so that the prompts above them can be read


class ViCoCheckpointGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoCheckpointGrid",
            display_name="ViCo Checkpoint Grid",
            category="ViCo",
            description="Draws the same prompts with the same seeds by every step that Train ViCo kept: the best step "
            "differs by object.",
            search_aliases=["compare", "xy plot", "vico"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that the concept was trained on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                ReferenceSocket.Input("reference", tooltip="From ViCo Reference. Pictures get the reference's size."),
                io.String.Input("run", tooltip="From Train ViCo: the folder in models/vico."),
                io.String.Input("prompts", default="a photo of a *", multiline=True,
                    tooltip="One a line, with the trigger word in each."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                    tooltip="The first seed."),
                io.Int.Input("seeds", default=1, min=1, max=16, tooltip="Pictures a prompt, each with the next seed."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of sampling (DDIM)."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=100.0, step=0.1,
                    tooltip="Guidance; the paper takes 7.5."),
            ],
            outputs=[
                io.Image.Output(display_name="grid",
                    tooltip="A row a checkpoint, labelled by its step; load the best with Load ViCo Concept: "
                    "<run>/step-….")
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, run=None, **others):
        """Draws again when a run that was typed in has grown."""
        return marks(*checkpoint_files(run)) if isinstance(run, str) else []

    @classmethod
    def validate_inputs(cls, run):
        return run is None or bool(existing_checkpoints(run))

    @classmethod
    def execute(cls, model, clip, vae, reference, run, prompts, seed, seeds, steps, cfg) -> io.NodeOutput:
        files = existing_checkpoints(run)
        chosen, drawn_seeds = lines(prompts), [seed + i for i in range(seeds)]
        sampling, names, rows = Sampling(steps=steps, cfg=cfg), [], []
        for file in files:
            concept = ViCoConcept.load(file)
            for prompt in chosen:
                check_prompt(prompt, concept.placeholder)
            pixels = draw_with_concept(model, clip, vae, concept, reference, chosen, drawn_seeds, sampling)
            names.append(f"step {concept.step}")
            rows.append([Cell(picture, "") for picture in to_pictures(pixels)])
        columns = [f"{prompt}, {number}" if seeds > 1 else prompt for prompt in chosen for number in drawn_seeds]
        grid = to_image(sheet(rows, names, columns, max(SMALLEST_CELL, *rows[0][0].picture.size)))
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))
