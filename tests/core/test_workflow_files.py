"""The workflows as a person reads them: notes, prompts that the world knows, graphs that fit a screen."""

import json
import re
from pathlib import Path

import pytest

from vico_spin.scripts.workflow import set_input, to_api
from vico_spin.sprite_world.vocabulary import read_caption

WORKFLOWS = sorted((Path(__file__).resolve().parent.parent.parent / "workflows").glob("*.json"))
PROMPTS = {"text", "prompts", "preview_prompts", "captions"}
PLACEHOLDERS = "*%"
each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@each
def test_one_short_note_and_few_nodes(path):
    """A note that is longer than 60 words runs out of its box; the host draws its slider in one renderer alone."""
    nodes = load(path)["nodes"]
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert len(note.split()) <= 60 and len(nodes) <= 14
    assert "Nodes 2.0" in note or all(node["type"] != "ImageCompare" for node in nodes)


IN_THE_WORLD = [path for path in WORKFLOWS if '"SpriteWorldLoad"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", IN_THE_WORLD, ids=lambda path: path.stem)
def test_prompts_of_the_sprite_world_are_in_its_words(path):
    prompt = to_api(load(path)).values()
    texts = [node["inputs"].get(name) for node in prompt for name in PROMPTS]
    for line in [line for text in texts if isinstance(text, str) for line in text.splitlines()]:
        named = read_caption(line)
        assert named["scene"] and (named["class_word"] or any(sign in line for sign in PLACEHOLDERS)), line


def an_api_file() -> dict:
    """As a node developer's own may be: without titles, a float that the browser wrote as 1."""
    drawn = {"model": ["1", 0], "strength": 1, "add_noise": True, "seed": 3, "text": "a red crab"}
    return {"2": {"class_type": "Draw", "inputs": drawn}}


@pytest.mark.parametrize(
    "assignment, found",
    [
        ("2.strength=0.5", 0.5),
        ("Draw.strength=1e-3", 0.001),
        ("2.seed=7", 7),
        ("2.add_noise=No", False),
        ("2.text=a = b", "a = b"),
    ],
)
def test_a_widget_takes_a_value_of_its_kind(assignment, found):
    prompt = an_api_file()
    set_input(prompt, assignment)
    value = prompt["2"]["inputs"][assignment.partition("=")[0].partition(".")[2]]
    assert value == found and type(value) is type(found)


@pytest.mark.parametrize(
    "assignment, told",
    [
        ("2.strength=strong", '2.strength is 1 here, and "strong" is not of that kind'),
        ("2.add_noise=tru", '2.add_noise is True here, and "tru" is not of that kind'),
        ("2.model=x", 'no single "2.model" here. There are: Draw.strength, Draw.add_noise, Draw.seed, Draw.text.'),
    ],
)
def test_what_is_no_value_for_a_widget_is_said(assignment, told):
    prompt = an_api_file()
    with pytest.raises(ValueError, match=re.escape(told)):
        set_input(prompt, assignment)
    assert prompt == an_api_file()
