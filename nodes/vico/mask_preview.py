"""ViCo Mask Preview."""

import torch
from comfy_api.latest import io, ui

from ...vico_core import check_prompt
from ..host.sockets import ConceptSocket, ReferenceSocket
from .attach import ApplySettings, trigger_word
from .capture import AUTOMATIC, GIVEN
from .seen import capture_masks, masks_on_photo


class ViCoMaskPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoMaskPreview",
            display_name="ViCo Mask Preview",
            category="ViCo + SPIN/ViCo",
            description="Shows what image attention takes for the object in the reference, at each place.",
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The plain model, before Apply ViCo."),
                io.Clip.Input("clip", tooltip="The plain CLIP."),
                ConceptSocket.Input("concept", tooltip="From Load ViCo Concept or Train ViCo."),
                ReferenceSocket.Input("reference", tooltip="From ViCo Reference."),
                io.String.Input("prompt", default="a photo of a *", multiline=True,
                    tooltip="A prompt with the trigger word: the mask depends on it."),
                io.Float.Input("percent", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="At which moment of the sampling: the mask changes with the noise level."),
                io.Combo.Input("mask", options=[AUTOMATIC, GIVEN],
                    tooltip="automatic: as found by the trigger word's attention. given: the reference's own mask, on "
                    "each place's grid."),
                io.String.Input("trigger", default="", optional=True, advanced=True,
                    tooltip="The word that stands for the object in the prompt, as in Apply ViCo. Empty: the concept's "
                    "own."),
            ],
            outputs=[
                io.Image.Output("overlay", display_name="overlay",
                    tooltip="Each photo at each place, coarse to fine; what is left out is dark."),
                io.Mask.Output("masks", display_name="masks", tooltip="The same as masks."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, concept, reference, prompt, percent, mask, trigger="") -> io.NodeOutput:
        check_prompt(prompt, trigger_word(trigger, concept))
        settings = ApplySettings(mask=mask, trigger=trigger, cache_mb=0)
        captures = capture_masks(model, clip, concept, reference, settings, prompt, percent)
        size = reference.photos[0].image.shape[:2]
        seen = [part for pair in zip(captures, reference.photos, strict=True) for part in masks_on_photo(*pair, size)]
        overlay, masks = (torch.stack(parts) for parts in zip(*seen, strict=True))
        return io.NodeOutput(overlay, masks, ui=ui.PreviewImage(overlay, cls=cls))
