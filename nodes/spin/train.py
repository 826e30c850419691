"""Train SPIN, Train Baseline."""

import json
import logging
from typing import get_args

from comfy_api.latest import io

from ...scores.scorer import Scorer
from ...spin_core.curves import verdict
from ...train_core import SCORE, LoraLayers
from ..host.errors import check_bounds
from ..host.options import TrainingOptions
from ..host.previews import scored
from ..host.progress import say
from ..host.sockets import (
    DatasetSocket,
    LoraSocket,
    LossSocket,
    OpponentSocket,
    ScorerSocket,
    SPINOptionsSocket,
    TrainingOptionsSocket,
)
from ..host.texts import lines
from .asked import TrainingRun
from .captions import OpponentSampling
from .session import train, with_learnt
from .settings import KINDS, PlayOptions, per_round, round_settings
from .usual import usual_sampling

LORA, FULL = "LoRA", "full"
LORAS = dict(zip((LORA, "LoRA, feed-forward too", "LoRA, all layers"), get_args(LoraLayers), strict=True))
ONE_ROUND, SEVERAL_ROUNDS = "one round", "several rounds"
SFT, DPO, KTO, SFT_DPO = "SFT", "DPO", "KTO", "SFT, then DPO"
METHODS = {SFT: "sft", DPO: "dpo", KTO: "kto", SFT_DPO: "sft+dpo"}


def model_inputs() -> list:
    """What both trainers connect."""
    return [
        io.Model.Input("model",
            tooltip="Start and, frozen, the first opponent. It stays as it is; LoRAs on it count as part of it."),
        io.Clip.Input("clip", tooltip="Reads the captions. It is not trained."),
        io.Vae.Input("vae", tooltip="Turns the pictures into latents. It is not trained."),
        DatasetSocket.Input("dataset", tooltip="The real pictures with their captions."),
        OpponentSocket.Input("opponent", optional=True,
            tooltip="From SPIN Opponent: how the opponent's pictures and the previews are drawn. Without it as the model "
            "is usually drawn: DDIM, 50 steps, CFG 7.5; flow models Euler, 20 steps, CFG 4; Flux dev CFG 1; schnell 4 "
            "steps, CFG 1. Z-Image Turbo, Lightning and their like need it: cfg 1 and their few steps."),
        TrainingOptionsSocket.Input("training_options", optional=True,
            tooltip="From Training Options: precision, memory, schedule, how often it is kept and previewed."),
        ScorerSocket.Input("scorer", optional=True,
            tooltip="From Load Scorer: rates every preview, and the curve shows it. The best step is kept beside the last "
            "and comes out; Training Options chooses, and can stop when the score falls."),
    ]  # fmt: skip


def training_inputs() -> list:
    """What both trainers set."""
    rank = io.Int.Input("rank", default=16, min=1, max=256, tooltip="Rank of the LoRA.")
    return [
        io.DynamicCombo.Input("train",
            options=[*(io.DynamicCombo.Option(name, [rank]) for name in LORAS), io.DynamicCombo.Option(FULL, [])],
            tooltip="LoRA: small, beside your model as it lies in memory, on attention's projections; on the feed-forward "
            "layers too; or on every linear layer (in U-Nets convolutions too), which learns more and forgets more. full: "
            "all weights in float32, and two copies of them."),
        io.Int.Input("batch_size", default=4, min=1, max=512, tooltip="Pairs in one forward."),
        io.Int.Input("resolution", default=512, min=64, max=2048, step=64,
            tooltip="Pictures are scaled to about resolution x resolution pixels, in buckets of their own aspect "
            "ratio."),
        io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
            tooltip="Of noise, timesteps, order and the opponent's pictures. Another seed is another training."),
        io.String.Input("run_name", default="spin",
            tooltip="Folder in output/spin/runs. The same inputs again go on where the run stopped."),
        io.String.Input("preview_prompts", multiline=True, default="", optional=True,
            tooltip="One a line; drawn with the same seeds every time, so that you see what changes. Empty: the data's "
            "first captions. For none, set preview_every to 0 in Training Options."),
    ]  # fmt: skip


