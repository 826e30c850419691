"""Load ViCo Concept, Save ViCo Concept."""

from pathlib import Path

from comfy_api.latest import io

from ...vico_core import ViCoConcept, concept_files
from ..host.folders import free_path, marks
from ..host.sockets import ConceptSocket
from ..host.written import written
from .folder import concept_names, concept_path, home


class LoadViCoConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoLoadConcept",
            display_name="Load ViCo Concept",
            category="ViCo + SPIN/ViCo",
            description="Loads what was learnt of one object: a .safetensors concept, or the authors' pair of .pt "
            "files.",
            search_aliases=["personalization", "subject reference", "dreambooth", "vico"],
            inputs=[
                io.Combo.Input("concept", options=concept_names(),
                    tooltip="A file of models/vico: name.safetensors, or an original cross_attention-N.pt with its "
                    "embeddings_gs-N.pt beside it. The Sprite World example comes with the pack, for Load Sprite "
                    "World."),
            ],
            outputs=[
                ConceptSocket.Output("concept", tooltip="For Apply ViCo."),
                io.String.Output("trigger", display_name="trigger",
                    tooltip="The word to write in the prompt where the object should appear."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, concept):
        return marks(*concept_files(Path(concept_path(concept))))

    @classmethod
    def execute(cls, concept) -> io.NodeOutput:
        loaded = ViCoConcept.load(concept_path(concept))
        return io.NodeOutput(loaded, loaded.placeholder)


class SaveViCoConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoSaveConcept",
            display_name="Save ViCo Concept",
            category="ViCo + SPIN/ViCo",
            description="Writes the concept into models/vico, as one file to share or as the authors' pair.",
            inputs=[
                ConceptSocket.Input("concept", tooltip="What to save."),
                io.String.Input("filename_prefix", default="concept",
                    tooltip="Name in models/vico; a number is added, nothing is overwritten."),
                io.Combo.Input("format", options=["safetensors", "original pair"],
                    tooltip="safetensors: one file with the word, the settings and a thumbnail. original pair: for "
                    "the authors' own code (SD1.x only)."),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, concept, filename_prefix, format) -> io.NodeOutput:
        free = free_path(home(), filename_prefix, "concept")
        if format == "safetensors":
            path = free.with_name(free.name + ".safetensors")
            concept.save(path)
        else:
            path = free / f"cross_attention-{concept.step}.pt"
            concept.save_original(path, free / f"embeddings_gs-{concept.step}.pt")
        return io.NodeOutput(str(path), ui=written(path))
