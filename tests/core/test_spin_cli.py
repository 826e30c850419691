"""The command line on a pipeline of diffusers' own classes, a few thousand weights large."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import diffusers
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vico_spin.__main__ import main as vico_spin_main
from vico_spin.scripts.tiny_pipeline import write_pipeline
from vico_spin.spin_core.cli import main, read_lora
from vico_spin.spin_core.game import RoundSettings
from vico_spin.spin_core.pipelines import check_scheduler
from vico_spin.spin_core.settings import TrainSettings, parse

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A StableDiffusionPipeline folder."""
    return write_pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(colour)
    (folder / "d.png").write_bytes(b"no picture")
    (folder / "d.txt").write_text("broken")
    return folder


@pytest.fixture
def train(model, data, tmp_path):
    def arguments(*flags, command="train", output="run"):
        small = ["--resolution", "64", "--sampling-steps", "2", "--cfg", "2", "--generation-batch", "2"]
        fixed = ["--model", model, "--data", str(data), "--output", str(tmp_path / output)]
        if command == "train":
            small += ["--steps", "2", "--batch-size", "2", "--lr", "1e-3", "--beta", "50"]
        return [command, *fixed, *small, *flags]

    def run(*flags, **options):
        return main(arguments(*flags, **options))

    run.arguments = arguments
    return run


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_train_then_convert(train, model, tmp_path, kind, capsys):
    assert train("--train", kind, "--rounds", "2") == 0
    assert "does not decode" in capsys.readouterr().out
    log = log_of(tmp_path / "run")
    assert [(line["round"], line["step"]) for line in log] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all(line["loss"] == pytest.approx(0.693147, abs=1e-6) for line in log if line["step"] == 1)
    convert = ["convert", "--run", str(tmp_path / "run"), "--model", model]
    assert main([*convert, "--to", "diffusers", "--output", str(tmp_path / "converted")]) == 0
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "converted", subfolder="unet")
    start = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    assert not torch.equal(unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight,
                           start.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight)  # fmt: skip
    lora = main([*convert, "--to", "lora", "--output", str(tmp_path / "lora.safetensors")])
    if kind == "full":
        assert lora == 1 and "is a full fine-tune" in capsys.readouterr().err
    else:
        names = load_file(tmp_path / "lora.safetensors")
        assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight" in names


def test_generate_makes_what_training_then_uses(train, tmp_path, capsys):
    assert train(command="generate") == 0
    pictures = sorted((tmp_path / "run" / "pictures").rglob("*.safetensors"))
    assert len(pictures) == 3
    before = [picture.stat().st_mtime_ns for picture in pictures]
    assert train() == 0
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "run" / "pictures").rglob("*.safetensors"))] == before


