"""The training loop: reads from top to bottom, knows nothing of what is trained.

Assumes: a batch is a pure function of its index, and what is drawn for it too (see randomness.keyed_generator).
In one CPU process a resumed run then equals an uninterrupted one bit for bit, where sums on several threads do (MKL's on
very small tensors: with MKL_CBWR=AUTO,STRICT).
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointFolder
from .engine import Engine
from .held_out import BEFORE, SCORE, HeldOut, best_step
from .randomness import random_states, restore_random_states
from .sharding import is_sharded, laid_out_as, lay_out_optimizer_state, whole

SKIPPED_STEPS_ALLOWED = (
    20  # float16's loss scale starts at 2^16 and halves at every overflow: 20 in a row are no start-up any more
)


class Objective(Protocol):
    """What a step minimises. It calls `backward` on its loss itself: once, or part by part where memory is short.

    Returns what to log, scalar tensors, "loss" among them.
    """

    def __call__(self, batch: Any, backward: Callable[[Tensor], None]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class LoopSettings:
    """steps: optimiser steps in all.

    max_grad_norm: None leaves gradients as they are. checkpoint_every: 0 saves only at the end.
    """

    steps: int
    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float | None = None
    checkpoint_every: int = 0


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: `step` counts from 1.

    metrics: means over its micro-steps and processes. lr: of the first group.
    """

    step: int
    metrics: dict[str, float]
    grad_norm: float
    lr: float
    seconds: float

    @property
    def loss(self) -> float:
        return self.metrics["loss"]


@dataclass
class Training:
    """What a run has come to.

    `stopped_by`: the exception that ended it early, where the caller asked to have it returned.
    """

    step: int = 0
    history: list[StepReport] = field(default_factory=list)
    stopped_by: BaseException | None = None


class TrainingDiverged(ArithmeticError):
    """The loss or its gradient is no number any more. The weights are those from before the step that failed."""


