"""Benchmarks that run: a figure that nobody can make again is none. The others are run by test_faults and test_spin_evidence."""

import subprocess
import sys

import pytest

from vico_spin.benchmarks import table
from vico_spin.scripts.get_host import ROOT

RUN_ELSEWHERE = {"faults", "kills", "queue_mix"}


@pytest.mark.parametrize(
    "bench", [bench for bench in table.BENCHES if bench.name not in RUN_ELSEWHERE], ids=lambda bench: bench.name
)
def test_every_row_of_make_bench_has_its_figure(bench):
    found, why = table.run(bench, quick=True, minutes=30)
    assert not why and all(isinstance(row.value(found), int | float) for row in bench.rows)


def test_without_a_browser_the_page_says_how_to_get_one(monkeypatch, tmp_path):
    for name in ("PATH", "PLAYWRIGHT_BROWSERS_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    bench = next(bench for bench in table.BENCHES if bench.name == "scores_page")
    _, why = table.run(bench, quick=True, minutes=30)
    assert "`make browser` installs one" in why


@pytest.mark.parametrize("flags", ["vico_masks --creatures 1", "scale --quick"])
def test_what_makes_a_page_of_the_docs_runs(flags, tmp_path):
    command = [sys.executable, "-m", *f"vico_spin.benchmarks.{flags} --docs {tmp_path}".split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    assert list(tmp_path.glob("*.md"))
