"""The evidence's people, judges and intervals: what its conclusions stand on."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vico_spin.benchmarks.kept import held, save_arrays
from vico_spin.benchmarks.spin_documents import front, write_documents
from vico_spin.benchmarks.spin_evidence import (
    METHODS,
    SEARCH_SEED,
    Cell,
    Sizes,
    Study,
    parse_options,
    parts_of,
    searched,
)
from vico_spin.benchmarks.spin_judges import Choices, PreferenceModel, crossed_interval, preference, win
from vico_spin.benchmarks.spin_people import agreement, art_of, blurred, pairs, see, utility
from vico_spin.scripts.sprite_world_card import BASE
from vico_spin.sprite_world.pictures import chosen_pictures
from vico_spin.sprite_world.vocabulary import read_caption


def test_the_same_seed_gives_the_same_pairs_at_every_noise():
    """So that a change along the noise comes of the labels alone: pictures stay, some labels turn, and never back."""
    clean, some, more = (pairs("independent", 3, 24, noise) for noise in (0.0, 0.2, 0.4))
    turned = [
        [bool((a == b).all()) for a, b in zip(clean.winners, noisy.losers, strict=True)] for noisy in (some, more)
    ]
    assert clean.captions == some.captions == more.captions
    assert 0 < sum(turned[0]) < sum(turned[1]) < 24
    assert all(later for earlier, later in zip(*turned, strict=True) if earlier)


def test_people_choose_the_better_picture_without_noise():
    """Of independent pairs the winners are finer, more often on the prompt, and nearer to its scene."""
    chosen = pairs("independent", 0, 64, 0.0)
    winners, losers = see(chosen.winners, chosen.captions), see(chosen.losers, chosen.captions)
    assert (winners.mean(axis=0) > losers.mean(axis=0)).all()
    assert (utility(winners) > utility(losers)).mean() > 0.9


def test_a_stronger_model_draws_finer_than_the_base():
    """The base's mean taste is 0.7 (sprite_world/CARD.md): above it lie even the losers, of the other kind the winners alone."""
    stronger, little = (pairs(kind, 0, 64, 0.0) for kind in ("independent", "little-better"))
    tastes = [
        see(art, chosen.captions)[:, 0].mean()
        for chosen in (stronger, little)
        for art in (chosen.winners, chosen.losers)
    ]
    assert min(tastes[:3]) > 0.72 and tastes[3] < 0.7


def test_same_scene_pairs_differ_in_taste_alone():
    chosen = pairs("same-scene", 0, 16, 0.0)
    winners, losers = see(chosen.winners, chosen.captions), see(chosen.losers, chosen.captions)
    assert winners[:, 0].mean() > losers[:, 0].mean() + 0.5
    assert winners[:, 1].mean() == pytest.approx(losers[:, 1].mean(), abs=0.02)


def test_people_agree_about_as_often_as_those_of_pick_a_pic():
    """68% there. With one label in five wrong, two that would agree do so in 0.8² + 0.2² = 68% of the pairs."""
    as_meant, noisy = (agreement(noise, 300)["labels agree"] for noise in (0.0, 0.2))
    assert as_meant > 0.88
    assert noisy == pytest.approx(0.68 * as_meant + 0.32 * (1 - as_meant))


def test_blur_keeps_the_mean_colour_and_nothing_at_zero():
    art = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert (blurred(art, 0.0) == art).all()
    assert blurred(art, 0.4).std() < art.std()
    assert blurred(art, 0.4).mean() == pytest.approx(art.mean(), abs=1.0)


def test_the_interval_knows_that_seeds_differ():
    """Two training seeds that win every and no prompt say nothing about a third, however many prompts there are."""
    values = np.stack([np.ones(200), np.zeros(200)], axis=1)
    low, high = crossed_interval(values)
    assert (low, high) == (0.0, 1.0)


