"""`make demo`: starts the real ComfyUI server, runs workflows/ through its API and prints the pictures' paths."""

import argparse
import json
import sys
import time

from .get_host import ROOT
from .host import BASE, enter, prepare_base
from .run_workflow import saved_files
from .server import run, server
from .workflow import to_api

PICTURES = ["vico_use_a_concept", "spin_load_checkpoint", "sprite_world_first_picture"]  # seconds each
TRAININGS = ["vico_train_a_concept", "spin_self_play"]
SECONDS_BETWEEN_LINES = 10  # where the output is a file, and a line cannot be written over


class Words:
    """What nodes say while they run: one line that is written over on a terminal, now and then a line elsewhere."""

    def __init__(self):
        self.last, self.width = 0.0, 0

    def __call__(self, text: str) -> None:
        line = "  " + " ".join(text.split())[:110]
        if sys.stdout.isatty():
            print("\r" + line.ljust(self.width), end="", flush=True)
            self.width = len(line)
        elif time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(line, flush=True)

    def end(self) -> None:
        if self.width:
            print("\r" + " " * self.width + "\r", end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="the pictures alone, without the trainings")
    options = parser.parse_args()
    output, start = ROOT / "output", time.monotonic()
    output.mkdir(exist_ok=True)
    base = prepare_base(BASE)
    enter(base, options.device)
    with server(base, output, options.device) as address:
        print(f"ComfyUI is up after {time.monotonic() - start:.0f} s", flush=True)
        for name in PICTURES + ([] if options.quick else TRAININGS):
            begun, words = time.monotonic(), Words()
            print(f"{name} ...", flush=True)
            workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
            outputs = run(address, to_api(workflow), words)
            words.end()
            print(f"{name}: {time.monotonic() - begun:.0f} s, {time.monotonic() - start:.0f} s since the start")
            for path in saved_files(outputs, output):
                print(f"  {path}", flush=True)


if __name__ == "__main__":
    main()
