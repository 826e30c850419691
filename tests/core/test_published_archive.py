"""What the registry would publish: its scanner turns down files that run programs, open connections or read the environment."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGGED = re.compile(r"\b(subprocess|import socket|requests|urllib|os\.environ|importlib\.import_module|exec\(|eval\()")


def published() -> list[str]:
    """Tracked files that .comfyignore does not leave out."""
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    ignored = subprocess.check_output(
        ["git", "ls-files", "-ci", "-X", ".comfyignore"], cwd=ROOT, text=True
    ).splitlines()
    return sorted(set(tracked) - set(ignored))


def test_the_archive_has_the_nodes_and_no_developers_files():
    files = published()
    assert {
        "__init__.py",
        "nodes/vico.py",
        "vico_core/concept.py",
        "web/docs/ViCoApply.md",
        "LICENSE",
        "README.md",
    } <= set(files)
    assert [f for f in files if f.split("/")[0] in {"tests", "scripts", "benchmarks", ".ci", "docs"}] == []


def test_nothing_published_is_flagged_by_the_registrys_scanner():
    found = []
    for name in published():
        if name.endswith(".py"):
            text = re.sub(r"\.eval\(\)", "", (ROOT / name).read_text(encoding="utf-8"))  # Module.eval() is no eval()
            found += [f"{name}: {match[0]}" for match in FLAGGED.finditer(text)]
    assert found == []


def test_help_pages_are_plain_text_that_every_windows_reads():
    for name in published():
        if name.startswith("web/docs/") and name.endswith(".md"):
            (ROOT / name).read_text(encoding="utf-8").encode("cp1252")