def training_outputs() -> list:
    return [
        io.Model.Output("model", tooltip="The model with what was learnt. Connect it to another trainer to go on."),
        LoraSocket.Output("lora", tooltip="What was learnt, as a LoRA (all rounds in one). Only with LoRA."),
        LossSocket.Output("loss", tooltip="The loss of every step, for the host's loss graph."),
        io.String.Output("metrics", display_name="metrics",
            tooltip="Everything that was logged, for SPIN Curves and Save SPIN."),
    ]  # fmt: skip


def game_options() -> list:
    """One round's numbers, or lists with a value a round."""
    one = [
        io.Int.Input("steps", default=500, min=1, max=1000000, tooltip="Optimiser steps."),
        io.Float.Input("learning_rate", default=2e-5, min=1e-9, max=1.0, step=1e-7, round=False,
            tooltip="Peak rate. 2e-5 is the paper's, for full training; a LoRA takes more, such as 1e-4."),
        io.Float.Input("beta", default=2000.0, min=1e-3, max=1e6, step=100.0,
            tooltip="How strongly the player is held to its opponent: 2000 in the paper's first round, 5000 after. "
            "Errors are means over pixels and kappa is 1/2, as in Diffusion-DPO's own code."),
    ]  # fmt: skip
    several = [
        io.Int.Input("rounds", default=3, min=2, max=20,
            tooltip="Rounds to play. The paper plays 3; after each, the player becomes the opponent."),
        io.String.Input("steps", default="50, 500, 200",
            tooltip="Optimiser steps, one number or one a round; the last one stays."),
        io.String.Input("learning_rate", default="2e-5",
            tooltip="Peak rate, one number or one a round. Later rounds can take back what the first has won: a lower rate "
            "for them (2e-5, 5e-6) softens that, a scorer keeps the best step."),
        io.String.Input("beta", default="2000, 5000",
            tooltip="How strongly the player is held to its opponent, one number or one a round."),
    ]  # fmt: skip
    return [io.DynamicCombo.Option(ONE_ROUND, one), io.DynamicCombo.Option(SEVERAL_ROUNDS, several)]


class TrainSPIN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINTrain",
            display_name="Train SPIN",
            category="ViCo + SPIN/SPIN",
            description="Self-play: the model draws a picture for every caption, then learns to prefer the real one; "
            "the result is the next round's opponent. Chain two of these to continue the game.",
            search_aliases=["self-play", "finetune", "train lora", "alignment", "rlhf", "SPIN-Diffusion"],
            inputs=[
                *model_inputs(),
                SPINOptionsSocket.Input("spin_options", optional=True,
                    tooltip="From SPIN Options: what may be changed in the loss."),
                io.DynamicCombo.Input("play", options=game_options(),
                    tooltip="one round: connect another Train SPIN for the next. several rounds: played in this node, "
                    "with lists of values."),
                *training_inputs(),
            ],
            outputs=training_outputs(),
            has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, play, **others):
        """The lists of several rounds. The host cannot name an option's inputs alone, and then checks no bounds at all."""
        check_bounds(cls.define_schema().inputs, {"play": play, **others})
        for name in KINDS:
            if play.get(name) is not None:
                per_round(play[name], name)
        return True

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        dataset,
        play,
        opponent=None,
        training_options=None,
        scorer=None,
        spin_options=None,
        **values,
    ) -> io.NodeOutput:
        game = {name: play[name] for name in ("steps", "learning_rate", "beta")}
        options = training_options or TrainingOptions()
        asked = asked_for(
            "spin",
            game,
            options,
            spin_options or PlayOptions(),
            opponent or usual_sampling(model),
            play.get("rounds", 1),
            scorer,
            **values,
        )
        return run_training(model, clip, vae, dataset, asked, scorer)


