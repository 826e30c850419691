"""Short forms of benchmarks/faults.py, kills.py and queue_mix.py, each in a process of its own: it forks, or runs a host."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def measured(name: str, *flags: str) -> dict:
    command = [sys.executable, "-m", f"vico_spin.benchmarks.{name}", *flags, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_nodes_feed_to_the_hosts_loaders_is_taken_or_named():
    found = measured("faults", "--host", "--short")
    assert found["tried"] > 30 and found["clear"] > 10 and found["right"]
    assert [found[name] for name in ("unclear", "hang", "memory", "executed", "outside")] == [0] * 5


def test_kill_9_anywhere_loses_nothing():
    found = measured("kills", "--kills", "2")
    assert [found[name] for name in ("half written", "failed", "differ")] == [0] * 3


def test_queued_prompts_draw_what_each_draws_alone():
    assert measured("queue_mix", "--prompts", "4")["differ"] == 0
