"""What makes the host wait for a device, counted on the CPU, where nothing has to wait: reads of values, and copies."""

from collections import Counter

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operations whose result, or its shape, the host has to read.
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}
COPIES = {aten.lift_fresh.default}  # of numbers that the host made a tensor of


class OfDispatch(TorchDispatchMode):
    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found["reads"] += func in READS or (func is aten.index.Tensor and by_mask(args[1]))
        self.found["copies"] += func in COPIES or (
            func is aten._to_copy.default and (kwargs or {}).get("device") is not None
        )
        return func(*args, **(kwargs or {}))


class OfCalls(TorchFunctionMode):
    """Calls that do nothing on the CPU, and so are not dispatched there."""

    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.found["reads"] += func is Tensor.cpu
        return func(*args, **(kwargs or {}))


class Waits:
    """Inside, counts reads and copies: `found["reads"]`, `found["copies"]`."""

    def __enter__(self) -> Counter:
        found = Counter(reads=0, copies=0)
        self.modes = OfDispatch(found), OfCalls(found)
        for mode in self.modes:
            mode.__enter__()
        return found

    def __exit__(self, *error) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)


def by_mask(indices) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def counted_steps(model) -> list[Counter]:
    """A list that fills with what each of the sampler's evaluations of a MODEL counts from now on."""
    from comfy.patcher_extension import WrappersMP

    found = []

    def count(executor, *args, **kwargs):
        with Waits() as step:
            result = executor(*args, **kwargs)
        found.append(step)
        return result

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "count", count)
    return found
