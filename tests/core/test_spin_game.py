"""The self-play loop on a denoiser of a few hundred weights: everything that must hold whatever the model."""

import copy
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from vico_spin.spin_core.batches import BucketOrder, Corpus, PairBatch, PairBatches
from vico_spin.spin_core.game import Opponent, PairOptions, RoundSettings, Run, play, train_baseline
from vico_spin.spin_core.generation import Order, Pictures
from vico_spin.spin_core.players import FullPlayer, LoRAPlayer
from vico_spin.spin_core.steps import KtoStep, PairStep
from vico_spin.spin_core.store import TensorStore
from vico_spin.train_core import (
    HeldOut,
    LocalEngine,
    NoiseSchedule,
    best_step,
    find_layers,
    flow_sigmas,
    keyed_generator,
    scaled_linear_alphas_cumprod,
    weights_hash,
)
from vico_spin.train_core.schedule import ddim_mean, leading_timesteps

ALPHAS = scaled_linear_alphas_cumprod()
SCHEDULES = {
    "epsilon": NoiseSchedule.from_alphas_cumprod(ALPHAS),
    "v": NoiseSchedule.from_alphas_cumprod(ALPHAS),
    "flow": NoiseSchedule.from_flow_sigmas(flow_sigmas()),
}


class Interrupt(BaseException):
    """As ComfyUI's: no Exception."""


class TinyUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(4, 8, 3, padding=1)
        self.to_q = nn.Linear(6, 8)
        self.leave = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x, t, context):
        shift = self.to_q(context).mean(dim=1) + (t / 1000)[:, None]  # [B, 8]
        return self.leave(torch.nn.functional.silu(self.enter(x) + shift[:, :, None, None]))


class Tiny:
    """A Denoiser in three lines."""

    def __init__(self, model, prediction="epsilon"):
        self.model, self.prediction, self.schedule = model, prediction, SCHEDULES[prediction]

    def predict(self, x_t, t, context):
        return self.model(x_t, t, context)


def unet(seed=0):
    torch.manual_seed(seed)
    return TinyUNet()


def embed(prompts, shape=None):
    return torch.stack([torch.randn(3, 6, generator=keyed_generator("text", prompt)) for prompt in prompts])


def sampler_of(denoiser, calls=None):
    """Four DDIM steps. Noise by seed alone."""

    @torch.no_grad()
    def sample(prompts, seeds, shape):
        if calls is not None:
            calls.append(list(seeds))
        x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        for t, prev in zip(*leading_timesteps(4), strict=True):
            steps = t.expand(len(x))
            eps = denoiser.predict(x, steps, embed(prompts))
            x = ddim_mean(ALPHAS, x, eps, steps, prev.expand(len(x)), 0.0)
        return x

    return sample


def corpus(count=6, shapes=((4, 6, 4), (4, 4, 6)), rejected=False):
    sizes = [shapes[i % len(shapes)] for i in range(count)]

    def latent(side):
        return lambda i: 0.5 + torch.randn(sizes[i], generator=keyed_generator(side, i))

    return Corpus(
        [f"prompt {i}" for i in range(count)], sizes, latent("real"), embed, latent("rejected") if rejected else None
    )


def settings(**changes):
    return RoundSettings(
        **({"steps": (3,), "batch_size": 2, "lr": (1e-2,), "beta": (50.0,), "checkpoint_every": 0} | changes)
    )


def lora_player(model, prediction="epsilon", seed=0):
    model.requires_grad_(False)
    return LoRAPlayer(
        Tiny(model, prediction), model, weights_hash(model.state_dict()), find_layers(model, "."), 2, 2.0, seed
    )


def full_player(model, prediction="epsilon"):
    frozen = copy.deepcopy(model)
    return FullPlayer(Tiny(model, prediction), Tiny(frozen, prediction), model, frozen)


PLAYERS = {"lora": lora_player, "full": full_player}


