"""What web/ adds to the graph, in both renderers of the frontend: errors on nodes, live training, choosing, voting."""

import json
from pathlib import Path

import pytest

from vico_spin.scripts.server import ask

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = sorted((ROOT / "workflows").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "vue"])
TINY_TRAINING = {"steps": 6, "preview_prompts": "a photo of a large pink *", "batch_size": 1}
OPTIONS = {"preview_every": 2, "checkpoint_every": 3}
GRID = "app.graph.nodes.find(n => n.type === 'ViCoCheckpointGrid')"
PANEL = "app.graph.nodes.find(n => n.type === 'ViCoTrain').vicoSpinPanel"
VOTE = "app.graph.nodes.find(n => n.type === 'SPINVote')"
VOTES = f"{VOTE}.widgets.find(w => w.name === 'votes').value"
VOTE_BOX = f"{VOTE}.widgets.find(w => w.name === 'vote').element"


@RENDERERS
def test_every_workflow_opens_whole_nothing_overlaps_and_no_wire_hides(open_page, vue):
    page = open_page(vue)
    for path in OURS:
        page.open(path)
        page.page.wait_for_timeout(500)  # the renderer lays out
        assert page.overlaps() == [] and page.wires_behind_nodes() == [], path.stem
        page.screenshot(f"{path.stem}_{'vue' if vue else 'litegraph'}")
    assert page.errors == []


@RENDERERS
def test_an_error_stands_on_its_node_until_the_next_run(open_page, vue):
    page = open_page(vue)
    page.open(ROOT / "workflows" / "vico_train_a_concept.json")
    page.set(ViCoTrain={"captions": "a cactus"})  # known before the run
    assert page.run_to_its_end() == "execution_success"  # of the rest of the graph
    assert page.words("ViCoTrain").startswith('Error: Write "*" where the object should appear.')
    page.set(ViCoTrain={"captions": "a large pink * on tiles", "initialiser": "cactus plant", **TINY_TRAINING})
    assert page.run_to_its_end() == "execution_error"  # known by the tokenizer
    assert page.words("ViCoTrain").startswith("Error: Choose one everyday word")
    page.screenshot(f"error_{'vue' if vue else 'litegraph'}")


@RENDERERS
def test_training_is_seen_and_a_click_chooses_the_step_that_is_saved(open_page, vue):
    """The panel's curve is LOSS_MAP; six steps with a preview every second one; rows of steps 3 and 6."""
    page = open_page(vue)
    page.open(ROOT / "workflows" / "vico_train_a_concept.json")
    run_name = f"browser {vue}"
    page.set(ViCoTrain={**TINY_TRAINING, "run_name": run_name}, ViCoSPINTrainingOptions=OPTIONS)
    page.set(ViCoCheckpointGrid={"steps": 2})
    page.page.evaluate("""() => {
        const train = app.graph.nodes.find(n => n.type === 'ViCoTrain'), any = LiteGraph.createNode('PreviewAny');
        app.graph.add(any); train.connect(train.findOutputSlot('loss_map'), any, 0)
    }""")
    assert page.run_to_its_end() == "execution_success"
    text = "app.graph.nodes.find(n => n.type === 'PreviewAny').widgets.find(w => w.value?.includes?.('loss'))?.value"
    page.page.wait_for_function(text)
    assert page.page.evaluate(f"{PANEL}.loss") == json.loads(page.page.evaluate(text))["loss"]
    assert page.page.evaluate(f"{PANEL}.previews.map(p => p.at)") == ["step 2", "step 4", "step 6"]
    assert "6 of 6 steps" in page.words("ViCoTrain") and "Wrote models/vico/" in page.words("ViCoSaveConcept")
    page.page.wait_for_function(f"{GRID}.vicoSpinRows.picture.naturalHeight > 0")
    page.page.evaluate(f"app.canvas.ds.scale = 1; app.canvas.centerOnNode({GRID}); app.canvas.setDirty(true, true)")
    page.page.wait_for_timeout(500)
    box = page.page.evaluate(
        f"(r => [r.x, r.y, r.width, r.height])({GRID}.vicoSpinRows.picture.getBoundingClientRect())"
    )
    page.page.mouse.click(box[0] + box[2] / 2, box[1] + box[3] / 4)
    assert page.page.evaluate(f"{GRID}.widgets.find(w => w.name === 'choice').value") == 3
    bottom = page.page.evaluate(f"{GRID}.vicoSpinRows.mark.getBoundingClientRect().bottom")
    assert box[1] < bottom < box[1] + 0.55 * box[3], "the mark is around the upper of two rows"
    page.screenshot(f"chosen_{'vue' if vue else 'litegraph'}")
    assert page.run_to_its_end() == "execution_success"
    assert page.words("ViCoCheckpointGrid").startswith("Step 3 goes out")
    page.page.evaluate("app.graph.remove(app.graph.nodes.find(n => n.type === 'PreviewAny'))")
    assert page.overlaps() == [] and page.wires_behind_nodes() == [] and page.errors == []


