"""ViCo's workflows as they open on a fresh install, with the example that comes with the pack."""

import copy
import json

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from vico_spin.scripts.get_host import ROOT
from vico_spin.scripts.train_controlnet import agreement, edges
from vico_spin.scripts.workflow import set_input, to_api

OPTIONAL = ("trigger", "place_strengths", "cache_mb")


@pytest.fixture(autouse=True)
def output(host, tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vico", ([str(tmp_path / "models")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    host.executor.reset()  # its Save Image would go on writing where an earlier test had it write
    return tmp_path / "output"


def small(name, *changes):
    prompt = to_api(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    for change in changes:
        set_input(prompt, change)
    return prompt


@pytest.mark.parametrize("workflow", ["vico_use_a_concept", "vico_use_a_concept_dit"])
def test_the_example_draws_its_creature_and_a_saved_prompt_survives_new_inputs(
    host, output, workflow, cactus_recognised
):
    """It is told from others like it, and is the same where the prompt was saved before the optional inputs came."""
    prompt = small(workflow, "KSampler.steps=4", "EmptyLatentImage.batch_size=1")
    older = copy.deepcopy(prompt)
    (apply,) = [node for node in older.values() if node["class_type"] == "ViCoApply"]
    for name in OPTIONAL:
        del apply["inputs"][name]
    host.run(prompt)
    host.run(older)
    first, second = sorted(output.glob(f"{workflow}_*.png"))
    assert Image.open(first).tobytes() == Image.open(second).tobytes()
    assert cactus_recognised(first) > 0.8


@pytest.mark.parametrize("world", ["", "_dit"])
def test_training_its_grid_and_what_it_saves(host, output, world):
    changes = ["ViCoTrain.steps=2", "ViCoSPINTrainingOptions.checkpoint_every=1", "ViCoCheckpointGrid.steps=1"]
    host.run(small(f"vico_train_a_concept{world}", *changes, "ViCoSPINTrainingOptions.preview_every=0"))
    assert len(list((output.parent / "models").glob(f"sprite{world}-*/step-*.safetensors"))) == 2
    assert len(list((output.parent / "models").glob(f"sprite_creature{world}_*.safetensors"))) == 1
    (grid,) = output.glob(f"vico_checkpoints{world}_*.png")
    assert Image.open(grid).height > 2 * 256


def as_image(path):
    """A saved picture as the host's IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")))[None] / 255


def test_the_layout_leads_the_drawing_and_the_reference_is_looked_at_without_it(host, output):
    """The same picture from features found while the ControlNet is on as from those that a picture without it has left."""
    sizes = [f"{latent}.batch_size=1" for latent in ("9:19", "10:22")]
    prompt = small("vico_with_controlnet", "9:20.steps=8", "10:23.steps=8", *sizes)
    part = {key: key.split(":")[0] for key in prompt}
    alone = {key: node for key, node in prompt.items() if part[key] not in ("9", "11")}
    without = {key: node for key, node in prompt.items() if part[key] not in ("10", "11", "12", "13")}
    without["11"] = {"class_type": "PreviewImage", "inputs": {"images": ["9:21", 0]}}
    host.run(alone)
    host.executor.reset()
    host.run(without)
    host.run(copy.deepcopy(prompt))  # the host writes into a prompt what its slider shows
    set_input(prompt, "ControlNetApplyAdvanced.strength=0")
    host.run(prompt)
    led, kept, free = map(as_image, sorted(output.glob("*.png")))
    assert torch.equal(led, kept)
    layout = edges(host.call("SpriteWorldPictures", **prompt["3"]["inputs"])[0])[..., 0]
    assert agreement(edges(led)[..., 0], layout) > agreement(edges(free)[..., 0], layout) + 0.1
