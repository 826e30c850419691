"""The measures on true renders: identity, caption's properties, taste, distance; each against the generator's truth."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from vico_spin.sprite_world.identity import identity
from vico_spin.sprite_world.measure import (
    accuracies,
    features,
    frechet_distance,
    identity_similarity,
    measure,
    read_pictures,
    recognition,
    to_art,
    told_from_twins,
)
from vico_spin.sprite_world.pictures import Picture, chosen_pictures, pictures, render, show
from vico_spin.sprite_world.scenes import ART, paint
from vico_spin.sprite_world.table import summary, table
from vico_spin.sprite_world.vocabulary import SCENES


@pytest.fixture(scope="module")
def held_out():
    """(pictures, their art) of identities and prompts that the classifier never saw."""
    drawn = list(islice(pictures(321, held_out=True), 150))
    return drawn, np.stack([render(picture)[0] for picture in drawn])


@pytest.mark.parametrize("name, least", [("class_word", 0.95), ("colour", 0.95), ("scene", 0.95), ("count", 0.95)])
def test_properties_of_held_out_renders_are_read(held_out, name, least):
    drawn, art = held_out
    right = [
        shown[name] == picture.properties()[name] for shown, picture in zip(read_pictures(art), drawn, strict=True)
    ]
    assert np.mean(right) >= least


def test_taste_of_held_out_renders_is_read(held_out):
    drawn, art = held_out
    read = np.array([shown["taste"] for shown in read_pictures(art)])
    truth = np.array([picture.taste for picture in drawn])
    assert np.corrcoef(read, truth)[0, 1] > 0.9
    assert np.abs(read - truth).mean() < 0.1


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("scene", ["snow", "brick", "lava"])
def test_a_creature_is_found_in_any_scene_at_any_size(size, scene):
    for i, position in enumerate(("left", "centre", "right")):
        who = identity(77 + i)
        art, _ = render(Picture(who, scene, position, size, 1, 1.0, seed=i))
        assert identity_similarity(art[None], who)[0] > 0.9


def test_another_creature_of_the_same_class_and_colour_is_told_apart():
    own, other = [], []
    for i, picture in enumerate(islice(pictures(8, held_out=True), 40)):
        art = render(picture)[0][None]
        own.append(identity_similarity(art, picture.who)[0])
        other.append(identity_similarity(art, identity(5000 + i, picture.who.class_word, picture.who.colour))[0])
    assert np.mean(own) > 0.9 and np.mean(own) > np.mean(other) + 0.2
    assert np.mean(np.array(own) > np.array(other)) > 0.95


def test_a_creature_is_recognised_among_others_of_its_class_and_colour():
    """1 for its own picture, nearly so where the drawing is crude and matches badly; no more than about a half for another's."""
    one = next(p for p in pictures(9, held_out=True) if p.count == 1)
    fine, crude = replace(one, taste=1.0), replace(one, taste=0.0)
    blurred = render(crude)[0][None] // 2 + 64
    assert recognition(render(fine)[0][None], fine.who)[0] == 1
    assert recognition(blurred, fine.who)[0] > 0.9 and identity_similarity(blurred, fine.who)[0] < 0.9
    others = [identity(7000 + i, fine.who.class_word, fine.who.colour) for i in range(12)]
    art = np.stack([render(replace(fine, who=other))[0] for other in others])
    assert recognition(art, fine.who).mean() < 0.6


def test_a_creature_is_told_from_its_twins_by_the_part_that_differs():
    """Its own picture by every part; that of a twin with other eyes by all parts but these; a plain one has no twin by an accent."""
    one = next(p for p in pictures(9, held_out=True) if p.count == 1)
    own = told_from_twins(render(replace(one, taste=1.0))[0][None], one.who)
    assert list(own) == ["marking", "shape", "eyes", "colour"] and all(told[0] == 1 for told in own.values())
    twin = replace(one.who, eyes=(one.who.eyes + 1) % 3)
    of_twin = told_from_twins(render(replace(one, who=twin, taste=1.0))[0][None], one.who)
    assert of_twin["eyes"][0] < 1 and of_twin["marking"][0] == of_twin["shape"][0] == 1
    plain = replace(one.who, marking="plain")
    assert told_from_twins(render(replace(one, who=plain, taste=1.0))[0][None], plain)["marking"][0] == 1


def test_empty_scenes_are_no_creature():
    rng = np.random.default_rng(0)
    empty = np.stack([paint(scene, rng) for scene in SCENES]).astype(np.uint8)
    assert identity_similarity(empty, identity(77, "rabbit", "purple")).max() < 0.6


def test_frechet_distance_of_two_gaussians_by_hand():
    """Means 3 apart in one of two axes, variances 1 and 4: 9 + (1 + 4 − 2·2) · 2 = 11."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200_000, 2))
    b = 2 * rng.standard_normal((200_000, 2)) + np.array([3.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(11, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_crude_renders_lie_farther_from_fine_ones_than_fine_from_fine():
    def drawn(seed, taste):
        return features(np.stack([render(p)[0] for p in islice(chosen_pictures(seed, tastes=(taste, taste)), 100)]))

    fine = drawn(1, 1.0)
    assert frechet_distance(drawn(2, 0.0), fine) > 2 * frechet_distance(drawn(2, 1.0), fine)


def test_shown_pictures_come_back_as_their_art(held_out):
    art = held_out[1][:4]
    assert np.array_equal(to_art(torch.from_numpy(show(art)).float() / 255), art)


def test_a_wrong_caption_is_marked_wrong_only_where_it_is():
    picture = next(chosen_pictures(3, "ghost", "blue", "grass"))
    art = render(picture)[0][None]
    assert all(measure(art, [picture.caption()])[0].follows.values())
    wrong = measure(art, ["a blue crab on grass" if picture.count == 1 else "two blue crabs on grass"])[0].follows
    assert wrong == {"class_word": False, "colour": True, "scene": True, "count": True}


def test_accuracies_are_shares_over_the_captions_that_name_a_property(held_out):
    _, art = held_out
    measured = measure(art[:3], ["a photo of * in snow"] * 3)
    assert set(accuracies(measured)) == {"scene"}


def test_table_and_summary_show_every_picture(held_out):
    drawn, art = held_out
    measured = measure(art[:3], [picture.caption() for picture in drawn[:3]], drawn[0].who)
    assert table(art[:3], measured).shape == (3 * 128, 4 * 128, 3)
    text = summary(measured, accuracies(measured))
    assert text.startswith("3 pictures") and "identity similarity" in text and "taste" in text
    assert ART == 32
