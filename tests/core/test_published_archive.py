"""What the registry would publish: its scanner turns down files that run programs, open connections or read the environment."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGGED = re.compile(r"\b(subprocess|import socket|requests|urllib|os\.environ|importlib\.import_module|exec\(|eval\()")


def published() -> list[str]:
    """The checkout's files (those not yet committed too) that .comfyignore does not leave out."""
    files = ["git", "ls-files", "--cached", "--others"]
    all_of_them = subprocess.check_output([*files, "--exclude-standard"], cwd=ROOT, text=True).splitlines()
    ignored = subprocess.check_output([*files, "--ignored", "-X", ".comfyignore"], cwd=ROOT, text=True).splitlines()
    return sorted(name for name in set(all_of_them) - set(ignored) if (ROOT / name).is_file())


def test_the_archive_has_the_nodes_and_no_developers_files():
    files = published()
    assert {
        "__init__.py",
        "nodes/vico/apply.py",
        "vico_core/concept.py",
        "web/docs/ViCoApply.md",
        "web/docs/ViCoApply/zh.md",
        "subgraphs/ViCo picture.json",
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


def test_what_is_published_is_text_that_every_windows_reads():
    """All but the Chinese texts: tools there read files in their own code page."""
    strange = {}
    for name in published():
        if name.endswith((".py", ".js", ".css", ".md", ".toml", ".txt")) and not name.endswith("/zh.md"):
            text = (ROOT / name).read_text(encoding="utf-8")
            found = {sign for sign in text if not sign.encode("cp1252", "ignore")}
            strange |= {name: found} if found else {}
    assert strange == {}