def test_the_interval_over_prompts_is_the_binomials_where_there_is_one_seed():
    """Half of 400 prompts won: 0.5 ± 1.96·√(0.25/400) = 0.5 ± 0.049."""
    low, high = crossed_interval(np.repeat([0.0, 1.0], 200)[:, None], 4000)
    assert low == pytest.approx(0.451, abs=0.006) and high == pytest.approx(0.549, abs=0.006)


def test_a_win_is_paired_by_prompt_and_seed_and_ties_count_half():
    """(1 + ½ + 0 + 1) / 4."""
    found = win(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([[1.0, 1.0], [1.0, 2.0]]))
    assert found["win"] == pytest.approx(0.625) and (found["prompts"], found["seeds"]) == (2, 2)


def test_the_preference_model_reads_both_towers():
    """Scores depend on the picture and on the caption, and an unknown word does not stop it."""
    torch.manual_seed(0)
    model = PreferenceModel(["a", "red", "crab", "blue"]).eval()
    art = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    red, blue = (preference(model, art, [caption] * 2) for caption in ("a red crab", "a blue crab"))
    assert red[0] != red[1] and red[0] != blue[0]
    assert np.isfinite(preference(model, art, ["a violet crab"] * 2)).all()


def test_choices_keep_caption_pictures_and_label_together():
    found = Choices(["x", "y", "z"], np.arange(3)[:, None], np.array([True, False, True])).at(np.array([2, 0]))
    assert (found.captions, found.art.ravel().tolist(), found.first.tolist()) == (["z", "x"], [2, 0], [True, True])


SIZES = Sizes(real=8, prompts=6, search_prompts=5, choices=260, rates=(1e-5, 1e-4, 3e-4))
THIRDS = 3


def drawn(prompts: list[str], taste: float, seed: int) -> np.ndarray:
    """Art [3, P, 32, 32, 3]: what a model that follows its prompts draws with this taste."""
    named = [{name: read_caption(prompt)[name] for name in ("class_word", "colour", "scene")} for prompt in prompts]
    pictures = [next(chosen_pictures(seed + i, **one, tastes=(taste, taste))) for i, one in enumerate(named)]
    return np.stack([art_of(pictures)] * THIRDS)


@pytest.fixture
def study(tmp_path):
    """A folder as a part of the work leaves it: DPO's best rate is the middle one, SPIN has one; two noises, two seeds."""
    study = Study(BASE, SIZES, tmp_path, tmp_path / "docs" / "results")

    def keep(file: str, prompts: list[str], taste: float, seed: int) -> None:
        save_arrays(tmp_path / file, {"art": drawn(prompts, taste, seed)})

    for seed in (SEARCH_SEED, 0, 1):
        keep(f"base-{seed}.npz", study.prompts_of(seed), 0.2, seed)
    for name, tastes in {"DPO": (0.4, 0.9, 0.1), "SPIN": (0.6,)}.items():
        for rate, taste in zip(SIZES.rates, tastes, strict=False):
            keep(searched("independent", name, rate, SIZES).file, study.search_prompts, taste, SEARCH_SEED)
        rate = study.rate("independent", name, make=False)
        for noise, seed in itertools.product((0.2, 0.4), (0, 1)):
            taste = max(tastes) if noise == 0.2 else 0.5
            keep(Cell("independent", noise, 8, name, rate, seed).file, study.prompts, taste, seed)
    return study


def test_the_rate_is_the_one_whose_pictures_are_worth_most(study):
    assert study.rate("independent", "DPO", make=False) == 1e-4
    assert study.rate("independent", "SPIN", make=False) == 1e-5
    assert study.rate("independent", "KTO", make=False) is None


def test_below_a_lowest_rate_that_is_the_best_halves_are_tried(study):
    """SPIN has one rate, 1e-5: finer pictures at half of it and crude ones at a quarter make the half its rate, and end the search."""
    for rate, taste in ((5e-6, 1.0), (2.5e-6, 0.0), (1.25e-6, 1.0)):
        art = drawn(study.search_prompts, taste, SEARCH_SEED)
        save_arrays(study.folder / searched("independent", "SPIN", rate, SIZES).file, {"art": art})
    assert list(study.search("independent", "SPIN", make=False)) == [2.5e-6, 5e-6, 1e-5]
    assert study.rate("independent", "SPIN", make=False) == 5e-6


