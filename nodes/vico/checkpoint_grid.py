"""ViCo Checkpoint Grid."""

from comfy_api.latest import io, ui

from ...scores.sheet import row_places
from ...vico_core import ViCoConcept, check_prompt
from ..host.folders import marks
from ..host.pictures import to_image
from ..host.progress import say
from ..host.sampling import Sampling
from ..host.sockets import ConceptSocket, ReferenceSocket
from ..host.texts import lines
from .drawing import as_usual
from .grid import Asked, draw_rows, grid_of, side_of
from .runs import checkpoint_files, existing_checkpoints

LAST = 0


class ViCoCheckpointGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoCheckpointGrid",
            display_name="ViCo Checkpoint Grid",
            category="ViCo + SPIN/ViCo",
            description="Draws the same prompts with the same seeds by every step that Train ViCo kept: the best step "
            "differs by object. Click on the best row: its concept goes out.",
            search_aliases=["compare", "xy plot", "vico", "best step", "choose checkpoint"],
            has_intermediate_output=True,
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
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of sampling (DDIM; Euler for flow models)."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=100.0, step=0.1,
                    tooltip="Guidance; the paper takes 7.5."),
                io.Int.Input("choice", default=LAST, min=LAST, max=100000, optional=True,
                    tooltip="The step of training whose concept goes out; a click on its row sets it. 0: the last "
                    "that was kept. Choosing draws nothing again."),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A row a checkpoint, labelled by its step."),
                ConceptSocket.Output("concept", tooltip="The chosen row's, for Save ViCo Concept and Apply ViCo."),
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
    def execute(cls, model, clip, vae, reference, run, prompts, seed, seeds, steps, cfg, choice=LAST) -> io.NodeOutput:
        concepts = {file: ViCoConcept.load(file) for file in existing_checkpoints(run)}
        chosen = chosen_of(list(concepts.values()), choice)
        asked = Asked(lines(prompts), tuple(range(seed, seed + seeds)), as_usual(Sampling(steps=steps, cfg=cfg), model))
        for prompt in asked.prompts:
            check_prompt(prompt, chosen.placeholder)
        rows = draw_rows((model, clip, vae), reference, concepts, asked)
        grid = to_image(grid_of(rows, list(concepts.values()), asked))
        say(f"Step {chosen.step} goes out. Click on another row to choose it.")
        places = row_places(len(rows), side_of(rows))
        shown = [
            {"step": concept.step, "place": place} for concept, place in zip(concepts.values(), places, strict=True)
        ]
        picture = ui.PreviewImage(grid, cls=cls).as_dict()["images"]
        return io.NodeOutput(grid, chosen, ui={"steps_to_choose": shown, "grid": picture, "chosen": [chosen.step]})


def chosen_of(concepts: list[ViCoConcept], choice: int) -> ViCoConcept:
    """The concept of the chosen step. ValueError where it was not kept."""
    by_step = {concept.step: concept for concept in concepts} | {LAST: concepts[-1]}
    if choice not in by_step:
        kept = ", ".join(str(concept.step) for concept in concepts)
        raise ValueError(f"Choose one of the steps {kept}.\nStep {choice} was not kept.")
    return by_step[choice]
