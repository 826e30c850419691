"""The report page in a real Chromium: its rows sort and filter, and the score under a picture is the chosen scorer's."""

import pytest

from vico_spin.benchmarks.scores_page import measure


@pytest.fixture(scope="module")
def view(browser, tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    measure(root, 48, 2, noisy=False, browser=browser)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((root / "report.html").as_uri())
    yield page
    page.close()


def leads(view, scorer):
    """The rows' leads by one scorer, in the order in which they stand on the page."""
    rows = "articles => articles.filter(a => !a.hidden).map(a => a.dataset.lead)"
    return [float(lead.split()[scorer]) for lead in view.eval_on_selector_all("article", rows)]


def test_worst_losses_come_first_and_the_other_orders_follow_the_choice(view):
    assert leads(view, 0) == sorted(leads(view, 0))
    view.select_option("#sort", "best")
    assert leads(view, 0) == sorted(leads(view, 0), reverse=True)
    view.select_option("#scorer", "1")
    assert leads(view, 1) == sorted(leads(view, 1), reverse=True)
    view.select_option("#scorer", "0")


def test_the_score_under_a_picture_is_the_chosen_scorers(view):
    for scorer in (1, 0):
        view.select_option("#scorer", str(scorer))
        shown = "captions => captions.map(c => [c.textContent, c.dataset.s])"
        for text, numbers in view.eval_on_selector_all("article figcaption", shown):
            assert text == numbers.split("|")[scorer]


def test_find_keeps_the_prompts_that_hold_every_word(view):
    prompt = view.locator("article h3").first.text_content()
    view.fill("#find", prompt.split()[-1])
    shown = view.locator("article:not([hidden]) h3").all_text_contents()
    assert prompt in shown and all(prompt.split()[-1] in text for text in shown)
    view.fill("#find", "no such words")
    assert view.locator("#count").text_content().startswith("0 of")
    view.fill("#find", "")


def test_pictures_are_drawn(view):
    picture = view.locator("article img").first
    picture.scroll_into_view_if_needed()
    view.wait_for_function("() => document.querySelector('article img').naturalWidth > 0")
