"""Which base a concept was trained on, told by a few of its numbers whatever precision they are stored in."""

import struct
from collections.abc import Iterable

from torch import Tensor

SAMPLES = 64  # numbers of a fingerprint
TOLERANCE = 0.01  # of the larger number: half precision rounds by 0.004 at most


def base_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A model's fingerprint, in hex: numbers of its norms and biases, which LoRAs and quantisation leave as they are."""
    vectors = [
        tensor
        for _, tensor in sorted(weights, key=lambda named: named[0])
        if tensor.ndim == 1 and tensor.is_floating_point()
    ]
    places = [i * len(vectors) // SAMPLES for i in range(SAMPLES)] if vectors else []
    numbers = [float(vectors[place][vectors[place].numel() // 2]) for place in places]
    return struct.pack(f"<{len(numbers)}f", *numbers).hex()


def same_base(a: str, b: str) -> bool:
    """Whether two fingerprints are of one model; of two that are none, whether they are equal."""
    try:
        pairs = list(zip(*(struct.unpack(f"<{SAMPLES}f", bytes.fromhex(text)) for text in (a, b)), strict=True))
    except (ValueError, struct.error):
        return a == b
    return all(abs(x - y) <= TOLERANCE * max(abs(x), abs(y)) for x, y in pairs)
