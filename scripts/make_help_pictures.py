"""The pictures on the nodes' help pages and README's: what stands on the nodes after a run of a workflow, in the browser.

python -m vico_spin.scripts.make_help_pictures                  # all: some minutes on two cores
python -m vico_spin.scripts.make_help_pictures spin_self_play   # those of one workflow
"""

import argparse
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

from .browser import Page, chromium
from .get_host import ROOT
from .host import BASE, enter, prepare_base
from .server import ask, server

DOCS = ROOT / "web" / "docs"
MARGIN, GAP = 8, 16  # pixels
LEFT, TOP = 120, 160  # of the canvas's part that no panel of the host's covers
VIEW = {"width": 1000, "height": 1700}
WIDE = {"width": 2100, "height": 1030}  # the whole of a graph
BACKGROUND = (32, 32, 32)
SECONDS = 1800  # that a run may take
BANNER_HIDDEN = "[data-testid=queue-notification-banner] { display: none }"  # of jobs, over the nodes


class Run(NamedTuple):
    """A workflow's run, and of which nodes each help page shows the boxes.

    values: of widgets, where a picture need not wait for all. before: JavaScript ahead of the run. keys: pressed after
    it, and run again. whole: where a picture of the whole graph goes.
    """

    pages: dict[str, list[str]]  # {node id: titles}
    values: dict | None = None
    before: str = ""
    keys: str = ""
    whole: Path | None = None


SCORE = """() => {
    const add = (type, x) => { const node = LiteGraph.createNode(type); app.graph.add(node); node.pos = [x, 0]; return node };
    const [scorer, score, best] = [add('ScoreLoadScorer', 1700), add('ScorePictures', 2100), add('PreviewImage', 2600)];
    score.size = [420, 560];
    app.graph.nodes.find(n => n.type === 'SpriteWorldMeasure').size = [420, 760];
    score.connect(0, best, 0);
    scorer.widgets[0].value = 'Sprite World prompt';
    scorer.connect(0, score, score.findInputSlot('scorer'));
    app.graph.nodes.find(n => n.type === 'VAEDecode').connect(0, score, score.findInputSlot('pictures'));
}"""
FEW = "a purple crab on the left on tiles\na yellow mushroom in a forest\na white squid on lava\na blue robot in snow"
RUNS = {
    "sprite_world_first_picture": Run(
        {
            "SpriteWorldLoad": ["Load Sprite World", "Save Image"],
            "SpriteWorldMeasure": ["Sprite World Measure"],
            "ScorePictures": ["Score Pictures"],
        },
        before=SCORE,
    ),
    "vico_train_a_concept": Run(
        {
            "SpriteWorldPictures": ["Photos of one creature", "The photos"],
            "ViCoTrain": ["Train ViCo"],
            "ViCoCheckpointGrid": ["ViCo Checkpoint Grid"],
        },
        values={
            "ViCoTrain": {"steps": 60, "batch_size": 2},
            "ViCoSPINTrainingOptions": {"checkpoint_every": 30, "preview_every": 30},
            "ViCoCheckpointGrid": {"steps": 12, "prompts": "a photo of a large pink * on grass"},
        },
    ),
    "vico_use_a_concept": Run(
        {
            "ViCoReference": ["The photo", "ViCo Reference"],
            "ViCoLoadConcept": ["Load ViCo Concept", "Save Image"],
            "ViCoApply": ["The photo", "Save Image"],
        },
        whole=ROOT / "docs" / "first_workflow.png",
    ),
    "vico_cut_out": Run({"ViCoMaskPreview": ["What is taken for the object"]}),
    "spin_self_play": Run(
        {
            "SPINDataset": ["SPIN Dataset"],
            "SPINTrain": ["Train SPIN"],
            "SPINCurves": ["SPIN Curves"],
            "SPINSave": ["Save SPIN"],
        },
        values={
            "SpriteWorldPictures": {"number": 8},
            "SPINOpponent": {"steps": 8},
            "SPINTrain": {"play.steps": 24, "batch_size": 2},
        },
        before="() => app.graph.nodes.filter(n => n.subgraph || /SaveImage|ImageCompare/.test(n.type)).forEach(n => app.graph.remove(n))",
    ),
    "spin_load_checkpoint": Run({"SPINLoadCheckpoint": ["Before", "After"]}),
    "spin_vote_and_dpo": Run(
        {"SPINVote": ["SPIN Vote"], "SPINTrainBaseline": ["Train Baseline (SFT | DPO)"]},
        values={"SpriteWorldPictures": {"number": 6}, "SPINTrainBaseline": {"steps": 20, "batch_size": 2}},
        keys="12121",
    ),
    "which_model_is_better": Run(
        {"ScoreCompareModels": ["Compare Models"]},
        values={"ScoreCompareModels": {"prompts": FEW, "pictures": 1, "steps": 15}},
    ),
}


