"""SPIN's objective along whole trajectories (eq. 4.8): a number by hand, its gradient, and the game with it."""

import math

import pytest
import torch

from vico_spin.spin_core.batches import BucketOrder, PairBatch, PairBatches
from vico_spin.spin_core.objectives import trajectory_bound, trajectory_loss, trajectory_margins
from vico_spin.spin_core.steps import PairOptions
from vico_spin.spin_core.trajectories import ETA, TrajectoryStep, noise_in
from vico_spin.tests.core.test_spin_game import PLAYERS, Constant, Tiny, corpus, lora_player, run_game, unet
from vico_spin.train_core.schedule import ddim_mean

ALONG = {"options": PairOptions(loss="trajectory"), "steps": (3,)}


def test_a_trajectory_of_one_step_by_hand():
    """One step, noise 0.5 everywhere, the player says 0.1 and the opponent 0: with a shared z its terms cancel, whatever z is.

    D/(h²·C·H·W) = [(0.5 − 0.1)² − 0.5²] − [0.1² − 0] = −0.09 − 0.01 = −0.1, so z = κ·β·0.1 = 2 at β = 40: loss = log(1 + e^−2).
    """
    latents, noise, t = torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    batch = PairBatch(latents, None, torch.zeros(1, 1), t, noise, noise, seeds=(0,))
    found = TrajectoryStep(Constant(0.1), Constant(0.0), 40.0, 1)(batch, lambda loss: loss.backward())
    assert found["z"].item() == pytest.approx(2.0, rel=1e-3)
    assert found["loss"].item() == pytest.approx(0.126928, rel=1e-3)
    assert found["implicit_accuracy"].item() == 1.0


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_its_gradient_is_that_of_one_graph_of_all_steps(prediction, low_memory):
    """Two of them in pieces, against trajectory_margins and trajectory_loss on means that autograd sees at once."""
    model, frozen = unet().double(), unet().double()
    with torch.no_grad():
        model.enter.weight += 0.01
    data = corpus(3, shapes=((4, 5, 3),))
    drawn = PairBatches(data, BucketOrder(data.shapes, 3, 0), 1000, 0, torch.device("cpu"))(0)
    names = ("real", "context", "noise_real", "noise_other")
    batch = PairBatch(**(vars(drawn) | {name: getattr(drawn, name).double() for name in names}))
    step = TrajectoryStep(Tiny(model, prediction), Tiny(frozen, prediction), 3.0, 5, True, low_memory)
    found = step(batch, lambda loss: loss.backward())
    with torch.no_grad():
        walked = list(step._walk(batch))
    context = torch.cat([batch.context, batch.context])

    def means(player):
        answers = [(w, noise_in(player, w.x_t, w.t, context)) for w in walked]
        abar = player.schedule.alpha**2
        return torch.stack([ddim_mean(abar, w.x_t, eps, w.t, w.prev_t, ETA) for w, eps in answers]).split(3, dim=1)

    drawn = torch.stack([w.x_prev for w in walked]).split(3, dim=1)
    margins = trajectory_margins(*means(step.policy), *means(step.reference), *drawn)
    beta_t = torch.tensor([w.beta for w in walked], dtype=torch.float64)
    loss, logits = trajectory_loss(margins, beta_t)
    torch.testing.assert_close(found["loss"], loss.detach())
    torch.testing.assert_close(found["z"], logits.mean().detach())
    weights = list(model.parameters())
    for ours, expected in zip([w.grad for w in weights], torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(ours, expected)
    assert trajectory_bound(margins, beta_t)[0] >= loss, "Jensen: the step loss is the bound"


@pytest.mark.parametrize("kind", PLAYERS)
def test_a_game_of_trajectories_starts_every_round_at_ln_2_and_draws_no_pictures(tmp_path, kind):
    calls, player = [], PLAYERS[kind](unet(), "v")
    game = run_game(tmp_path, player, rounds=2, calls=calls, changes=ALONG)
    assert [t.history[0].loss for t in game.rounds] == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert all(t.history[-1].metrics["drift"] > 0 for t in game.rounds) and calls == []
    again = PLAYERS[kind](unet(), "v")
    run_game(tmp_path / "again", again, rounds=2, changes=ALONG)
    assert again.opponent_hash() == player.opponent_hash()


def test_two_processes_draw_the_trajectories_that_one_would():
    """All processes drew the same noise, in every round."""
    data = corpus(4, shapes=((4, 5, 3),))

    def walked(rank, ranks, seed=0):
        order = BucketOrder(data.shapes, 4, 0)
        batch = PairBatches(data, order, 1000, seed, torch.device("cpu"), None, True, 0.0, rank, ranks)(0)
        model = unet()
        with torch.no_grad():
            steps = list(TrajectoryStep(Tiny(model), Tiny(model), 50.0, 3)._walk(batch))
        return torch.stack([step.x_prev[: len(batch.real)] for step in steps])

    one, first, second = walked(0, 1), walked(0, 2), walked(1, 2)
    torch.testing.assert_close(torch.cat([first, second], dim=1), one)
    assert not torch.equal(walked(0, 1, seed=1), one), "another round's seed"


def test_more_steps_than_lie_between_the_timesteps_are_refused():
    TrajectoryStep(Tiny(unet()), Tiny(unet()), 50.0, 999)
    with pytest.raises(ValueError, match="Set the opponent's steps to 999 at most"):
        TrajectoryStep(Tiny(unet()), Tiny(unet()), 50.0, 1000)


def test_a_player_learns_to_tell_trajectories_apart(tmp_path):
    asked = ALONG | {"steps": (30,), "beta": (5.0,)}
    history = run_game(tmp_path, PLAYERS["full"](unet()), changes=asked).rounds[0].history
    assert sum(report.metrics["z"] for report in history[-10:]) / 10 > 0.05


def test_flow_models_are_refused_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match=r"Choose SPIN as the loss in SPIN Options\.\n.*a flow model's draw none"):
        run_game(tmp_path, lora_player(unet(), "flow"), changes=ALONG)


def test_a_run_of_another_number_of_sampling_steps_is_not_gone_on_with(tmp_path):
    run_game(tmp_path, lora_player(unet()), changes=ALONG)
    with pytest.raises(ValueError, match="method was spin along 4 steps and is now spin"):
        run_game(tmp_path, lora_player(unet()))


@pytest.mark.parametrize("options", [{"margin_clamp": 1.0}, {"safeguard": 0.1}, {"sft_weight": 0.5}], ids=str)
def test_what_is_defined_step_by_step_is_refused(options):
    with pytest.raises(ValueError, match="in SPIN Options"):
        PairOptions(loss="trajectory", **options)