def run_game(folder, player, rounds=1, data=None, calls=None, changes=None, engine=None, **kwargs):
    run = Run(data or corpus(), settings(**(changes or {})), engine or LocalEngine(), folder, **kwargs)
    opponent = player.reference if hasattr(player, "frozen") else player.policy
    with player.attached():
        return play(player, Opponent(sampler_of(opponent, calls), {"steps": 4}, batch_size=2), run, rounds)


@pytest.mark.parametrize("kind", PLAYERS)
@pytest.mark.parametrize("prediction", SCHEDULES)
def test_every_round_starts_at_ln_2(tmp_path, kind, prediction):
    """The player starts as its opponent: z = 0, softplus(0) = ln 2; half of the ties count as won."""
    game = run_game(tmp_path, PLAYERS[kind](unet(), prediction), rounds=3)
    for training in game.rounds:
        first = training.history[0].metrics
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert first["implicit_accuracy"] == 0.5 and first["drift"] == 0.0
        assert training.history[-1].metrics["drift"] > 0


@pytest.mark.parametrize("kind", PLAYERS)
def test_the_player_learns_to_tell_real_from_generated(tmp_path, kind):
    game = run_game(tmp_path, PLAYERS[kind](unet()), changes={"steps": (40,)})
    assert sum(report.loss for report in game.rounds[0].history[-10:]) / 10 < math.log(2) - 0.05


@pytest.mark.parametrize("kind", PLAYERS)
def test_the_opponents_weights_do_not_move_within_a_round(tmp_path, kind):
    player, hashes = PLAYERS[kind](unet()), []

    def note(progress):
        frozen = player.frozen if kind == "full" else player.model
        earlier = [] if kind == "full" else [weights_hash(a.state_dict()) for a in player.earlier]
        hashes.append((progress.round_number, weights_hash(frozen.state_dict()), *earlier))

    run_game(tmp_path, player, rounds=2, on_progress=note)
    assert len({h for h in hashes if h[0] == 1}) == 1
    assert len({h for h in hashes if h[0] == 2}) == 1


