"""What a training is asked for."""

from dataclasses import asdict, dataclass, field

from ...spin_core.game import RoundSettings
from ...train_core import LoraLayers
from ..host.options import BEST, TrainingOptions
from .captions import OpponentSampling


@dataclass(frozen=True)
class TrainingRun:
    """What Train SPIN or Train Baseline was asked for. rank: of the LoRA on its `layers`; None trains all weights.

    scored: by what and on which prompts previews are scored, and how often; empty without a scorer.
    """

    settings: RoundSettings
    options: TrainingOptions = field(default_factory=TrainingOptions)
    opponent: OpponentSampling = field(default_factory=OpponentSampling)
    method: str = "spin"
    rounds: int = 1
    rank: int | None = 16
    layers: LoraLayers = "attention"
    resolution: int = 512
    name: str = "spin"
    preview_prompts: tuple[str, ...] = ()
    scored: dict = field(default_factory=dict)

    @property
    def adapters(self) -> int:
        """LoRAs that lie on the model at the end: one a round, and SFT, then DPO has two."""
        return 2 if self.method == "sft+dpo" else self.rounds

    @property
    def keeps_best(self) -> bool:
        return bool(self.scored) and self.options.result == BEST

    def made_from(self) -> dict:
        """All that decides the result, but for the models and the data."""
        settings, opponent = asdict(self.settings), asdict(self.opponent)
        del settings["checkpoint_every"], settings["low_memory"], opponent["batch"]  # how it is done
        return {
            "settings": settings,
            "method": self.method,
            "rank": self.rank,
            "layers": self.layers,
            "resolution": self.resolution,
            "precision": self.options.precision,
            "accumulation": self.options.accumulation,
            "opponent": opponent,
            **({"scored": self.scored, "result": self.options.result} if self.scored else {}),
        }
