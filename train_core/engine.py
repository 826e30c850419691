"""What the loop asks of the machine, under the names of accelerate.Accelerator.

In the graph and in tests a LocalEngine of plain torch; under
`accelerate launch` the Accelerator itself goes in its place.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Precision = Literal["no", "bf16", "fp16"]
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine(Protocol):
    """The part of accelerate.Accelerator that the loop calls."""

    device: torch.device
    mixed_precision: str
    scaler: torch.amp.GradScaler | None
    gradient_accumulation_steps: int
    sync_gradients: bool
    is_main_process: bool
    process_index: int
    num_processes: int

    def prepare(self, *args: Any) -> Any: ...
    def accumulate(self, *models: nn.Module) -> AbstractContextManager: ...
    def autocast(self) -> AbstractContextManager: ...
    def backward(self, loss: Tensor) -> None: ...
    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor: ...
    def gather(self, tensor: Tensor) -> Tensor: ...
    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor: ...
    def unwrap_model(self, model: nn.Module) -> nn.Module: ...
    def wait_for_everyone(self) -> None: ...
    def free_memory(self) -> None: ...


class LocalEngine:
    """One process, one device.

    Weights stay in their own precision (float32 masters); autocast lowers the forward alone.
    """

    is_main_process = True
    process_index = 0
    num_processes = 1

    def __init__(self, device="cpu", mixed_precision: Precision = "no", gradient_accumulation_steps: int = 1):
        if mixed_precision not in ("no", *AUTOCAST_DTYPES):
            raise ValueError(f'Choose no, bf16 or fp16.\nMixed precision "{mixed_precision}" is unknown.')
        self.device = torch.device(device)
        self.mixed_precision = mixed_precision
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.sync_gradients = True
        self.free_memory()

    def free_memory(self) -> None:
        """Forgets what was prepared, and with it the loss scale: the next training begins as the first."""
        self._micro_steps = 0
        # float16 gradients underflow: scale the loss up, and the gradients down again before they are used
        self.scaler = torch.amp.GradScaler(self.device.type) if self.mixed_precision == "fp16" else None
        self._optimizers: list[Optimizer] = []

    def prepare(self, *args):
        """The arguments themselves, but for an optimiser under fp16: that one steps through the gradient scaler."""
        prepared = tuple(self._prepare_one(arg) for arg in args)
        return prepared if len(prepared) > 1 else prepared[0]

    def _prepare_one(self, arg):
        if isinstance(arg, Optimizer) and self.scaler is not None:
            self._optimizers.append(arg)
            return ScaledOptimizer(arg, self.scaler)
        return arg

    @contextmanager
    def accumulate(self, *models: nn.Module):
        """Counts micro-steps; sync_gradients is True in the last one before an optimiser step."""
        self._micro_steps += 1
        self.sync_gradients = self._micro_steps % self.gradient_accumulation_steps == 0
        yield

    def autocast(self) -> AbstractContextManager:
        if self.mixed_precision == "no":
            return nullcontext()
        return torch.amp.autocast(self.device.type, dtype=AUTOCAST_DTYPES[self.mixed_precision])

    def backward(self, loss: Tensor) -> None:
        loss = loss / self.gradient_accumulation_steps
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Norm of all gradients together, before clipping; under fp16 they are unscaled first."""
        for optimizer in self._optimizers:
            self.scaler.unscale_(optimizer)
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def gather(self, tensor: Tensor) -> Tensor:
        """All processes' values along the first axis: here there is one."""
        return tensor.reshape(1) if tensor.ndim == 0 else tensor

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """Sum or mean over the processes: here there is one."""
        return tensor

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        return model

    def wait_for_everyone(self) -> None:
        pass


class ScaledOptimizer:
    """An optimiser that steps through torch's GradScaler: an overflowed step is left out, and the scale halved."""

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler):
        self.optimizer, self.scaler = optimizer, scaler

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    @property
    def state(self) -> dict:
        return self.optimizer.state

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)
