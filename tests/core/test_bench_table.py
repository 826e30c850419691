"""The table of `make bench`: what each benchmark found beside its limit, whatever becomes of the benchmark."""

import sys

import pytest

from vico_spin.benchmarks import table
from vico_spin.benchmarks.harness import in_turn
from vico_spin.scripts.get_host import ROOT


@pytest.mark.parametrize("bench", table.BENCHES, ids=lambda bench: bench.name)
def test_every_row_has_a_command_that_is_there_and_a_limit(bench):
    assert (ROOT / "benchmarks" / f"{bench.name}.py").is_file()
    assert bench.rows and all(row.limit for row in bench.rows)


def test_a_figure_is_held_against_both_its_limits():
    row = table.Row("between", ("a", "b"), most=2, least=1)
    assert [row.holds(row.value({"a": {"b": value}})) for value in (0.5, 1, 2, 2.5)] == [False, True, True, False]
    assert row.limit == "≥ 1, ≤ 2"


@pytest.mark.parametrize(
    "code, why", [("raise ValueError('no model')", "ValueError: no model"), ("while True: pass", "over 0 minutes")]
)
def test_a_benchmark_that_fails_or_takes_too_long_is_a_row_that_does_not_hold(monkeypatch, code, why):
    monkeypatch.setattr(table.Bench, "command", lambda bench, quick: [sys.executable, "-c", code])
    rows = table.rows_of(table.BENCHES[0], quick=True, minutes=0 if "over" in why else 1)
    assert {(row["measured"], row["holds"]) for row in rows} == {(why, False)}


def test_cases_take_turns_and_the_first_repetition_does_not_count():
    """Each case sees 9 at its first run, then 1 and 3: their median is 2, not 3."""
    ran, numbers = [], {"a": iter((9, 1, 3)), "b": iter((9, 1, 3))}
    found = in_turn({name: lambda name=name: ran.append(name) or {"n": next(numbers[name])} for name in "ab"}, 2)
    assert found == {"a": {"n": 2}, "b": {"n": 2}} and "".join(ran) == "abbaab"
