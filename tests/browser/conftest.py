"""A real server and a real Chromium. Where there is no browser, this fails in one line: it does not skip."""

import pytest

from vico_spin.scripts.browser import Page, chromium
from vico_spin.scripts.host import BASE, enter, prepare_base
from vico_spin.scripts.server import ask, server
from vico_spin.tests.browser.one_photo_files import write_one_photo_files


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
    try:
        with chromium() as browser:
            yield browser
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def open_page(browser, address):
    """open_page(vue): ComfyUI's page in one of its two renderers."""
    contexts = []

    def new(vue: bool) -> Page:
        ask(address + "/api/settings", {"Comfy.VueNodes.Enabled": vue})
        contexts.append(browser.new_context(viewport={"width": 1600, "height": 900}))
        return Page(contexts[-1].new_page(), address)

    yield new
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page):
    return open_page(False)
