"""Two processes on gloo come to what one comes to, and hand over to it in the middle of a round."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from vico_spin.train_core import LocalEngine

HERE = Path(__file__).parent
CHANGES = {"batch_size": 4, "steps": (3,)}
RUN = """
import sys
sys.path[:0] = {path!r}
import torch
from accelerate import Accelerator
from test_spin_game import *
def stop(progress):
    if progress.report and progress.report.step == 2:
        raise KeyboardInterrupt
engine = Accelerator(cpu=True, gradient_accumulation_steps=2)
run_game({folder!r}, lora_player(unet()), changes={changes!r}, engine=engine, on_progress=stop, return_on=(KeyboardInterrupt,))
torch.distributed.destroy_process_group()
"""


def start_two_ranks(code, folder):
    code = code.format(path=[str(HERE), str(HERE.parent.parent)], folder=str(folder), changes=CHANGES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", OMP_NUM_THREADS="1")
    return [
        subprocess.Popen(
            [sys.executable, "-c", code], env=dict(env, RANK=rank, LOCAL_RANK=rank), stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]


def run_two_ranks(folder):
    """Two steps of three on two processes, then an interrupt."""
    for child in start_two_ranks(RUN, folder):
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors


def test_two_ranks_equal_one_and_hand_over_to_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import test_spin_game as game

    def run_one(folder):
        engine = LocalEngine(gradient_accumulation_steps=2)
        played = game.run_game(folder, game.lora_player(game.unet()), changes=CHANGES, engine=engine)
        return played.rounds[0].history, load_file(folder / "round-1" / "result.safetensors")

    run_two_ranks(tmp_path / "two")
    assert not (tmp_path / "two" / "round-1" / "result.safetensors").exists()
    history, weights = run_one(tmp_path / "two")
    expected_history, expected = run_one(tmp_path / "one")
    for found, wanted in zip(history, expected_history, strict=True):
        torch.testing.assert_close(torch.tensor(found.loss), torch.tensor(wanted.loss), rtol=0, atol=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
    assert any(tensor.abs().max() > 1e-4 for name, tensor in expected.items() if "lora_up" in name)


def test_an_error_on_one_rank_is_told(tmp_path):
    """It waited for the others, which waited for it."""
    children = start_two_ranks(
        """
import sys
sys.path[:0] = {path!r}
from accelerate import Accelerator
from test_spin_game import *
engine = Accelerator(cpu=True)
steps, data = [], corpus()
damaged = replace(data, real=lambda i: 1 / 0 if engine.process_index == 1 and steps else data.real(i))
tell = lambda progress: progress.report and steps.append(progress.report.step)
run_game({folder!r}, lora_player(unet()), data=damaged, changes={changes!r}, engine=engine, on_progress=tell)
""",
        tmp_path,
    )
    first, second = (child.communicate(timeout=60)[1] for child in children)
    assert "ZeroDivisionError" in second and "Traceback" in first
    assert (tmp_path / "round-1" / "step-00000001.safetensors").is_file()
