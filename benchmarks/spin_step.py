"""What a step of SPIN costs: python -m vico_spin.benchmarks.spin_step [--device cuda] [--json]

Beside it the plain Diffusion-DPO step and ComfyUI's own LoRA trainer. Same model, same batch, same run: every way takes a step
in turn, and the table holds medians. LoRAs train beside frozen weights as in Train SPIN. Memory and operations are counted on
paper at SD1.x's own shape and --memory-latent, models and optimisers included: the time's limit by operations stands beside it.
"""

import copy
import functools
from collections.abc import Callable
from contextlib import ExitStack

import torch

from ..scripts.host import Host, enter
from ..spin_core.batches import PairBatch
from ..spin_core.players import AdapterOff
from ..spin_core.steps import PairStep, SftStep
from ..train_core import LoRA, NoiseSchedule, find_layers, scaled_linear_alphas_cumprod, unet_layers
from .harness import device_flag, finish, flags, in_turn, machine, on_paper, timed

WAYS = {
    "plain": "plain Diffusion-DPO: two models, two forwards each",
    "full": "SPIN, full",
    "lora": "SPIN, LoRA",
    "low_memory": "SPIN, LoRA, low memory",
    "sft": "SFT, LoRA (one sample a pair)",
}
RANK, BETA = 16, 2000.0
SD1 = 320  # its width


class UNet:
    """The host's U-Net as a Denoiser."""

    prediction = "epsilon"

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.schedule = NoiseSchedule.from_alphas_cumprod(scaled_linear_alphas_cumprod())

    def predict(self, x_t, t, context):
        from ..nodes.host.denoiser import graded_attention

        options = {"optimized_attention_override": graded_attention}  # as every training here
        return self.module(x_t, t.float(), context=context, transformer_options=options)


