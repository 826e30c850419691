"""The real ComfyUI inside this process: for tests, benchmarks, training scripts and headless runs.

`enter()` must come before the first `import comfy`. `Host` then runs API-format prompts through the host's own validation
and executor, without a server.
"""

import asyncio
import os
import signal
import sys
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path

from .get_host import HOST_HOME, ROOT, host_folder

BASE = HOST_HOME / "base"  # models, custom_nodes, input, output and user of the developer's runs
PACK_NAME = "vico-spin"
DEVICE = os.environ.get("COMFYUI_DEVICE", "cpu")  # cuda: what runs on the host (tests too) runs on the GPU


def prepare_base(base: Path = BASE) -> Path:
    """The host's base directory, with this checkout linked among its custom nodes."""
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    (base / "models").mkdir(exist_ok=True)
    link = base / "custom_nodes" / PACK_NAME
    if link.resolve() != ROOT:
        if link.is_symlink():  # of a checkout that was moved or copied
            link.unlink()
        link.symlink_to(ROOT, target_is_directory=True)
    return base


def enter(base: Path = BASE, device: str = DEVICE) -> None:
    """Puts the host's folder first on sys.path and sets the arguments that its modules read while they are imported."""
    if "comfy.cli_args" in sys.modules:
        return
    # First even where it is there: a spawned process inherits the path of one whose host put comfy/ before itself, and
    # with it another `utils`.
    sys.path.insert(0, str(host_folder()))
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    args.base_directory = str(prepare_base(base))
    args.disable_api_nodes = True


def share_the_pack() -> None:
    """Lets the host's copy of this pack be the one that tests and benchmarks import as vico_spin.

    The host loads a pack under its folder's path for a name. Its entry point imports `.nodes` from there, and finds ours.
    """
    import folder_paths

    import vico_spin.nodes

    for folder in folder_paths.get_folder_paths("custom_nodes"):
        sys.modules[os.path.join(folder, PACK_NAME).replace(".", "_x_") + ".nodes"] = vico_spin.nodes


@contextmanager
def stopping_at_ctrl_c():
    """Ctrl+C stops the running node at its next step, as the browser's button does; a second one stops at once.

    asyncio would cancel its task instead, which a node does not notice: it would run to its end and lose what it made.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    from comfy.model_management import interrupt_current_processing

    def stop(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt_current_processing()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Server:
    """What the host's executor and nodes ask of their server when there is none: it collects the messages."""

    def __init__(self):
        from aiohttp import web
        from app.node_replace_manager import NodeReplaceManager

        self.client_id = "headless"
        self.last_node_id = self.last_prompt_id = None
        self.sockets_metadata = {}
        self.routes = web.RouteTableDef()
        self.node_replace_manager = NodeReplaceManager()
        self.messages = []

    def send_sync(self, event, data, client_id=None):
        self.messages.append((event, data))

    def send_progress_text(self, text, node_id, client_id=None):
        self.messages.append(("progress_text", {"text": text, "node": node_id}))

    def queue_updated(self):
        pass


class Host:
    """One ComfyUI in this process, with its extra nodes and this pack loaded."""

    def __init__(self, base: Path = BASE, device: str = DEVICE):
        enter(base, device)
        import execution
        import server

        import nodes

        self.server = server.PromptServer.instance = Server()
        share_the_pack()
        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False))
        self.node_classes = nodes.NODE_CLASS_MAPPINGS
        no_limits = {"lru": 0, "ram": 0, "ram_inactive": 0}
        self.executor = execution.PromptExecutor(
            self.server, cache_type=execution.CacheType.CLASSIC, cache_args=no_limits
        )

    def run(self, prompt: dict) -> dict:
        """Runs an API-format prompt; returns {node id: its ui output}. RuntimeError with the host's own message if it fails."""
        with stopping_at_ctrl_c():
            return asyncio.run(self._run(prompt))

    def call(self, node_id: str, **inputs) -> tuple:
        """One node's results, under inference mode as in the executor."""
        import torch

        with torch.inference_mode():
            node = self.node_classes[node_id]
            if hasattr(node, "define_schema"):
                made = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**inputs)
                return getattr(made, "result", made)  # a few of the host's own still give a plain tuple
            return getattr(node(), node.FUNCTION)(**inputs)

    async def _run(self, prompt: dict) -> dict:
        import execution

        prompt_id = str(uuid.uuid4())
        valid, error, outputs, node_errors = await execution.validate_prompt(prompt_id, prompt, None)
        if not valid or node_errors:  # the host would run what is left of a prompt, without the outputs that fail
            raise RuntimeError(describe_invalid(error, node_errors))
        await self.executor.execute_async(prompt, prompt_id, {"client_id": self.server.client_id}, outputs)
        if not self.executor.success:
            _, data = next(m for m in reversed(self.executor.status_messages) if m[0].startswith("execution_"))
            where = f"{data.get('node_type')} (node {data.get('node_id')})"
            raise RuntimeError(f"{where}: {data.get('exception_message', 'stopped before its end').strip()}")
        return self.executor.history_result["outputs"]


def describe_invalid(error: dict | None, node_errors: dict) -> str:
    """The host's validation errors as one text: what, and at which node and input."""
    lines = [error["message"] + (f": {error['details']}" if error.get("details") else "")] if error else []
    for node_id, found in node_errors.items():
        lines += [f"{found['class_type']} (node {node_id}): {e['message']}: {e['details']}" for e in found["errors"]]
        lines += [f"So the output of node {output} would be missing." for output in found.get("dependent_outputs", [])]
    return "\n".join(dict.fromkeys(lines))
