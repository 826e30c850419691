"""A step of ComfyUI's own TrainLoraNode: a yardstick for the benchmarks of training."""

import itertools
import time
from collections.abc import Callable
from contextlib import nullcontext

from ..scripts.host import Host
from .harness import medians

SETTINGS = {
    "grad_accumulation_steps": 1, "learning_rate": 1e-6, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0,
    "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False, "algorithm": "LoRA", "offloading": False,
    "checkpoint_depth": 1, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
}  # fmt: skip


def lora_step(
    host: Host, make_model: Callable, samples: int, side: int, rank: int, checkpointing: bool, steps: int = 3
):
    """{"seconds", "cpu_seconds"}: medians of the steps behind the first; "bytes": held at their peak, the model's included.

    make_model(): a MODEL on samples of side × side latents. checkpointing: as the node comes.
    """
    import torch

    from ..train_core import Allocated

    def made(*_, **__):
        model = make_model()
        model.cached_patcher_init = (made, ())
        return model

    model = made()
    width = model.model.model_config.unet_config["context_dim"]
    latents = [{"samples": torch.randn(samples, 4, side, side)}]
    positive = [[[torch.randn(1, 77, width), {}]] * samples]
    given = {**SETTINGS, "batch_size": samples, "rank": rank, "gradient_checkpointing": checkpointing}
    marks = []

    class Marked(torch.optim.AdamW):
        """Notes when each step ends: the node itself only gives back the losses."""

        def step(self, *args, **kwargs):
            result = super().step(*args, **kwargs)
            self.zero_grad()
            marks.append((time.perf_counter(), time.process_time()))
            return result

    def run(count: int, counted=None) -> None:
        node = host.node_classes["TrainLoraNode"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        plain, torch.optim.AdamW = torch.optim.AdamW, Marked
        try:
            with torch.inference_mode(), counted or nullcontext():
                lists = {name: [value] for name, value in given.items()}
                node.execute(model=[model], latents=latents, positive=positive, steps=[count], **lists)
        finally:
            torch.optim.AdamW = plain

    run(1 + steps)
    taken = [{"seconds": b[0] - a[0], "cpu_seconds": b[1] - a[1]} for a, b in itertools.pairwise(marks)]
    with Allocated() as held:
        run(2, held)
    return {**medians(taken), "bytes": held.peak}