def test_a_method_that_only_harms_is_not_halved_for_ever(study):
    """Each half of its rate is worth more than the last, as less and less is done."""
    for halving in range(1, 6):
        art = drawn(study.search_prompts, 0.6 + 0.08 * halving, SEARCH_SEED)
        save_arrays(study.folder / searched("independent", "SPIN", 1e-5 / 2**halving, SIZES).file, {"art": art})
    assert min(study.search("independent", "SPIN", make=False)) == 1.25e-6


def test_what_swings_is_kept_at_its_best_third(study, tmp_path):
    """SPIN's first round at 1e-4 draws finest of all and its second crudely: not its rate in the mean, and yet what is kept."""
    kept = [Cell("independent", 0.2, 8, "SPIN", 1e-4, seed, thirds=1) for seed in (0, 1)]
    for cell in (searched("independent", "SPIN", 1e-4, SIZES), *kept):
        swings = [drawn(study.prompts_of(cell.seed), taste, cell.seed)[0] for taste in (1.0, 0.0, 0.3)]
        save_arrays(study.folder / cell.file, {"art": np.stack(swings[: cell.thirds])})
    assert study.rate("independent", "SPIN", make=False) == 1e-5
    assert study.at_best("independent", 0.2, "SPIN", make=False) == (kept[0], 0)
    assert study.method(kept[0]).rounds == 1  # what comes after is not trained
    slower = "SPIN slowing down"
    slower = study.method(Cell("independent", 0.2, 8, slower, study.rate("independent", slower, make=False), 0))
    assert slower.rates == (1e-4, 2.5e-5)  # what is kept, and from there carefully
    cell, third = study.at_best("independent", 0.2, "DPO", make=False)
    assert (cell.rate, cell.thirds, third) == (1e-4, None, 0)  # of equal thirds the one of fewer steps
    found = write_documents(study, tmp_path / "docs")["independent"]["0.2"]
    assert found["SPIN over DPO round 1"]["taste"]["win"] < 0.1
    assert found["SPIN over DPO, each kept at its best"]["taste"]["win"] > 0.9
    assert "| SPIN (50 steps at 0.0001) |" in (tmp_path / "docs" / "spin_evidence.md").read_text()


def test_short_rounds_change_the_rounds_alone(study):
    """At SPIN's rate: three rounds of 16 steps where SPIN has one of 50, and no search of its own."""
    long, short = (
        study.method(Cell("independent", 0.2, 8, name, study.rate("independent", name, make=False), 0))
        for name in ("SPIN", "SPIN in short rounds")
    )
    assert (long.rounds, long.steps, short.rounds, short.steps) == (3, 50, 9, 16)
    assert replace(short, rounds=3, steps=50) == long


def test_without_a_part_named_the_whole_is_run():
    """What the documents show: each method where the labels are as in Pick-a-Pic, DPO and SPIN wherever labels and pairs differ."""
    whole = parts_of(parse_options([]))
    assert {(kind, noise) for part in whole for kind in part.pairs for noise in part.noises} == {
        *(("independent", noise) for noise in (0.0, 0.1, 0.2, 0.3, 0.4)),
        *(("same-scene", noise) for noise in (0.0, 0.2)),
    }
    assert set(METHODS) == {name for part in whole if part.noises == (0.2,) for name in part.methods}
    assert {noise for part in whole if part.kept_at_best for noise in part.noises} == {0.0, 0.1, 0.2, 0.3, 0.4}
    assert {real for part in whole for real in part.reals} == {16, 256}
    (named,) = parts_of(parse_options(["--methods", "DPO", "SPIN", "--seeds", "1"]))
    assert named.methods == ("DPO", "SPIN") and named.noises == (0.2,) and named.seeds == (1,) and not named.reals