@pytest.mark.parametrize("kind", PLAYERS)
def test_round_2s_reference_is_round_1s_result(tmp_path, kind):
    x, t, context = torch.randn(2, 4, 5, 5), torch.tensor([3, 700]), embed(["a", "b"])
    first = PLAYERS[kind](unet())
    run_game(tmp_path / "one", first, rounds=1)
    answers = {}
    second = PLAYERS[kind](unet())

    def look(progress):
        if progress.phase == "train" and progress.round_number == 2:
            answers["reference"] = second.reference.predict(x, t, context)
            answers["player"] = second.policy.predict(x, t, context)

    run_game(tmp_path / "two", second, rounds=2, on_progress=look)
    result = first.frozen if kind == "full" else merged(unet(), first.lora_state_dict())
    torch.testing.assert_close(answers["reference"], result(x, t, context), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(answers["player"], answers["reference"])


def merged(model, state):
    """The model with an adapter in ComfyUI's naming added to its weights by hand."""
    with torch.no_grad():
        for name, module in model.named_modules():
            up = state.get(f"diffusion_model.{name}.lora_up.weight")
            if up is not None:
                down = state[f"diffusion_model.{name}.lora_down.weight"]
                scale = float(state[f"diffusion_model.{name}.alpha"]) / len(down)
                module.weight += scale * (up.flatten(1) @ down.flatten(1)).view_as(module.weight)
    return model


def test_lora_leaves_the_model_bit_identical_and_without_hooks(tmp_path):
    model = unet()
    before = weights_hash(model.state_dict())
    run_game(tmp_path, lora_player(model), rounds=2)
    assert weights_hash(model.state_dict()) == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", PLAYERS)
@pytest.mark.parametrize("stop_at", [("generate", 1, 2), ("train", 1, 2), ("generate", 2, 3), ("train", 2, 1)], ids=str)
def test_interrupt_and_resume_in_any_phase_equals_an_uninterrupted_run(tmp_path, kind, stop_at):
    whole = PLAYERS[kind](unet())
    expected = run_game(tmp_path / "whole", whole, rounds=2)

    def stop(progress):
        if (progress.phase, progress.round_number, progress.done) == stop_at:
            raise Interrupt

    parted = PLAYERS[kind](unet())
    stopped = run_game(tmp_path / "parted", parted, rounds=2, on_progress=stop, return_on=(Interrupt,))
    assert isinstance(stopped.stopped_by, Interrupt)
    resumed = PLAYERS[kind](unet())
    found = run_game(tmp_path / "parted", resumed, rounds=2)
    assert found.opponents == expected.opponents
    assert resumed.opponent_hash() == whole.opponent_hash()
    assert [r.metrics for t in found.rounds for r in t.history] == [
        r.metrics for t in expected.rounds for r in t.history
    ]


def test_an_interrupt_keeps_what_the_player_learnt(tmp_path):
    player, base_hash = lora_player(unet()), weights_hash(unet().state_dict())

    def stop(progress):
        if progress.phase == "train" and progress.report.step == 2:
            raise Interrupt

    game = run_game(tmp_path, player, on_progress=stop, return_on=(Interrupt,))
    assert game.rounds[0].step == 2
    assert player.opponent_hash() != base_hash and player.earlier[0].layers()["enter"].up.abs().sum() > 0


def test_pictures_are_reused_when_the_key_matches_and_only_then(tmp_path):
    calls = []
    run_game(tmp_path, lora_player(unet()), calls=calls)
    made = len(calls)
    (tmp_path / "round-1" / "result.safetensors").unlink()
    run_game(tmp_path, lora_player(unet()), calls=calls)
    assert len(calls) == made
    (tmp_path / "round-1" / "result.safetensors").unlink()
    for checkpoint in (tmp_path / "round-1").glob("step-*"):
        checkpoint.unlink()
    run_game(tmp_path, lora_player(unet(seed=1)), calls=calls)
    assert len(calls) == 2 * made


@pytest.mark.parametrize("change", ["prompt", "seed", "shape", "model", "sampler"])
def test_a_pictures_key_holds_all_that_it_is_made_from(tmp_path, change):
    values = {"prompt": "a", "seed": 1, "shape": (4, 4, 4), "model": "m", "sampler": {"cfg": 7.5}}
    other = values | {
        change: {"prompt": "b", "seed": 2, "shape": (4, 4, 8), "model": "n", "sampler": {"cfg": 1.0}}[change]
    }

    def key(v):
        return Pictures(TensorStore(tmp_path), v["model"], v["sampler"]).key(Order(v["prompt"], v["seed"], v["shape"]))

    assert key(values) != key(other)


def test_sharded_generation_makes_every_picture_once(tmp_path):
    calls, sample = [], sampler_of(Tiny(unet()))
    pictures = Pictures(TensorStore(tmp_path), "m", {})
    orders = [Order(f"p{i}", i, (4, 4, 4)) for i in range(7)]

    def counted(prompts, seeds, shape):
        calls.extend(seeds)
        return sample(prompts, seeds, shape)

    for rank in range(2):
        pictures.make(orders, counted, 2, process_index=rank, num_processes=2)
    assert sorted(calls) == list(range(7)) and all(pictures.key(order) in pictures.store for order in orders)


def test_prompts_that_cannot_share_a_forward_do_not_break_up_batches(tmp_path):
    """Long and short captions in turn: 4 batches of 2, not 8 forwards of 1."""
    batches, sample = [], sampler_of(Tiny(unet()))
    pictures = Pictures(TensorStore(tmp_path), "m", {})
    orders = [Order("a long caption" if i % 2 else "short", i, (4, 4, 4)) for i in range(8)]

    def counted(prompts, seeds, shape):
        batches.append(prompts)
        return sample(prompts, seeds, shape)

    pictures.make(orders, counted, 2, kind=len)
    assert sorted(batches) == [["a long caption"] * 2] * 2 + [["short"] * 2] * 2


def test_a_full_disk_in_generation_is_a_sentence(tmp_path):
    (tmp_path / "pictures").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"disk has room.\n.*could not be written"):
        run_game(tmp_path, lora_player(unet()))


