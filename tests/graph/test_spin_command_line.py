"""vico-spin train --checkpoint: from single files, by ComfyUI's classes, on one process and on two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from vico_spin.__main__ import main
from vico_spin.scripts import models, transformers
from vico_spin.scripts.get_host import host_folder

WIDTH = 768  # of CLIP-L, which the host does not build smaller


@pytest.fixture(scope="module")
def files(host, tmp_path_factory) -> Path:
    """A small Flux that reads CLIP-L, a text encoder whose weights are views of one small buffer, a VAE, four pictures."""
    folder = tmp_path_factory.mktemp("files")
    sizes = {"hidden_size": 128, "num_heads": 1, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0}
    flux = transformers.transformer("Flux.1", context_in_dim=WIDTH, vec_in_dim=WIDTH, **sizes)
    save_file(flux.model.diffusion_model.state_dict(), folder / "flux.safetensors")
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(hidden_size=WIDTH, **CLIP_L)).state_dict()
    shapes = {f"text_model.{name.removeprefix('text_model.')}": t.shape for name, t in encoder.items()}
    buffer = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 0.03
    torch.save({name: overlapping(buffer, shape) for name, shape in shapes.items()}, folder / "clip.pt")
    save_file(models.vae(16).first_stage_model.state_dict(), folder / "vae.safetensors")
    (folder / "data").mkdir()
    for name in ("a cat", "a red dog", "a bird", "an old tree"):
        pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(len(name)))
        Image.fromarray((pixels * 255).byte().numpy()).save(folder / "data" / f"{name}.png")
        (folder / "data" / f"{name}.txt").write_text(name)
    return folder


CLIP_L = {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408}


def overlapping(buffer: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return buffer.as_strided(shape, [1] * len(shape))


def command(files: Path, output: Path, *more: str) -> list[str]:
    parts = [
        "--checkpoint",
        f"{files}/flux.safetensors",
        "--text-encoder",
        f"{files}/clip.pt",
        "--vae",
        f"{files}/vae.safetensors",
    ]
    how = ["--train", "lora", "--rank", "2", "--steps", "3", "--lr", "1e-4", "--batch-size", "2", "--resolution", "64"]
    how += [
        "--sampling-steps",
        "2",
        "--cfg",
        "1",
        "--generation-batch",
        "2",
        "--data",
        f"{files}/data",
        "--output",
        str(output),
    ]
    return ["train", *parts, *how, "--comfyui", str(host_folder()), *more]


def test_a_checkpoints_lora_is_the_same_on_two_processes(files, tmp_path, capsys):
    """The gradients' mean over two halves of each batch; 1e-5 for the order in which they are summed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", OMP_NUM_THREADS="1")
    line = [sys.executable, "-m", "vico_spin", *command(files, tmp_path / "two", "--processes", "2")]
    ranks = [
        subprocess.Popen(
            line, env=dict(env, RANK=rank, LOCAL_RANK=rank), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    said = [rank.communicate(timeout=500) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "on 2 processes" in said[0][0]
    assert main(command(files, tmp_path / "one")) == 0
    assert "on 1 process\n" in capsys.readouterr().out
    one, two = (load_file(tmp_path / name / "lora.safetensors") for name in ("one", "two"))
    assert any(t.any() for name, t in one.items() if name.endswith("lora_up.weight"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_launch_that_started_one_process_of_several_is_refused(files, tmp_path, monkeypatch, capsys):
    """`accelerate launch --cpu --num_processes 2` sets a meeting point, and starts one process: it ran as one in silence."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main(command(files, tmp_path / "run")) == 1
    assert "several processes were asked for, and this runs on 1" in capsys.readouterr().err
    monkeypatch.delenv("MASTER_ADDR")
    assert main(command(files, tmp_path / "run", "--processes", "2")) == 1
    assert "--processes is 2, and this runs on 1" in capsys.readouterr().err


def test_a_file_that_is_no_model_is_named(files, tmp_path, capsys):
    for name, content, message in (
        ("other.safetensors", save({"a": torch.zeros(2)}), "is no checkpoint or diffusion model that ComfyUI knows"),
        ("cut.safetensors", save({"a": torch.zeros(2)})[:40], "is not a whole file of weights"),
    ):
        (tmp_path / name).write_bytes(content)
        assert main([*command(files, tmp_path / "run"), "--checkpoint", str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        (("--text-encoder", "missing.pt"), 'there is no file "missing.pt"'),
        (("--text-type", "gpt"), '--text-type "gpt" is not known: choose of'),
        (("--comfyui", "."), "is no folder of ComfyUI"),
        (("--train", "full"), "--checkpoint is trained by LoRA"),
    ],
)
def test_what_is_wrong_is_said(files, tmp_path, capsys, change, message):
    assert main([*command(files, tmp_path / "run"), *change]) == 1
    assert message in capsys.readouterr().err
