"""Win rates, their intervals and the aggregation: numbers worked out by hand, coverage against a known truth."""

import numpy as np
import pytest

from vico_spin.benchmarks.scores_coverage import coverage, true_win_rate
from vico_spin.scores import aggregate, mean_difference_interval, win_rate, win_rate_interval
from vico_spin.scores.statistics import interval_method


def test_ties_count_half():
    """3 beats 1, 2 ties 2, 0 loses to 5, 4 beats 3: (1 + ½ + 0 + 1) / 4 = 0.625."""
    assert win_rate([3, 2, 0, 4], [1, 2, 5, 3]) == 0.625


def test_seeds_are_paired_within_their_prompt():
    """Prompt 1: won and lost = ½. Prompt 2: won and tied = ¾. Mean 0.625; pairing sorted seeds would give another."""
    assert win_rate([[5, 1], [2, 2]], [[1, 5], [1, 2]]) == 0.625


def test_swapping_the_models_mirrors_rate_and_interval():
    generator = np.random.default_rng(1)
    a, b = generator.normal(0.4, 1, 80), generator.normal(0, 1, 80)
    assert win_rate(a, b) == pytest.approx(1 - win_rate(b, a))
    forward, backward = win_rate_interval(a, b), win_rate_interval(b, a)
    assert forward.low == pytest.approx(1 - backward.high, abs=0.02)


def test_the_interval_is_the_same_each_time_and_holds_the_rate():
    generator = np.random.default_rng(2)
    a, b = generator.normal(0.5, 1, 60), generator.normal(0, 1, 60)
    first = win_rate_interval(a, b)
    assert first == win_rate_interval(a, b)
    assert 0 <= first.low < win_rate(a, b) < first.high <= 1


def test_prompts_are_resampled_not_pictures():
    """Eight copies of a prompt's picture add no evidence: the interval of [P, 8] copies equals that of [P]."""
    generator = np.random.default_rng(3)
    a, b = generator.normal(0.3, 1, 40), generator.normal(0, 1, 40)
    copies = win_rate_interval(np.repeat(a[:, None], 8, 1), np.repeat(b[:, None], 8, 1))
    assert copies == win_rate_interval(a, b)


def test_pairs_of_one_prompt_are_resampled_together():
    """Four pairs a prompt tell what [P, 4] seeds tell; pairs of one prompt alone tell nothing of other prompts."""
    generator = np.random.default_rng(5)
    a, b = generator.normal(0.3, 1, (20, 4)), generator.normal(0, 1, (20, 4))
    prompts = [str(p) for p in range(20) for _ in range(4)]
    assert win_rate_interval(a.ravel(), b.ravel(), prompts=prompts) == pytest.approx(win_rate_interval(a, b))
    assert mean_difference_interval(a.ravel(), b.ravel(), prompts=prompts) == pytest.approx(
        mean_difference_interval(a, b)
    )
    low, high = win_rate_interval(np.r_[np.ones(11), np.zeros(9)], np.full(20, 0.5), prompts=["a"] * 20)
    assert (low, high) == pytest.approx((0.025 * 0.55, 1 - 0.025 * 0.45))


def test_the_interval_of_unequal_pairs_lies_around_their_win_rate():
    """Each of 40 prompts has 1 to 5 pairs, all won or all lost: the rate is over pairs, and so is its interval."""
    counts = np.arange(40) % 5 + 1
    won = np.repeat(counts > 2, counts).astype(float)
    low, high = win_rate_interval(won, np.full(len(won), 0.5), prompts=np.repeat(np.arange(40), counts).tolist())
    assert low < 96 / 120 < high and low > np.mean(counts > 2)  # 8 · (3 + 4 + 5) of 8 · 15 pairs; 24 of 40 prompts


@pytest.mark.parametrize("prompts", [1, 10, 200])
def test_all_wins_give_the_exact_bound_not_a_point(prompts):
    """Clopper–Pearson for n wins of n: low = 0.025^(1/n), high = 1."""
    low, high = win_rate_interval(np.ones(prompts), np.zeros(prompts))
    assert low == pytest.approx(0.025 ** (1 / prompts)) and high == 1
    assert win_rate_interval(np.zeros(prompts), np.ones(prompts)) == pytest.approx((0, 1 - low))


