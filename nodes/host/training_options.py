"""Training Options."""

from comfy_api.latest import io

from .options import BEST, LAST, TrainingOptions
from .sockets import TrainingOptionsSocket


class TrainingOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoSPINTrainingOptions",
            display_name="Training Options",
            category="ViCo + SPIN",
            description="Precision, memory, schedule, intervals and early stopping of Train ViCo, Train SPIN and Train Baseline. "
            "Without it they train as this node's defaults say.",
            search_aliases=["precision", "gradient checkpointing", "warmup", "accumulation", "train", "early stopping", "patience"],
            inputs=[
                io.Combo.Input("precision", options=["fp32", "bf16", "fp16"], optional=True,
                    tooltip="Of the forward pass; what is learnt and the loss stay in float32. bf16 and fp16 take "
                    "less memory."),
                io.Boolean.Input("gradient_checkpointing", default=False, optional=True,
                    tooltip="Computes blocks twice instead of keeping them: less memory, more time, the same result."),
                io.Int.Input("accumulation", default=1, min=1, max=1024, optional=True,
                    tooltip="Batches whose gradients one step takes together: a large batch in the memory of a small "
                    "one."),
                io.Int.Input("warmup_steps", default=0, min=0, max=100000, optional=True,
                    tooltip="Steps over which the learning rate rises from 0. SPIN's paper: 200; ViCo's: none."),
                io.Combo.Input("decay", options=["constant", "linear", "cosine"], optional=True,
                    tooltip="How the learning rate falls after the warm-up."),
                io.Float.Input("caption_dropout", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
                    tooltip="Share of pictures trained with an empty caption (both sides of a pair alike). Not for "
                    "Train ViCo, whose caption carries the word."),
                io.Int.Input("checkpoint_every", default=50, min=0, max=100000, optional=True,
                    tooltip="Keeps what was learnt every so many steps: a stopped run goes on from there, and Train "
                    "ViCo's steps can be compared. 0: only the last."),
                io.Int.Input("preview_every", default=50, min=0, max=100000, optional=True,
                    tooltip="Steps between two previews of the trainer's preview prompts. 0: none."),
                io.Int.Input("patience", default=0, min=0, max=1000, optional=True,
                    tooltip="With a scorer on the trainer: so many previews in a row without a new best score end the "
                    "round (early stopping). 0: all steps are done."),
                io.Combo.Input("result", options=[BEST, LAST], optional=True,
                    tooltip="With a scorer on the trainer: what comes out, and what the next round starts from. Both "
                    "steps are kept; queue again with the other one to have it without training."),
            ],
            outputs=[
                TrainingOptionsSocket.Output("training_options", tooltip="For Train ViCo, Train SPIN, Train Baseline."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, precision="fp32", gradient_checkpointing=False, **schedule) -> io.NodeOutput:
        names = {"fp32": "no"}
        return io.NodeOutput(TrainingOptions(names.get(precision, precision), gradient_checkpointing, **schedule))
