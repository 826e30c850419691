"""vico-spin train --checkpoint: from single files, by ComfyUI's classes, on one process and on two."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from vico_spin.__main__ import main
from vico_spin.nodes.spin.asked import TrainingRun
from vico_spin.nodes.spin.command_line import check_captions
from vico_spin.scripts import models, transformers
from vico_spin.scripts.get_host import host_folder
from vico_spin.spin_core.game import RoundSettings

WIDTH = 768  # of CLIP-L, which the host does not build smaller


@pytest.fixture(scope="module")
def files(host, tmp_path_factory) -> Path:
    """A small Flux and a small U-Net that read CLIP-L, a text encoder whose weights are views of one small buffer, VAEs, pictures."""
    folder = tmp_path_factory.mktemp("files")
    sizes = {"hidden_size": 128, "num_heads": 1, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0}
    flux = transformers.transformer("Flux.1", context_in_dim=WIDTH, vec_in_dim=WIDTH, **sizes)
    unet = models.sd1(width=320, channel_mult=(1,), num_res_blocks=1, attention=1, context_dim=WIDTH)
    for name, model in (("Flux", flux), ("U-Net", unet)):
        save_file(model.model.diffusion_model.state_dict(), folder / f"{name}.safetensors")
        vae = models.vae(model.model.latent_format.latent_channels).first_stage_model
        save_file(vae.state_dict(), folder / f"{name}-vae.safetensors")
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(hidden_size=WIDTH, **CLIP_L)).state_dict()
    shapes = {f"text_model.{name.removeprefix('text_model.')}": t.shape for name, t in encoder.items()}
    buffer = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 0.03
    torch.save({name: overlapping(buffer, shape) for name, shape in shapes.items()}, folder / "clip.pt")
    (folder / "data").mkdir()
    for name in ("a cat", "a red dog", "a bird", "an old tree"):
        pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(len(name)))
        Image.fromarray((pixels * 255).byte().numpy()).save(folder / "data" / f"{name}.png")
        (folder / "data" / f"{name}.txt").write_text(name)
    return folder


CLIP_L = {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408}


def overlapping(buffer: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return buffer.as_strided(shape, [1] * len(shape))


def command(
    files: Path, output: Path, *more: str, model: str = "Flux", kind: str = "lora", name: str = "train"
) -> list[str]:
    parts = {"checkpoint": f"{model}.safetensors", "text-encoder": "clip.pt", "vae": f"{model}-vae.safetensors"}
    how = {
        "resolution": 64,
        "sampling-steps": 2,
        "cfg": 1,
        "generation-batch": 2,
        "data": files / "data",
        "output": output,
    }
    how |= {"comfyui": host_folder(), "train": kind} | {part: files / file for part, file in parts.items()}
    if name == "train":
        how |= {"steps": 3, "lr": 1e-4, "batch-size": 2} | ({"rank": 2} if kind == "lora" else {})
    return [name, *(word for flag, value in how.items() for word in (f"--{flag}", str(value))), *more]


def run_two(arguments: list[str]) -> str:
    """The command on two processes. Returns what the first one said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", OMP_NUM_THREADS="1")
    line = [sys.executable, "-m", "vico_spin", *arguments, "--processes", "2"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(line, env=dict(env, RANK=rank, LOCAL_RANK=rank), **how) for rank in "01"]
    said = [rank.communicate(timeout=500) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return said[0][0]


RESULTS = {"lora": "lora.safetensors", "full": "model.safetensors"}


SHARD = ("--shard",)


@pytest.mark.parametrize(
    "model, kind, shard",
    [
        ("U-Net", "full", SHARD),
        ("U-Net", "lora", SHARD),
        ("Flux", "full", ()),
        ("Flux", "lora", ()),
        ("Flux", "lora", SHARD),
    ],
)
def test_two_processes_go_on_where_one_was_stopped_and_come_to_the_same(
    files, tmp_path, monkeypatch, capsys, model, kind, shard
):
    """Two rounds of two steps of 2e-5, cut after the first; 1e-5 for the order in which gradients are summed."""

    def stop_after_a_step(log, progress):
        if progress.report is not None:
            raise KeyboardInterrupt

    asked = {"model": model, "kind": kind}
    two_rounds = ("--rounds", "2", "--steps", "2", "--lr", "2e-5")
    assert main(command(files, tmp_path / "one", *two_rounds, **asked)) == 0
    assert "on 1 process\n" in capsys.readouterr().out
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vico_spin.nodes.spin.command_line.Log.__call__", stop_after_a_step)
        main(command(files, tmp_path / "two", *two_rounds, **asked))
    assert "on 2 processes" in run_two(command(files, tmp_path / "two", *two_rounds, *shard, **asked))
    one, two = (load_file(tmp_path / name / RESULTS[kind]) for name in ("one", "two"))
    start = load_file(files / f"{model}.safetensors") if kind == "full" else {}
    learnt = [tensor - start.get(name, 0) for name, tensor in one.items() if kind == "full" or "lora_up" in name]
    assert max(float(moved.abs().max()) for moved in learnt) > 6e-5
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", RESULTS)
def test_generate_draws_what_training_then_uses(files, tmp_path, kind):
    folder = tmp_path / "run"
    assert main(command(files, folder, kind=kind, name="generate")) == 0
    before = {picture: picture.stat().st_mtime_ns for picture in (folder / "pictures").rglob("*.safetensors")}
    assert len(before) == 4
    assert main(command(files, folder, "--steps", "1", kind=kind)) == 0
    assert {picture: picture.stat().st_mtime_ns for picture in (folder / "pictures").rglob("*.safetensors")} == before


def test_captions_of_several_lengths_are_not_sharded_together(files):
    """A process with two lengths in its batch would run more forwards than the others, which would wait for ever."""
    corpus = SimpleNamespace(
        prompts=["a", "b c"],
        shapes=[(4, 8, 8)],
        context=lambda prompts, shape: [{"x": torch.zeros(1, len(prompts[0]), 2)}],
    )
    asked = TrainingRun(RoundSettings(batch_size=4))
    with pytest.raises(ValueError, match="set --batch-size to 2"):
        check_captions(corpus, asked, 2)
    check_captions(corpus, asked, 4)


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
        (("--shard",), "--shard is for several processes, and this runs on 1"),
    ],
)
def test_what_is_wrong_is_said(files, tmp_path, capsys, change, message):
    assert main([*command(files, tmp_path / "run"), *change]) == 1
    assert message in capsys.readouterr().err
