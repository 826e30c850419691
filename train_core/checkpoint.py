"""Checkpoints that are either whole or not there: one safetensors file each, written under another name and renamed.

A checkpoint holds the trained weights, the optimiser's state, the random states and the history:
tensors as tensors, everything else as JSON in the file's metadata. There is no pickle in it.
"""

import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..intake import LIMITS, BadFile, check_file, write_atomically

NAME = "step-{step:08d}.safetensors"
NAME_PATTERN = re.compile(r"step-(\d{8})\.safetensors")


def pack(value, path: str, tensors: dict[str, Tensor]):
    """`value` as JSON, with every tensor in it moved to `tensors` and named by its path."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {"__tensor__": path}
    if isinstance(value, dict):
        return {"__dict__": [[key, pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [pack(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]
    return value


def unpack(value, tensors: dict[str, Tensor]):
    """What pack was given; tuples come back as lists.

    A dictionary's keys keep their type (an optimiser's are integers).
    """
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if isinstance(value, dict) and "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if isinstance(value, dict):
        return {key: unpack(item, tensors) for key, item in value["__dict__"]}
    return value


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all."""
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


@dataclass
class CheckpointFolder:
    """The checkpoints of one run.

    keep: how many of the newest to hold on to (None: all). identity: what makes two runs the same run (seed, rates,
    parent's hash …), JSON values; a checkpoint of another identity is refused instead of being continued by mistake.
    """

    path: Path
    keep: int | None = None
    identity: dict = field(default_factory=dict)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending. One that was cut off counts as absent."""
        return [step for step in self.found() if is_whole(self.file(step))]

    def found(self) -> list[int]:
        """Steps of the checkpoints' files, whole or not, ascending."""
        if not Path(self.path).is_dir():
            return []
        names = (NAME_PATTERN.fullmatch(name) for name in os.listdir(self.path))
        return sorted(int(match[1]) for match in names if match)

    def file(self, step: int) -> Path:
        return Path(self.path) / NAME.format(step=step)

    def save(self, step: int, state: dict, spared: int | None = None) -> Path:
        """Writes the state of `step` and lets the oldest checkpoints beyond `keep` go, but for that of step `spared`."""
        tensors: dict[str, Tensor] = {}
        packed = pack({"step": step, "identity": self.identity, **state}, "", tensors)
        save_tensors(self.file(step), tensors, {"format": "train_core 1", "state": json.dumps(packed)})
        if self.keep is not None:
            for old in self.steps()[: -self.keep]:
                if old != spared:
                    self.file(old).unlink()
        return self.file(step)

    def load(self, step: int | None = None) -> dict | None:
        """The state of `step` (None: the newest that is whole, said where it is not the newest); None where there is none.

        Raises: ValueError where the one that was asked for is damaged, or belongs to another run.
        """
        steps = self.steps()
        for lost in sorted(set(self.found()) - set(steps)):
            logging.warning('"%s" is damaged: the run goes on from the one before it', self.file(lost))
        if not steps and step is None:
            return None
        path = self.file(steps[-1] if step is None else step)
        state = read_state(path)
        self.check(state["identity"], path)
        return state

    def check(self, found: dict, path: Path) -> None:
        """Raises: ValueError naming what differs where `found`, the identity in the file `path`, is another run's."""
        wanted = json.loads(json.dumps(self.identity))
        other = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
        if other:
            told = ", ".join(f"{name} was {found.get(name)} and is now {wanted.get(name)}" for name in other)
            raise ValueError(f'Put it back to go on, or name another run.\n"{path}" belongs to another run: {told}.')


def is_whole(path: Path) -> bool:
    """Whether the file's heading can be read and its length is what that says."""
    try:
        check_file(path, LIMITS.weights_bytes)
        with safe_open(path, framework="pt"):
            return True
    except (BadFile, SafetensorError):
        return False


def read_identity(path: Path) -> dict:
    """What a checkpoint's run is made of, without its tensors; empty where the file does not say."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        return unpack(dict(json.loads(metadata["state"])["__dict__"])["identity"], {})
    except (KeyError, TypeError, ValueError):
        return {}


def read_state(path: Path) -> dict:
    """The state inside a checkpoint file. Raises: ValueError with a sentence where it is none."""
    check_file(path, LIMITS.weights_bytes)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
    except SafetensorError as error:
        raise ValueError(f'Take an earlier checkpoint.\n"{path}" is damaged ({error}).') from error
    if metadata.get("format") != "train_core 1":
        raise ValueError(
            "Choose a training checkpoint of this pack.\n"
            f'"{path}" is none (its metadata says {metadata.get("format")}).'
        )
    try:
        state = unpack(json.loads(metadata["state"]), tensors)
        return {**state, "identity": state["identity"], "step": state["step"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'Take an earlier checkpoint.\n"{path}" is damaged: its heading does not say what its tensors are ({error}).'
        ) from error