def a_step(low_memory, share_noise=True, options=None):
    model = unet()
    with torch.no_grad():
        frozen = copy.deepcopy(model)
        model.enter.weight += 0.01
    data = corpus(4, shapes=((4, 5, 3),))
    batches = PairBatches(data, BucketOrder(data.shapes, 4, 0), 1000, 0, torch.device("cpu"), data.real, share_noise)
    models, options = (Tiny(model), Tiny(frozen), 200.0), options or PairOptions()
    kto = options.loss == "kto"
    step = KtoStep(*models, 0.3, low_memory) if kto else PairStep(*models, options, low_memory)
    metrics = step(batches(0), lambda loss: loss.backward())
    return metrics, [p.grad for p in model.parameters()]


@pytest.mark.parametrize(
    "options",
    [PairOptions(), PairOptions(2.0, 0.2, 0.3), PairOptions(loss="seppo"), PairOptions(loss="kto")],
    ids=["plain", "all options", "seppo", "kto"],
)
def test_low_memory_split_equals_the_plain_step(options):
    plain, split = a_step(False, options=options), a_step(True, options=options)
    for name, value in plain[0].items():
        torch.testing.assert_close(split[0][name], value, rtol=1e-5, atol=1e-6)
    for found, expected in zip(split[1], plain[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-6)


def pair_batches(count=9, batch_size=4, rank=0, ranks=1, **options):
    data = corpus(count)
    order = BucketOrder(data.shapes, batch_size, seed=3)

    def black(i):
        return torch.zeros(data.shapes[i])

    return PairBatches(
        data, order, 1000, 3, torch.device("cpu"), black, process_index=rank, num_processes=ranks, **options
    )


def test_two_processes_draw_what_one_would():
    one, first, second = pair_batches(), pair_batches(rank=0, ranks=2), pair_batches(rank=1, ranks=2)
    for index in range(5):
        for name in ("real", "other", "context", "t", "noise_real", "noise_other"):
            halves = torch.cat([getattr(batches(index), name) for batches in (first, second)])
            assert torch.equal(getattr(one(index), name), halves)


def test_batches_have_one_shape_and_cover_every_sample():
    order = BucketOrder(corpus(9).shapes, 4, seed=3)
    epoch = [order.batch(i) for i in range(order.batches_per_epoch)]
    assert all(len({corpus(9).shapes[i] for i in batch}) == 1 for batch in epoch)
    assert {i for batch in epoch for i in batch} == set(range(9))
    assert epoch != [order.batch(i + order.batches_per_epoch) for i in range(order.batches_per_epoch)]


def test_noise_is_shared_unless_asked_otherwise():
    assert torch.equal(pair_batches()(0).noise_real, pair_batches()(0).noise_other)
    apart = pair_batches(share_noise=False)(0)
    assert not torch.equal(apart.noise_real, apart.noise_other)


def test_captions_are_dropped_for_the_whole_pair():
    """One context serves both sides: a dropped caption is dropped on both."""
    empty = embed([""])[0]
    dropped = sum(int(torch.equal(c, empty)) for i in range(50) for c in pair_batches(caption_dropout=0.5)(i).context)
    assert 60 < dropped < 140


def test_supervised_fine_tuning_lowers_the_real_error(tmp_path):
    player = full_player(unet())
    with player.attached():
        run = Run(corpus(), settings(steps=(60,), lr=(3e-3,)), LocalEngine(), tmp_path)
        history = train_baseline(player, run, "sft").rounds[0].history
    assert sum(r.loss for r in history[-10:]) < 0.9 * sum(r.loss for r in history[:10])


def test_dpo_keeps_its_reference_and_prefers_the_preferred(tmp_path):
    player = lora_player(unet())
    with player.attached():
        run = Run(corpus(rejected=True), settings(steps=(30,)), LocalEngine(), tmp_path)
        history = train_baseline(player, run, "dpo").rounds[0].history
    assert history[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert history[-1].metrics["error_reference_real"] > 0 and history[-1].metrics["drift"] > 0


class Constant:
    """Predicts one number everywhere."""

    prediction, schedule = "epsilon", SCHEDULES["epsilon"]

    def __init__(self, value: float):
        self.value = torch.tensor(value, requires_grad=True)

    def predict(self, x_t, t, context):
        return self.value.expand(x_t.shape)


def test_ktos_gradient_by_hand():
    """With e = mean (p - eps)² at p = 0 all gains are 0: loss 1 - sigma(0) = 1/2, slope -beta/4·(m_liked - m_disliked).

    From U' = 1/4 at 0, a half for the mean of both sides, and g' = beta·2·mean(eps) on each.
    """
    wanted, unwanted = torch.full((3, 4, 2, 2), 0.5), torch.full((3, 4, 2, 2), 0.2)
    latents, t, policy = torch.zeros_like(wanted), torch.full((3,), 500), Constant(0.0)
    batch = PairBatch(latents, latents, torch.zeros(3, 1), t, wanted, unwanted)
    found = KtoStep(policy, Constant(0.0), 4.0)(batch, lambda loss: loss.backward())
    assert found["loss"].item() == pytest.approx(0.5)
    assert policy.value.grad.item() == pytest.approx(-4.0 / 4 * (0.5 - 0.2))


@pytest.mark.parametrize("low_memory", [False, True])
def test_kto_learns_from_thumbs_without_pairs(tmp_path, low_memory):
    """Liked pictures lie above 0, disliked ones below: after training the liked ones' error has fallen more."""
    plain, liked = corpus(6, shapes=((4, 5, 3),)), [True, False, False, True, False, True]
    shifted = replace(plain, real=lambda i: plain.real(i) + (1.0 if liked[i] else -2.0), liked=liked.__getitem__)
    player = full_player(unet())
    asked = settings(steps=(40,), batch_size=4, lr=(3e-3,), beta=(20.0,), low_memory=low_memory)
    with player.attached():
        history = train_baseline(player, Run(shifted, asked, LocalEngine(), tmp_path), "kto").rounds[0].history
    assert history[0].loss == 0.5 and sum(report.loss for report in history[-10:]) / 10 < 0.45
    told = [report.metrics["implicit_accuracy"] for report in history[-10:]]
    assert sum(told) / 10 > 0.6


def test_dpo_without_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Take a data set with preference pairs"):
        train_baseline(lora_player(unet()), Run(corpus(), settings(), LocalEngine(), tmp_path), "dpo")


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["beta", "lr"])
def test_numbers_that_are_none_are_refused(name, value):
    """0 is what a decimal comma gives: "0,0001" reads as 0 for round 1 and 1 for round 2."""
    with pytest.raises(ValueError, match=r"Set .* above 0"):
        RoundSettings(**{name: (2000.0, value)})


def test_a_damaged_picture_counts_as_absent_and_a_cut_result_is_played_again(tmp_path, caplog):
    """Each blocked the run for ever; now it comes to the same bits as before."""
    first, second = lora_player(unet()), lora_player(unet())
    run_game(tmp_path, first)
    for file in (next((tmp_path / "pictures").rglob("*.safetensors")), tmp_path / "round-1" / "result.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    run_game(tmp_path, second)
    assert "result.safetensors" in caplog.text and "round 1 is played again" in caplog.text
    assert second.opponent_hash() == first.opponent_hash()


def test_values_per_round_stay_at_the_last_one(tmp_path):
    game = run_game(tmp_path, lora_player(unet()), rounds=3, changes={"lr": (1e-2, 1e-3)})
    assert [training.history[-1].lr for training in game.rounds] == [1e-2, 1e-3, 1e-3]


def test_a_finished_round_of_other_settings_is_not_taken(tmp_path):
    run_game(tmp_path, lora_player(unet()))
    with pytest.raises(ValueError, match=r"beta was 50.0 and is now 60.0"):
        run_game(tmp_path, lora_player(unet()), changes={"beta": (60.0,)})


def played(folder, kind="lora", rounds=1, earlier=(), **changes):
    """(the opponents' hash at the end, every step's numbers) of a game in that folder."""
    player = PLAYERS[kind](unet())
    game = run_game(folder, player, rounds, changes=changes, earlier=tuple(earlier))
    return player.opponent_hash(), [r.metrics for t in game.rounds for r in t.history]


@pytest.mark.parametrize("kind", PLAYERS)
def test_a_finished_run_is_extended_by_steps_and_by_rounds_to_the_bit(tmp_path, kind):
    """In its own folder, or in another that begins where it ended: as if all of it had been asked for at once."""
    played(tmp_path / "a", kind, steps=(3,))
    longer = played(tmp_path / "whole", kind, rounds=2, steps=(5, 4))
    assert played(tmp_path / "a", kind, steps=(5,)) == played(tmp_path / "whole", kind, steps=(5, 4))
    assert played(tmp_path / "a", kind, rounds=2, steps=(5, 4)) == longer
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    told = []
    again = PLAYERS[kind](unet())
    run_game(
        tmp_path / "b",
        again,
        2,
        changes={"steps": (5, 6)},
        earlier=(tmp_path / "a", tmp_path / "gone"),
        pictures=tmp_path / "a" / "pictures",
        on_progress=lambda progress: told.append((progress.round_number, progress.done)) if progress.report else None,
    )
    assert told == [(2, 5), (2, 6)]
    assert again.opponent_hash() == played(tmp_path / "fresh", kind, rounds=2, steps=(5, 6))[0]
    assert kept == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*") if p in kept}


def test_what_cannot_be_extended_is_said_before_it_is_touched(tmp_path):
    played(tmp_path / "a", rounds=2, steps=(3,))
    with pytest.raises(
        ValueError, match=r"Set steps to 3, or name another run.\nRound 1 .* only the last round can go on"
    ):
        played(tmp_path / "a", rounds=2, steps=(4, 3))
    with pytest.raises(ValueError, match=r"Set steps to 3.*\n.* and 2 are asked for"):
        played(tmp_path / "a", steps=(2,))
    played(tmp_path / "b", steps=(3,), decay="linear")
    with pytest.raises(ValueError, match="steps was 3 and is now 4"):
        played(tmp_path / "b", steps=(4,), decay="linear")
    assert played(tmp_path / "a", rounds=2, steps=(3,)) == played(tmp_path / "c", rounds=2, steps=(3,))


def test_a_stopped_round_is_not_made_shorter(tmp_path):
    def stop(progress):
        if progress.report and progress.report.step == 2:
            raise Interrupt

    run_game(tmp_path, lora_player(unet()), on_progress=stop, return_on=(Interrupt,))
    with pytest.raises(ValueError, match=r"Set steps to 2 or more.*\n.* and 1 are asked for"):
        played(tmp_path, steps=(1,))


def test_a_run_of_another_kind_is_not_taken(tmp_path):
    run_game(tmp_path, lora_player(unet()))
    with pytest.raises(ValueError, match=r"player was LoRA of rank 2.* and is now all weights"):
        run_game(tmp_path, full_player(unet()))
    player = lora_player(unet())
    with player.attached(), pytest.raises(ValueError, match="method was spin and is now sft"):
        train_baseline(player, Run(corpus(), settings(), LocalEngine(), tmp_path), "sft")


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'picture for "a cat" .seed 3. is missing'):
        Pictures(TensorStore(tmp_path), "m", {}).latent(Order("a cat", 3, (4, 4, 4)))


def moved(player):
    """How far the player is from its opponent: the mean change of a weight, of a LoRA's `up`, which starts at 0."""
    result = player.result()
    if hasattr(player, "frozen"):
        start = player.frozen.state_dict()
        return torch.cat([(result[name] - start[name]).flatten() for name in result]).abs().mean().item()
    return torch.cat([t.flatten() for name, t in result.items() if "lora_up" in name]).abs().mean().item()


def by_weights(player, patience=0, on_score=lambda: None):
    """A score every second step, a pure function of what was learnt: the player is best about four steps away."""

    def score():
        on_score()
        return -abs(moved(player) - 0.026)

    return HeldOut(score, 2, patience, {"scorer": "by weights"})


def scored_game(folder, kind, rounds=1, patience=0, changes=(), on_score=lambda: None, **kwargs):
    player = PLAYERS[kind](unet())
    held_out = by_weights(player, patience, on_score)
    game = run_game(folder, player, rounds, changes={"steps": (8,)} | dict(changes), held_out=held_out, **kwargs)
    return player, game


@pytest.mark.parametrize("kind", PLAYERS)
def test_a_round_comes_to_its_best_step_and_the_next_one_starts_there(tmp_path, kind):
    """As if as many steps had been asked for: the rate is constant. Both are kept, and either can be chosen afterwards."""
    last, game = scored_game(tmp_path / "last", kind)
    best = best_step(game.rounds[0].history)
    assert best < 8
    assert last.opponent_hash() == played(tmp_path / "plain", kind, steps=(8,))[0]
    told = []
    chosen, _ = scored_game(tmp_path / "last", kind, keep_best=True, on_progress=lambda p: told.append(p.report))
    assert not any(told), "nothing is trained again"
    again, two = scored_game(tmp_path / "two", kind, rounds=2, keep_best=True, earlier=(tmp_path / "last",))
    short = played(tmp_path / "short", kind, steps=(best,))[0]
    assert chosen.opponent_hash() == two.opponents[1] == short
    assert best_step(two.rounds[1].history) and again.opponent_hash() != short


@pytest.mark.parametrize("kind", PLAYERS)
def test_a_round_ends_when_its_score_no_longer_rises_and_can_go_on(tmp_path, kind):
    for _ in range(2):  # the second time it is done already
        _, ended = scored_game(tmp_path / "ended", kind, patience=2, changes={"steps": (40,)})
        history = ended.rounds[0].history
        assert len(history) == best_step(history) + 2 * 2 < 40
    on, game = scored_game(tmp_path / "ended", kind, changes={"steps": (40,)})
    assert len(game.rounds[0].history) == 40
    assert on.opponent_hash() == played(tmp_path / "plain", kind, steps=(40,))[0]


@pytest.mark.parametrize("kind", PLAYERS)
def test_a_round_that_only_harms_changes_nothing_and_the_next_one_starts_where_it_did(tmp_path, kind):
    """Better the nearer to the model that it began with. A second run finds both rounds done."""
    for _ in range(2):
        player, start = PLAYERS[kind](unet()), unet().state_dict()
        held_out = HeldOut(lambda p=player: -moved(p), 2, 0, {"scorer": "stay"}, from_start=True)
        game = run_game(tmp_path, player, 2, changes={"steps": (4,)}, held_out=held_out, keep_best=True)
        assert [(training.step, best_step(training.history)) for training in game.rounds] == [(4, 0), (4, 0)]
        if kind == "full":
            assert all(torch.equal(tensor, start[name]) for name, tensor in player.result().items())
        else:
            ups = [tensor for name, tensor in player.lora_state_dict().items() if "lora_up" in name]
            assert ups and not any(tensor.any() for tensor in ups)


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_a_scored_game_that_was_stopped_while_it_drew_a_preview_goes_on_to_the_same(tmp_path, stop_at):
    asked = {"rounds": 2, "keep_best": True, "patience": 2, "changes": {"steps": (8,), "checkpoint_every": 3}}
    whole, expected = scored_game(tmp_path / "whole", "lora", **asked)
    scored = []

    def stop():
        scored.append(1)
        if len(scored) == stop_at:
            raise Interrupt

    scored_game(tmp_path / "parted", "lora", on_score=stop, return_on=(Interrupt,), **asked)
    resumed, found = scored_game(tmp_path / "parted", "lora", **asked)
    assert resumed.opponent_hash() == whole.opponent_hash() and found.opponents == expected.opponents
    assert [r.metrics for t in found.rounds for r in t.history] == [
        r.metrics for t in expected.rounds for r in t.history
    ]


def test_scores_of_another_scorer_are_not_gone_on_with(tmp_path):
    scored_game(tmp_path, "lora")
    with pytest.raises(ValueError, match="held_out was"):
        run_game(tmp_path, lora_player(unet()), changes={"steps": (8,)}, held_out=HeldOut(lambda: 0.0, 4))


KILLED = """
import sys
sys.path[:0] = {path!r}
from test_spin_game import *
say = lambda p: print(p.phase, p.round_number, p.done, flush=True)
player = lora_player(unet())
scored = {{"held_out": by_weights(player, 2), "keep_best": True}} if {scored!r} else {{}}
run_game({folder!r}, player, rounds=2, changes={changes!r}, on_progress=say, **scored)
"""


@pytest.mark.parametrize("until, scored", [("generate 2 2", False), ("train 1 7", True)])
def test_kill_9_in_any_phase_then_resume_gives_the_same_bits(tmp_path, until, scored):
    here, changes = os.path.dirname(__file__), {"steps": (8,), "checkpoint_every": 3 if scored else 1}
    path = [here, os.path.dirname(os.path.dirname(here))]
    code = KILLED.format(path=path, folder=str(tmp_path / "killed"), changes=changes, scored=scored)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while child.stdout.readline().strip() != until:
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    whole, resumed = lora_player(unet()), lora_player(unet())
    asked = [{"held_out": by_weights(p, 2), "keep_best": True} if scored else {} for p in (whole, resumed)]
    expected = run_game(tmp_path / "whole", whole, rounds=2, changes=changes, **asked[0])
    found = run_game(tmp_path / "killed", resumed, rounds=2, changes=changes, **asked[1])
    assert resumed.opponent_hash() == whole.opponent_hash()
    assert [r.metrics for t in found.rounds for r in t.history] == [
        r.metrics for t in expected.rounds for r in t.history
    ]


@pytest.mark.parametrize("change", ["sampler", "precision", "text", "process"])
def test_what_the_opponent_draws_with_makes_another_run(tmp_path, change):
    """The finished run of the other opponent, or of the other precision, came out."""

    def run_with(folder, changed, earlier=()):
        calls, player = [], lora_player(unet())
        is_changed = changed and change
        data = replace(corpus(), text_hash=str(is_changed == "text"), fingerprint=str(is_changed == "text"))
        engine = LocalEngine(mixed_precision="bf16" if is_changed == "precision" else "no")
        run = Run(data, settings(), engine, folder, earlier=tuple(earlier), process=str(is_changed == "process"))
        sampler = {"steps": 4, "cfg": 1.0 if is_changed == "sampler" else 7.5}
        with player.attached():
            play(
                player,
                Opponent(sampler_of(player.policy, calls), sampler, batch_size=2),
                replace(run, pictures=tmp_path),
                1,
            )
        return player.opponent_hash(), len(calls)

    _, drawn = run_with(tmp_path / "a", False)
    assert drawn == 4 and run_with(tmp_path / "a", False)[1] == 0
    with pytest.raises(ValueError, match="belongs to another run"):
        run_with(tmp_path / "a", True)
    found = run_with(tmp_path / "b", True, [tmp_path / "a"])
    assert found[1] == (0 if change == "precision" else drawn)
    assert found[0] == run_with(tmp_path / "c", True)[0]


def test_fp16_learns_in_its_second_round_as_in_a_process_of_its_own(tmp_path):
    """The first round's optimiser unscaled the second's gradients once more."""
    changes = {"lr": (1e-4,)}
    whole = run_game(
        tmp_path / "a", full_player(unet()), 2, changes=changes, engine=LocalEngine(mixed_precision="fp16")
    )
    run_game(tmp_path / "b", full_player(unet()), 1, changes=changes, engine=LocalEngine(mixed_precision="fp16"))
    again = run_game(
        tmp_path / "b", full_player(unet()), 2, changes=changes, engine=LocalEngine(mixed_precision="fp16")
    )
    norms, apart = ([report.grad_norm for report in game.rounds[1].history] for game in (whole, again))
    assert norms == apart