class TrainBaseline(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        beta = io.Float.Input("beta", default=5000.0, min=1e-3, max=1e6, step=100.0,
            tooltip="How strongly the model is held to its start. KTO's beta has no factor 1/2: half of DPO's is as "
            "strong.")  # fmt: skip
        return io.Schema(
            node_id="SPINTrainBaseline",
            display_name="Train Baseline (SFT | DPO)",
            category="ViCo + SPIN/SPIN",
            description="What self-play is measured against, by the same loop: supervised fine-tuning on the real "
            "pictures, or Diffusion-DPO on preference pairs.",
            search_aliases=["sft", "dpo", "diffusion-dpo", "preference", "rlhf", "finetune"],
            inputs=[
                *model_inputs(),
                io.DynamicCombo.Input("method",
                    options=[io.DynamicCombo.Option(name, [] if name == SFT else [beta]) for name in METHODS],
                    tooltip="SFT: pictures with captions. DPO: Diffusion-DPO (arXiv 2311.12908) on pairs. KTO: "
                    "Diffusion-KTO (arXiv 2404.04465), each picture by itself, liked or not: thumbs without pairs, or the "
                    "pictures of pairs. SFT, then DPO: both, a round each; DPO's reference is what SFT has learnt."),
                io.Int.Input("steps", default=500, min=1, max=1000000, tooltip="Optimiser steps of each round."),
                io.Float.Input("learning_rate", default=2e-5, min=1e-9, max=1.0, step=1e-7, round=False,
                    tooltip="Peak rate."),
                *training_inputs(),
            ],
            outputs=training_outputs(),
            has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        dataset,
        method,
        steps,
        learning_rate,
        opponent=None,
        training_options=None,
        scorer=None,
        **values,
    ) -> io.NodeOutput:
        game = {"steps": steps, "learning_rate": learning_rate, "beta": method.get("beta", 1.0)}
        options = training_options or TrainingOptions()
        drawn = opponent or usual_sampling(model)
        asked = asked_for(METHODS[method["method"]], game, options, PlayOptions(), drawn, 1, scorer, **values)
        return run_training(model, clip, vae, dataset, asked, scorer)


def asked_for(
    method: str,
    game: dict,
    options: TrainingOptions,
    play: PlayOptions,
    opponent: OpponentSampling,
    rounds: int,
    scorer: Scorer | None,
    train: dict,
    batch_size: int,
    resolution: int,
    seed: int,
    run_name: str,
    preview_prompts: str = "",
) -> TrainingRun:
    """The nodes' inputs as a run. Raises: ValueError where there is nothing that the scorer could rate."""
    prompts = lines(preview_prompts)
    return TrainingRun(
        settings=round_settings(**game, batch_size=batch_size, seed=seed, options=options, play=play),
        options=options,
        opponent=opponent,
        method=method,
        rounds=rounds,
        rank=train.get("rank"),
        layers=LORAS.get(train["train"], LORAS[LORA]),
        resolution=resolution,
        name=run_name,
        preview_prompts=prompts,
        scored=scored(scorer, prompts, options),
    )


def run_training(model, clip, vae, dataset, asked: TrainingRun, scorer: Scorer | None) -> io.NodeOutput:
    """From a run to the nodes' outputs."""
    trained = train(model, clip, vae, dataset, asked, say, scorer)
    logged = [step["metrics"] for steps in trained.metrics["rounds"] for step in steps]
    losses = [step["loss"] for step in logged]
    panel = {
        "loss": losses,
        "margin": [step.get("z") for step in logged],
        "accuracy": [step.get("implicit_accuracy") for step in logged],
    }
    if scorer is not None:
        panel["score"] = [step.get(SCORE) for step in logged]
    logging.info(trained.report.text())  # names what the node counts
    say(f"{trained.outcome} {trained.report.in_short()}\n{verdict(trained.metrics).splitlines()[-1]}")
    learnt = with_learnt(model, trained)
    return io.NodeOutput(learnt, trained.lora, {"loss": losses}, json.dumps(trained.metrics), ui={"training": [panel]})
