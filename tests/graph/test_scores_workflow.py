"""The workflow that ships, on Sprite World in the real host, with fewer prompts and steps: it ends in a report page."""

import json
from pathlib import Path

from vico_spin.scripts.workflow import to_api

WORKFLOW = Path(__file__).parent.parent.parent / "workflows" / "which_model_is_better.json"
PROMPTS = ["a red crab on sand", "two blue ghosts at night"]
SIDES = ("first", "second")


def test_which_model_is_better_ends_in_a_page(host, output):
    """2 models × 2 prompts × 1 picture, by two scorers: 8 numbers, and the page that shows the 4 pictures."""
    prompt = to_api(json.loads(WORKFLOW.read_text("utf-8")))
    (compare,) = [node for node in prompt.values() if node["class_type"] == "ScoreCompareModels"]
    compare["inputs"] |= {"prompts": "\n".join(PROMPTS), "pictures": 1, "steps": 2}
    shown = host.run(prompt)
    (slider,) = [ui["compared"][0] for ui in shown.values() if "compared" in ui]
    assert slider["names"] == ["plain", "rescaled"] and [pair["prompt"] for pair in slider["pairs"]] == PROMPTS
    places = [output / pair[side]["subfolder"] / pair[side]["filename"] for pair in slider["pairs"] for side in SIDES]
    assert [path.parent.name for path in places] == ["plain", "rescaled"] * 2 and all(map(Path.is_file, places))
    (folder,) = (output / "scores").iterdir()
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 8 and {row["scorer"] for row in rows} == {"Sprite World taste", "Sprite World prompt"}
    assert all(0 <= row["score"] <= 1 for row in rows) and {row["model"] for row in rows} == {"plain", "rescaled"}
    assert (folder / "report.html").read_text("utf-8").count("data:image/webp") == 4


def test_sprite_worlds_scorers_know_its_own_pictures(call):
    """True renders: fine ones have more taste than crude ones, and all follow their own captions, not another's."""
    taste, _ = call("ScoreLoadScorer", scorer="Sprite World taste", file="automatic")
    follows, about = call("ScoreLoadScorer", scorer="Sprite World prompt", file="automatic")
    drawn = {"number": 12, "creature": "any", "colour": "any", "scene": "any", "identity": -1, "seed": 4, "size": "any"}
    numbers = {}
    for fine in (0.0, 1.0):
        pictures, _, captions, _ = call("SpriteWorldPictures", **drawn, taste_from=fine, taste_to=fine)
        _, _, scores = call("ScorePictures", scorer=taste, pictures=pictures, prompts="", best=1)
        numbers[fine] = sum(json.loads(scores)["scores"]) / 12
    own = json.loads(call("ScorePictures", scorer=follows, pictures=pictures, prompts=captions, best=1)[2])["scores"]
    lines = captions.splitlines()
    others = "\n".join([*lines[1:], lines[0]])
    strange = json.loads(call("ScorePictures", scorer=follows, pictures=pictures, prompts=others, best=1)[2])["scores"]
    assert numbers[1.0] > numbers[0.0] + 0.5 and sum(own) / 12 > 0.9 > sum(strange) / 12
    assert json.loads(about)["checkpoints"][0]["file"] == "classifier.safetensors"
