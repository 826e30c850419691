"""What the trainers' nodes ask for, as spin_core takes it."""

from dataclasses import dataclass, field

from ...spin_core.game import RoundSettings
from ...spin_core.steps import PairOptions
from ..host.options import TrainingOptions


@dataclass(frozen=True)
class PlayOptions:
    """SPIN Options: what may be changed in the game's loss. The defaults are the paper's."""

    share_noise: bool = True
    low_memory: bool = False
    pairs: PairOptions = field(default_factory=PairOptions)


def per_round(text: str | int | float, name: str) -> tuple:
    """ "2000, 5000" as numbers, one a round; a number as that for all. ValueError where it is no list of numbers."""
    try:
        values = tuple(KINDS[name](part) for part in str(text).replace(";", ",").split(",") if part.strip())
    except ValueError:
        values = ()
    if not values:
        raise ValueError(f'Write {name} as numbers, as in "{EXAMPLES[name]}".\n{name} "{text}" is no list of numbers.')
    return values


KINDS = {"steps": int, "beta": float, "learning_rate": float}
EXAMPLES = {"steps": "50, 500, 200", "beta": "2000, 5000", "learning_rate": "2e-5, 1e-5"}


def round_settings(
    steps, learning_rate, beta, batch_size: int, seed: int, options: TrainingOptions, play: PlayOptions
) -> RoundSettings:
    """steps, learning_rate, beta: a number, or text with one a round."""
    return RoundSettings(
        steps=per_round(steps, "steps"),
        beta=per_round(beta, "beta"),
        lr=per_round(learning_rate, "learning_rate"),
        batch_size=batch_size,
        warmup_steps=options.warmup_steps,
        decay=options.decay,
        checkpoint_every=options.checkpoint_every,
        caption_dropout=options.caption_dropout,
        share_noise=play.share_noise,
        low_memory=play.low_memory,
        options=play.pairs,
        seed=seed,
    )
