import math

import pytest

from vico_spin.spin_core.curves import PANELS, draw_curves, points, start_of_pairs, verdict


def metrics(method="spin", real=0.4, accuracy=0.9, rounds=2):
    numbers = {name: 0.4 for _, names, _ in PANELS for name in names}
    numbers |= {"loss": 0.5, "implicit_accuracy": accuracy, "error_policy_real": real, "error_reference_real": 0.4}
    start = numbers | {"loss": math.log(2), "implicit_accuracy": 0.5}
    steps = [{"metrics": start}, *[{"metrics": numbers}] * 30]
    return {"method": method, "rounds": [steps] * rounds}


def test_a_round_that_learns_is_told_by_its_accuracy():
    assert verdict(metrics()).splitlines() == [
        "Round 1: implicit accuracy 0.90, loss 0.500 (from 0.693).",
        "Round 2: implicit accuracy 0.90, loss 0.500 (from 0.693).",
    ]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"real": 1.2}, "WARNING, collapse: the error on real pictures is 3.0 times"),
        ({"real": 0.45}, "has risen above the opponent's"),
        ({"accuracy": 0.51}, "Nothing was learnt yet"),
    ],
    ids=["collapse", "risen", "still"],
)
def test_what_goes_wrong_is_said(changes, words):
    assert words in verdict(metrics(rounds=1, **changes))


def test_a_round_that_goes_on_after_its_pairs_are_told_apart_is_named_with_what_helps():
    """The weight is 0.4 for ten steps and 0.05 for twenty: a mean of five is under 0.1 first where all five are 0.05."""
    found = metrics(rounds=1)
    steps = found["rounds"][0]
    steps[10:] = [{"metrics": step["metrics"] | {"weight": 0.05}} for step in steps[10:]]
    assert verdict(found).endswith(
        " Told apart by step 15 (gradient weight under 0.1): what follows may lead past the data, and the next round back;"
        " keep what draws best, or let a scorer."
    )
    assert "Told apart" not in verdict(found | {"method": "dpo"})  # has no rounds
    del steps[15:]
    assert "Told apart" not in verdict(found)  # it ended there


def test_the_losses_line_is_where_pairs_began():
    """KTO starts at 1/2 and not at ln 2; a round of SFT before it compares nothing."""
    sft, kto = {"metrics": {"loss": 0.2}}, {"metrics": {"loss": 0.5, "z": 0.0}}
    assert start_of_pairs([sft, kto, {"metrics": {"loss": 0.4, "z": 0.3}}]) == 0.5
    assert start_of_pairs([sft]) is None


def test_sft_has_a_loss_alone():
    sft = {"method": "sft", "rounds": [[{"metrics": {"loss": 0.2}}, {"metrics": {"loss": 0.1}}]]}
    assert verdict(sft) == "SFT: the loss went from 0.2000 to 0.1500."


def test_a_resumed_run_without_a_step_yet_is_no_error():
    assert verdict({"method": "spin", "rounds": [[]]}) == ""


@pytest.mark.parametrize("method", ["spin", "sft"])
def test_curves_are_drawn(method):
    picture = draw_curves(metrics(method))
    assert picture.mode == "RGB" and len(picture.getcolors(2**20)) > 3


def test_scores_of_previews_are_told_and_drawn():
    """Scored after steps 10, 20 and 30 of 31: the best is neither the first nor the last."""
    found = metrics(rounds=1)
    plain = draw_curves(found)
    for number, score in ((9, 0.2), (19, 0.5), (29, 0.4)):
        step = found["rounds"][0][number]
        found["rounds"][0][number] = {"metrics": step["metrics"] | {"score": score}}
    assert verdict(found).endswith(" Best score 0.5000, after step 20; 0.4000 after step 30.")
    scored = draw_curves(found)
    assert scored.tobytes() != plain.tobytes()
    found["rounds"][0][0]["metrics"]["score_before"] = 0.45
    assert verdict(found).endswith("; 0.4000 after step 30; 0.4500 before the first.")
    assert list(points(found["rounds"][0], "score")) == [(0, 0.45), (10, 0.2), (20, 0.5), (30, 0.4)]
    assert draw_curves(found).tobytes() != scored.tobytes()
    found["rounds"][0][0]["metrics"]["score_before"] = 0.6
    assert verdict(found).endswith("0.6000 before the first. No step is above that: its best is to change nothing.")
