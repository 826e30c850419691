"""How often a win rate's 95% interval holds the known truth: python -m vico_spin.benchmarks.scores_coverage

A comparison is drawn so that its true win rate is known in closed form: the models' difference on prompt p and seed s
is d = N(delta, spread_prompt²) + N(0, spread_seed²); |d| < tie counts as a tie. With one spread of both,
truth = P(d > tie) + ½ P(|d| <= tie).
"""

import math

import numpy as np

from ..scores import win_rate_interval
from .harness import finish, flags

SETTINGS = {  # name: prompts, seeds, delta, tie
    "mostly ties, 100 prompts": (100, 1, 0.4, 1.3),
    "even, 200 prompts": (200, 4, 0.0, 0.1),
    "better, 200 prompts": (200, 4, 0.5, 0.1),
    "much better, 200 prompts": (200, 4, 1.2, 0.1),
    "one seed, 100 prompts": (100, 1, 0.4, 0.1),
    "few prompts (31)": (31, 8, 0.3, 0.1),
}
SPREAD_PROMPT, SPREAD_SEED = 0.8, 0.6


def normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def true_win_rate(delta: float, tie: float) -> float:
    """P(d > tie) + ½ P(|d| <= tie) for d ~ N(delta, spread_prompt² + spread_seed²)."""
    spread = math.hypot(SPREAD_PROMPT, SPREAD_SEED)
    above, below = 1 - normal_cdf((tie - delta) / spread), normal_cdf((-tie - delta) / spread)
    return above + 0.5 * (1 - above - below)


def draw(generator, prompts: int, seeds: int, delta: float, tie: float) -> tuple[np.ndarray, np.ndarray]:
    """One comparison's scores of both models, each [prompts, seeds]."""
    difference = delta + SPREAD_PROMPT * generator.standard_normal((prompts, 1))
    difference = difference + SPREAD_SEED * generator.standard_normal((prompts, seeds))
    difference[np.abs(difference) <= tie] = 0
    b = generator.standard_normal((prompts, seeds)).round(3)
    return b + np.sign(difference), b


def coverage(prompts: int, seeds: int, delta: float, tie: float, draws: int, seed: int) -> float:
    """The share of `draws` intervals that hold the true win rate."""
    generator, truth, held = np.random.default_rng(seed), true_win_rate(delta, tie), 0
    for _ in range(draws):
        low, high = win_rate_interval(*draw(generator, prompts, seeds, delta, tie))
        held += low <= truth <= high
    return held / draws


def main() -> None:
    options = flags(
        __doc__, draws=(2000, "simulated comparisons a setting"), seed=(0, "of the simulation")
    ).parse_args()
    found = {
        name: {
            "seeds": seeds,
            "truth": true_win_rate(delta, tie),
            "coverage": coverage(prompts, seeds, delta, tie, options.draws, options.seed),
        }
        for name, (prompts, seeds, delta, tie) in SETTINGS.items()
    }
    finish(found, options)


if __name__ == "__main__":
    main()
