"""ViCo's nodes: load and save a concept, encode the reference, apply, and see the mask."""

import os
import uuid

import comfy.model_management
import comfy.samplers
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from server import PromptServer

from vico_core import ViCoConcept, feature_bytes
from vico_core.photos import resize, size_of_area
from vico_core.placeholder import check_prompt

from .vico_attach import AUTOMATIC, GIVEN, NO_MASK, Photo, Reference, Subject, attach, load_modules
from .vico_text import make_trigger, with_trigger

FOLDER = "vico"
EXTENSIONS = {".safetensors", ".pt"}
SMALLEST_SIDE = 32  # pixels of a reference picture

Concept = io.Custom("VICO_CONCEPT")
ReferenceSocket = io.Custom("VICO_REFERENCE")


def register_folder() -> None:
    """models/vico, and whatever extra_model_paths.yaml named for it before."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | EXTENSIONS)


register_folder()


def concept_files() -> list[str]:
    """Concepts to choose from; an original pair shows as its cross_attention file."""
    return [
        name for name in folder_paths.get_filename_list(FOLDER) if not os.path.basename(name).startswith("embeddings")
    ]


class LoadViCoConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoLoadConcept",
            display_name="Load ViCo Concept",
            category="ViCo",
            description="Loads what was learnt of one object: a .safetensors concept, or the authors' pair of .pt files.",
            search_aliases=["personalization", "subject", "dreambooth", "vico"],
            inputs=[
                io.Combo.Input(
                    "concept",
                    options=concept_files(),
                    tooltip="A file of models/vico: name.safetensors, or an original cross_attention-N.pt with its embeddings_gs-N.pt beside it.",
                )
            ],
            outputs=[
                Concept.Output("concept", tooltip="For Apply ViCo."),
                io.String.Output(
                    "trigger",
                    display_name="trigger",
                    tooltip="The word to write in the prompt where the object should appear.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, concept):
        return os.path.getmtime(folder_paths.get_full_path_or_raise(FOLDER, concept))

    @classmethod
    def execute(cls, concept) -> io.NodeOutput:
        loaded = ViCoConcept.load(folder_paths.get_full_path_or_raise(FOLDER, concept))
        return io.NodeOutput(loaded, loaded.placeholder)


class SaveViCoConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoSaveConcept",
            display_name="Save ViCo Concept",
            category="ViCo",
            description="Writes the concept into models/vico, as one file to share or as the authors' pair.",
            inputs=[
                Concept.Input("concept", tooltip="What to save."),
                io.String.Input(
                    "filename_prefix",
                    default="concept",
                    tooltip="Name in models/vico; a number is added, nothing is overwritten.",
                ),
                io.Combo.Input(
                    "format",
                    options=["safetensors", "original pair"],
                    tooltip="safetensors: one file with the word, the settings and a thumbnail. original pair: for the authors' own code (SD1.x only).",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, concept, filename_prefix, format) -> io.NodeOutput:
        home = folder_paths.get_folder_paths(FOLDER)[0]
        os.makedirs(home, exist_ok=True)
        folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, home)
        os.makedirs(folder, exist_ok=True)
        if format == "safetensors":
            path = os.path.join(folder, f"{name}_{counter:05}_.safetensors")
            concept.save(path)
        else:
            pair = os.path.join(folder, f"{name}_{counter:05}_")
            os.makedirs(pair)
            path = os.path.join(pair, f"cross_attention-{concept.step}.pt")
            concept.save_original(path, os.path.join(pair, f"embeddings_gs-{concept.step}.pt"))
        return io.NodeOutput(path)


class ViCoReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoReference",
            display_name="ViCo Reference",
            category="ViCo",
            description="Encodes the photo of the object that image attention will look at. More photos: a batch, or chain two of these.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model that will draw."),
                io.Image.Input(
                    "image",
                    tooltip="A photo of the object; any size and aspect. A batch gives several photos of the same object.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the object is (white). Used when Apply ViCo's mask is 'given'.",
                ),
                ReferenceSocket.Input(
                    "more",
                    optional=True,
                    tooltip="Another ViCo Reference of the same object; their photos are looked at side by side.",
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="The photo is scaled, aspect kept, to about size × size pixels: the size that the model was trained at. Larger sees more detail and costs more.",
                ),
            ],
            outputs=[
                ReferenceSocket.Output(
                    "reference",
                    tooltip="For Apply ViCo. It also keeps the reference's features, so that the next seed costs less.",
                )
            ],
        )

    @classmethod
    def execute(cls, vae, image, size, mask=None, more=None) -> io.NodeOutput:
        check_reference(image, mask)
        photos = [encode_photo(vae, picture[..., :3], mask_of(mask, i), size) for i, picture in enumerate(image)]
        return io.NodeOutput(Reference((more.photos if more else []) + photos))


def check_reference(image, mask) -> None:
    height, width = image.shape[1:3]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"The reference picture is {width}×{height} pixels: too small to show an object. Use one of {SMALLEST_SIDE} pixels or more a side."
        )
    if not torch.isfinite(image).all():
        raise ValueError("The reference picture holds NaN or infinity: the node that made it went wrong.")
    if mask is not None and not (mask.flatten(1).amax(1) > 0).all():
        raise ValueError("The reference's mask is empty: paint the object white in it, or leave the mask away.")


def mask_of(mask, i: int):
    return None if mask is None else mask[min(i, mask.shape[0] - 1)]


def encode_photo(vae, picture, mask, size: int) -> Photo:
    width, height = size_of_area(picture.shape[1], picture.shape[0], size)
    picture = resize(picture, width, height)
    return Photo(vae.encode(picture[None]), picture, mask)


class ApplyViCo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoApply",
            display_name="Apply ViCo",
            category="ViCo",
            description="Lets the model look at the reference while it draws. Encode the prompt, with the trigger word in it, by the CLIP that comes out.",
            search_aliases=["ip-adapter", "subject", "reference", "vico"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The checkpoint that the concept was trained on, or one of its family. LoRAs may come before or after.",
                ),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                Concept.Input("concept", tooltip="From Load ViCo Concept or Train ViCo."),
                ReferenceSocket.Input("reference", tooltip="From ViCo Reference: the photo of the object."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much of image attention is added. 1 is the paper's; 0 is exactly the plain model.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the sampling it begins (0: at the first step).",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the sampling it ends. Later steps cost what the plain model costs.",
                ),
                io.Combo.Input(
                    "mask",
                    options=[AUTOMATIC, GIVEN, NO_MASK],
                    tooltip="Which part of the photo is the object. automatic: found by the trigger word's own attention (the paper's). given: the mask of ViCo Reference. none: the whole photo.",
                ),
                io.Mask.Input(
                    "effect_mask",
                    optional=True,
                    tooltip="Where in the picture image attention works (white). Leave away for everywhere; use one a subject to keep two apart.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    advanced=True,
                    tooltip="The word that stands for the object in the prompt. Empty: the concept's own. Give each of two subjects another one.",
                ),
                io.String.Input(
                    "place_strengths",
                    default="",
                    advanced=True,
                    tooltip="One factor a place, from coarse to fine, as '1, 1, 0.5, 0'. Empty: 1 everywhere. SD1.x has four places, SDXL three.",
                ),
                io.Int.Input(
                    "cache_mb",
                    default=1024,
                    min=0,
                    max=65536,
                    step=64,
                    advanced=True,
                    tooltip="System memory for the reference's features, so that the next seed skips the reference pass. The node shows what a step needs. 0: keep nothing.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For the sampler."),
                io.Clip.Output(tooltip="Knows the trigger word: encode the prompt by it."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concept,
        reference,
        strength,
        start_percent,
        end_percent,
        mask,
        trigger="",
        place_strengths="",
        cache_mb=1024,
        effect_mask=None,
    ) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(model, clip)
        subject = make_subject(
            model,
            clip,
            concept,
            reference,
            strength,
            start_percent,
            end_percent,
            mask,
            trigger,
            place_strengths,
            cache_mb,
            effect_mask,
        )
        if cls.hidden and cls.hidden.unique_id:
            PromptServer.instance.send_progress_text(describe_cost(subject, model), cls.hidden.unique_id)
        return io.NodeOutput(attach(model, subject), with_trigger(clip, subject.trigger))


def make_subject(
    model,
    clip,
    concept,
    reference,
    strength=1.0,
    start=0.0,
    end=1.0,
    mask=AUTOMATIC,
    trigger="",
    place_strengths="",
    cache_mb=0,
    effect_mask=None,
):
    """A Subject, checked against the model, the CLIP and the reference. ValueError says what is wrong."""
    if mask == GIVEN and any(photo.mask is None for photo in reference.photos):
        raise ValueError(
            "The mask is 'given', but the reference has none. Connect one to ViCo Reference, or choose 'automatic'."
        )
    places, patcher = load_modules(concept, model)
    word = make_trigger(clip, f"vico-{uuid.uuid4()}", trigger.strip() or concept.placeholder, concept.embeddings)
    sampling = model.get_model_object("model_sampling")
    return Subject(
        trigger=word,
        patcher=patcher,
        places=places,
        strengths={
            p.name: strength * factor
            for p, factor in zip(places, parse_factors(place_strengths, len(places)), strict=True)
        },
        sigmas=(float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end))),
        mask_source=mask,
        effect_mask=effect_mask,
        reference=reference,
        latents=[model.model.process_latent_in(photo.latent) for photo in reference.photos],
        budget=cache_mb * 2**20,
    )


def parse_factors(text: str, count: int) -> list[float]:
    """'1, 0.5' → [1.0, 0.5]; empty → all 1; one number → that for all."""
    try:
        factors = [float(part) for part in text.replace(",", " ").split()] or [1.0]
    except ValueError as error:
        raise ValueError(
            f"place_strengths is '{text}': write numbers with commas between, one a place, as '1, 1, 0.5, 0'."
        ) from error
    factors = factors * count if len(factors) == 1 else factors
    if len(factors) != count:
        raise ValueError(f"place_strengths has {len(factors)} numbers; this model has {count} places.")
    return factors


def step_bytes(subject: Subject, model) -> int:
    """Bytes of the reference's features of one step and prompt, all keys kept."""
    dtype = model.model.get_dtype_inference()
    sizes = []
    for latent in subject.latents:
        for place in subject.active_places:
            width = subject.modules[place.name.replace(".", "_")].norm1.weight.shape[0]
            sizes.append((tokens_at(model, place, latent), width))
    return feature_bytes(sizes, dtype.itemsize)


