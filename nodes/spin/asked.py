"""What a training is asked for."""

from dataclasses import asdict, dataclass, field

from ...spin_core.game import RoundSettings
from ..host.families import LoraLayers
from ..host.options import TrainingOptions
from .captions import OpponentSampling


@dataclass(frozen=True)
class TrainingRun:
    """What Train SPIN or Train Baseline was asked for. rank: of the LoRA on its `layers`; None trains all weights."""

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

    @property
    def adapters(self) -> int:
        """LoRAs that lie on the model at the end: one a round, and SFT, then DPO has two."""
        return 2 if self.method == "sft+dpo" else self.rounds

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
        }
