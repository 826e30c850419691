"""Whether a LoRA's patches have the size of their weights: where not, the host says so in the log alone and changes nothing."""

import math

from torch import Tensor


def fits(patch, weight: Tensor | None) -> bool:
    """Whether the host can change this weight by the patch. weight: None where the model has none of that name."""
    if weight is None:
        return False
    if isinstance(patch, tuple):  # ("diff" or "set", (tensor,))
        return patch[1][0].shape == weight.shape
    judge = KINDS.get(patch.name)
    return judge is None or judge(size_of(weight), *patch.weights)


def size_of(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns, a kernel's places among the columns."""
    return len(tensor), tensor[0].numel()


def made_size(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, int]:
    """Rows and columns of a·b; with a kernel's core [rank, rank, k, k] between them LyCORIS has a transposed."""
    return (len(a), b[0].numel()) if core is None else (a[0].numel(), b[0].numel() * core[0, 0].numel())


def fits_lora(size, up, down, alpha, mid, dora_scale, reshape) -> bool:
    if reshape is not None:  # of a control LoRA, which makes the weight larger
        size = reshape[0], math.prod(reshape[1:])
    kernel = 1 if mid is None else mid[0, 0].numel()
    return up[0].numel() == len(down) and (len(up), down[0].numel() * kernel) == size


def fits_loha(size, w1_a, w1_b, alpha, w2_a, w2_b, t1, t2, *_) -> bool:
    return made_size(w1_a, w1_b, t1) == made_size(w2_a, w2_b, t2) == size


def fits_lokr(size, w1, w2, alpha, w1_a, w1_b, w2_a, w2_b, t2, *_) -> bool:
    if (w1 is None and w1_a is None) or (w2 is None and w2_a is None):
        return False
    first = made_size(w1_a, w1_b, None) if w1 is None else size_of(w1)
    second = made_size(w2_a, w2_b, t2) if w2 is None else size_of(w2)
    return (first[0] * second[0], first[1] * second[1]) == size


def fits_glora(size, a1, a2, b1, b2, *_) -> bool:
    return size in (made_size(b1, b2, None), made_size(b2, b1, None))  # either order, of two LyCORIS versions


def fits_rotation(size, blocks, *_) -> bool:
    return blocks.shape[-3] * blocks.shape[-2] == size[0]  # [..., blocks, width, width]


KINDS = {
    "lora": fits_lora,
    "loha": fits_loha,
    "lokr": fits_lokr,
    "glora": fits_glora,
    "oft": fits_rotation,
    "boft": fits_rotation,
}