def test_documents_show_what_the_folder_holds(study, tmp_path):
    """At noise 0.2 DPO's pictures are the finer ones by construction; methods and noises that were not run are left out."""
    found = write_documents(study, tmp_path / "docs")
    assert set(found["independent"]) == {"0.2", "0.4"} and found["same-scene"] == {}
    taste = found["independent"]["0.2"]["SPIN over DPO round 2"]["taste"]
    assert taste["win"] < 0.1 and taste["low"] <= taste["win"] <= taste["high"] and taste["seeds"] == 2
    assert json.loads((tmp_path / "docs" / "spin_evidence.json").read_text()) == found
    text = (tmp_path / "docs" / "spin_evidence.md").read_text()
    assert "SPIN above DPO from round 2, by taste: does not hold" in text and "KTO" not in text
    assert "SPIN over DPO round 2, by taste: open at 0.4; below at 0.2" in text
    assert "1e-05: " in text and "0.0003: " in text  # every rate that was tried
    for name in ("spin_front", "spin_crossover", "spin_evidence_pictures"):
        assert (tmp_path / "docs" / f"{name}.png").stat().st_size > 5000


def test_the_front_is_what_nothing_is_above_in_both():
    """(1, 2) is below (2, 3) in both; (3, 1) is the farthest along, (0, 4) the highest."""
    assert front([(1, 2), (3, 1), (2, 3), (0, 4)]) == [(0, 4), (2, 3), (3, 1)]


def test_what_judges_saw_is_enough_to_go_on_by_on_another_machine(study, tmp_path):
    """The pictures are gone: documents come out as before, and nothing is trained again. Every kind of pairs has its search."""
    docs = tmp_path / "docs"
    for name, taste in {"DPO": 0.4, "SPIN": 0.6}.items():
        for cell in (searched("same-scene", name, 1e-5, SIZES), Cell("same-scene", 0.2, 8, name, 1e-5, 0)):
            art = drawn(study.prompts_of(cell.seed), taste, cell.seed)
            save_arrays(study.folder / cell.file, {"art": art})
    found, text = write_documents(study, docs), (docs / "spin_evidence.md").read_text()
    assert found["same-scene"]
    pictures = (docs / "spin_evidence_pictures.png").read_bytes()
    elsewhere = Study(BASE, SIZES, tmp_path / "elsewhere", study.results)
    assert write_documents(elsewhere, docs) == found
    assert (docs / "spin_evidence.md").read_text() == text
    assert (docs / "spin_evidence_pictures.png").read_bytes() == pictures
    rate = elsewhere.rate("independent", "DPO", make=False)
    assert rate == 1e-4 and elsewhere.trained(Cell("independent", 0.2, 8, "DPO", rate, 1))
    assert not list(elsewhere.folder.glob("*.npz"))
    assert not elsewhere.is_there(Cell("independent", 0.2, 8, "DPO", rate, 2).file)


def test_the_preference_model_is_learnt_once(study, tmp_path):
    """Another training of the search is judged by it, and does not change what it says of the others."""
    write_documents(study, tmp_path / "docs")
    learnt = (study.results / "preference.safetensors").read_bytes()
    art = drawn(study.search_prompts, 0.9, SEARCH_SEED)
    save_arrays(study.folder / searched("independent", "KTO", 1e-5, SIZES).file, {"art": art})
    write_documents(Study(BASE, SIZES, study.folder, study.results), tmp_path / "docs")
    assert (study.results / "preference.safetensors").read_bytes() == learnt
    assert "trainings 4" in (tmp_path / "docs" / "spin_evidence.md").read_text()  # DPO's three rates, SPIN's one


def test_another_plan_does_not_go_on_in_the_folder(study):
    with pytest.raises(SystemExit, match="another plan"):
        Study(BASE, Sizes(real=9), study.folder, study.results)


def test_two_processes_do_not_make_the_same_training(tmp_path):
    with held(tmp_path / "cell", wait=False) as first, held(tmp_path / "cell", wait=False) as second:
        assert (first, second) == (True, False)
    with held(tmp_path / "cell", wait=False) as again:
        assert again
