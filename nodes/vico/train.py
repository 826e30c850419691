"""Train ViCo."""

from comfy_api.latest import io

from ...scores.scorer import Scorer
from ...train_core import SCORE
from ...vico_core import check_prompt
from ...vico_core.curve import loss_curve
from ...vico_core.training import ATTENTION_LR, WORD_LR
from ..host.options import TrainingOptions
from ..host.pictures import to_image
from ..host.previews import scored
from ..host.progress import say
from ..host.sockets import ConceptSocket, LossSocket, ScorerSocket, TrainingOptionsSocket, ViCoOptionsSocket
from ..host.texts import lines
from .session import TrainingRun, TrainSettings, train_concept
from .training_photos import flatten_pictures


class TrainViCo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoTrain",
            display_name="Train ViCo",
            category="ViCo + SPIN/ViCo",
            description="Learns one object from a few photos: a word for it, and image attention that finds its "
            "details in a photo. The model itself stays as it is.",
            search_aliases=["personalization", "dreambooth", "textual inversion", "train lora", "loss curve", "vico"],
            has_intermediate_output=True,
            is_input_list=True,
            inputs=[
                io.Model.Input("model",
                    tooltip="The model to learn beside: SD1.x, SD2.x, SDXL, or a diffusion transformer (Z-Image, "
                    "Qwen-Image, Flux, Chroma, SD3.5, Krea 2, Anima, Wan, Lumina 2, HunyuanImage). It is not changed."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Image.Input("photos",
                    tooltip="3 to 8 photos of the object, in different places and from different sides: a batch, or a "
                    "list of any sizes. Each is stretched to a square."),
                io.Mask.Input("masks", optional=True,
                    tooltip="Where the object is in each photo (white). Leave away to have it found by the trigger "
                    "word's attention."),
                TrainingOptionsSocket.Input("training_options", optional=True,
                    tooltip="From Training Options: precision, memory, schedule, how often it is kept and previewed."),
                ViCoOptionsSocket.Input("vico_options", optional=True,
                    tooltip="From ViCo Options: whether the word is learnt, and from where image attention starts."),
                ScorerSocket.Input("scorer", optional=True,
                    tooltip="From Load Scorer: rates every preview, DINO and CLIP-I against the photos. The best step's "
                    "concept comes out; Training Options chooses, and can stop when the score falls."),
                io.String.Input("initialiser", default="toy",
                    tooltip="One everyday word for what the object is (toy, dog, cup). The trigger word starts from "
                    "its meaning."),
                io.String.Input("placeholder", default="*",
                    tooltip="The trigger word: what you will write in prompts where the object should appear. One "
                    "word, such as * or sks."),
                io.Int.Input("steps", default=400, min=1, max=100000,
                    tooltip="The paper takes 400, and keeps 300 and 350 as well: the best differs by object. Raise it "
                    "and queue again to go on."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                    tooltip="Start values, noise, order of the photos. Another seed is another training."),
                io.String.Input("run_name", default="concept",
                    tooltip="Its folder in models/vico; what decides the result is added to it, so that two runs "
                    "never mix."),
                io.Int.Input("size", default=512, min=64, max=1536, step=64,
                    tooltip="Photos are trained at size x size: the model's own (512 for SD1.x, 128 for Sprite "
                    "World)."),
                io.String.Input("preview_prompts", default="a photo of a *", multiline=True, optional=True,
                    tooltip="One a line, drawn through Apply ViCo while it trains, with the first photo as the "
                    "reference. Empty: none."),
                io.Int.Input("batch_size", default=1, min=1, max=64, optional=True, advanced=True,
                    tooltip="Photos a step."),
                io.Float.Input("word_lr", default=WORD_LR, min=0.0, max=1.0, step=1e-7, round=False, optional=True,
                    advanced=True,
                    tooltip="Learning rate of the word's vector. The paper: 0.005 for one photo a step."),
                io.Float.Input("attention_lr", default=ATTENTION_LR, min=0.0, max=1.0, step=1e-7, round=False,
                    optional=True, advanced=True,
                    tooltip="Learning rate of image attention. The paper: 0.00001."),
                io.Boolean.Input("detach_reference", default=False, optional=True, advanced=True,
                    tooltip="Faster, not the paper's: the word does not learn through the reference photo, and the "
                    "attention regularisation does nothing."),
                io.String.Input("captions", default="", multiline=True, optional=True, advanced=True,
                    tooltip="What the photos show, one caption a line, each with the placeholder (a photo of a large "
                    "red * on tiles); one is drawn for each photo of a step. Empty: the paper's short templates, "
                    "which name nothing but the object."),
            ],
            outputs=[
                ConceptSocket.Output("concept", tooltip="For Apply ViCo and Save ViCo Concept."),
                LossSocket.Output("loss", display_name="loss_map",
                    tooltip="The loss of every step, for Plot Loss Graph."),
                io.Image.Output(display_name="loss_curve", tooltip="The same as a picture, with its mean."),
                io.String.Output(display_name="run",
                    tooltip="The run's folder in models/vico, for ViCo Checkpoint Grid."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, placeholder, preview_prompts=(None,), captions=(None,)):
        """What is typed, and not linked: every prompt has the word in it."""
        if placeholder[0]:
            check_prompts(placeholder[0].strip(), *lines(preview_prompts[0] or ""), *lines(captions[0] or ""))
        return True

    @classmethod
    def execute(cls, photos, masks=None, **inputs) -> io.NodeOutput:
        given = {name: values[0] for name, values in inputs.items()}
        models = (given.pop("model"), given.pop("clip"), given.pop("vae"))
        scorer = given.get("scorer")
        pictures = flatten_pictures(photos, masks)
        if len(pictures) == 1:
            say("One photo: it is its own reference, and its background is learnt with it. Add more.")
        outcome = train_concept(*models, pictures, asked_for(**given), say, scorer)
        curve, panel = to_image(loss_curve(outcome.losses)), {"loss": outcome.losses}
        if scorer is not None:
            panel["score"] = [step.get(SCORE) for step in outcome.metrics]
        return io.NodeOutput(outcome.concept, {"loss": outcome.losses}, curve, outcome.run, ui={"training": [panel]})


def check_prompts(placeholder: str, *texts: str) -> None:
    for text in texts:
        check_prompt(text, placeholder)


def asked_for(
    placeholder: str,
    run_name: str,
    preview_prompts: str = "",
    captions: str = "",
    training_options: TrainingOptions | None = None,
    vico_options: dict | None = None,
    scorer: Scorer | None = None,
    **settings,
) -> TrainingRun:
    """The node's inputs as a run. ValueError where a prompt lacks the placeholder, or an option is none of ViCo's."""
    placeholder, options = placeholder.strip(), training_options or TrainingOptions()
    if options.caption_dropout:
        raise ValueError(
            "Set caption_dropout to 0 in Training Options.\nTrain ViCo has no caption dropout: captions carry its word."
        )
    prompts, captions = lines(preview_prompts), lines(captions)
    check_prompts(placeholder, *prompts, *captions)
    if scorer is not None and not prompts:
        raise ValueError("Write preview prompts.\nThe scorer rates previews, and there are none.")
    return TrainingRun(
        TrainSettings(placeholder=placeholder, captions=captions, **settings, **(vico_options or {})),
        options,
        run_name,
        prompts,
        scored(scorer, prompts, options, photos=True),
    )
