"""ComfyUI's own page in a real Chromium, and what a person does on it: for tests/browser and the help pages' pictures."""

import json
from contextlib import contextmanager
from pathlib import Path

from .get_browser import find_chromium
from .get_host import ROOT

ARTEFACTS = ROOT / "output" / "browser"  # ignored by git
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def chromium():
    """The browser. Raises: FileNotFoundError where this machine has none."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise FileNotFoundError("No Chromium on this machine: `make browser` installs one.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


BOXES = """
    const boxes = app.graph.nodes.map(n => {
        const drawn = document.querySelector(`[data-node-id="${n.id}"]`)?.getBoundingClientRect();
        const size = drawn?.height ? [drawn.width, drawn.height].map(l => l / app.canvas.ds.scale) : n.size;
        return [n.title, n.pos[0], n.pos[1] - 30, n.pos[0] + size[0], n.pos[1] + size[1] - (drawn?.height ? 30 : 0)]
    });
"""  # of nodes with their titles, as this renderer lays them out: [title, left, top, right, bottom]


class Page:
    """ComfyUI's own page, and what a person does on it."""

    def __init__(self, page, address):
        self.page = page
        self.errors = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        page.wait_for_function("window.app && window.app.extensionManager && window.app.graph", timeout=60_000)

    def open(self, path: Path) -> None:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        self.page.evaluate("([wf, name]) => window.app.loadGraphData(wf, true, true, name)", [workflow, path.stem])
        self.page.wait_for_function("window.app.graph.nodes.length > 0")

    def set(self, **values: dict) -> None:
        """Types values into widgets: set(KSampler={"steps": 4})."""
        js = """values => {
            for (const [type, widgets] of Object.entries(values))
                for (const [name, value] of Object.entries(widgets))
                    app.graph.nodes.find(n => n.type === type).widgets.find(w => w.name === name).value = value
        }"""
        self.page.evaluate(js, values)

    def missing_nodes(self) -> list[str]:
        return self.page.evaluate("window.app.graph.nodes.filter(n => !n.constructor?.nodeData).map(n => n.type)")

    def api_form(self) -> dict:
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def run(self) -> None:
        self.page.get_by_test_id("queue-button").first.click()

    def run_to_its_end(self, seconds: int = 300) -> str:
        """Presses Run. Returns the host's word for how it ended, within so many seconds."""
        ends = ["execution_success", "execution_error", "execution_interrupted"]
        js = "ends => { window.ended = null; ends.forEach(e => app.api.addEventListener(e, () => window.ended = e)) }"
        self.page.evaluate(js, ends)
        self.run()
        self.page.wait_for_function("window.ended", timeout=1000 * seconds)
        return self.page.evaluate("window.ended")

    def fit(self) -> None:
        """Brings the whole graph into view: a picture on a node out of sight is not loaded."""
        self.look("app.extensionManager.command.execute('Comfy.Canvas.FitView')")

    def look(self, move: str) -> None:
        """Moves the view by this JavaScript, and waits until it stands still."""
        self.page.evaluate(f"window.seenBefore = null; {move}")
        still = """() => {
            const drawn = [...document.querySelectorAll("[data-node-id]")].map(n => n.getBoundingClientRect());
            const seen = JSON.stringify([app.canvas.ds.scale, [...app.canvas.ds.offset], drawn]), before = window.seenBefore;
            window.seenBefore = seen;
            return seen === before;
        }"""
        self.page.wait_for_function(still, polling=400)

    def words(self, node: str) -> str:
        """What stands on the first node of this type, once it says something."""
        widget = f"app.graph.nodes.find(n => n.type === '{node}').widgets.find(w => w.name === '$$node-text-preview')"
        self.page.wait_for_function(f"{widget}?.value", timeout=60_000)
        return self.page.evaluate(f"{widget}.value")

    def overlaps(self) -> list[str]:
        """Pairs of nodes whose boxes overlap, as this renderer lays them out."""
        js = """() => {BOXES
            const over = (a, b) => a[1] < b[3] - 1 && b[1] < a[3] - 1 && a[2] < b[4] - 1 && b[2] < a[4] - 1;
            return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => over(a, b)).map(b => `${a[0]} and ${b[0]}`))
        }"""
        return self.page.evaluate(js.replace("BOXES", BOXES))

    def wires_behind_nodes(self) -> list[str]:
        """Wires, as they are drawn, that cross a node's edge anywhere but at their own sockets."""
        self.fit()
        self.page.wait_for_function("[...app.graph.links.values()].every(link => link.path)")
        js = """() => {BOXES
            const ctx = document.createElement("canvas").getContext("2d"), inner = 14, step = 3;
            ctx.lineWidth = 5;
            const range = (from, to) => Array.from({ length: Math.max(0, (to - from) / step) }, (_, i) => from + step * i);
            const crosses = (path, [, l, t, r, b]) => {
                const on = (x, y) => ctx.isPointInStroke(path, x, y);
                return range(l + inner, r - inner).some(x => on(x, t + inner) || on(x, b - inner))
                    || range(t + inner, b - inner).some(y => on(l + inner, y) || on(r - inner, y));
            };
            const wires = [...app.graph.links.values(), ...app.graph.reroutes.values()];
            return wires.flatMap(wire => boxes.filter(box => crosses(wire.path, box)).map(
                box => `${wire.type ?? "a reroute"} ${wire.id} behind ${box[0]}`))
        }"""
        return self.page.evaluate(js.replace("BOXES", BOXES))

    def screenshot(self, name: str) -> None:
        """The whole graph, as an artefact to look at."""
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")
