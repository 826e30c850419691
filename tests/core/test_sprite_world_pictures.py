"""The generator: deterministic by seed, held-out sets kept apart, captions that can be read back."""

from itertools import islice

import numpy as np
import pytest

from vico_spin.sprite_world.identity import identity, is_held_out
from vico_spin.sprite_world.pictures import (
    chosen_pictures,
    evaluation_prompts,
    is_held_out_pair,
    is_held_out_prompt,
    pictures,
    render,
    show,
)
from vico_spin.sprite_world.sprites import SIDES, draw
from vico_spin.sprite_world.vocabulary import CLASSES, COLOURS, SCENES, caption, random_caption, read_caption


def first(stream, number):
    return list(islice(stream, number))


def test_same_seed_draws_same_pictures():
    a, b = first(pictures(5), 8), first(pictures(5), 8)
    assert a == b
    assert all(np.array_equal(render(x)[0], render(y)[0]) for x, y in zip(a, b, strict=True))
    assert a != first(pictures(6), 8)


def test_training_and_held_out_streams_share_no_identity_and_no_prompt():
    for held_out in (False, True):
        for picture in first(pictures(1, held_out), 60):
            assert is_held_out(picture.who.seed) == held_out
            assert is_held_out_prompt(picture.who.class_word, picture.who.colour, picture.scene) == held_out


def test_every_class_has_one_held_out_scene():
    for class_word in CLASSES:
        assert sum(is_held_out_pair(class_word, scene) for scene in SCENES) == 1


def test_evaluation_prompts_are_fixed_and_held_out():
    prompts = evaluation_prompts()
    assert len(prompts) == 500 and prompts == evaluation_prompts()
    for named in map(read_caption, prompts):
        assert is_held_out_prompt(named["class_word"], named["colour"], named["scene"])


@pytest.mark.parametrize("class_word", CLASSES)
@pytest.mark.parametrize("size", SIDES)
def test_creatures_are_mirror_symmetric(class_word, size):
    colours, cover = draw(identity(11, class_word), SIDES[size], taste=0.6)
    assert np.array_equal(cover, cover[:, ::-1])
    assert np.array_equal(colours, colours[:, ::-1])


def test_an_identity_is_the_same_wherever_it_is_drawn_and_others_differ():
    seeds = range(200)
    drawn = {draw(identity(seed, "crab", "red"), 22)[0].tobytes() for seed in seeds}
    assert identity(3) == identity(3)
    assert len(drawn) == len(seeds)


def test_taste_raises_contrast_and_clears_clutter():
    """The same picture at taste 0 and 1: pixels spread 0.6 as far from grey, and specks appear."""
    crude, fine = (next(chosen_pictures(4, "ghost", "blue", "grass", tastes=(t, t))) for t in (0.0, 1.0))
    assert crude.seed == fine.seed and crude.who == fine.who
    assert render(crude)[0].std() < 0.8 * render(fine)[0].std()


def test_mask_covers_the_creature_and_only_part_of_the_picture():
    for picture in first(pictures(2), 20):
        _, mask = render(picture)
        assert 0.05 < mask.mean() < 0.6


def test_shown_pictures_repeat_each_art_pixel_four_by_four():
    art = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    assert show(art).shape == (128, 128, 3)
    assert np.array_equal(show(art)[::4, ::4], art) and np.array_equal(show(art)[3::4, 3::4], art)


def test_chosen_pictures_hold_what_is_given():
    for picture in first(chosen_pictures(0, "robot", "pink", "lava", identity_seed=9, tastes=(0.2, 0.4)), 10):
        assert (picture.who.class_word, picture.who.colour, picture.scene, picture.who.seed) == (
            "robot",
            "pink",
            "lava",
            9,
        )
        assert 0.2 <= picture.taste <= 0.4
    large = first(chosen_pictures(0, size="large"), 10)
    assert {picture.size for picture in large} == {"large"} and {picture.count for picture in large} == {1}


@pytest.mark.parametrize(
    "text, named",
    [
        ("a red crab on sand", {"class_word": "crab", "colour": "red", "scene": "sand", "count": 1}),
        ("a photo of two blue butterflies at night", {"class_word": "butterfly", "colour": "blue", "count": 2}),
        ("a large pink cactus on the left by a brick wall", {"size": "large", "position": "left", "scene": "brick"}),
        ("a photo of * in snow", {"class_word": None, "colour": None, "scene": "snow", "count": None}),
        ("", {"class_word": None, "scene": None}),
    ],
)
def test_captions_are_read_back(text, named):
    read = read_caption(text)
    assert {name: read[name] for name in named} == named


def test_random_captions_say_only_what_the_picture_shows():
    rng = np.random.default_rng(0)
    for picture in first(pictures(3), 50):
        truth, named = picture.properties(), read_caption(random_caption(rng, picture.properties()))
        assert all(value is None or value == truth[name] for name, value in named.items())
        assert named["class_word"] and named["colour"] and named["scene"]


def test_every_colour_and_plural_makes_a_caption():
    assert caption("cactus", "white", "lava", count=2) == "two white cacti on lava"
    assert {read_caption(caption("crab", c, "water"))["colour"] for c in COLOURS} == set(COLOURS)