def make(page: Page, workflow: str, run: Run) -> None:
    """Runs the workflow, and writes its pages' pictures."""
    page.open(ROOT / "workflows" / f"{workflow}.json")
    page.page.add_style_tag(content=BANNER_HIDDEN)
    page.set(**(run.values or {}))
    if run.before:
        page.page.evaluate(run.before)
    ended = page.run_to_its_end(SECONDS)
    if run.keys:
        box_of(page, "SPIN Vote")
        page.page.mouse.move(LEFT + 200, TOP + 560)  # the keys work while the pointer is on the pictures
    for key in run.keys:
        page.page.keyboard.press("Space" if key == " " else key)
    if run.keys:
        ended = page.run_to_its_end(SECONDS)
    if ended != "execution_success":
        raise SystemExit(f"{workflow}: {ended}")
    for name, titles in run.pages.items():
        beside([box_of(page, title) for title in titles]).save(DOCS / f"{name}.jpg", quality=88, optimize=True)
        print(DOCS / f"{name}.jpg")
    if run.whole:
        page.page.set_viewport_size(WIDE)
        page.fit()
        page.page.wait_for_timeout(1500)
        page.page.screenshot(
            path=run.whole, clip={"x": 60, "y": 40, "width": WIDE["width"] - 60, "height": WIDE["height"] - 40}
        )
        print(run.whole)


def box_of(page: Page, title: str):
    """The picture of a node's box, at the size that it has on the canvas."""
    from PIL import Image

    width, height = page.page.evaluate(
        f"""title => {{
            const node = app.graph.nodes.findLast(n => n.getTitle() === title);
            Object.assign(app.canvas.ds, {{ scale: 1, offset: [{LEFT} - node.pos[0], {TOP} - node.pos[1] + 30] }});
            app.canvas.deselectAll();
            app.canvas.setDirty(true, true);
            return [node.size[0], node.size[1] + 30];
        }}""",
        title,
    )
    page.page.wait_for_timeout(1500)  # pictures that were out of sight load now
    x, y, wide, high = LEFT - MARGIN, TOP - MARGIN, width + 2 * MARGIN, height + 2 * MARGIN
    shot = page.page.screenshot(clip={"x": x, "y": y, "width": wide, "height": high})
    return Image.open(io.BytesIO(shot)).convert("RGB")


def beside(boxes: list):
    from PIL import Image

    width, height = sum(box.width for box in boxes) + GAP * (len(boxes) - 1), max(box.height for box in boxes)
    whole, left = Image.new("RGB", (width, height), BACKGROUND), 0
    for box in boxes:
        whole.paste(box, (left, 0))
        left += box.width + GAP
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help=f"of {', '.join(RUNS)}; none: all")
    wanted = parser.parse_args().only or list(RUNS)
    base = prepare_base(BASE)
    enter(base)
    with tempfile.TemporaryDirectory() as output, server(base, Path(output)) as address, chromium() as browser:
        for settings in (
            {"Comfy.TutorialCompleted": True},
            {"Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": False, "Comfy.RightSidePanel.IsOpen": False},
        ):
            ask(address + "/api/settings", settings)
        for workflow in wanted:
            page = Page(browser.new_page(viewport=VIEW), address)
            make(page, workflow, RUNS[workflow])
            page.page.close()


if __name__ == "__main__":
    main()