@RENDERERS
def test_a_click_on_self_plays_curve_shows_the_margin(open_page, vue):
    """While it trains, the panel's margin and accuracy are those of the words; after it, those of the metrics."""
    page = open_page(vue)
    page.open(ROOT / "workflows" / "spin_self_play.json")
    page.page.evaluate(
        "app.graph.nodes.filter(n => n.subgraph || n.type === 'SaveImage').forEach(n => app.graph.remove(n))"
    )
    steps = {"play.steps": 4, "batch_size": 1, "run_name": f"margin {vue}"}
    page.set(SPINTrain=steps, SPINOpponent={"steps": 1}, SpriteWorldPictures={"number": 4})
    page.page.evaluate("""() => {
        const train = app.graph.nodes.find(n => n.type === 'SPINTrain'), any = LiteGraph.createNode('PreviewAny');
        app.graph.add(any); train.connect(train.findOutputSlot('metrics'), any, 0); any.pos = [1720, 1200];
        window.seen = [];
        const step = train.vicoSpinPanel.step;
        train.vicoSpinPanel.step = function (...told) { step.apply(this, told); seen.push([...this.margin]) };
    }""")
    assert page.run_to_its_end() == "execution_success"
    assert [len(margin) for margin in page.page.evaluate("seen")] == [1, 2, 3, 4]
    text = "app.graph.nodes.find(n => n.type === 'PreviewAny').widgets.find(w => w.value?.includes?.('rounds'))?.value"
    page.page.wait_for_function(text)
    logged = [step["metrics"] for step in json.loads(page.page.evaluate(text))["rounds"][0]]
    panel = "app.graph.nodes.find(n => n.type === 'SPINTrain').vicoSpinPanel"
    for name, metric in (("margin", "z"), ("accuracy", "implicit_accuracy")):
        assert page.page.evaluate(f"{panel}.{name}") == [step[metric] for step in logged]
    before = page.page.evaluate(f"{panel}.canvas.toDataURL()")
    page.page.evaluate(f"{panel}.canvas.click()")
    page.page.wait_for_function(f"{panel}.canvas.toDataURL() !== '{before}'")
    page.page.evaluate(
        "app.canvas.ds.scale = 1; app.canvas.centerOnNode(app.graph.nodes.find(n => n.type === 'SPINTrain'))"
    )
    page.page.wait_for_timeout(500)
    page.screenshot(f"margin_{'vue' if vue else 'litegraph'}")
    assert page.errors == []


@RENDERERS
def test_votes_by_keys_live_through_a_reload_and_become_a_win_rate(open_page, vue):
    page = open_page(vue)
    page.page.evaluate("""() => {
        app.graph.clear();
        const [a, b, vote] = ['SpriteWorldPictures', 'SpriteWorldPictures', 'SPINVote'].map(t => LiteGraph.createNode(t));
        [a, b, vote].forEach((node, i) => { app.graph.add(node); node.pos = [360 * i, 60] });
        const set = (node, values) => Object.entries(values).forEach(
            ([name, value]) => node.widgets.find(w => w.name.replaceAll(' ', '_') === name).value = value);
        for (const [node, taste] of [[a, 1], [b, 0]])
            set(node, {number: 4, seed: 3, control_after_generate: 'fixed', taste_from: taste, taste_to: taste});
        a.connect(0, vote, 0); b.connect(0, vote, 1);
        a.connect(2, vote, vote.inputs.findIndex(i => i.name === 'prompts'))
    }""")
    assert page.run_to_its_end() == "execution_success"
    assert page.words("SPINVote").startswith("4 pairs to vote on")
    assert page.page.evaluate(f"!{VOTE_BOX}.contains(document.activeElement)"), "the end of a run takes no keys"
    page.look(f"app.canvas.ds.scale = 1; app.canvas.centerOnNode({VOTE}); app.canvas.setDirty(true, true)")
    box = page.page.evaluate(f"(r => [r.x, r.y, r.width, r.height])({VOTE_BOX}.getBoundingClientRect())")
    on_it = box[0] + box[2] / 2, box[1] + box[3] / 2
    page.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<input id=elsewhere>'); elsewhere.focus()")
    page.page.mouse.move(*on_it)
    page.page.keyboard.type("12u")
    assert page.page.evaluate("elsewhere.value") == "12u" and page.page.evaluate(VOTES) == ""
    page.page.evaluate("elsewhere.remove()")
    page.page.mouse.move(1, 1)
    page.page.mouse.move(*on_it)
    for key in ("1", "Space", "u", "2", "2"):
        page.page.keyboard.press(key)
    votes = page.page.evaluate(VOTES)
    assert len(votes.splitlines()) == 3 and "tie" not in votes
    page.screenshot(f"vote_{'vue' if vue else 'litegraph'}")
    page.page.wait_for_timeout(1500)  # the frontend keeps its drafts after a pause
    page.page.reload()
    page.page.wait_for_function("window.app?.graph?.nodes?.some(n => n.type === 'SPINVote')", timeout=60_000)
    assert page.page.evaluate(VOTES) == votes
    assert page.run_to_its_end() == "execution_success"
    assert page.words("SPINVote").startswith("3 of 4 pairs have votes.\nsecond wins ")
    assert page.errors == []


