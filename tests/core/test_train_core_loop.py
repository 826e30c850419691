import os
import random
import signal
import subprocess
import sys
from dataclasses import replace

import numpy
import pytest
import torch
from torch import nn

from vico_spin.intake import write_text
from vico_spin.intake.writing import HOST
from vico_spin.train_core import (
    CheckpointFolder,
    DataOrder,
    HeldOut,
    LocalEngine,
    LoopSettings,
    MixedPrecision,
    TrainingDiverged,
    best_step,
    keyed_generator,
    load_trained,
    lr_factor,
    read_state,
    train,
    weights_hash,
)


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.SiLU(), nn.Linear(8, 1))


def batch_at(index):
    generator = keyed_generator(7, index)
    x = torch.randn(4, 3, generator=generator)
    return x, x.sum(dim=1, keepdim=True)


def objective_for(model):
    def objective(batch, backward):
        x, y = batch
        loss = (model(x) - y).square().mean()
        backward(loss)
        return {"loss": loss, "first": x[0, 0]}

    return objective


def run(model, steps=6, engine=None, lr=1e-2, **kwargs):
    engine = engine or LocalEngine()
    optimizer = engine.prepare(torch.optim.AdamW(model.parameters(), lr=lr))
    settings = LoopSettings(steps, **kwargs.pop("settings", {}))
    return train(objective_for(model), batch_at, model, optimizer, settings, engine, **kwargs)


class Interrupt(BaseException):
    """As ComfyUI's: no Exception."""


def stop_after(step):
    def on_step(report):
        torch.randn(5), numpy.random.rand(), random.random()  # a preview draws too
        if report.step == step:
            raise Interrupt

    return on_step


def test_the_loss_falls():
    history = run(make(), steps=60).history
    assert history[-1].loss < 0.5 * history[0].loss
    assert [report.step for report in history] == list(range(1, 61))


def test_accumulated_micro_batches_equal_one_large_batch():
    """The mean gradient of two halves is the gradient of the whole. Without dropout, which draws per forward."""
    small, large = make().eval(), make().eval()
    run(small, steps=1, engine=LocalEngine(gradient_accumulation_steps=2))
    whole = [torch.cat(parts) for parts in zip(batch_at(0), batch_at(1), strict=True)]
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-2)
    train(objective_for(large), lambda _: whole, large, optimizer, LoopSettings(1), LocalEngine())
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_metrics_are_means_over_micro_batches():
    report = run(make(), steps=1, engine=LocalEngine(gradient_accumulation_steps=2)).history[0]
    assert report.metrics["first"] == pytest.approx((batch_at(0)[0][0, 0] + batch_at(1)[0][0, 0]).item() / 2)


def test_rates_warm_up_then_fall():
    """4 warm-up steps of 8: 1/4, 2/4, 3/4, 1, then linear from 1 over the remaining 4."""
    settings = LoopSettings(8, warmup_steps=4, decay="linear")
    assert [lr_factor(step, settings) for step in range(8)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert lr_factor(6, LoopSettings(8, 4, "cosine")) == pytest.approx(0.5)


def test_clipping_bounds_the_gradient_and_reports_its_norm():
    model = make()
    report = run(model, steps=1, settings={"max_grad_norm": 1e-3}).history[0]
    assert report.grad_norm > 1e-3


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, stop):
    whole, parted = make(), make()
    torch.manual_seed(5)
    expected = run(whole)
    torch.manual_seed(5)
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(Interrupt):
        run(parted, on_step=stop_after(stop), checkpoints=folder)
    resumed = make(seed=9)  # other weights: the checkpoint brings its own
    found = run(resumed, checkpoints=folder)
    assert weights_hash(resumed.state_dict()) == weights_hash(whole.state_dict())
    assert [r.metrics for r in found.history] == [r.metrics for r in expected.history]


