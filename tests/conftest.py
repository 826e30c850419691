import os
from pathlib import Path

import pytest

# Tests that want the same bits twice: on several threads MKL's small products may otherwise differ from call to call.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

HERE = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        "--golden", default=str(HERE / "golden"), help="folder with the originals' numbers (vico/, spin/, scores/)"
    )
    parser.addoption(
        "--graphs", type=int, default=6, help="random graphs that test_vico_random_graphs.py tries a family"
    )


@pytest.fixture(scope="session")
def golden(request) -> Path:
    """The folder that the golden tests read: --golden DIR, by default tests/golden."""
    return Path(request.config.getoption("--golden")).resolve()