def test_a_held_key_or_a_shortcut_is_no_vote_and_a_name_may_have_two_spaces(open_page):
    page = open_page(False)
    page.page.evaluate("""() => {
        app.graph.clear();
        const vote = LiteGraph.createNode('SPINVote'), pairs = [1, 2, 3].map(
            i => ({id: `pair${i}`, prompt: '', first: {filename: 'a.png'}, second: {filename: 'b.png'}}));
        app.graph.add(vote);
        vote.widgets.find(w => w.name === 'voter').value = 'Ann  Lee';
        vote.onExecuted({pairs});
        window.press = more => vote.widgets.find(w => w.name === 'vote').element.dispatchEvent(
            new KeyboardEvent('keydown', {key: '1', ...more}));
        ['repeat', 'ctrlKey', 'metaKey', 'altKey'].forEach(held => press({[held]: true}));
    }""")
    assert page.page.evaluate(VOTES) == ""
    page.page.evaluate("press({}); press({})")
    assert len({line.split()[0] for line in page.page.evaluate(VOTES).splitlines()}) == 2, "each pair once"
    page.page.evaluate("press({key: 'u'})")
    assert len(page.page.evaluate(VOTES).splitlines()) == 1


@RENDERERS
def test_what_stands_on_a_node_after_a_run_is_not_saved_and_shifts_no_value(open_page, vue):
    page = open_page(vue)
    types = ["ScoreReport", "SPINSave", "ViCoSaveConcept", "SPINVote", "SPINTrain", "ViCoTrain", "ScoreCompareModels"]
    values = """() => app.graph.nodes.map(n => Object.fromEntries(n.widgets
        .filter(w => w.options?.serialize !== false && !w.name.startsWith('$$')).map(w => [w.name, w.value])))"""
    page.page.evaluate(
        """types => {
            app.graph.clear();
            types.forEach(type => {
                const node = LiteGraph.createNode(type);
                app.graph.add(node);
                const output = {written: [{filename: 'page.html', subfolder: '', type: 'output'}]};
                app.api.dispatchCustomEvent('executed', {node: String(node.id), output});
            });
        }""",
        types,
    )
    before = page.page.evaluate(values)
    buttons = "app.graph.nodes.filter(n => n.widgets.some(w => w.label === 'open page.html')).map(n => n.type)"
    assert page.page.evaluate(buttons) == types[:3], "another workflow's node of that id gets none"
    counts = page.page.evaluate("app.graph.serialize().nodes.map(n => n.widgets_values.length)")
    assert counts == [len(widgets) for widgets in before]
    page.page.evaluate("app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())))")
    assert page.page.evaluate(values) == before and page.errors == []


def test_a_preview_inside_a_closed_subgraph_is_the_hosts_too(open_page):
    """And its memory is given back when the node goes: of the two previews, one came while the subgraph was open."""
    page = open_page(False)
    page.open(ROOT / "subgraphs" / "Train and save a concept.json")
    page.page.evaluate("""() => {
        window.outer = app.graph.nodes.find(n => n.subgraph);
        window.train = outer.subgraph.nodes.find(n => n.type === 'ViCoTrain');
        window.hosts = window.revoked = 0;
        app.api.addEventListener('b_preview_with_metadata', () => hosts++);
        const id = `${outer.id}:${train.id}`, blob = new Blob(['']);
        window.preview = () => app.api.dispatchCustomEvent(
            'b_preview_with_metadata', {blob, nodeId: id, displayNodeId: id, parentNodeId: id, realNodeId: id, jobId: 'a'});
        preview();
    }""")
    assert page.page.evaluate("[hosts, train.vicoSpinPanel.previews.length]") == [1, 1]
    page.page.evaluate("app.canvas.openSubgraph(outer.subgraph, outer)")
    page.page.evaluate("preview()")
    assert page.page.evaluate("[hosts, train.vicoSpinPanel.previews.length]") == [1, 2]
    page.page.evaluate("""() => {
        const revoke = URL.revokeObjectURL;
        URL.revokeObjectURL = address => { revoke.call(URL, address); revoked++ };
        app.canvas.graph.remove(train);
    }""")
    assert page.page.evaluate("[revoked, train.vicoSpinPanel.previews.length]") == [2, 0] and page.errors == []


