"""The blueprints in subgraphs/: the host lists them, and each runs on what a person would connect to it."""

import asyncio
import json

import folder_paths
import pytest

from vico_spin.scripts.get_host import ROOT
from vico_spin.scripts.workflow import set_input, to_api, widget_values

BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
PLACED = 900  # the blueprint's node in the graph that it is put into


@pytest.fixture(autouse=True)
def folders(host, tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vico", ([str(tmp_path / "models")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path


def load(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def put(name: str, workflow: str, keep: set[int], wires: dict, *changes: str, **widgets) -> dict:
    """The API prompt of some of a workflow's nodes with a blueprint wired to them: {its input: (node, output)}."""
    graph, blueprint = load(f"workflows/{workflow}.json"), load(f"subgraphs/{name}.json")
    (node,) = blueprint["nodes"]
    inputs = {slot["name"]: slot for slot in node["inputs"]}
    for link, (socket, source) in enumerate(wires.items(), PLACED):
        inputs[socket]["link"] = link
        graph["links"].append([link, *source, PLACED, 0, inputs[socket]["type"]])
    values = widget_values(node) | widgets
    assert set(widgets) <= set(widget_values(node))
    kept = [found for found in graph["nodes"] if found["id"] in keep]
    graph["nodes"] = [*kept, node | {"id": PLACED, "widgets_values": list(values.values())}]
    prompt = to_api(graph | {"definitions": blueprint["definitions"]})
    for change in changes:
        set_input(prompt, change)
    return prompt


def test_the_host_lists_them_all_of_nodes_that_it_has(host):
    from app.subgraph_manager import SubgraphManager

    listed = asyncio.run(SubgraphManager().get_custom_node_subgraphs(None)).values()
    assert {path.stem for path in BLUEPRINTS} <= {entry["name"] for entry in listed} and len(BLUEPRINTS) == 3
    for path in BLUEPRINTS:
        (inner,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
        assert inner["category"] == "ViCo + SPIN" and inner["description"]
        assert [node["type"] for node in inner["nodes"] if node["type"] not in host.node_classes] == []


def test_vico_picture(host, folders, cactus_recognised):
    """The example concept's creature, told from others like it."""
    wires = {"model": (1, 0), "clip": (1, 1), "vae": (1, 2), "concept": (2, 0), "photo": (3, 0)}
    prompt = "a photo of a large pink * in snow"
    small = {"photo_size": 128, "width": 128, "height": 128, "steps": 4, "cfg": 2.0}
    prompt = put("ViCo picture", "vico_use_a_concept", {1, 2, 3}, wires, prompt=prompt, **small)
    (decode,) = [key for key, node in prompt.items() if node["class_type"] == "VAEDecode"]
    prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": [decode, 0], "filename_prefix": "blueprint"}}
    host.run(prompt)
    (picture,) = (folders / "output").glob("blueprint_*.png")
    assert cactus_recognised(picture) > 0.8


def test_train_and_save_a_concept(host, folders):
    wires = {"model": (1, 0), "clip": (1, 1), "vae": (1, 2), "photos": (2, 0)}
    small = {"initialiser": "cactus", "size": 128, "steps": 2, "checkpoint_every": 1, "preview_prompts": ""}
    host.run(put("Train and save a concept", "vico_train_a_concept", {1, 2}, wires, saved_as="cactus", **small))
    assert len(list((folders / "models").glob("*/step-*.safetensors"))) == 2
    assert len(list((folders / "models").glob("cactus_*.safetensors"))) == 1


def test_self_play_and_save(host, folders):
    wires = {"model": (1, 0), "clip": (1, 1), "vae": (1, 2), "dataset": (3, 0), "opponent": (4, 0)}
    changes = ["SPINOpponent.steps=1", "Real pictures (fine).number=2", "ViCoSPINTrainingOptions.preview_every=0"]
    small = {"steps": 1, "batch_size": 2, "resolution": 128, "saved_as": "mine"}
    host.run(put("Self-play and save", "spin_self_play", {1, 2, 3, 4}, wires, *changes, **small))
    assert len(list((folders / "output" / "spin").glob("mine_*.safetensors"))) == 1