def tokens_at(model, place, latent) -> int:
    """Tokens of the latent at a place: each Upsample of the decoder after it doubles its sides."""
    blocks = model.model.diffusion_model.output_blocks
    ups = sum(type(layer).__name__ == "Upsample" for block in blocks[place.level :] for layer in block)
    return (latent.shape[-2] >> ups) * (latent.shape[-1] >> ups)


def describe_cost(subject: Subject, model) -> str:
    """Short enough for the two lines that the frontend shows under a node."""
    step = step_bytes(subject, model)
    steps = subject.budget // (2 * step)
    held = f"the cache holds {steps} steps with CFG" if subject.budget else "none are kept"
    return f"Up to {step / 2**20:.1f} MB of features a step; {held}."


class ViCoMaskPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoMaskPreview",
            display_name="ViCo Mask Preview",
            category="ViCo",
            description="Shows what image attention takes for the object in the reference, at each place.",
            inputs=[
                io.Model.Input("model", tooltip="The plain model, before Apply ViCo."),
                io.Clip.Input("clip", tooltip="The plain CLIP."),
                Concept.Input("concept", tooltip="From Load ViCo Concept or Train ViCo."),
                ReferenceSocket.Input("reference", tooltip="From ViCo Reference."),
                io.String.Input(
                    "prompt",
                    default="a photo of a *",
                    multiline=True,
                    tooltip="A prompt with the trigger word: the mask depends on it.",
                ),
                io.Float.Input(
                    "percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="At which moment of the sampling: the mask changes with the noise level.",
                ),
                io.Combo.Input(
                    "mask",
                    options=[AUTOMATIC, GIVEN],
                    tooltip="automatic: as found by the trigger word's attention. given: the reference's own mask, on each place's grid.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "overlay",
                    display_name="overlay",
                    tooltip="Each photo at each place, coarse to fine; what is left out is dark.",
                ),
                io.Mask.Output("masks", display_name="masks", tooltip="The same as masks."),
            ],
        )

    @classmethod
    def execute(cls, model, clip, concept, reference, prompt, percent, mask) -> io.NodeOutput:
        check_prompt(prompt, concept.placeholder)
        captures = capture_masks(model, clip, concept, reference, prompt, percent, mask)
        size = reference.photos[0].image.shape[:2]
        overlays, masks = [], []
        for capture, photo in zip(captures, reference.photos, strict=True):
            for name, grid in capture.grids.items():
                seen = on_photo(capture.masks[name][0], grid, photo.image)
                masks.append(fit(seen[None], size)[0])
                overlays.append(
                    fit((photo.image * (0.25 + 0.75 * seen[..., None])).movedim(-1, 0), size).movedim(0, -1)
                )
        overlay = torch.stack(overlays)
        return io.NodeOutput(overlay, torch.stack(masks), ui=ui.PreviewImage(overlay, cls=cls))


