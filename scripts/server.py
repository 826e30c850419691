"""The real ComfyUI server with this pack on a free local port, and prompts through its HTTP and websocket API."""

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from .get_host import host_folder

SECONDS_TO_START = 600  # a start takes 8 s; a machine with other work is given time
TEXT_EVENT = (3).to_bytes(4, "big")  # a node's words, in the server's binary messages


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


def run(address: str, prompt: dict, on_words: Callable[[str], None] = lambda text: None) -> dict:
    """Queues an API prompt and waits for it; on_words is told what nodes say meanwhile.

    Returns {node id: ui}. RuntimeError with the host's message if it failed.
    """
    return asyncio.run(_run(address, prompt, on_words))


async def _run(address: str, prompt: dict, on_words) -> dict:
    import aiohttp

    client = uuid.uuid4().hex
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}/ws?clientId={client}") as messages:
        prompt_id = ask(address + "/prompt", {"prompt": prompt, "client_id": client})["prompt_id"]
        async for message in messages:
            if message.type == aiohttp.WSMsgType.BINARY and message.data.startswith(TEXT_EVENT):
                on_words(words_of(message.data))
            elif message.type == aiohttp.WSMsgType.TEXT and is_end(json.loads(message.data), prompt_id):
                break
    done = ask(f"{address}/history/{prompt_id}").get(prompt_id)
    if not done or done["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(done["status"]["messages"][-1][1] if done else "the run has no result", indent=1))
    return done["outputs"]


def is_end(told: dict, prompt_id: str) -> bool:
    """Whether this message says that the prompt is over, and its outputs are in the history: "success" comes before that."""
    data = told["data"]
    return told["type"] == "executing" and data["node"] is None and data["prompt_id"] == prompt_id


def words_of(message: bytes) -> str:
    """The text of a TEXT event: behind its number, the length of the node's id, and the id."""
    start = 8 + int.from_bytes(message[4:8], "big")
    return message[start:].decode("utf-8")
