"""The real host in this process, and tiny models of the true architecture.

`host.run(prompt)` runs an API-format prompt; `call(NodeClass, **inputs)` runs one node as the executor does and returns its
results. `sd1(...)` builds a small SD1.x-shaped MODEL, `sd1_clip()` a small CLIP.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
from scripts.host import Host, enter  # noqa: E402

enter()

import torch  # noqa: E402


@pytest.fixture(scope="session")
def host():
    return Host()


@pytest.fixture(scope="session")
def call(host):
    """call("ViCoApply", model=…) → the node's results, under inference_mode as in the executor."""

    def run(node_id: str, **inputs):
        with torch.inference_mode():
            return host.node_classes[node_id].execute(**inputs).result

    return run