def test_an_interrupt_within_a_step_keeps_the_steps_before_it(tmp_path):
    def interrupted_batch(index):
        if index == 7:  # the second micro-batch of step 4
            torch.randn(3)
            raise Interrupt
        return batch_at(index)

    def go(model, batches, **kwargs):
        engine = LocalEngine(gradient_accumulation_steps=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return train(objective_for(model), batches, model, optimizer, LoopSettings(6), engine, **kwargs)

    whole, parted = make(), make()
    torch.manual_seed(5)
    go(whole, batch_at)
    torch.manual_seed(5)
    folder = CheckpointFolder(tmp_path)
    training = go(parted, interrupted_batch, checkpoints=folder, return_on=(Interrupt,))
    assert isinstance(training.stopped_by, Interrupt) and training.step == 3
    assert all(p.grad is None for p in parted.parameters())
    go(parted, batch_at, checkpoints=folder)
    assert weights_hash(parted.state_dict()) == weights_hash(whole.state_dict())


def test_previews_do_not_change_the_run():
    plain, previewed = make(), make()
    torch.manual_seed(5)
    run(plain)
    torch.manual_seed(5)
    run(previewed, on_step=stop_after(None))
    assert weights_hash(plain.state_dict()) == weights_hash(previewed.state_dict())


def test_nan_stops_before_the_weights_and_says_where(tmp_path):
    model, reference = make(), make()
    torch.manual_seed(5)
    run(reference, steps=2)
    torch.manual_seed(5)

    def poisoned(index):
        x, y = batch_at(index)
        return x, y * (float("nan") if index == 2 else 1)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(TrainingDiverged, match=r"step 3: the loss is nan.*after step 2"):
        train(objective_for(model), poisoned, model, optimizer, LoopSettings(5), LocalEngine(), checkpoints=folder)
    assert weights_hash(model.state_dict()) == weights_hash(reference.state_dict())
    assert folder.steps() == [2]


def test_a_gradient_that_is_not_finite_is_named():
    model = make()

    def objective(batch, backward):
        loss = (model[0].weight * 0).sqrt().sum() + model(batch[0]).sum()  # √ has an infinite slope at 0
        backward(loss)
        return {"loss": loss}

    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(TrainingDiverged, match=r'gradient of "0.weight" is not finite'):
        train(objective, batch_at, model, optimizer, LoopSettings(1), LocalEngine())


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_lowers_the_forward_and_keeps_float32_weights(precision, dtype):
    model = make()
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    engine = LocalEngine(mixed_precision=precision)

    class Line:
        def predict(self, x_t, t, context):
            return model(x_t)

    def objective(batch, backward):
        prediction = MixedPrecision(Line(), engine).predict(batch[0], None, None)
        loss = (prediction - batch[1]).square().mean()
        assert prediction.dtype == torch.float32
        backward(loss)
        return {"loss": loss}

    optimizer = engine.prepare(torch.optim.AdamW(model.parameters(), lr=1e-2))
    history = train(objective, batch_at, model, optimizer, LoopSettings(60), engine).history
    assert set(seen) == {dtype}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[-1].loss < 0.5 * history[0].loss


def test_fp16_resumes_with_its_loss_scale(tmp_path):
    folder = CheckpointFolder(tmp_path)
    run(make(), steps=2, engine=LocalEngine(mixed_precision="fp16"), checkpoints=folder)
    assert read_state(folder.file(2))["scaler"]["scale"] > 0
    assert run(make(), steps=3, engine=LocalEngine(mixed_precision="fp16"), checkpoints=folder).step == 3


def test_nothing_to_train_is_an_error():
    model = make().requires_grad_(False)
    with pytest.raises(ValueError, match="Choose layers to train"):
        train(objective_for(model), batch_at, model, torch.optim.SGD([torch.zeros(1)]), LoopSettings(1), LocalEngine())


def test_checkpoints_are_kept_as_asked(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    run(make(), steps=7, settings={"checkpoint_every": 2}, checkpoints=folder)
    assert folder.steps() == [6, 7]


def test_a_finished_run_is_not_trained_again(tmp_path):
    folder, model = CheckpointFolder(tmp_path), make()
    run(model, checkpoints=folder)
    again = make(seed=3)
    assert len(run(again, checkpoints=folder).history) == 6
    assert weights_hash(again.state_dict()) == weights_hash(model.state_dict())


def rising_then_falling(peak, model, patience=0, every=2, seen=None):
    """A score that rises to step `peak` and falls after; it also draws, which must not change the run."""

    def score():
        torch.randn(3)
        seen.append(weights_hash(model.state_dict()))
        return -abs(every * len(seen) - peak)

    seen = [] if seen is None else seen
    return HeldOut(score, every, patience)


def test_the_best_steps_checkpoint_stays_and_the_run_stops_when_the_score_falls(tmp_path):
    """Scores after steps 2, 4, 6, 8 with the best at 4: two in a row that are no better end it at 8."""
    folder, model, plain, seen = CheckpointFolder(tmp_path, keep=1), make(), make(), []
    held_out = rising_then_falling(4, model, patience=2, seen=seen)
    torch.manual_seed(5)
    training = run(model, steps=20, checkpoints=folder, held_out=held_out)
    torch.manual_seed(5)
    run(plain, steps=8)
    assert training.step == 8 and best_step(training.history) == 4 and folder.steps() == [4, 8]
    assert [report.metrics.get("score") for report in training.history[1::2]] == [-2, 0, -2, -4]
    assert weights_hash(model.state_dict()) == weights_hash(plain.state_dict()) == seen[3]


def test_what_a_run_begins_with_is_scored_and_may_be_its_best(tmp_path):
    """A score that falls from the start on: it is kept beside the newest step, patience counts from step 2, no bit differs."""
    folder, model, plain, seen = CheckpointFolder(tmp_path, keep=1), make(), make(), []
    held_out = replace(rising_then_falling(2, model, patience=3, seen=seen), from_start=True)
    start = weights_hash(model.state_dict())
    torch.manual_seed(5)
    training = run(model, steps=20, checkpoints=folder, held_out=held_out)
    torch.manual_seed(5)
    run(plain, steps=8)
    assert seen[0] == start and best_step(training.history) == 0
    assert training.step == 8 and folder.steps() == [0, 8]
    assert weights_hash(model.state_dict()) == weights_hash(plain.state_dict()) == seen[4]
    load_trained(dict(model.named_parameters()), folder.load(0)["weights"])
    assert weights_hash(model.state_dict()) == start


def test_a_run_that_first_falls_below_its_start_goes_on():
    """Scores 0.6 at the start, 0.4, 0.5, 0.7 after steps 2, 4, 6: with patience 2 all is done, and the last is the best."""
    numbers = iter((0.6, 0.4, 0.5, 0.7))
    training = run(make(), steps=6, held_out=HeldOut(lambda: next(numbers), 2, 2, from_start=True))
    assert training.step == best_step(training.history) == 6


@pytest.mark.parametrize("patience, end", [(0, 12), (3, 10)])
def test_without_patience_all_steps_are_done(patience, end):
    model = make()
    assert run(model, steps=12, held_out=rising_then_falling(4, model, patience)).step == end


def test_a_score_that_a_stop_has_cut_off_is_made_up_for(tmp_path):
    """Stopped while step 4 was scored: it is saved without its score, and scored before the next step."""
    folder, model = CheckpointFolder(tmp_path, keep=1), make()

    def stop():
        raise Interrupt

    run(model, checkpoints=folder, held_out=HeldOut(stop, 4), return_on=(Interrupt,))
    assert folder.steps() == [4]
    resumed = make(seed=1)
    training = run(resumed, checkpoints=folder, held_out=HeldOut(lambda: 0.5, 4))
    assert training.history[3].metrics["score"] == 0.5 and folder.steps() == [4, 6]
    assert read_state(folder.file(4))["history"][3]["metrics"]["score"] == 0.5


def test_another_runs_checkpoint_is_refused(tmp_path):
    run(make(), steps=1, checkpoints=CheckpointFolder(tmp_path, identity={"lr": 1e-2, "seed": 1}))
    with pytest.raises(ValueError, match=r"lr was 0.01 and is now 0.1"):
        run(make(), steps=2, checkpoints=CheckpointFolder(tmp_path, identity={"lr": 1e-1, "seed": 1}))


def test_other_weights_are_refused(tmp_path):
    run(make(), steps=1, checkpoints=CheckpointFolder(tmp_path))
    other = nn.Sequential(nn.Linear(3, 1))
    with pytest.raises(ValueError, match="trains other weights"):
        run(other, steps=2, checkpoints=CheckpointFolder(tmp_path))


def test_a_damaged_newest_state_is_named_and_the_one_before_it_continued(tmp_path, caplog):
    """It blocked a run for ever; what comes out is the uninterrupted run's, bit for bit."""
    whole, parted = make(), make()
    torch.manual_seed(5)
    run(whole, steps=4)
    torch.manual_seed(5)
    folder = CheckpointFolder(tmp_path / "parted")
    run(parted, steps=4, settings={"checkpoint_every": 1}, checkpoints=folder)
    for step in (3, 4):
        folder.file(step).write_bytes(folder.file(step).read_bytes()[:-40])
    assert folder.steps() == [1, 2]
    again = make()
    run(again, steps=4, settings={"checkpoint_every": 1}, checkpoints=folder)
    assert "step-00000003.safetensors" in caplog.text and "is damaged" in caplog.text
    assert weights_hash(again.state_dict()) == weights_hash(whole.state_dict())
    folder.file(4).write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-00000004.safetensors.*is damaged"):
        folder.load(4)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"disk has room.\n.*could not be written"):
        run(make(), steps=1, checkpoints=CheckpointFolder(tmp_path / "file" / "run"))


def test_data_order_covers_every_sample_once_an_epoch_whatever_the_ranks():
    one = DataOrder(12, batch_size=4, seed=3)
    two = [DataOrder(12, 2, seed=3, process_index=rank, num_processes=2) for rank in range(2)]
    for index in range(6):
        assert one.samples(index) == two[0].samples(index) + two[1].samples(index)
    assert sorted(sample for i in range(3) for sample in one.samples(i)) == list(range(12))
    assert one.samples(0) != one.samples(3)


KILLED = """
import sys, torch
sys.path[:0] = {path!r}
from test_train_core_loop import *
model = make(); torch.manual_seed(5)
folder = CheckpointFolder({folder!r}, keep=3)
run(model, 4000, settings={{"checkpoint_every": 1}}, checkpoints=folder, on_step=lambda r: print(r.step, flush=True))
"""


def test_kill_9_leaves_only_whole_checkpoints_and_the_run_goes_on_exactly(tmp_path):
    here = os.path.dirname(__file__)
    code = KILLED.format(path=[here, os.path.dirname(os.path.dirname(here))], folder=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while int(child.stdout.readline()) < 20:
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    folder = CheckpointFolder(tmp_path)
    for step in folder.steps():
        assert read_state(folder.file(step))["step"] == step
    last = folder.steps()[-1]
    assert last >= 20
    whole, resumed = make(), make(seed=2)
    torch.manual_seed(5)
    run(whole, steps=last + 3)
    run(resumed, steps=last + 3, checkpoints=folder)
    assert weights_hash(whole.state_dict()) == weights_hash(resumed.state_dict())
    assert not list(tmp_path.glob(".*"))


def test_what_killed_runs_left_goes_when_its_folder_is_written_to(tmp_path):
    """Whoever wrote it; what another process or machine is writing now stays."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {f".a.safetensors.{HOST}.{gone.pid}.tmp": False, f".run.json.{HOST}.{os.getpid()}.tmp": False}
    names |= {f".b.{HOST}.{os.getppid()}.tmp": True, ".c.elsewhere.3.tmp": True, ".d.elsewhere.3.tmp": False}
    names |= {".mine.tmp": True, "e.tmp": True}
    for name in names:
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / ".d.elsewhere.3.tmp", (0, 0))
    write_text(tmp_path / "new.txt", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays} | {"new.txt"}
