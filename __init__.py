"""ViCo and SPIN-Diffusion for ComfyUI."""

import sys
from pathlib import Path

# The rooms below nodes/ are plain packages that also run without the host (`python -m spin_core`), so they import each other by
# their own names. At the end of the path this folder shadows nothing.
if (_here := str(Path(__file__).parent)) not in sys.path:
    sys.path.append(_here)

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