def test_all_ties_stay_open_to_both_sides():
    """q = 0.025^(1/10) = 0.6915: the interval is [q/2, 1 − q/2], and centred on one half."""
    low, high = win_rate_interval(np.ones(10), np.ones(10))
    assert low == pytest.approx(0.025**0.1 / 2) and high == pytest.approx(1 - low)
    assert "exact" in interval_method(np.ones(10), np.ones(10))


def test_a_few_losses_among_ties_prove_nothing():
    """Three losses, 29 ties, no win: a sign test gives p = 2 · ½³ = 0.25, so ½ must lie inside the interval."""
    a, b = np.zeros(32), np.r_[np.ones(3), np.zeros(29)]
    low, high = win_rate_interval(a, b)
    assert low < win_rate(a, b) == 0.453125 < 0.5 < high
    assert win_rate_interval(b, a) == pytest.approx((1 - high, 1 - low), abs=0.01)
    assert "no prompt had" in interval_method(a, b)


def test_losses_that_outweigh_what_was_not_seen_are_proven():
    """20 losses and 12 ties: p = 2 · ½²⁰."""
    assert win_rate_interval(np.zeros(32), np.r_[np.ones(20), np.zeros(12)]).high < 0.5


def test_mean_difference_of_one_prompt_claims_nothing():
    assert np.isnan(mean_difference_interval([1.0], [0.5])).all()


def test_mean_difference_interval_is_scipys_paired_bca():
    """The spec's own call: scipy.stats.bootstrap((a, b), mean of the difference, paired, vectorised, BCa)."""
    from scipy.stats import bootstrap

    generator = np.random.default_rng(4)
    a, b = generator.normal(0.5, 1, 50), generator.normal(0, 1, 50)

    def difference(x, y, axis):
        return (x - y).mean(axis=axis)

    rng = np.random.default_rng(0)
    whole = bootstrap((a, b), difference, paired=True, vectorized=True, method="BCa", random_state=rng)
    assert mean_difference_interval(a, b) == pytest.approx(tuple(whole.confidence_interval), abs=1e-9)


@pytest.mark.parametrize(
    "a, b, sentence",
    [
        ([1, 2], [1, 2, 3], "same prompts"),
        ([], [], "one score a prompt"),
        ([1, float("nan"), 3], [1, 2, 3], "prompt 1"),
        ([[[1]]], [[[1]]], "one score a prompt"),
    ],
)
def test_what_cannot_be_compared_is_said(a, b, sentence):
    with pytest.raises(ValueError, match=sentence):
        win_rate_interval(a, b)


def test_aggregation():
    """Rows (1, 4, 2, 9): first 1, mean 4, median 3, best of all 9, best of the first three 4."""
    scores = [[1, 4, 2, 9]]
    got = [aggregate(scores, how)[0] for how in ("single", "mean", "median", "best")]
    assert got == [1, 4, 3, 9] and aggregate(scores, "best", k=3)[0] == 4


@pytest.mark.parametrize(
    "how, k, sentence", [("best", 5, "Best of 5"), ("best", 0, "Best of 0"), ("max", None, "no aggregation")]
)
def test_aggregation_that_does_not_exist_is_said(how, k, sentence):
    with pytest.raises(ValueError, match=sentence):
        aggregate([[1, 2, 3, 4]], how, k)


def test_known_truth_of_the_simulation():
    """Even models tie or win by symmetry: exactly one half."""
    assert true_win_rate(0.0, 0.1) == pytest.approx(0.5)


def test_coverage_on_a_known_truth():
    """150 draws: the standard error is 1.8 points, so four of them about 95%. The 2,000 draws are the benchmark's."""
    assert 0.88 <= coverage(prompts=60, seeds=2, delta=0.4, tie=0.1, draws=150, seed=5) <= 1.0
