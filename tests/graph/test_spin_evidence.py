"""The evidence's arena: every method trains from the world's base, and a round's inside is what it is said to be."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from vico_spin.benchmarks.spin_arena import Arena, Method
from vico_spin.benchmarks.spin_people import CRUDE, FINE, Pairs, art_of
from vico_spin.benchmarks.spin_rounds import PLAYED, SHOWN, rows_of, run, towards
from vico_spin.scripts.sprite_world_card import BASE
from vico_spin.sprite_world.pictures import chosen_pictures

STEPS = 2


@pytest.fixture(scope="module")
def arena():
    return Arena(BASE, batch=2, sampling_steps=2)


@pytest.fixture(scope="module")
def learnt_from():
    fine, crude = (list(islice(chosen_pictures(3, tastes=tastes), 4)) for tastes in (FINE, CRUDE))
    return Pairs([picture.caption() for picture in fine], art_of(fine), art_of(crude))


def moved(before, after) -> float:
    return max((after[name] - before[name]).abs().max().item() for name in before)


def test_from_sft_starts_where_sft_ends_and_moves_on(arena, learnt_from, tmp_path):
    """Equal steps: the first of two states is SFT's own, bit for bit; the second is one round of self-play from there."""
    sft = arena.train(Method("sft", 1e-3, steps=STEPS, rounds=1), learnt_from, 0, tmp_path / "sft").weights
    spin = Method("spin", 1e-4, steps=STEPS, rounds=2, sft_rate=1e-3)
    first, second = arena.train(spin, learnt_from, 0, tmp_path / "spin").weights
    assert len(sft) == 1 and moved(sft[0], first) == 0.0
    assert moved(arena.base, first) > 0 and moved(first, second) > 0


def test_a_run_that_was_cut_after_sft_begins_again(arena, learnt_from, tmp_path, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    spin = Method("spin", 1e-4, steps=STEPS, rounds=2, sft_rate=1e-3)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(arena, "opponent", cut)
        arena.train(spin, learnt_from, 0, tmp_path / "cut")
    assert len(arena.train(spin, learnt_from, 0, tmp_path / "cut").weights) == 2


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_baseline_is_judged_as_often_as_spin_has_rounds(arena, learnt_from, tmp_path, kind):
    method = Method(kind, 1e-4, steps=STEPS, rounds=2)
    states = arena.train(method, learnt_from, 0, tmp_path / kind)
    assert len(states.weights) == 2 and moved(*states.weights) > 0
    assert [report.step for _, report in states.reports] == [1, 2, 3, 4]


def test_rounds_are_told_from_the_inside(arena, learnt_from, tmp_path):
    """A round starts with the player on its opponent: equal errors, z = 0, weight 1/2; rates are those of the round."""
    method = replace(PLAYED, steps=STEPS, rounds=2, rate=(1e-4, 1e-6))
    prompts = ["a red crab on sand", "two blue ghosts at night"]
    found = run(arena, method, learnt_from, prompts, tmp_path / "rounds")
    assert found["taste"].shape == (3,) and found["metrics"].shape == (2, STEPS, len(SHOWN))
    start = dict(zip(SHOWN, found["metrics"][1, 0], strict=True))
    assert start["z"] == 0 and start["weight"] == 0.5
    assert start["error_policy_real"] == start["error_reference_real"]
    assert np.isfinite(found["gradients"]).all() and found["turns"].shape == (1,)
    drift = found["metrics"][:, -1, SHOWN.index("drift")]
    assert drift[1] < drift[0] / 10
    assert len(rows_of("played", found, aim=0.9)) == 2


def test_a_round_leads_towards_the_real_pictures():
    """Up from an opponent below them, down from one above them; the last round falls from one below."""
    found = {"taste": np.array([0.7, 0.95, 0.8, 0.7]), "opponents_taste": np.array([0.6, 0.92, 0.8])}
    assert towards(found, aim=0.9) == "2 of 3"
