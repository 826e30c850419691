"""SPIN's workflows as they open, on the Sprite World: wired rightly, and run with fewer steps."""

import json
from pathlib import Path

import folder_paths
import pytest
from PIL import Image
from safetensors import safe_open

from vico_spin.scripts.workflow import set_input, to_api

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = {
    "KSampler": {"steps": 1},
    "SPINTrain": {"play.steps": 2, "play.learning_rate": 1e-2, "batch_size": 2},
    "SPINTrainBaseline": {"steps": 2, "batch_size": 2},
    "SPINOpponent": {"steps": 1, "batch": 4},
    "ViCoSPINTrainingOptions": {"preview_every": 1},
    "SpriteWorldPictures": {"number": 4},
    "EmptyLatentImage": {"batch_size": 1},
}


@pytest.fixture(autouse=True)
def output(host, tmp_path):
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


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


def test_compare_draws_and_measures_all_four(host, output):
    outputs = host.run(small("spin_compare"))
    for name in ("base", "sft", "dpo", "spin"):
        assert len(list(output.glob(f"compare_{name}_*.png"))) == 1
    assert len(outputs) >= 8