def test_another_workflows_output_leaves_the_rows_as_they_are(open_page):
    page = open_page(False)
    page.page.evaluate("app.graph.clear(); app.graph.add(LiteGraph.createNode('ViCoCheckpointGrid'))")
    js = (
        "app.api.dispatchCustomEvent('executed', {node: String(GRID.id), output: {images: []}}); GRID.vicoSpinRows.rows"
    )
    assert page.page.evaluate(js.replace("GRID", GRID)) == [] and page.errors == []


@RENDERERS
def test_compare_models_has_a_slider_over_its_pictures(open_page, vue):
    page = open_page(vue)
    page.open(ROOT / "workflows" / "which_model_is_better.json")
    page.set(ScoreCompareModels={"prompts": "a red crab on sand\na blue robot in snow", "pictures": 1, "steps": 4})
    assert page.run_to_its_end() == "execution_success"
    node = "app.graph.nodes.find(n => n.type === 'ScoreCompareModels')"
    slider = f"{node}.vicoSpinSlider"
    page.look(f"app.canvas.ds.scale = 0.6; app.canvas.centerOnNode({node}); app.canvas.setDirty(true, true)")
    page.page.wait_for_function(f"{slider}.pictures.every(p => p.naturalWidth > 0)")
    x, y, width, height = page.page.evaluate(
        f"(r => [r.x, r.y, r.width, r.height])({slider}.frame.getBoundingClientRect())"
    )
    page.page.mouse.move(x + 0.25 * width, y + 0.5 * height)
    part = (
        page.page.evaluate(f"{slider}.pictures[1].style.clipPath").removeprefix("inset(0px 0px 0px ").removesuffix("%)")
    )
    assert float(part) == pytest.approx(25, abs=2)
    page.screenshot(f"slider_{'vue' if vue else 'litegraph'}")
    page.page.evaluate(f"{slider}.label.click()")
    assert page.page.evaluate(f"{slider}.label.textContent").startswith(
        "plain | rescaled: a blue robot in snow (2 of 2"
    )
    assert page.overlaps() == [] and page.errors == []
    report = "app.graph.nodes.find(n => n.type === 'ScoreReport').widgets.find(w => w.label === 'open report.html')"
    page.page.wait_for_function(report)
    with page.page.expect_popup() as opened:
        page.page.evaluate(f"{report}.callback()")
    shown = opened.value.frame_locator("iframe").get_by_text("a red crab on sand").first
    shown.wait_for()


@RENDERERS
def test_a_blueprint_opens_whole(open_page, vue):
    """Placed as the node search places it, and opened: its nodes are there, apart from each other, with a socket each."""
    page = open_page(vue)
    for path in BLUEPRINTS:
        page.open(path)
        page.page.wait_for_timeout(500)
        assert page.missing_nodes() == []
        page.screenshot(f"blueprint_{path.stem}_{'vue' if vue else 'litegraph'}")
        page.page.evaluate("app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
        page.page.wait_for_function("app.canvas.graph !== app.rootGraph")
        page.page.wait_for_timeout(500)
        page.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        page.page.wait_for_timeout(500)
        page.screenshot(f"blueprint_{path.stem}_inside_{'vue' if vue else 'litegraph'}")
        assert page.page.evaluate("app.canvas.graph.nodes.filter(n => !n.constructor?.nodeData).map(n => n.type)") == []
    assert page.errors == []


@pytest.mark.parametrize("language, heading", [("en", "Apply ViCo"), ("zh", "\u5e94\u7528 ViCo")])
def test_help_opens_in_the_browsers_language_with_its_picture(open_page, address, language, heading):
    ask(address + "/api/settings", {"Comfy.Locale": language})
    page = open_page(False)
    page.open(ROOT / "workflows" / "vico_use_a_concept.json")
    page.fit()
    page.page.evaluate("app.canvas.selectNode(app.graph.nodes.find(n => n.type === 'ViCoApply'))")
    page.page.get_by_test_id("info-button").click()
    page.page.get_by_text(heading).first.wait_for()
    picture = page.page.locator("img[src$='ViCoApply.jpg']")
    picture.wait_for()
    page.screenshot(f"help_{language}")
    ask(address + "/api/settings", {"Comfy.Locale": "en"})
    assert picture.evaluate("image => image.naturalWidth") > 0 and page.errors == []
