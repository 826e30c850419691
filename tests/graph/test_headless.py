"""Headless runs: what the browser would queue of a workflow, and errors that say which node failed and why."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vico_spin.scripts.workflow import to_api

ROOT = Path(__file__).resolve().parent.parent.parent
FORMS = (
    ROOT / "tests" / "browser" / "headless.json"
)  # a bypassed node, muted ones, a subgraph; the browser opens it too


def workflow():
    return json.loads(FORMS.read_text(encoding="utf-8"))


def run_workflow(path, *more):
    command = [sys.executable, "-m", "vico_spin.scripts.run_workflow", str(path), *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ})


def test_bypassed_nodes_hand_on_muted_ones_are_left_out_and_subgraphs_are_laid_open():
    prompt = to_api(workflow())
    assert {key: node["class_type"] for key, node in prompt.items()} == {
        "1": "EmptyImage",
        "3:8": "ImageInvert",
        "3:9": "ImageScale",
        "4": "SaveImage",
    }
    assert prompt["3:8"]["inputs"] == {"image": ["1", 0]}, "past the bypassed node, into the subgraph"
    assert prompt["4"]["inputs"] == {"images": ["3:9", 0], "filename_prefix": "headless"}


def test_an_input_from_a_muted_node_is_not_connected():
    changed = workflow()
    next(node for node in changed["nodes"] if node["id"] == 1)["mode"] = 2
    assert "image" not in to_api(changed)["3:8"]["inputs"]


def test_a_muted_subgraph_runs_none_of_its_nodes():
    changed = workflow()
    next(node for node in changed["nodes"] if node["id"] == 3)["mode"] = 2
    assert list(to_api(changed)) == ["1", "4"]


def test_it_runs_and_says_where_its_picture_is(tmp_path):
    done = run_workflow(FORMS, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.glob("headless_*.png")
    assert str(picture) in done.stdout


def test_a_dropped_output_is_an_error_that_names_the_node(tmp_path, host):
    changed = workflow()
    next(node for node in changed["nodes"] if node["id"] == 5)["mode"] = 0
    changed["nodes"][4]["inputs"][0]["link"] = None  # the host would save the other picture and be content
    with pytest.raises(RuntimeError, match=r"SaveImage \(node 5\): Required input is missing"):
        host.run(to_api(changed))
    path = tmp_path / "dropped.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    done = run_workflow(path, "--output", str(tmp_path))
    assert done.returncode != 0 and "SaveImage (node 5)" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.png"))


def test_a_node_that_fails_is_named_with_its_number_and_its_reason(host):
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
        "3": {"class_type": "ViCoReference", "inputs": {"vae": ["2", 0], "image": ["1", 0], "size": 64}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }
    with pytest.raises(RuntimeError, match=r"ViCoReference \(node 3\): Use a picture of 32 pixels"):
        host.run(prompt)


class PressedOnce:
    """A node that is told to stop by Ctrl+C while it works, and looks at its next step whether it was."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "work", True

    def work(self):
        from comfy.model_management import throw_exception_if_processing_interrupted

        signal.raise_signal(signal.SIGINT)
        throw_exception_if_processing_interrupted()
        raise AssertionError("it went on")


def test_ctrl_c_stops_the_running_node_at_its_next_step(host, monkeypatch):
    monkeypatch.setitem(host.node_classes, "PressedOnce", PressedOnce)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is told to ignore it
    try:
        with pytest.raises(RuntimeError, match=r"PressedOnce \(node 1\): stopped before its end"):
            host.run({"1": {"class_type": "PressedOnce", "inputs": {}}})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
