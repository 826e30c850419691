"""What Training Options gives to every trainer."""

from dataclasses import dataclass
from typing import Literal

BEST, LAST = "best step", "last step"


@dataclass(frozen=True)
class TrainingOptions:
    """How a training is done, beside what it learns and from what. The defaults are the node's.

    precision: of the forward, as Accelerate names it; weights and loss are float32. checkpoint_every and preview_every
    count steps; 0 leaves them out. caption_dropout: share of captions that are trained as empty. patience, result: where a
    scorer rates the previews, how many in a row without a new best end a round, and which step the round comes to.
    """

    precision: Literal["no", "bf16", "fp16"] = "no"
    checkpointing: bool = False
    accumulation: int = 1
    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    caption_dropout: float = 0.0
    checkpoint_every: int = 50
    preview_every: int = 50
    patience: int = 0
    result: str = BEST
