"""SPIN's workflows as they open, on the Sprite World: wired rightly, and run with fewer steps."""

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from vico_spin.scripts.workflow import set_input, to_api

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = {
    "KSampler": {"steps": 1},
    "SPINTrain": {"play.steps": 2, "play.learning_rate": 1e-2, "batch_size": 2},
    "ScoreCompareModels": {"steps": 1, "pictures": 1},
    "SPINTrainBaseline": {"steps": 2, "batch_size": 2},
    "SPINOpponent": {"steps": 1, "batch": 4},
    "ViCoSPINTrainingOptions": {"preview_every": 1},
    "SpriteWorldPictures": {"number": 4},
    "EmptyLatentImage": {"batch_size": 1},
}


pytestmark = pytest.mark.usefixtures("output")


def small(name):
    """The workflow in the API's form, with everything that takes time made small."""
    prompt = to_api(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    for node_id, node in prompt.items():
        for input_name, value in SMALL.get(node["class_type"], {}).items():
            set_input(prompt, f"{node_id}.{input_name}={value}")
    return prompt


def test_self_play_then_load_what_it_saved(host, output):
    host.run(small("spin_self_play"))
    saved = output / "spin" / "sprite_world_00001_.safetensors"
    with safe_open(saved, "pt") as file:
        assert file.metadata()["spin.round"] == "1"
    assert len(list(output.glob("spin_after_*.png"))) == len(list(output.glob("spin_before_*.png"))) == 1
    load = small("spin_load_checkpoint")
    set_input(load, f"SPINLoadCheckpoint.checkpoint=spin: {saved.name}")
    host.run(load)
    host.run(small("spin_load_checkpoint"))  # as it opens: the example that comes with the pack
    names = ("spin_base_00001_", "spin_after_00001_", "spin_loaded_00001_", "spin_loaded_00002_")
    base, after, loaded, example = (Image.open(output / f"{name}.png").tobytes() for name in names)
    assert loaded == after != base
    assert example not in (base, loaded)


def test_self_play_on_the_dit_changes_what_it_draws(host, output):
    """The twin on the Sprite World's transformer: a LoRA of attention alone, and other pictures after than before."""
    host.run(small("spin_self_play_dit"))
    with safe_open(output / "spin" / "sprite_dit_00001_.safetensors", "pt") as file:
        assert file.metadata()["spin.round"] == "1" and all("attention" in key for key in file.keys())  # noqa: SIM118
    before, after = (Image.open(output / f"spin_{when}_dit_00001_.png").tobytes() for when in ("before", "after"))
    assert before != after


def test_compare_draws_and_rates_all_four(host, output):
    host.run(small("spin_compare"))
    (folder,) = (output / "scores").iterdir()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"base", "SFT", "DPO", "SPIN"}
    assert (folder / "report.html").is_file()


def test_rounds_are_played_and_compared(host, output):
    prompt = small("spin_rounds")
    set_input(prompt, "SPINTrain.play.steps=2, 1")
    host.run(prompt)
    with safe_open(output / "spin" / "rounds_00001_.safetensors", "pt") as file:
        assert file.metadata()["spin.round"] == "2"


def test_votes_in_the_workflow_train_dpo_and_make_a_page(host, output):
    """Run once for the pairs; then with a vote on each, as the node in the browser writes them."""
    prompt = small("spin_vote_and_dpo")
    shown = host.run(prompt)
    (pairs,) = [ui["pairs"] for ui in shown.values() if "pairs" in ui]
    assert len(pairs) == 4 and not list(output.glob("spin/voted_*"))
    (vote,) = [node for node in prompt.values() if node["class_type"] == "SPINVote"]
    vote["inputs"]["votes"] = "\n".join(f"{pair['id']} first me" for pair in pairs)
    host.run(prompt)
    assert (
        len(list(output.glob("spin/voted_*.safetensors"))) == len(list(output.glob("scores/votes-*/report.html"))) == 1
    )