def test_supervised_baseline(train, tmp_path):
    assert train("--method", "sft") == 0
    assert len(log_of(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "loss, start, pictures", [("trajectory", 0.693147, 0), ("seppo", 0.693147, 3), ("kto", 0.5, 3)]
)
def test_the_games_other_losses(train, tmp_path, loss, start, pictures):
    """Each from where it starts; the trajectories are drawn in the steps, and no pictures before them."""
    assert train("--loss", loss) == 0
    first, second = (line["loss"] for line in log_of(tmp_path / "run"))
    assert first == pytest.approx(start, abs=1e-6) and second != pytest.approx(first, abs=1e-6)
    assert len(list((tmp_path / "run").rglob("pictures/*/*.safetensors"))) == pictures


def test_dpo_on_pairs_as_pick_a_pic_has_them(train, tmp_path, data, capsys):
    pictures = [(data / f"{name}.png").read_bytes() for name in "abc"]
    columns = {"jpg_0": pictures, "caption": ["red", "green", "blue"]}
    columns |= {"label_0": [1.0, 0.0, 0.5], "label_1": [0.0, 1.0, 0.5]}  # the last one a tie
    for name, others in {"pairs": pictures[1:] + pictures[:1], "alike": pictures}.items():
        pyarrow.parquet.write_table(pyarrow.table(columns | {"jpg_1": others}), tmp_path / f"{name}.parquet")
        assert train("--method", "dpo", "--data", str(tmp_path / f"{name}.parquet"), output=name) == 0
    told = capsys.readouterr().out
    assert "2 samples" in told and "tie: 1 (pairs.parquet, row 3)" in told
    first, second = (line["loss"] for line in log_of(tmp_path / "pairs"))
    assert first == pytest.approx(0.693147, abs=1e-6) and second != pytest.approx(first, abs=1e-3)
    assert [line["loss"] for line in log_of(tmp_path / "alike")] == pytest.approx([0.693147] * 2, abs=1e-6)


def test_a_tracker_gets_every_step_of_every_round(train, tmp_path):
    assert train("--rounds", "2", "--tracker", "tensorboard") == 0
    told = EventAccumulator(str(tmp_path / "run" / "spin")).Reload().Scalars("loss")
    logged = [(number, line["loss"]) for number, line in enumerate(log_of(tmp_path / "run"), start=1)]
    assert [(scalar.step, scalar.value) for scalar in told] == [(step, pytest.approx(loss)) for step, loss in logged]


def test_a_tracker_that_is_not_there_is_said(train, capsys):
    assert train("--tracker", "aim") == 1
    assert 'the tracker "aim" is not installed' in capsys.readouterr().err


def result_of(folder, number=1):
    return load_file(folder / f"round-{number}" / "result.safetensors")


def test_more_steps_and_more_rounds_go_on_from_a_finished_run(train, tmp_path):
    lora = ["--train", "lora", "--rank", "2"]
    assert train(*lora, output="grown") == 0
    assert train(*lora, "--steps", "3", output="grown") == 0
    assert train(*lora, "--steps", "3,2", "--rounds", "2", output="grown") == 0
    assert train(*lora, "--steps", "3,2", "--rounds", "2", output="at once") == 0
    for number in (1, 2):
        grown, at_once = (result_of(tmp_path / name, number) for name in ("grown", "at once"))
        assert all(torch.equal(grown[name], at_once[name]) for name in at_once)


def unet_of(folder):
    return diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict()


def converted(tmp_path, model, run, to):
    where = tmp_path / f"{run} as {to}"
    assert main(["convert", "--run", str(tmp_path / run), "--model", model, "--to", to, "--output", str(where)]) == 0
    return load_file(where) if to == "lora" else unet_of(where)


def test_a_run_starts_from_a_lora_and_its_conversion_holds_both(train, model, tmp_path, capsys):
    """base + start + learnt: the LoRA of all has both ranks, and merged it is what the second run computed with."""
    lora = ["--train", "lora", "--rank", "2"]
    assert train(*lora, output="first") == 0
    converted(tmp_path, model, "first", "lora")
    start = ["--lora", str(tmp_path / "first as lora")]
    assert train(*lora, *start, output="second") == 0
    stacked = converted(tmp_path, model, "second", "lora")
    assert {len(t) for n, t in stacked.items() if n.endswith("lora_down.weight")} == {4}
    base, merged, first = unet_of(model), *(converted(tmp_path, model, r, "diffusers") for r in ("second", "first"))
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    up, down = (
        result_of(tmp_path / "second")[f"diffusion_model.{layer}.lora_{side}.weight"] for side in ("up", "down")
    )
    torch.testing.assert_close(merged[f"{layer}.weight"], first[f"{layer}.weight"] + up @ down)
    assert not torch.equal(first[f"{layer}.weight"], base[f"{layer}.weight"])
    assert train("--train", "full", *start, output="full") == 0
    assert train(*lora, output="second") == 1 and "belongs to another run" in capsys.readouterr().err
    assert train(*lora, "--lora", str(tmp_path / "second as lora"), output="second") == 1
    assert all(torch.equal(t, stacked[n]) for n, t in converted(tmp_path, model, "second", "lora").items())
    odd = {"lora_unet_nothing.lora_up.weight": torch.zeros(1)}
    save_file(odd, tmp_path / "odd.safetensors")
    assert train("--lora", str(tmp_path / "odd.safetensors"), output="odd") == 1
    assert '"odd.safetensors" is of another' in capsys.readouterr().err


def test_a_lora_that_a_run_began_without_is_not_converted(train, model, tmp_path, monkeypatch):
    """Stopped before its first step and begun again without --lora, it kept the file of its first beginning."""
    lora = ["--train", "lora", "--rank", "2"]
    assert train(*lora, output="first") == 0
    converted(tmp_path, model, "first", "lora")

    def stop(log, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vico_spin.spin_core.cli.Log.__call__", stop)
        train(*lora, "--lora", str(tmp_path / "first as lora"), output="again")
    assert train(*lora, output="again") == 0
    ranks = {len(t) for n, t in converted(tmp_path, model, "again", "lora").items() if n.endswith("lora_down.weight")}
    assert ranks == {2}


def test_a_lora_takes_its_alpha_from_the_header(model, tmp_path):
    """diffusers writes no alpha tensors: alpha 1 of rank 2 was merged at twice its strength."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    rows, columns = unet.get_submodule(layer).weight.shape
    lora = {f"unet.{layer}.lora_A.weight": torch.ones(2, columns), f"unet.{layer}.lora_B.weight": torch.ones(rows, 2)}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1})}
    save_file(lora, tmp_path / "half.safetensors", header)
    assert read_lora(tmp_path / "half.safetensors", unet)[f"diffusion_model.{layer}.alpha"] == 1


def test_a_lora_of_another_width_and_a_damaged_one_are_said(train, model, tmp_path, capsys):
    assert train("--train", "lora", "--rank", "2", output="first") == 0
    narrow = {
        name: tensor[:, :-1] if name.endswith("lora_down.weight") else tensor
        for name, tensor in converted(tmp_path, model, "first", "lora").items()
    }
    save_file({name: tensor.contiguous() for name, tensor in narrow.items()}, tmp_path / "narrow.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights at all")
    for name, sentence in {"narrow": "is of another model", "damaged": "is no whole safetensors file"}.items():
        assert train("--lora", str(tmp_path / f"{name}.safetensors"), output=name) == 1
        assert f'"{name}.safetensors" {sentence}' in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_stopped_run_is_converted_as_far_as_it_came(train, model, tmp_path, monkeypatch, capsys, kind):
    """Stopped after two of four steps, it is the run of two steps."""

    def stop_after_two(log, progress):
        if progress.report is not None and progress.report.step == 2:
            raise KeyboardInterrupt

    assert train("--train", kind, output="two") == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vico_spin.spin_core.cli.Log.__call__", stop_after_two)
        train("--train", kind, "--steps", "4", output="stopped")
    for to in ("lora", "diffusers") if kind == "lora" else ("diffusers",):
        stopped, whole = (converted(tmp_path, model, run, to) for run in ("stopped", "two"))
        assert all(torch.equal(stopped[name], whole[name]) for name in whole)
    assert "round 1 stopped after step 2" in capsys.readouterr().out


def test_a_terminated_run_keeps_what_it_learnt(train, model, tmp_path):
    """SIGTERM, as a cluster sends it, saves as Ctrl-C does: the run is the one of as many steps."""
    lora = ["--train", "lora", "--rank", "2", "--checkpoint-every", "1000000"]
    arguments = train.arguments(*lora, "--steps", "1000000", output="stopped")
    command = [sys.executable, "-m", "vico_spin", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        for line in child.stdout:
            if "step 2:" in line:
                child.send_signal(signal.SIGTERM)
                break
        child.stdout.read()
    (checkpoint,) = (tmp_path / "stopped" / "round-1").glob("*.safetensors")
    steps = int(checkpoint.stem.removeprefix("step-"))
    assert steps >= 2 and train(*lora, "--steps", str(steps), output="whole") == 0
    stopped, whole = (converted(tmp_path, model, run, "lora") for run in ("stopped", "whole"))
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


def test_a_variants_files_are_read(train, model, tmp_path):
    shutil.copytree(model, tmp_path / "half")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float16, safety_checker=None)
    for file in (tmp_path / "half").rglob("*.safetensors"):
        file.unlink()
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert train("--model", str(tmp_path / "half"), output="a") == 1
    assert train("--model", str(tmp_path / "half"), "--variant", "fp16", output="b") == 0


def test_the_hub_is_asked_only_when_a_person_says_so(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("the network was asked"))
    assert train("--model", "nobody/nothing") == 1
    assert "not in the hub's cache: give a folder, or add --hub" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert train("--model", str(tmp_path / "model.safetensors")) == 1
    assert "is a single file, and a pipeline's folder is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"attn_implementation": "nobody/kernel"}, "asks for attention by the kernel nobody/kernel"),
        ({"quantization_config": {"load_in_4bit": True}}, "asks for quantised weights"),
    ],
)
def test_kernels_and_quantisation_of_a_strangers_model_are_refused(train, model, tmp_path, capsys, change, sentence):
    shutil.copytree(model, tmp_path / "odd")
    file = tmp_path / "odd" / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert train("--model", str(tmp_path / "odd")) == 1
    assert sentence in capsys.readouterr().err


def test_errors_are_one_sentence(train, capsys):
    assert train("--method", "dpo") == 1
    assert "Take a data set with preference pairs" in capsys.readouterr().err
    assert train("--beta", "0", output="other") == 1
    assert "Set beta above 0" in capsys.readouterr().err


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "a.toml").write_text("rounds = 3\nbeta = [10.0]\nsteps = [5]\n")
    found = parse(
        "train", ["--config", str(tmp_path / "a.toml"), "--model", "m", "--data", "d", "--output", "o", "--steps", "7"]
    )
    assert (found.rounds, found.beta, found.steps, found.lr) == (3, [10.0], [7], [2e-5])


@pytest.mark.parametrize(
    "flag, value, sentence",
    [
        ("lr", "0", "Set learning rate above 0.\nIt is 0: a point is written in numbers"),
        ("lr", "0,0001", "--lr is no list of numbers: write them with a point"),
        ("lr", "-1e-4", "Set learning rate above 0.\nIt is -0.0001"),
        ("lr", "inf", "--lr is no list of numbers: write them with a point"),
        ("lr", "nan", "--lr is no list of numbers: write them with a point"),
        ("lr", "2,5", "Set learning rate to 1 at most.\nIt is 5"),
        ("beta", "nan", "--beta is no list of numbers: write them with a point"),
        ("steps", "0", "Set steps and batch size to 1 at least"),
        ("steps", "1.5", "--steps 1.5: input should be a valid integer"),
        ("cfg", "7,5", "--cfg 7,5: input should be a valid number"),
        ("cfg", "inf", "--cfg inf: input should be less than or equal to 100"),
        ("cfg", "nan", "--cfg nan: input should be"),
        ("resolution", "0", "--resolution 0: input should be greater than or equal to 64"),
        ("sampling-steps", "0", "--sampling-steps 0: input should be greater"),
        ("seed", "-1", "--seed -1: input should be greater"),
        ("generation-batch", "0", "--generation-batch 0"),
        ("weight-decay", "nan", "--weight-decay nan"),
        ("max-grad-norm", "0", "--max-grad-norm 0"),
        ("sft-weight", "-1", "--sft-weight -1"),
        ("margin-clamp", "inf", "--margin-clamp inf"),
        ("caption-dropout", "1.5", "--caption-dropout 1.5"),
        ("rank", "0", "--rank 0"),
        ("accumulation", "0", "--accumulation 0"),
    ],
)
def test_every_number_has_its_bounds_and_is_said_before_a_model_is_read(capsys, flag, value, sentence):
    fixed = ["--model", "gone", "--data", "gone", "--output", "gone"]
    assert main(["train", *fixed, f"--{flag}={value}"]) == 1
    assert sentence in capsys.readouterr().err


def test_a_recipe_of_several_methods_is_read_for_one(tmp_path):
    (tmp_path / "a.toml").write_text("rounds = 3\nbeta = [10.0]\nrank = 8\n")
    fixed = ["--config", str(tmp_path / "a.toml"), "--model", "m", "--data", "d", "--output", "o"]
    assert parse("train", [*fixed, "--method", "sft"]).method == "sft"


def test_a_rate_that_is_very_high_is_warned_of(caplog):
    RoundSettings(lr=(0.2,))
    assert "the learning rate 0.2 is very high" in caplog.text


def test_the_papers_recipe_is_read():
    found = parse("train", ["--config", "spin_core/recipes/paper.toml", "--model", "m", "--data", "d", "--output", "o"])
    assert isinstance(found, TrainSettings) and found.beta == [2000.0, 5000.0, 5000.0]
    assert found.batch_size * found.accumulation == 2048


def test_an_unknown_line_of_the_file_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text("betas = [10.0]\n")
    with pytest.raises(Exception, match="betas"):
        parse("train", ["--config", str(tmp_path / "a.toml"), "--model", "m", "--data", "d", "--output", "o"])


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_sharded_processes_go_on_where_one_stopped_and_come_to_the_same(train, model, tmp_path, monkeypatch, kind):
    """FSDP2, another number of processes in the middle of a round: the result is one process's, the next round's too."""

    def stop_after_a_step(log, progress):
        if progress.report is not None:
            raise KeyboardInterrupt

    asked = ["--train", kind, "--lr", "2e-5", "--rounds", "2" if kind == "lora" else "1"]
    assert train(*asked, output="one") == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vico_spin.spin_core.cli.Log.__call__", stop_after_a_step)
        train(*asked, output="two")
    launch(train.arguments(*asked, "--shard", output="two"))
    one, two = (
        {
            f"{path.parent.name}/{name}": t
            for path in (tmp_path / folder).rglob("result.*")
            for name, t in load_file(path).items()
        }
        for folder in ("one", "two")
    )
    base = (
        diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet").state_dict() if kind == "full" else {}
    )
    moved = [
        (tensor - base.get(name.split("/")[1], 0)).abs().max() for name, tensor in one.items() if kind in name or base
    ]
    assert max(moved) > 3e-5
    assert one.keys() == two.keys()
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, one[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "LCMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_noise_schedules_that_are_not_known_are_refused(name):
    """They trained on DDIM's default betas, in silence."""
    with pytest.raises(ValueError, match=f"samples with {name}"):
        check_scheduler(getattr(diffusers, name)(), "m")


def test_a_settings_file_that_is_not_there_is_said(capsys):
    """It was left out in silence, and the run took the defaults."""
    assert main(["train", "--config", "gone.toml", "--model", "m", "--output", "o", "--data", "d"]) == 1
    assert 'no settings file "gone.toml"' in capsys.readouterr().err


def launch(arguments):
    """On CPUs torch's own launcher: accelerate's knows several processes on GPUs alone (or by MPI)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    command = [*launcher, "-m", "vico_spin.spin_core", *arguments]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


OF_A_FILE = ("--checkpoint", "x", "--train", "lora", "--data", "d", "--output", "o")
OF_A_PIPELINE = ("--model", "m", "--data", "d", "--output", "o")


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ((*OF_A_FILE, "--comfyui", ".", "--lora", "y"), "--lora goes with --model alone"),
        ((*OF_A_FILE, "--comfyui", ".", "--hub"), "--hub goes with --model alone"),
        ((*OF_A_PIPELINE, "--comfyui", "."), "--comfyui goes with --checkpoint alone"),
        ((*OF_A_PIPELINE, "--text-encoder", "t"), "--text-encoder goes with --checkpoint alone"),
        ((*OF_A_PIPELINE, "--rank", "32"), "--rank goes with --train lora alone"),
        ((*OF_A_PIPELINE, "--method", "sft", "--rounds", "3"), "--rounds goes with --method spin alone"),
        ((*OF_A_PIPELINE, "--method", "sft", "--safeguard", "0.5"), "--safeguard goes with a method with pairs alone"),
        ((*OF_A_PIPELINE, "--method", "kto", "--margin-clamp=5"), "--margin-clamp goes with pairs that are learnt"),
        ((*OF_A_PIPELINE, "--loss", "trajectory", "--safeguard", "0"), "--safeguard goes with pairs that are learnt"),
        ((*OF_A_PIPELINE, "--loss", "trajectory", "--sft-weight", "1"), "--sft-weight goes with a loss that is learnt"),
        ((*OF_A_PIPELINE, "--method", "dpo", "--loss", "seppo"), "--loss goes with --method spin alone"),
        ((*OF_A_FILE, "--comfyui=nowhere"), '"nowhere" is no folder of ComfyUI'),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(capsys, flags, sentence):
    assert vico_spin_main(["train", *flags]) == 1
    assert sentence in capsys.readouterr().err