def lr_factor(step: int, settings: LoopSettings) -> float:
    """What the learning rates are multiplied by in step 0, 1, …: linear warm-up, then constant, linear or cosine to zero.

    The warm-up's first step is 1/warmup_steps, not 0: a step that changes nothing would be wasted.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    if settings.decay == "linear":
        return 1 - progress
    if settings.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def train(
    objective: Objective,
    batch_at: Callable[[int], Any],
    trained: nn.Module,
    optimizer: Any,
    settings: LoopSettings,
    engine: Engine,
    on_step: Callable[[StepReport], None] | None = None,
    checkpoints: CheckpointFolder | None = None,
    return_on: tuple[type[BaseException], ...] = (),
    held_out: HeldOut | None = None,
) -> Training:
    """Trains the parameters of `trained` that require a gradient.

    batch_at(i) is micro-batch i of this process (accumulation included: step·accumulation + place). optimizer: prepared
    by the engine; each group's "lr" is its peak. on_step runs after every step and may raise to stop. Whatever ends the
    run, the last whole step is saved; exceptions of the types in `return_on` end it without being raised again.
    held_out: scores the model as it learns; the checkpoint of the best step stays beside the newest ones.

    Raises: TrainingDiverged where loss or gradient is not finite, before the weights are touched.
    """
    run = Run(objective, batch_at, trained, optimizer, settings, engine, checkpoints, held_out)
    run.resume()
    try:
        run.measure()  # where a run was stopped between a step and its score
        while not run.is_over():
            run.step()
            run.measure()
            report = run.training.history[-1]
            if settings.checkpoint_every and report.step % settings.checkpoint_every == 0:
                run.save()
            if on_step is not None:
                on_step(report)
                restore_random_states(run.states, engine.device)  # a preview's draws must not change the run
        run.save()
    except BaseException as stop:  # an interrupt in ComfyUI is no Exception
        run.save_last_whole_step(stop)
        if not isinstance(stop, return_on):
            raise
        run.training.stopped_by = stop
    return run.training


class Run:
    """The parts of one run of `train`, and where it stands."""

    def __init__(self, objective, batch_at, trained, optimizer, settings, engine, checkpoints, held_out=None):
        self.objective, self.batch_at, self.trained, self.optimizer = objective, batch_at, trained, optimizer
        self.settings, self.engine, self.checkpoints, self.held_out = settings, engine, checkpoints, held_out
        self.weights = {n: p for n, p in engine.unwrap_model(trained).named_parameters() if p.requires_grad}
        if not self.weights:
            raise ValueError("Choose layers to train.\nNo parameter of the module requires a gradient.")
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.training = Training()
        self.states = random_states(engine.device)
        self.saved_step = None
        self.score_before = None
        self.weights_are_whole = True
        self.skipped = 0

    def is_over(self) -> bool:
        """Whether all steps are done, or the score no longer rises."""
        history = self.training.history
        return self.training.step >= self.settings.steps or bool(self.held_out and self.held_out.is_over(history))

    def measure(self) -> None:
        """Scores the last step where that is due, or what there is before the first. The best one so far is saved at once."""
        history = self.training.history
        if self.held_out is None:
            return
        if not history and self.held_out.from_start and self.score_before is None:
            self.score_before = self._score()
            self.save()
        if not self.held_out.is_due(history):
            return
        history[-1] = replace(history[-1], metrics=history[-1].metrics | {SCORE: self._score()})
        self.saved_step = None  # a checkpoint of this step would lack its score
        if best_step(history) == history[-1].step:
            self.save()

    def _score(self) -> float:
        score = self.held_out.score()
        restore_random_states(self.states, self.engine.device)
        return score

    def step(self) -> None:
        """One optimiser step over `accumulation` micro-batches."""
        start = time.perf_counter()
        number = self.training.step
        self._set_lr(number)
        metrics = self._accumulate_gradients(number)
        if number == 0 and self.score_before is not None:
            metrics[BEFORE] = self.score_before
        self._share_gradients()
        grad_norm = self._clip()
        self._guard(number, metrics, grad_norm)
        self.weights_are_whole = False
        self.optimizer.step()
        self.weights_are_whole = True
        self.optimizer.zero_grad()
        lr = self.optimizer.param_groups[0]["lr"]
        self.training.history.append(StepReport(number + 1, metrics, grad_norm, lr, time.perf_counter() - start))
        self.training.step = number + 1
        self.states = random_states(self.engine.device)

    def _set_lr(self, number: int) -> None:
        factor = lr_factor(number, self.settings)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def _accumulate_gradients(self, number: int) -> dict[str, float]:
        """Backward through every micro-batch of the step. Returns the means of what the objective logs."""
        count = self.engine.gradient_accumulation_steps
        logged = []
        for micro in range(count):
            with self.engine.accumulate(self.trained):
                batch = self.batch_at(number * count + micro)
                logged.append(self.objective(batch, self.engine.backward))
        values = torch.stack([torch.stack([m.detach().float() for m in micro.values()]) for micro in logged])
        means = self.engine.gather(values).reshape(-1, values.shape[1]).mean(dim=0).tolist()
        return dict(zip(logged[0], means, strict=True))

    def _share_gradients(self) -> None:
        """The mean of all processes' gradients, in one exchange a step.

        By hand and not by DDP, whose exchange hangs on its own forward: an adapter in hooks has none, and a step may
        run the backward pass in parts.
        """
        if self.engine.num_processes == 1:
            return
        grads = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        grads = [grad for grad in grads if not is_sharded(grad)]  # those of sharded weights are means already
        if not grads:
            return
        flat = torch.cat([grad.flatten() for grad in grads])
        shared = self.engine.reduce(flat, reduction="mean").split([grad.numel() for grad in grads])
        for grad, mean in zip(grads, shared, strict=True):
            grad.copy_(mean.view_as(grad))

    def _clip(self) -> float:
        limit = self.settings.max_grad_norm
        norm = self.engine.clip_grad_norm_(self.weights.values(), math.inf if limit is None else limit)
        return float(whole(norm))

    def _guard(self, number: int, metrics: dict[str, float], grad_norm: float) -> None:
        """Stops before a step that would spoil the weights.

        Under fp16 the gradient scaler leaves single overflows out itself.
        """
        if math.isfinite(metrics["loss"]) and math.isfinite(grad_norm):
            self.skipped = 0
            return
        self.skipped += 1
        if (
            math.isfinite(metrics["loss"])
            and self.engine.mixed_precision == "fp16"
            and self.skipped <= SKIPPED_STEPS_ALLOWED
        ):
            return
        rates = ", ".join(f"{group['lr']:.3g}" for group in self.optimizer.param_groups)
        where = f"the loss is {metrics['loss']}" if not math.isfinite(metrics["loss"]) else self._name_bad_gradient()
        raise TrainingDiverged(
            "Lower the learning rate or clip gradients, then go on.\n"
            f"Training stopped at step {number + 1}: {where}. The weights are those after step {number}, at rate {rates}."
        )

    def _name_bad_gradient(self) -> str:
        graded = {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        bad = [name for name, grad in graded.items() if not whole(torch.isfinite(grad).all())]
        return (
            f'the gradient of "{bad[0]}" is not finite ({len(bad)} of {len(graded)} gradients)'
            if bad
            else "the gradient's norm overflows"
        )

    def resume(self) -> None:
        """Goes on from the newest checkpoint, where there is one."""
        state = self.checkpoints.load() if self.checkpoints else None
        if state is None:
            return
        if state["step"] > self.settings.steps:
            raise ValueError(
                f"Set steps to {state['step']} or more, or name another run.\n"
                f'"{self.checkpoints.path}" has as many already, and {self.settings.steps} are asked for.'
            )
        load_trained(self.weights, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.engine.scaler is not None:
            self.engine.scaler.load_state_dict(state["scaler"])
        lay_out_optimizer_state(self.optimizer)
        self.training.step = self.saved_step = state["step"]
        self.training.history = [StepReport(**report) for report in state["history"]]
        self.states = state["random"]
        restore_random_states(self.states, self.engine.device)

    def save(self, wait: bool = True) -> None:
        """Writes the checkpoint of the last whole step, once. wait: until all processes are done with theirs."""
        if self.checkpoints is None or self.saved_step == self.training.step:
            return
        if not self._weights_are_finite():
            raise TrainingDiverged(
                "Lower the learning rate.\n"
                f"Training stopped at step {self.training.step}: weights are no numbers any more; {self._last_saved()}"
            )
        weights, optimizer = whole(self.weights), whole(self.optimizer.state_dict())
        if self.engine.is_main_process:
            history = [asdict(report) for report in self.training.history]
            state = {"weights": weights, "optimizer": optimizer, "history": history, "random": self.states}
            if self.engine.scaler is not None:
                state["scaler"] = self.engine.scaler.state_dict()
            self.checkpoints.save(self.training.step, state, spared=best_step(self.training.history))
        if wait:
            self.engine.wait_for_everyone()
        self.saved_step = self.training.step

    def save_last_whole_step(self, stop: BaseException) -> None:
        """After a stop: half-gathered gradients go, what was learnt stays.

        A stop inside the optimiser leaves the file before it. So does an error where weights are sharded: it may be this
        process's alone, and the others would have to put theirs together with it. Nobody is waited for, lest the error be
        never told.
        """
        self.optimizer.zero_grad()
        alone = isinstance(stop, Exception) and any(map(is_sharded, self.weights.values()))
        if self.weights_are_whole and self.training.step > 0 and not alone and self._weights_are_finite():
            self.save(wait=False)

    def _weights_are_finite(self) -> bool:
        return all([bool(whole(torch.isfinite(weight).all())) for weight in self.weights.values()])

    def _last_saved(self) -> str:
        return (
            "no checkpoint was written"
            if self.saved_step is None
            else f"the last good checkpoint is that of step {self.saved_step}"
        )


def load_trained(weights: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """A checkpoint's weights into those that are trained. Raises: ValueError where they are not the same."""
    missing = sorted(weights.keys() ^ saved.keys())
    if missing:
        raise ValueError(
            "Name another run.\n"
            f'The checkpoint trains other weights than this run: "{missing[0]}" is in one of them only.'
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(laid_out_as(saved[name], weight))
