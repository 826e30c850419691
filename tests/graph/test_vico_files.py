"""Loading and saving concepts through the host: its folders, its validation, its graph."""

import os
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_api.latest import io

from vico_spin.nodes.host.folders import register_folder
from vico_spin.vico_core import ImageAttention, ViCoConcept


@pytest.fixture
def models_vico(tmp_path):
    """models/vico replaced by an empty folder, for as long as a test runs."""
    kept = folder_paths.folder_names_and_paths["vico"]
    folder_paths.folder_names_and_paths["vico"] = ([str(tmp_path)], kept[1])
    folder_paths.filename_list_cache.pop("vico", None)
    yield tmp_path
    folder_paths.filename_list_cache.pop("vico", None)
    folder_paths.folder_names_and_paths["vico"] = kept


def make_concept(**words):
    torch.manual_seed(0)
    return ViCoConcept({"output_blocks.4.1": ImageAttention(16, 2, 8).state_dict()}, {"l": torch.randn(1, 24)}, **words)


def test_save_and_load(host, call, models_vico):
    (path,) = call(
        "ViCoSaveConcept", concept=make_concept(placeholder="sks"), filename_prefix="toys/duck", format="safetensors"
    )
    assert os.path.relpath(path, models_vico) == os.path.join("toys", "duck_00001_.safetensors")
    loaded, trigger = call("ViCoLoadConcept", concept=os.path.relpath(path, models_vico))
    assert trigger == "sks" and list(loaded.modules) == ["output_blocks.4.1"]
    (second,) = call("ViCoSaveConcept", concept=make_concept(), filename_prefix="toys/duck", format="safetensors")
    assert second != path, "nothing is overwritten"


@pytest.mark.parametrize("prefix", ["toys/", "", "sub/..", ".", "toys/duck", "toys/v1.5"])
def test_nothing_is_overwritten_whatever_the_prefix(call, models_vico, prefix):
    """The host counts from 1 again where a prefix ends in a slash, is empty, or leads back; a dot in it ends no name."""
    asked = {"concept": make_concept(), "filename_prefix": prefix}
    paths = [call("ViCoSaveConcept", format=kind, **asked)[0] for kind in ("safetensors", "original pair") * 2]
    assert len(set(paths)) == 4 and all(os.path.isfile(path) for path in paths)
    assert not any(part.startswith(".") for path in paths for part in os.path.relpath(path, models_vico).split(os.sep))


def test_a_replaced_half_of_a_pair_is_read_again(host, call, models_vico):
    path = Path(call("ViCoSaveConcept", concept=make_concept(step=300), filename_prefix="d", format="original pair")[0])
    node, name = host.node_classes["ViCoLoadConcept"], path.relative_to(models_vico).as_posix()
    before, word = node.fingerprint_inputs(concept=name), path.with_name("embeddings_gs-300.pt")
    word.write_bytes(word.read_bytes() + b"x")
    assert node.fingerprint_inputs(concept=name) != before


def test_the_pair_shows_as_one_file_and_loads(host, call, models_vico):
    call("ViCoSaveConcept", concept=make_concept(step=300), filename_prefix="duck", format="original pair")
    (models_vico / "a run").mkdir()
    make_concept(step=15).save(models_vico / "a run" / "step-00015.safetensors")
    schema = host.node_classes["ViCoLoadConcept"].define_schema()
    name, example, robot, of_the_dit, step = schema.inputs[0].options
    assert name == os.path.join("duck_00001_", "cross_attention-300.pt")
    assert call("ViCoLoadConcept", concept=name)[0].step == 300
    assert example == "(Sprite World example)", "it comes with the pack, after a person's own"
    assert of_the_dit == "(Sprite World DiT example)"
    assert step == os.path.join("a run", "step-00015.safetensors"), "the steps of runs stand last"
    assert [call("ViCoLoadConcept", concept=one)[0].initialiser for one in (example, robot)] == ["cactus", "robot"]


@pytest.mark.parametrize("prefix", ["../outside", "/tmp/outside"])
def test_saving_outside_the_models_folder_is_refused(call, models_vico, prefix):
    with pytest.raises(Exception, match="outside the output folder"):
        call("ViCoSaveConcept", concept=make_concept(), filename_prefix=prefix, format="safetensors")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "absent.safetensors"])
def test_loading_from_outside_the_models_folder_is_refused(host, models_vico, name):
    (models_vico.parent / "secret.safetensors").write_bytes(b"secret")
    graph = {
        "1": {"class_type": "ViCoLoadConcept", "inputs": {"concept": name}},
        "2": {
            "class_type": "ViCoSaveConcept",
            "inputs": {"concept": ["1", 0], "filename_prefix": "x", "format": "safetensors"},
        },
    }
    with pytest.raises(RuntimeError, match="not in list"):
        host.run(graph)


def test_extra_model_paths_are_kept(host):
    """What extra_model_paths.yaml named for `vico` before the pack loaded stays, with the pack's extensions."""
    kept = folder_paths.folder_names_and_paths.pop("vico")
    folder_paths.add_model_folder_path("vico", "/elsewhere/vico")
    register_folder("vico", {".safetensors", ".pt"})
    paths, extensions = folder_paths.folder_names_and_paths["vico"]
    folder_paths.folder_names_and_paths["vico"] = kept
    assert "/elsewhere/vico" in paths and len(paths) == 2
    assert extensions == {".safetensors", ".pt"}


def test_every_input_of_every_node_has_a_tooltip(host):
    ours = {name: node for name, node in host.node_classes.items() if node.__module__.startswith("vico_spin.nodes.")}
    assert {"ViCoApply", "ViCoReference", "ViCoLoadConcept", "ViCoSaveConcept", "ViCoMaskPreview"} <= set(ours)
    for name, node in ours.items():
        schema = node.define_schema()
        assert schema.description, name
        options = [o for i in schema.inputs if isinstance(i, io.DynamicCombo.Input) for o in i.options]
        inputs = [*schema.inputs, *(i for option in options for i in option.inputs)]
        assert [i.id for i in inputs if not i.tooltip] == [], name


def test_trainers_ask_for_no_more_than_twelve_things(host):
    """What a person sees on the node at once: widgets, with those of the longest choice of each dynamic combo."""
    for name in ("ViCoTrain", "SPINTrain", "SPINTrainBaseline"):
        widgets = 0
        for i in host.node_classes[name].define_schema().inputs:
            if isinstance(i, io.DynamicCombo.Input):
                widgets += 1 + max(len(option.inputs) for option in i.options)
            widgets += isinstance(
                i, io.Int.Input | io.Float.Input | io.String.Input | io.Boolean.Input | io.Combo.Input
            )
        assert widgets <= 12, name