def capture_masks(model, clip, concept, reference, prompt, percent, mask):
    """Runs one step at the given moment of the sampling and returns every photo's Capture."""
    subject = make_subject(model, clip, concept, reference, mask=mask)
    captured = []
    subject.on_masks = captured.extend
    clip, model = with_trigger(clip, subject.trigger), attach(model, subject)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    sigma = model.get_model_object("model_sampling").percent_to_sigma(max(percent, 1e-3))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    latent = torch.zeros_like(subject.latents[0])
    euler, one_step = comfy.samplers.sampler_object("euler"), torch.tensor([float(sigma), 0.0])
    guider.sample(latent, latent, euler, one_step, disable_pbar=True, seed=0)
    return captured


def on_photo(mask, grid: tuple[int, int], image):
    """bool [M] on the place's grid → [H, W] in 0..1 over the photo, patches as squares."""
    return F.interpolate(mask.reshape(1, 1, *grid).float(), size=image.shape[:2], mode="nearest")[0, 0].cpu()


def fit(image, size: tuple[int, int]):
    """[C, h, w] → [C, *size], so that photos of several sizes make one batch."""
    return F.interpolate(image[None], size=size, mode="nearest")[0]


NODES = [LoadViCoConcept, SaveViCoConcept, ViCoReference, ApplyViCo, ViCoMaskPreview]
