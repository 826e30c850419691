"""A ViCo training's files."""

import json
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...intake import write_atomically
from ...train_core import CheckpointFolder, read_state
from ...vico_core import ViCoConcept
from ..host.folders import run_name
from .folder import FOLDER, STEP, home

STATES_KEPT = 2  # the newest to go on from, and one before it


@dataclass(frozen=True)
class Outcome:
    """What a run has come to: the concept, the metrics of every step, and the run's name under models/vico."""

    concept: ViCoConcept
    metrics: list[dict]
    run: str

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.metrics]


class RunFiles:
    """Where a run is kept, named after all that it comes from: the same again goes on, anything else starts anew.

    models/vico/<run>/step-….safetensors: concepts, for Load ViCo Concept. output/vico/<run>/: what a run goes on from.
    """

    def __init__(self, name: str, identity: dict):
        self.run = run_name(name, identity)
        self.concepts = concepts_folder(self.run)
        states = Path(folder_paths.get_output_directory()) / FOLDER / self.run
        self.states = CheckpointFolder(states, STATES_KEPT, identity)
        told = json.dumps(identity, indent=1).encode()
        for folder in (self.concepts, self.states.path):  # before the first step: says whether they can be written
            write_atomically(Path(folder) / "settings.json", lambda path: path.write_bytes(told))

    def concept_file(self, step: int) -> Path:
        return self.concepts / f"{STEP}{step:05}.safetensors"

    def keep(self, concept: ViCoConcept) -> Path:
        path = self.concept_file(concept.step)
        if not path.is_file():
            write_atomically(path, concept.save)
        return path

    def newest(self) -> int:
        return max(self.states.steps(), default=0)

    def finished(self, steps: int) -> Outcome | None:
        """The concept of step `steps`, where the run has gone further before. ValueError where that one was not kept."""
        newest = self.newest()
        if newest <= steps:
            return None
        if not self.concept_file(steps).is_file():
            kept = ", ".join(str(int(path.stem.removeprefix(STEP))) for path in checkpoint_files(self.run))
            raise ValueError(
                f"Set steps to one that was kept, or change the run's name.\n"
                f"It has gone to step {newest} already, and step {steps} was not kept, but {kept}."
            )
        history = read_state(self.states.file(newest))["history"][:steps]
        metrics = [report["metrics"] for report in history]
        return Outcome(ViCoConcept.load(self.concept_file(steps)), metrics, self.run)


def concepts_folder(run: str) -> Path:
    """models/vico/<run>. ValueError where the name leads elsewhere."""
    folder = (home() / run).resolve()
    if folder.parent != home().resolve():
        raise ValueError(f'Connect the run of Train ViCo.\n"{run}" is not the name of a ViCo run in models/{FOLDER}.')
    return folder


def checkpoint_files(run: str) -> list[Path]:
    """The kept concepts of a run, by step."""
    return sorted(concepts_folder(run).glob(f"{STEP}*.safetensors"))


def existing_checkpoints(run: str) -> list[Path]:
    """The same. ValueError where there is none."""
    if not (files := checkpoint_files(run)):
        raise ValueError(f"Connect the run of Train ViCo.\nThere is no checkpoint in models/{FOLDER}/{run}.")
    return files
