"""A real server and a real Chromium. Where there is no browser, this fails in one line: it does not skip."""

import json
from pathlib import Path

import pytest

from vico_spin.scripts.get_browser import find_chromium
from vico_spin.scripts.host import BASE, enter, prepare_base
from vico_spin.scripts.server import ask, server
from vico_spin.tests.browser.one_photo_files import write_one_photo_files

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    base = prepare_base(BASE)
    enter(base)
    write_one_photo_files(base)
    with server(base, tmp_path_factory.mktemp("output")) as address:
        ask(address + "/api/settings", {"Comfy.TutorialCompleted": True})
        yield address


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        pytest.fail("No Chromium on this machine: `make browser` installs one.", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


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


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1600, "height": 900})
    yield Page(context.new_page(), address)
    context.close()
