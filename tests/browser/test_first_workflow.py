"""What a user sees: the workflow opens without a missing node, runs by the Run button, and its picture is on the node."""

import json
from pathlib import Path

import pytest

from vico_spin.scripts.workflow import to_api
from vico_spin.tests.browser.one_photo_files import CHECKPOINT, CONCEPT, PHOTO

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = sorted((ROOT / "workflows").glob("*.json"))
FORMS = Path(__file__).parent / "headless.json"  # bypassed and muted nodes, a subgraph
DRAWN_ONLY = {"MarkdownNote", "Note"}
PICTURE_ON_NODE = "window.app.graph.nodes.find(n => n.type === 'SaveImage')?.imgs?.[0]?.naturalWidth || 0"


def test_the_first_workflow_runs_and_shows_its_picture(page, tmp_path):
    page.open(ROOT / "workflows" / "vico_one_photo.json")
    page.set(CheckpointLoaderSimple={"ckpt_name": CHECKPOINT}, ViCoLoadConcept={"concept": CONCEPT})
    page.set(LoadImage={"image": PHOTO}, ViCoReference={"size": 256}, KSampler={"steps": 4})
    page.set(EmptyLatentImage={"width": 256, "height": 256})
    assert [node for node in page.missing_nodes() if node not in DRAWN_ONLY] == []
    assert page.run_to_its_end() == "execution_success"
    page.fit()
    page.page.wait_for_function(f"({PICTURE_ON_NODE}) > 0", timeout=60_000)
    page.page.screenshot(path=ROOT / "output" / "first_workflow.png")
    assert page.page.evaluate(PICTURE_ON_NODE) == 256
    assert page.errors == []


@pytest.mark.parametrize("path", [*OURS, FORMS], ids=lambda path: path.stem)
def test_every_workflow_opens_and_headless_runs_are_the_browsers(page, path):
    """The API form that `scripts.run_workflow` makes is the one that the browser itself would queue."""
    page.open(path)
    assert [node for node in page.missing_nodes() if node not in DRAWN_ONLY] == []
    inputs = lambda prompt: {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}  # noqa: E731
    assert inputs(to_api(json.loads(path.read_text(encoding="utf-8")))) == inputs(page.api_form())
