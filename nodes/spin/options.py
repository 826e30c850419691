"""SPIN Opponent, SPIN Options."""

import comfy.samplers
from comfy_api.latest import io

from ...spin_core.steps import PairOptions
from ..host.sockets import OpponentSocket, SPINOptionsSocket
from .captions import OpponentSampling
from .settings import PlayOptions

LOSSES = {"SPIN": "pair", "SPIN, whole trajectory": "trajectory", "SePPO": "seppo", "KTO": "kto"}


class SPINOpponent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINOpponent",
            display_name="SPIN Opponent",
            category="ViCo + SPIN/SPIN",
            description="How Train SPIN's opponent draws the pictures that the player learns to beat, and how "
            "previews are drawn.",
            search_aliases=["sampler", "self-play", "cfg", "negative prompt"],
            inputs=[
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="ddim", optional=True,
                    tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="ddim_uniform",
                    optional=True,
                    tooltip="As in KSampler."),
                io.Int.Input("steps", default=50, min=1, max=1000, optional=True,
                    tooltip="Sampling steps of a picture. Drawing takes most of a round's time: 20 do in many cases."),
                io.Float.Input("cfg", default=7.5, min=1.0, max=30.0, step=0.1, optional=True,
                    tooltip="Guidance. 7.5 draws the opponent's best pictures; 1 is what the theory has, and twice as "
                    "fast."),
                io.String.Input("negative", default="", multiline=True, optional=True,
                    tooltip="Negative prompt of the opponent and of the previews."),
                io.Int.Input("batch", default=4, min=1, max=256, optional=True, tooltip="Pictures drawn at once."),
            ],
            outputs=[OpponentSocket.Output("opponent", tooltip="For Train SPIN and Train Baseline.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, sampler_name="ddim", **more) -> io.NodeOutput:
        return io.NodeOutput(OpponentSampling(sampler_name, **more))


class SPINOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINOptions",
            display_name="SPIN Options",
            category="ViCo + SPIN/SPIN",
            description="What may be changed in the game's loss. Without it, Train SPIN plays as the paper does.",
            search_aliases=["self-play", "sdpo", "loss", "kto", "seppo", "trajectory"],
            inputs=[
                io.Combo.Input("loss", options=list(LOSSES), optional=True,
                    tooltip="SPIN: each real picture against its generated one, at one timestep (arXiv 2402.10210, eq. 4.9). SPIN, "
                    "whole trajectory: its exact objective (eq. 4.8), along all steps of SPIN Opponent, which are drawn with "
                    "DDIM's noise and without guidance. As many times slower as there are steps; not for flow models. SePPO "
                    "(arXiv 2410.05255): where the player has fallen behind its opponent on the real picture, it learns the "
                    "generated one too. KTO: real pictures are liked and generated ones not, each by itself (Diffusion-KTO, arXiv 2404.04465); its loss starts at "
                    "0.5, and its beta has no factor 1/2."),
                io.Boolean.Input("share_noise", default=True, optional=True,
                    tooltip="Real and generated picture get the same noise."),
                io.Boolean.Input("low_memory", default=False, optional=True,
                    tooltip="One side of the pair at a time: the same gradient from fewer activations, one forward "
                    "more."),
                io.Float.Input("sft_weight", default=0.0, min=0.0, max=1000.0, step=0.1, optional=True,
                    tooltip="Adds so much of the plain denoising loss on the real picture."),
                io.Float.Input("margin_clamp", default=0.0, min=0.0, max=1000.0, step=0.5, optional=True,
                    tooltip="Pairs whose logit is beyond this no longer pull. 0: off."),
                io.Float.Input("safeguard", default=-1.0, min=-1.0, max=1.0, step=0.05, optional=True,
                    tooltip="SDPO's margin mu: weakens the generated side's gradient where it would undo too much of "
                    "the real side's. Below 0: off; the nearer to 1, the sooner."),
            ],
            outputs=[SPINOptionsSocket.Output("spin_options", tooltip="For Train SPIN.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, loss="SPIN", share_noise=True, low_memory=False, sft_weight=0.0, margin_clamp=0.0, safeguard=-1.0
    ) -> io.NodeOutput:
        clamp, mu = margin_clamp or None, None if safeguard < 0 else safeguard
        pairs = PairOptions(clamp, mu, sft_weight, LOSSES[loss])
        return io.NodeOutput(PlayOptions(share_noise, low_memory, pairs))
