"""The pack as a stranger's ComfyUI has it: another folder's name, beside packs that use the same module names as ours."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from vico_spin.scripts import get_host
from vico_spin.scripts.get_host import host_folder
from vico_spin.scripts.host import PACK_NAME, prepare_base
from vico_spin.tests.core.test_published_archive import ROOT, published

IMPOSTORS = ["scores", "train_core", "vico_core", "spin_core", "sprite_world", "utils", "nodes"]
OURS = ["scores", "train_core", "vico_core", "spin_core", "sprite_world", "scripts"]
# ComfyUI's own main.py, in a process where another pack has put its folder on the path and imported its modules, and where
# vico_spin is not installed; afterwards, what can be seen from outside.
DRIVER = """
import importlib.util, json, runpy, sys
host, impostors, base = sys.argv[1:]
sys.modules["vico_spin"] = None
sys.path[:] = [host, impostors, *(p for p in sys.path if p)]
import scores, train_core, vico_core
sys.argv = ["main.py", "--cpu", "--quick-test-for-ci", "--disable-api-nodes", "--base-directory", base,
            "--database-url", "sqlite:///:memory:"]
try:
    runpy.run_path(host + "/main.py", run_name="__main__")
except SystemExit:
    pass
nodes = sys.modules["nodes"].NODE_CLASS_MAPPINGS
where = {name: importlib.util.find_spec(name) for name in OURS}
print(json.dumps({
    "nodes": {name: getattr(node, "RELATIVE_PYTHON_MODULE", "") for name, node in nodes.items()},
    "path": sys.path,
    "where": {name: spec and spec.origin for name, spec in where.items()},
}))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """What the driver printed, and the folder that the pack lay in."""
    home = tmp_path_factory.mktemp("a home with spaces, Ü")
    pack = home / "base" / "custom_nodes" / "Vico och Spin é"
    for name in published():
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, pack / name)
    for name in IMPOSTORS:
        (home / "impostors" / name).mkdir(parents=True)
        (home / "impostors" / name / "__init__.py").write_text("")
    code = DRIVER.replace("OURS", repr(OURS))
    command = [sys.executable, "-c", code, str(host_folder()), str(home / "impostors"), str(home / "base")]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), pack


def test_every_node_loads_beside_packs_with_the_same_module_names(started, host):
    told, pack = started
    ours = {name for name, node in host.node_classes.items() if node.__module__.startswith("vico_spin.nodes.")}
    loaded = {name for name, module in told["nodes"].items() if module == f"custom_nodes.{pack.name}"}
    assert loaded == ours and len(ours) > 20


def test_nothing_of_ours_is_on_the_path_or_importable_by_its_bare_name(started):
    told, pack = started
    assert [entry for entry in told["path"] if Path(entry).is_relative_to(pack)] == []
    found = {name: origin for name, origin in told["where"].items() if origin}
    assert all("impostors" in origin for origin in found.values()), found
    assert "scripts" not in found


def test_a_set_up_that_was_cut_before_its_pip_goes_on(tmp_path, monkeypatch):
    venv.create(tmp_path / "venv", with_pip=False)
    monkeypatch.setattr(get_host, "VENV", tmp_path / "venv")
    monkeypatch.setattr(get_host, "PYTHON", tmp_path / "venv" / "bin" / "python")
    assert not get_host.works("import pip")
    get_host.make_venv()
    assert get_host.works("import pip")
    made = get_host.PYTHON.lstat().st_mtime_ns
    get_host.make_venv()
    assert get_host.PYTHON.lstat().st_mtime_ns == made, "a whole one is kept"


def test_a_copied_checkout_runs_its_own_code(tmp_path):
    """The copy's base folder still links to the checkout that it was copied from."""
    link = prepare_base(tmp_path) / "custom_nodes" / PACK_NAME
    link.unlink()
    link.symlink_to(tmp_path / "another checkout")
    prepare_base(tmp_path)
    assert link.resolve() == ROOT
