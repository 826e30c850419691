"""The help pages: web/docs/<NodeId>.md, and in Chinese <NodeId>/zh.md, which the frontend looks for first."""

import json
import re

import pytest

from vico_spin.scripts.get_host import ROOT

PAGES = ROOT / "web" / "docs"
NAMES = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text(encoding="utf-8"))
HEAD = re.compile(r"^- (\*\*.+?\*\*)(?: = [^*：]+)?[:：]", re.M)


@pytest.fixture
def ours(host):
    """{node id: its inputs' ids, those of a dynamic combo's options too}."""
    nodes = {name: node for name, node in host.node_classes.items() if node.__module__.startswith("vico_spin.nodes.")}
    return {name: set(inputs_of(node.define_schema().inputs)) for name, node in nodes.items()}


def inputs_of(inputs):
    for slot in inputs:
        yield slot.id
        for option in getattr(slot, "options", None) or []:
            yield from inputs_of(getattr(option, "inputs", []))


def page(*path: str) -> str:
    return PAGES.joinpath(*path).read_text(encoding="utf-8")


def explained(text: str, inputs: set[str]) -> set[str]:
    """The inputs that have a bullet."""
    return {word for head in HEAD.findall(text) for word in re.findall(r"\w+", head)} & inputs


def figures(text: str) -> set[str]:
    """Numbers, and what stands in code marks: what a translation leaves as it is."""
    return set(re.findall(r"`[^`\n]+`|(?<![\w.])\d+(?:[.e-]+\d+)*", text))


def test_every_node_has_a_help_page_and_a_chinese_one(ours):
    pages = [name for node in ours for name in (f"{node}.md", f"{node}/zh.md")]
    assert [name for name in pages if not (PAGES / name).is_file()] == []
    assert {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")} == set(pages)


def test_a_chinese_page_explains_the_same_inputs_with_the_same_figures(ours):
    for node, inputs in ours.items():
        english, chinese = page(f"{node}.md"), page(node, "zh.md")
        assert explained(chinese, inputs) == explained(english, inputs), node
        assert figures(chinese) == figures(english), node
        assert chinese.startswith(f"# {NAMES[node]['display_name']}\n"), node


def test_no_page_has_a_table():
    """The panel is so narrow that a table's second column becomes a sliver."""
    assert [path for path in PAGES.rglob("*.md") if re.search(r"^\|", path.read_text(encoding="utf-8"), re.M)] == []


WITHOUT = {
    "SPINOpponent",
    "SPINOptions",
    "ViCoOptions",
    "ViCoSPINTrainingOptions",
    "ScoreLoadScorer",
    "ViCoSaveConcept",
}


def test_every_main_node_has_its_picture_on_both_pages(ours):
    """All but nodes of settings and files alone. The frontend looks for a page's pictures beside the English one."""
    shown = {node: re.findall(r"!\[.+\]\((.+)\)", page(f"{node}.md")) for node in ours}
    assert {node for node in ours if not shown[node]} == WITHOUT
    assert all(shown[node] == re.findall(r"!\[.+\]\((.+)\)", page(node, "zh.md")) for node in ours)
    pictures = {path.name for path in PAGES.iterdir() if path.suffix in (".jpg", ".png")}
    assert pictures == {name for names in shown.values() for name in names}
