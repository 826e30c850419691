"""The workflows as a person reads them: notes, prompts that the world knows, graphs that fit a screen."""

import json
from pathlib import Path

import pytest

from vico_spin.scripts.workflow import to_api
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
