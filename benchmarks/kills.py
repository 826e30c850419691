"""kill -9 at random moments: python -m vico_spin.benchmarks.kills [--kills 50] [--json]

In the real host, on small models: Train SPIN (two rounds, so generation too), Train ViCo, and saving what each has learnt. A
child process does all of it and is killed at a random moment; another one is given the same inputs and goes on. What it comes
to is held against a run that nobody disturbed, to the bit. Every file that a kill leaves must be whole or be told from one.
"""

import os
import random
import select
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from .harness import finish, flags

SPIN = {"batch_size": 2, "resolution": 64, "seed": 1, "run_name": "spin", "train": {"train": "LoRA", "rank": 2}}
GAME = {"play": "several rounds", "rounds": 2, "steps": "4, 3", "learning_rate": "1e-3", "beta": "50"}
VICO = {"initialiser": "toy", "placeholder": "*", "steps": 4, "seed": 3, "run_name": "vico", "size": 64}
VICO |= {"preview_prompts": "", "word_lr": 5e-3, "attention_lr": 1e-5}
OPTIONS = {"checkpoint_every": 1, "preview_every": 0}
GIVE_UP = 600  # seconds


class Work:
    """All that is killed, in one host. The models are made once; children get them by fork."""

    def __init__(self):
        from ..scripts.host import Host

        self.host = Host()
        import torch

        from ..scripts import models

        self.torch = torch
        torch.set_num_threads(1)  # threads do not come along through a fork
        with torch.inference_mode():
            self.spin = {"model": models.of_family("sd1"), "clip": models.clip(), "vae": models.vae(4)}
            self.vico = {"model": models.sd1(), "clip": models.clip(), "vae": models.vae()}
        self.photos = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))

    def do(self, home: Path, tell) -> str:
        """Both trainings and what they save, below `home`. tell: takes the word for what comes next. Returns the result's hash."""
        import folder_paths

        from ..train_core import weights_hash

        folder_paths.set_output_directory(str(home / "output"))
        folder_paths.folder_names_and_paths["vico"] = ([str(home / "vico")], {".safetensors"})
        call = self.host.call
        options = call("ViCoSPINTrainingOptions", **OPTIONS)[0]
        tell("SPIN")
        data = call("SPINDataset", source="pictures from the graph", images=self.photos, captions="a\nb\nc\nd")[0]
        opponent = call("SPINOpponent", sampler_name="euler", scheduler="normal", steps=2, cfg=2.0, batch=1)[0]
        given = {"dataset": data, "opponent": opponent, "training_options": options, "play": GAME}
        lora = call("SPINTrain", **self.spin, **SPIN, **given)[1]
        tell("ViCo")
        lists = {name: [value] for name, value in {**self.vico, **VICO, "training_options": options}.items()}
        concept = call("ViCoTrain", photos=[self.photos[:2]], masks=None, **lists)[0]
        tell("saving")
        call("SPINSave", filename_prefix="kept", format="ComfyUI LoRA", lora=lora)
        call("ViCoSaveConcept", concept=concept, filename_prefix="kept", format="safetensors")
        learnt = {f"{place}.{k}": t for place, module in concept.modules.items() for k, t in module.items()}
        return weights_hash(lora) + weights_hash(learnt | concept.embeddings)


def child(work: Work, home: Path) -> tuple[int, int]:
    """(its process, what it says: a word before each part, its hash at the end)."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    with os.fdopen(writing, "w", buffering=1) as told:
        try:
            told.write(f"done {work.do(home, lambda word: told.write(word + chr(10)))}\n")
        except BaseException as error:  # it must never come up into the parent's own code
            told.write(f"failed: {error!r}\n")
    os._exit(0)


def heard(reading: int, seconds: float) -> list[str]:
    """The lines that came within so many seconds, fewer where the child ends."""
    end, content = time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            part = os.read(reading, 4096)
            if not part:
                break
            content += part
    return content.decode().split("\n")[:-1]


def whole_run(work: Work, home: Path) -> tuple[str, float]:
    """(what it came to, seconds). Raises: RuntimeError where it ends without a result."""
    start = time.monotonic()
    process, reading = child(work, home)
    lines = heard(reading, GIVE_UP)
    os.close(reading)
    os.waitpid(process, 0)
    if not lines or not lines[-1].startswith("done "):
        raise RuntimeError(f"a run in {home} ended after {lines[-1] if lines else 'nothing'}")
    return lines[-1], time.monotonic() - start


def killed_run(work: Work, home: Path, seconds: float) -> str:
    """Where it stood when it was killed, after so many seconds."""
    process, reading = child(work, home)
    lines = heard(reading, seconds)
    os.kill(process, signal.SIGKILL)
    os.close(reading)
    os.waitpid(process, 0)
    return "over" if lines and lines[-1].startswith("done ") else lines[-1] if lines else "start"


def half_files(home: Path) -> list[Path]:
    """Files under their own names that are not whole."""
    from ..train_core import is_whole

    found = [path for path in home.rglob("*.safetensors") if not path.name.startswith(".")]
    return [path for path in found if not is_whole(path)]


def measure(kills: int, seed: int = 0) -> dict:
    """How many kills hit what, and what they did."""
    work, draw = Work(), random.Random(seed)
    where, differ, half, failed = Counter(), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        expected, seconds = whole_run(work, Path(folder) / "undisturbed")
        for number in range(kills):
            home = Path(folder) / str(number)
            where[killed_run(work, home, draw.uniform(0.05, 1) * seconds)] += 1
            half += len(half_files(home))
            try:
                differ += whole_run(work, home)[0] != expected
            except RuntimeError as error:
                failed += 1
                print(error)
    return {"kills": kills, **where, "half written": half, "failed": failed, "differ": differ}


def main() -> None:
    options = flags(__doc__, kills=(50, "how often a run is killed")).parse_args()
    finish(measure(options.kills), options)


if __name__ == "__main__":
    main()
