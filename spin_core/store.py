"""Tensors kept on disk under what they were made from, so that nothing is encoded or generated twice."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..train_core import is_whole, save_tensors


def store_key(**made_from) -> str:
    """A name for what these JSON values make: model's hash, prompt, seed, sampler … Same values, same name."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TensorStore:
    """One safetensors file a key. Files appear whole or not at all; a damaged one counts as absent and is made anew."""

    folder: Path

    def file(self, key: str) -> Path:
        return Path(self.folder) / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return is_whole(self.file(key))

    def get(self, key: str) -> dict[str, Tensor] | None:
        try:
            return load_file(self.file(key)) if self.file(key).is_file() else None
        except SafetensorError:
            return None

    def put(self, key: str, tensors: dict[str, Tensor], made_from: dict) -> None:
        """Writes the tensors, with what they were made from readable in the file's metadata."""
        save_tensors(
            self.file(key),
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            {"made_from": json.dumps(made_from, sort_keys=True)},
        )
