"""Apply ViCo."""

from comfy_api.latest import io

from ..host.progress import say
from ..host.sockets import ConceptSocket, ReferenceSocket
from .attach import ApplySettings, attach, describe_base, describe_cost, make_subject
from .capture import AUTOMATIC, GIVEN, NO_MASK
from .trigger import with_trigger


class ApplyViCo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoApply",
            display_name="Apply ViCo",
            category="ViCo + SPIN/ViCo",
            description="Lets the model look at the reference while it draws. Encode the prompt, with the trigger "
            "word in it, by the CLIP that comes out.",
            search_aliases=["ip-adapter", "subject reference", "one photo", "same object", "vico"],
            inputs=[
                io.Model.Input("model",
                    tooltip="The checkpoint that the concept was trained on, or one of its family. LoRAs may come "
                    "before or after."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptSocket.Input("concept", tooltip="From Load ViCo Concept or Train ViCo."),
                ReferenceSocket.Input("reference", tooltip="From ViCo Reference: the photo of the object."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05,
                    tooltip="How much of image attention is added. 1 is the paper's; 0 is exactly the plain model."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Where in the sampling it begins (0: at the first step)."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Where in the sampling it ends. Later steps cost what the plain model costs."),
                io.Combo.Input("mask", options=[AUTOMATIC, GIVEN, NO_MASK],
                    tooltip="Which part of the photo is the object. automatic: found by the trigger word's own "
                    "attention (the paper's). given: the mask of ViCo Reference. none: the whole photo."),
                io.Mask.Input("effect_mask", optional=True,
                    tooltip="Where in the picture image attention works (white). Leave away for everywhere; use one a "
                    "subject to keep two apart."),
                io.String.Input("trigger", default="", optional=True, advanced=True,
                    tooltip="The word that stands for the object in the prompt. Empty: the concept's own. Give each "
                    "of two subjects another one."),
                io.String.Input("place_strengths", default="", optional=True, advanced=True,
                    tooltip="One factor a place, from coarse to fine, as '1, 1, 0.5, 0'. Empty: 1 everywhere. SD1.x "
                    "has four places, SDXL three."),
                io.Int.Input("cache_mb", default=1024, min=0, max=65536, step=64, optional=True, advanced=True,
                    tooltip="System memory for the reference's features, so that the next seed skips the reference "
                    "pass. The node shows what a step needs. 0: keep nothing."),
            ],
            outputs=[
                io.Model.Output(tooltip="For the sampler."),
                io.Clip.Output(tooltip="Knows the trigger word: encode the prompt by it."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, concept, reference, strength, start_percent, end_percent, mask, effect_mask=None, **more
    ) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(model, clip)
        settings = ApplySettings(strength, start_percent, end_percent, mask, effect_mask=effect_mask, **more)
        subject = make_subject(model, clip, concept, reference, settings)
        if not subject.active_places:
            return io.NodeOutput(model, clip)
        say(describe_base(concept, model) or describe_cost(subject, model))
        return io.NodeOutput(attach(model, subject), with_trigger(clip, subject.trigger))