def base(width: int) -> torch.nn.Module:
    """SD1.x's layout at that width (320 is SD1.x itself)."""
    from ..scripts import models

    return models.sd1(width=width, context_dim=width * 12 // 5).model.diffusion_model.requires_grad_(False)


def fresh(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A copy of its own, on the device."""
    made = copy.deepcopy(network)
    return made if device.type == "cpu" else made.to(device)


def some_pairs(size: int, latent: int, context_dim: int, device: torch.device) -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    real, other, noise = torch.randn(3, size, 4, latent, latent, generator=generator).to(device)
    context = torch.randn(size, 77, context_dim, generator=generator).to(device)
    t = torch.randint(1000, (size,), generator=generator).to(device)
    return PairBatch(real, other, context, t, noise, noise)


def plain_dpo(policy: UNet, reference: UNet, optimizer, batch: PairBatch) -> None:
    """The step of Diffusion-DPO's train.py, written out: nothing shared, nothing left out."""
    losses = {}
    for side, x0 in (("win", batch.real), ("lose", batch.other)):
        x_t = policy.schedule.q_sample(x0, batch.noise_real, batch.t)
        prediction = policy.predict(x_t, batch.t, batch.context)
        losses[side] = (prediction - batch.noise_real).pow(2).mean(dim=(1, 2, 3))
        with torch.no_grad():
            prediction = reference.predict(x_t, batch.t, batch.context)
            losses["ref_" + side] = (prediction - batch.noise_real).pow(2).mean(dim=(1, 2, 3))
    model_difference = losses["win"] - losses["lose"]
    reference_difference = losses["ref_win"] - losses["ref_lose"]
    inside = -0.5 * BETA * (model_difference - reference_difference)
    loss = -1 * torch.nn.functional.logsigmoid(inside).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def ready(way: str, model: torch.nn.Module, batch: PairBatch, stack: ExitStack) -> Callable[[], None]:
    """A function that takes one step of that way, with copies of the model built and its optimiser at hand."""
    from ..nodes.host.frozen import graded

    device = batch.real.device
    network = fresh(model, device)
    if way in ("plain", "full"):
        frozen = fresh(model, device)
        network.requires_grad_(True)
        if way == "plain":
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
            return lambda: plain_dpo(UNet(network), UNet(frozen), optimizer, batch)
        return stepper(PairStep(UNet(network), UNet(frozen), BETA), network, batch)
    adapter = LoRA(network, find_layers(network, unet_layers("attention")), RANK)
    stack.enter_context(graded(network))
    stack.enter_context(adapter.attached())
    policy = UNet(network)
    if way == "sft":
        return stepper(SftStep(policy), adapter, batch)
    return stepper(PairStep(policy, AdapterOff(policy, adapter), BETA, low_memory=way == "low_memory"), adapter, batch)


def stepper(objective, trained: torch.nn.Module, batch: PairBatch) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        objective(batch, lambda loss: loss.backward())
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def times(options) -> dict[str, dict[str, float]]:
    """Medians of a step of every way: its seconds, and the process's."""
    from ..nodes.host.copies import training_mode

    batch = some_pairs(options.batch, options.latent, options.width * 12 // 5, torch.device(options.device))
    with training_mode(), ExitStack() as stack:
        model = base(options.width)
        steps = {way: ready(way, model, batch, stack) for way in WAYS}
        cases = {way: functools.partial(timed, step, options.device) for way, step in steps.items()}
        return in_turn(cases, options.repetitions)


def counted(way: str, batch_size: int, latent: int, steps: int = 2) -> tuple[int, int]:
    """(bytes at their peak, operations of a step) at SD1.x's shape, models and optimiser included; its moments from step 2 on."""
    from ..nodes.host.copies import training_mode

    with training_mode(), ExitStack() as stack:
        with on_paper() as outside:
            batch = some_pairs(batch_size, latent, SD1 * 12 // 5, torch.device("cpu"))
            model = base(SD1)
            before = outside.held.held
            step = ready(way, model, batch, stack)
            for _ in range(steps):
                step()
            return outside.bytes - before, outside.flops // steps


def table(found: dict, batch: int) -> str:
    lines = [f"{'':52}{'ms/step':>9}{'pairs/s':>9}{'x plain':>9}{'by FLOPs':>9}{'MiB':>8}{'x plain':>9}"]
    seconds, memory = found["seconds"], found["bytes"]
    for way, name in WAYS.items():
        cells = f"{1e3 * seconds[way]:9.0f}{batch / seconds[way]:9.2f}{found['time_over_plain'][way]:9.2f}"
        cells += (
            f"{found['flops_over_plain'][way]:9.2f}{memory[way] / 2**20:8.0f}{found['memory_over_plain'][way]:9.2f}"
        )
        lines.append(f"{name:52}{cells}")
    lines.append(f"SFT by LoRA over ComfyUI's TrainLoraNode: {found['sft_over_hosts']:.2f} x the time")
    return "\n".join(lines)


def over_plain(values: dict[str, float]) -> dict[str, float]:
    return {way: value / values["plain"] for way, value in values.items()}


def measure(options) -> dict:
    from ..scripts import models
    from .host_trainer import lora_step

    taken = times(options)
    paper = {way: counted(way, options.batch, options.memory_latent) for way in WAYS}
    seconds, cpu = ({way: of[what] for way, of in taken.items()} for what in ("seconds", "cpu_seconds"))
    memory, flops = ({way: of[i] for way, of in paper.items()} for i in (0, 1))
    make = functools.partial(models.sd1, width=options.width, context_dim=options.width * 12 // 5)
    theirs = lora_step(Host(device=options.device), make, options.batch, options.latent, RANK, False)
    return {
        "seconds": seconds,
        "bytes": memory,
        "time_over_plain": over_plain(seconds),
        "cpu_time_over_plain": over_plain(cpu),
        "flops_over_plain": over_plain(flops),
        "memory_over_plain": over_plain(memory),
        "sft_over_hosts": cpu["sft"] / theirs["cpu_seconds"],
    }


def main() -> None:
    parser = flags(
        __doc__,
        width=(32, "model channels; 320 is SD1.x itself"),
        batch=(2, "pairs a step"),
        latent=(16, "side of the latent; 64 is 512 pixels"),
        repetitions=(5, "medians of so many"),
    )
    parser.add_argument("--memory-latent", type=int, default=64, help="side of the latent for what is counted")
    device_flag(parser)
    options = parser.parse_args()
    enter(device=options.device)
    found = {**machine(options.device), "width": options.width, "latent": options.latent, "batch": options.batch}
    found |= measure(options)
    told = f"SD1.x's layout at width {options.width}, latents {options.latent}², {options.batch} pairs, float32; "
    told += f"memory at width {SD1}, latents {options.memory_latent}²; {found['machine']}, torch {found['torch']}\n"
    finish(found, options, told + table(found, options.batch))


if __name__ == "__main__":
    main()
