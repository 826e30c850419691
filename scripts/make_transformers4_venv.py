"""Makes .venv-t4: transformers 4 and the originals' open_clip over the main environment's torch (190 MB, half a minute).

    python3 -m vico_spin.scripts.make_transformers4_venv

The scorers support transformers 4.50 to 5; ComfyUI's own environment has 5. In the second environment the main one's
packages come last on the path, so that only what is named here differs. A second call does nothing.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER, MAIN = ROOT / ".venv-t4", ROOT / ".venv"
PACKAGES = ["transformers==4.57.6", "huggingface_hub<1", "tokenizers<0.23"]
ORACLES = ["open_clip_torch==3.3.0", "timm", "ftfy", "wcwidth"]  # for scripts/make_scores_golden.py


def main() -> None:
    done, wanted = FOLDER / "made-by-make_transformers4_venv", Path(__file__).read_text()
    if done.is_file() and done.read_text() == wanted:
        return
    main_python = MAIN / "bin" / "python"
    if not main_python.exists():
        sys.exit("There is no .venv yet: run make setup first.")
    subprocess.run([main_python, "-m", "venv", "--clear", FOLDER], check=True)
    (site,) = FOLDER.glob("lib/python*/site-packages")
    (main_site,) = MAIN.glob("lib/python*/site-packages")
    # addsitedir, since a bare path would leave out the .pth files there: by one of them vico_spin is found
    (site / "main-venv.pth").write_text(f"import site; site.addsitedir({str(main_site)!r})\n")
    subprocess.run(
        [FOLDER / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", *PACKAGES, *ORACLES], check=True
    )
    done.write_text(wanted)


if __name__ == "__main__":
    main()
