"""`make demo`: starts the real ComfyUI server, runs workflows/ through its HTTP API and prints the pictures' paths."""

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from .get_host import ROOT, host_folder
from .host import BASE, enter, prepare_base
from .run_workflow import saved_files
from .workflow import to_api

WORKFLOWS = [
    "sprite_world_first_picture",
    "vico_train_a_concept",
    "vico_use_a_concept",
    "spin_self_play",
    "spin_load_checkpoint",
]
SECONDS_TO_START = 120
SECONDS_TO_RUN = 3600


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(address: str, data: dict | None = None) -> dict:
    """GET, or POST of JSON. RuntimeError with the server's own message where it refuses."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{address}: {error.read().decode()}") from error


@contextmanager
def server(base: Path, output: Path, device: str = "cpu"):
    """The real ComfyUI on a free local port, with this pack; yields its address. Its log is in `base`/server.log."""
    port = free_port()
    arguments = ["--port", str(port), "--base-directory", str(base), "--output-directory", str(output)]
    arguments += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"] + (
        ["--cpu"] if device == "cpu" else []
    )
    with open(base / "server.log", "w") as log:
        process = subprocess.Popen([sys.executable, host_folder() / "main.py", *arguments], stdout=log, stderr=log)
        try:
            yield wait_until_up(process, f"http://127.0.0.1:{port}", base / "server.log")
        finally:
            process.terminate()
            process.wait()


def wait_until_up(process, address: str, log: Path) -> str:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ask(address + "/system_stats")
            return address
        except urllib.error.URLError:
            time.sleep(0.5)
    raise RuntimeError(f"ComfyUI did not start; its log ends:\n{log.read_text()[-2000:]}")


def run(address: str, prompt: dict) -> dict:
    """Queues an API prompt and waits for it. Returns {node id: ui}; RuntimeError with the host's message if it failed."""
    prompt_id = ask(address + "/prompt", {"prompt": prompt})["prompt_id"]
    deadline = time.monotonic() + SECONDS_TO_RUN
    while time.monotonic() < deadline:
        done = ask(f"{address}/history/{prompt_id}").get(prompt_id)
        if done:
            if done["status"]["status_str"] != "success":
                raise RuntimeError(json.dumps(done["status"]["messages"][-1][1], indent=1))
            return done["outputs"]
        time.sleep(0.3)
    raise RuntimeError(f"{prompt_id} did not end within {SECONDS_TO_RUN} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    output = ROOT / "output"
    output.mkdir(exist_ok=True)
    base = prepare_base(BASE)
    enter(base, options.device)
    with server(base, output, options.device) as address:
        for name in WORKFLOWS:
            start = time.monotonic()
            outputs = run(
                address, to_api(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
            )
            print(f"{name} ({time.monotonic() - start:.0f} s)")
            for path in saved_files(outputs, output):
                print(f"  {path}")


if __name__ == "__main__":
    main()
