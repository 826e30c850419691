"""SPIN's nodes in the real host, on tiny models of every family that it trains."""

import json
import math
import re
from pathlib import Path

import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import numpy
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vico_spin.nodes.host import copies, frozen
from vico_spin.nodes.host.training_options import TrainingOptionsNode
from vico_spin.nodes.spin import captions
from vico_spin.nodes.spin.captions import Captions
from vico_spin.nodes.spin.checkpoints import checkpoint_names, load_state
from vico_spin.scores.scorer import Scorer
from vico_spin.scripts import models
from vico_spin.scripts.transformers import transformer
from vico_spin.spin_core.data import Dataset
from vico_spin.spin_core.store import TensorStore
from vico_spin.train_core import weights_hash

OPTION_NAMES = [i.id for i in TrainingOptionsNode.define_schema().inputs]
CHANNELS = {"sd1": 4, "sd2": 4, "sdxl": 4, "sd3": 16, "flux": 16}
SMALL = {"run_name": "test", "batch_size": 2, "resolution": 64, "seed": 1, "preview_prompts": ""}
OPPONENT = {"sampler_name": "euler", "scheduler": "normal", "steps": 2, "cfg": 2.0}


@pytest.fixture(autouse=True)
def places(host, tmp_path):
    """The host's input and output directories, for this test alone."""
    before = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    (tmp_path / "input").mkdir()
    folder_paths.set_input_directory(str(tmp_path / "input"))
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path
    folder_paths.set_input_directory(before[0])
    folder_paths.set_output_directory(before[1])


@pytest.fixture(scope="module")
def clip(host):
    with torch.inference_mode():
        return models.clip()


@pytest.fixture(scope="module")
def vaes(host):
    with torch.inference_mode():
        return {channels: models.vae(channels) for channels in (4, 16)}


def pictures(count=4):
    return torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dataset(call):
    return call("SPINDataset", source="pictures from the graph", images=pictures(), captions="a\nb\nc\nd")[0]


@pytest.fixture
def play(call, clip, vaes, dataset):
    """Train SPIN or Train Baseline on a tiny model: play(model, **changes) → model, lora, loss, metrics."""

    def run(
        model, method=None, data=None, rank=2, steps=2, learning_rate=1e-3, beta=50.0, rounds=1, play=(), **changes
    ):
        options = {"preview_every": 0} | {k: changes.pop(k) for k in OPTION_NAMES if k in changes}
        opponent = call("SPINOpponent", **OPPONENT, batch=changes.pop("opponent_batch", 4))[0]
        inputs = {**SMALL, "train": {"train": "full"} if rank is None else {"train": "LoRA", "rank": rank}, **changes}
        inputs["training_options"] = call("ViCoSPINTrainingOptions", **options)[0]
        inputs["opponent"] = opponent
        numbers = {"steps": steps, "learning_rate": learning_rate}
        if method is None:
            inputs["play"] = {**numbers, "beta": beta} | ({"rounds": rounds} if rounds > 1 else {})
            inputs["spin_options"] = call("SPINOptions", **dict(play))[0]
        else:
            inputs |= {**numbers, "method": {"method": method, "beta": beta} if method != "SFT" else {"method": method}}
        vae = vaes[model.model.latent_format.latent_channels]
        node = "SPINTrainBaseline" if method else "SPINTrain"
        return call(node, **{"model": model, "clip": clip, "vae": vae, "dataset": data or dataset, **inputs})

    return run


def tiny(family="sd1", **options):
    with torch.inference_mode():  # as the host's loaders do
        return models.of_family(family, **options)


def answer(model, seed=0):
    """What the model draws: two steps from fixed noise."""
    channels = model.model.latent_format.latent_channels
    noise = comfy.sample.prepare_noise(torch.zeros(1, channels, 8, 8), seed)
    cond = [[torch.zeros(1, 77, 40), {"pooled_output": torch.zeros(1, 40)}]]
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 2, 1.0, "euler", "normal", cond, cond, torch.zeros_like(noise), disable_pbar=True, seed=seed
        )


@pytest.mark.parametrize("family", CHANNELS)
def test_every_family_plays_a_round_by_lora(play, family):
    model = tiny(family)
    before, drawn = weights_hash(model.model.state_dict()), answer(model)
    patched, lora, loss, metrics = play(model)
    steps = json.loads(metrics)["rounds"][0]
    assert loss["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(steps) == 2 and steps[1]["metrics"]["drift"] > 0
    assert weights_hash(model.model.state_dict()) == before
    assert len(patched.patches) == len(lora) // 3
    assert not torch.equal(answer(patched), drawn)
    assert torch.equal(answer(model), drawn)


def test_full_training_of_a_u_net(play):
    model = tiny()
    before = weights_hash(model.model.state_dict())
    patched, lora, loss, _ = play(model, rank=None)
    assert lora is None and loss["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert weights_hash(model.model.state_dict()) == before
    assert len(patched.patches) == len(model.model.diffusion_model.state_dict())
    assert not torch.equal(answer(patched), answer(model))


def test_a_chained_trainer_continues_the_game(play):
    """The second trainer's opponent is the first one's result: its hash is that of the patched weights."""
    model = tiny()
    first = play(model)
    second = play(first[0])
    metrics = [json.loads(result[3]) for result in (first, second)]
    assert metrics[0]["parent"] != metrics[1]["parent"]
    assert second[2]["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(second[0].patches) == len(first[0].patches)
    assert all(len(patches) == 2 for patches in second[0].patches.values())


@pytest.mark.parametrize("loss, start", [("SPIN, whole trajectory", math.log(2)), ("SePPO", math.log(2)), ("KTO", 0.5)])
def test_other_losses_of_the_game(play, loss, start):
    """Both sides equal the opponent at the start: ln 2 for SPIN's objectives, 1/2 for KTO."""
    _, lora, losses, metrics = play(tiny(), play={"loss": loss}, run_name="loss")
    assert losses["loss"][0] == pytest.approx(start, abs=1e-6) and lora
    assert json.loads(metrics)["rounds"][0][1]["metrics"]["drift"] > 0


def test_trajectories_of_flow_models_are_refused(play):
    with pytest.raises(ValueError, match="Choose SPIN as the loss in SPIN Options"):
        play(tiny("flux"), play={"loss": "SPIN, whole trajectory"})


def test_two_rounds_in_one_node(play):
    _, lora, _loss, metrics = play(tiny(), rounds=2, beta="50, 80")
    rounds = json.loads(metrics)["rounds"]
    assert len(rounds) == 2 and rounds[1][0]["metrics"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    downs = [tensor for name, tensor in lora.items() if name.endswith("lora_down.weight")]
    assert {len(down) for down in downs} == {4}  # both rounds' ranks side by side


def test_the_lora_is_what_the_player_computed_with(play, vaes, clip):
    """The returned MODEL and the node's own player draw the same picture."""
    model = tiny()
    patched, lora, _, _ = play(model, learning_rate=1e-2, steps=5)
    from_lora = comfy_load(model, lora)
    torch.testing.assert_close(answer(patched), answer(from_lora))


def comfy_load(model, lora):
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]


def test_interrupt_keeps_what_was_learnt_and_the_next_run_goes_on(play, call, places):
    whole = play(tiny(), run_name="whole", steps=6)
    hook = comfy.utils.PROGRESS_BAR_HOOK

    def interrupt(value, total, *args, **kwargs):
        if (value, total) == (1, 6):  # the first of a bar: the host drops later ones that come too soon
            comfy.model_management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            play(tiny(), run_name="parted", steps=6)
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)
        comfy.model_management.interrupt_current_processing(False)
    kept = list((places / "output" / "spin" / "runs").glob("parted-*/stopped.safetensors"))
    assert len(kept) == 1
    folder_paths.add_model_folder_path("spin", str(places / "output" / "spin"))
    name = kept[0].relative_to(places / "output" / "spin").as_posix()
    assert len(call("SPINLoadCheckpoint", checkpoint=f"spin: {name}", strength=1.0, model=tiny())[0].patches) > 0
    resumed = play(tiny(), run_name="parted", steps=6)
    assert weights_hash(resumed[1]) == weights_hash(whole[1])


def test_more_steps_or_rounds_go_on_where_the_same_run_ended(play, places):
    """The finished run stays as it is; only what is new is trained, and it comes to the same."""
    play(tiny(), run_name="grown")
    kept = {path: path.stat().st_mtime_ns for path in (places / "output" / "spin" / "runs").rglob("*")}
    hook, told = comfy.utils.PROGRESS_BAR_HOOK, []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *more, **named: told.append((value, total)))
    try:
        grown = play(tiny(), run_name="grown", rounds=2, steps="3, 2")
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)
    assert (3, 3) in told and (1, 3) not in told and (2, 3) not in told
    assert weights_hash(grown[1]) == weights_hash(play(tiny(), run_name="fresh", rounds=2, steps="3, 2")[1])
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.parametrize(
    "method, starts",
    [("SFT", [None]), ("DPO", [math.log(2)]), ("KTO", [0.5]), ("SFT, then DPO", [None, math.log(2)])],
    ids=["SFT", "DPO", "KTO", "SFT, then DPO"],
)
def test_baselines(play, method, starts, places):
    """Each round's first loss: ln 2 for DPO and 1/2 for KTO, whose reference is the model that the round starts from."""
    import pyarrow
    import pyarrow.parquet

    blobs = []
    for number in range(4):
        path = places / f"{number}.png"
        Image.fromarray((pictures()[number].numpy() * 255).astype(numpy.uint8)).save(path)
        blobs.append(path.read_bytes())
    rows = {
        "jpg_0": blobs,
        "jpg_1": blobs[::-1],
        "caption": list("abcd"),
        "label_0": [1.0, 0.0] * 2,
        "label_1": [0.0, 1.0] * 2,
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), places / "input" / "pairs.parquet")
    data = Dataset(places / "input" / "pairs.parquet")
    _patched, _lora, loss, metrics = play(tiny(), data=data, method=method, beta=50.0)
    assert len(loss["loss"]) == 2 * len(starts) and len(json.loads(metrics)["rounds"]) == len(starts)
    for first, expected in zip(loss["loss"][::2], starts, strict=True):
        assert expected is None or first == pytest.approx(expected, abs=1e-6)


def test_pairs_of_the_graph_train_dpo(call, play):
    images, line = pictures(), "a\nb\nc\nd"
    data = call("SPINDataset", source="pictures from the graph", images=images, captions=line, rejected=1 - images)[0]
    loss = play(tiny(), data=data, method="DPO", beta=50.0)[2]
    assert loss["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    with pytest.raises(ValueError, match="3 rejected"):
        call("SPINDataset", source="pictures from the graph", images=images, captions=line, rejected=images[:3])


def test_thumbs_without_pairs_train_kto(call, play, places):
    """Two folders, liked and disliked, of pictures with captions beside them: the loss starts at 1/2, and nothing is left out."""
    for number, name in enumerate(("liked/a", "liked/b", "disliked/c")):
        path = places / "input" / "thumbs" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pictures()[number].numpy() * 255).astype(numpy.uint8)).save(path)
        path.with_suffix(".txt").write_text(name[-1])
    data, report, _ = call("SPINDataset", source="thumbs")
    _, lora, loss, metrics = play(tiny(), data=data, method="KTO", beta=50.0)
    assert "3 samples" in report and loss["loss"][0] == 0.5 and lora
    assert call("SPINCurves", metrics=metrics)[1].startswith("Round 1: implicit accuracy")


def test_dpo_without_pairs_says_so(play):
    with pytest.raises(ValueError, match="Take a data set with preference pairs"):
        play(tiny(), method="DPO", beta=50.0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"beta": 0.0}, "Set beta above 0"),
        ({"beta": "strong"}, 'beta "strong" is no list of numbers'),
        ({"steps": ""}, 'steps "" is no list'),
    ],
)
def test_bad_settings_are_sentences(play, changes, message):
    with pytest.raises(ValueError, match=message):
        play(tiny(), **changes)


def test_the_opponent_is_seen_at_work_and_a_finished_run_says_so(play, caplog, monkeypatch):
    """2 sampling steps of 2 pictures at once, of the 4 captions; then 2 steps of training."""
    bars = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *told, node_id=None: bars.append(told))
    with caplog.at_level("DEBUG"):
        play(tiny(), opponent_batch=2, preview_every=2)
        assert "the opponent's picture 3 of 4\nSampling step 1 of 2" in caplog.text
        assert "Step 1 of 2: loss 0.6931, margin 0.0000\naccuracy" in caplog.text
        assert "Trained: 2 of 2 steps. 4 samples.\nRound 1: implicit accuracy" in caplog.text
        caplog.clear()
        play(tiny(), opponent_batch=2)
        assert "Already trained: 2 of 2 steps." in caplog.text
    shown = [preview[1].size for _, _, preview in bars if preview]
    assert shown == [(128, 64)] * 3  # each two of the opponent's pictures, and the first two captions by the player


def test_another_schedule_text_or_guidance_is_another_run(call, play, clip, caplog):
    """What had been trained with the first came out of all of them."""

    def told(model, **changes):
        caplog.clear()
        with caplog.at_level("DEBUG"):
            play(model, **changes)
        return "Already trained" in caplog.text, "Sampling step" in caplog.text

    def shifted(shift):
        return call("ModelSamplingSD3", model=tiny("sd3"), shift=shift)[0]

    skipped = call("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)[0]
    assert told(shifted(3.0)) == (False, True) and told(shifted(3.0)) == (True, False)
    assert told(shifted(9.0)) == (False, True)
    assert told(call("ModelSamplingAuraFlow", model=tiny("sd3"), shift=3.0)[0]) == (False, True), "other timesteps"
    assert told(shifted(3.0), clip=skipped) == (False, True)
    guided = [call("RescaleCFG", model=shifted(3.0), multiplier=multiplier)[0] for multiplier in (0.7, 0.7, 0.5)]
    assert [told(model) for model in guided] == [(False, True), (True, False), (False, True)]


def test_two_families_with_one_text_encoder_share_no_captions(clip, tmp_path):
    """Z-Image and FLUX.2 Klein read the same weights, with other templates and layers."""

    class Other(type(clip.cond_stage_model)):
        pass

    store = TensorStore(tmp_path / "cache")
    hashes = [Captions(clip, store).text_hash]
    kind = type(clip.cond_stage_model)
    try:
        clip.cond_stage_model.__class__ = Other
        hashes.append(Captions(clip, store).text_hash)
    finally:
        clip.cond_stage_model.__class__ = kind
    assert hashes[0] != hashes[1]


def test_encodings_of_many_captions_lie_on_disk(clip, tmp_path, monkeypatch):
    """All of them were held: 24 GB for 100,000 captions of SD1.x."""
    monkeypatch.setattr(captions, "HELD", 2)
    kept = Captions(clip, TensorStore(tmp_path / "cache"))
    first = [kept.conditioning(prompt)[0][0] for prompt in "abca"]
    assert list(kept.seen) == ["c", "a"] and torch.equal(first[0], first[3])


def test_cancel_is_heard_while_captions_are_encoded(play, monkeypatch):
    encoded = []

    def encode(self, prompt):
        encoded.append(prompt)
        comfy.model_management.interrupt_current_processing()
        return kept(self, prompt)

    kept = Captions._kept
    monkeypatch.setattr(Captions, "_kept", encode)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        play(tiny())
    assert len(encoded) == 1


def test_load_offers_what_was_saved_and_not_what_training_keeps_for_itself(play, call):
    _, lora, _, _ = play(tiny())
    call("SPINSave", filename_prefix="mine", format="ComfyUI LoRA", lora=lora)
    assert "spin: mine_00001_.safetensors" in checkpoint_names()
    assert not [name for name in checkpoint_names() if "result" in name or "step-" in name]


def test_previews_draw_the_same_seeds_and_leave_the_run_alone(play):
    plain = play(tiny(), run_name="plain")
    seen = []
    hook = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: seen.append(preview))
    try:
        previewed = play(tiny(), run_name="previewed", preview_prompts="a cat\na dog", preview_every=1)
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)
    shown = [preview[1] for preview in seen if preview is not None]
    assert [picture.size for picture in shown] == [(128, 64)] * 2
    assert weights_hash(plain[1]) == weights_hash(previewed[1])


class Painter(Scorer):
    """Rates previews as the test says, one number a preview; remembers the pictures and prompts that it was shown."""

    name, formula, needs_prompt = "painter", "as the test says", True

    def __init__(self, *numbers):
        self.numbers, self.seen = list(numbers), []

    def score(self, pictures, prompts=None, references=None):
        self.check(pictures, prompts, references)
        self.seen.append((tuple(prompts), [picture.tobytes() for picture in pictures]))
        return [self.numbers[len(self.seen) - 1]] * len(pictures)


SCORED = {"preview_every": 1, "preview_prompts": "a cat\na dog\na hat", "opponent_batch": 2}


@pytest.mark.parametrize("method", [None, "SFT"])
def test_a_scorer_chooses_the_best_step_and_ends_the_round(play, places, method):
    """Scores 0.1, 0.7, 0.2, 0.3 after 0.05 at the start, patience 2: step 2 comes out as if 2 had been asked for; 4 of 9 are done."""
    painter, told = Painter(0.05, 0.1, 0.7, 0.2, 0.3), {"method": method, "run_name": "scored", **SCORED}
    _, lora, loss, metrics = play(tiny(), steps=9, patience=2, scorer=painter, **told)
    assert len(loss["loss"]) == 4 and len(painter.seen) == 5
    scores = [step["metrics"]["score"] for step in json.loads(metrics)["rounds"][0]]
    assert scores == pytest.approx([0.1, 0.7, 0.2, 0.3])
    assert {prompts for prompts, _ in painter.seen} == {("a cat", "a dog", "a hat")}
    assert len({pictures[0] for _, pictures in painter.seen}) == 5, "the previews change as it learns"
    plain = {steps: play(tiny(), steps=steps, method=method, run_name="plain", preview_every=0) for steps in (2, 4)}
    assert weights_hash(lora) == weights_hash(plain[2][1]) != weights_hash(plain[4][1])
    last = play(tiny(), steps=9, patience=2, scorer=Painter(), result="last step", **told)
    assert weights_hash(last[1]) == weights_hash(plain[4][1]), (
        "the other one comes out, and nothing is drawn or trained"
    )
    files = sorted(p.name for p in (places / "output/spin/runs").glob("scored-*/round-1/step-*"))
    assert files == ["step-00000002.safetensors"] * 2 + ["step-00000004.safetensors"] * 2, "of either choice's run"


def test_two_rounds_with_a_scorer_start_from_the_best_step(play):
    """Round 1's best is its second step of three; the next opponent is the player of two steps, whose pictures are rated again."""
    painter = Painter(0.0, 0.1, 0.7, 0.2, 0.7, 0.8)
    scored = play(tiny(), rounds=2, steps="3, 1", beta="50", scorer=painter, **SCORED)
    assert painter.seen[4] == painter.seen[2]
    plain = play(tiny(), rounds=2, steps="2, 1", beta="50", run_name="plain")
    opponents = [json.loads(result[3])["opponents"] for result in (scored, plain)]
    assert opponents[0] == opponents[1] and weights_hash(scored[1]) == weights_hash(plain[1])


def test_what_cannot_be_scored_is_said_before_anything_is_drawn(play):
    painter = Painter()
    with pytest.raises(ValueError, match="Set preview_every above 0 in Training Options"):
        play(tiny(), scorer=painter)
    painter.needs_references = True
    with pytest.raises(ValueError, match=r"Connect another scorer\.\npainter compares with photos"):
        play(tiny(), scorer=painter, preview_every=1)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"play": {"low_memory": True}}], ids=str)
def test_memory_savers_learn_the_same(play, changes):
    plain, saving = play(tiny(), run_name="plain"), play(tiny(), run_name="saving", **changes)
    for name, tensor in plain[1].items():
        torch.testing.assert_close(saving[1][name], tensor, rtol=1e-3, atol=1e-5)  # a hundredth of a step


def test_dataset_of_the_graph_needs_matching_captions(call):
    with pytest.raises(ValueError, match="4 pictures have 2 captions"):
        call("SPINDataset", source="pictures from the graph", images=pictures(), captions="a\nb")
    with pytest.raises(ValueError, match="Connect images"):
        call("SPINDataset", source="pictures from the graph")


def test_dataset_of_a_folder_reports_and_shows(call, places):
    folder = places / "input" / "set"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("red")
    Image.new("RGB", (40, 40), "red").save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no picture")
    (folder / "c.txt").write_text("broken")
    _data, report, sheet = call("SPINDataset", source="set")
    assert "2 samples" in report and "b.png" in report
    assert [(sheet[0, y, x] * 255).round().tolist() for y, x in ((80, 80), (80, 220))] == [[255, 0, 0], [128, 128, 128]]


def test_a_prompt_list_has_nothing_to_train_on(call, play, places):
    (places / "input" / "list.txt").write_text("a cat\n")
    data = call("SPINDataset", source="list.txt")[0]
    with pytest.raises(
        ValueError, match=r"Take a data set with pictures with captions(?s:.*)a prompt without a picture"
    ):
        play(tiny(), data=data)


def test_curves_and_verdict(call, play):
    metrics = play(tiny(), rounds=2)[3]
    picture, text = call("SPINCurves", metrics=metrics)
    assert picture.shape[0] == 1 and picture.std() > 0.01
    assert text.startswith("Round 1:") and "Round 2:" in text


def test_a_model_patched_by_others_is_refused(play):
    model = tiny().clone()
    model.add_object_patch("diffusion_model.out.2.forward", lambda x: x)
    with pytest.raises(ValueError, match="Another node has patched layers"):
        play(model)


FREE_U = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
CACHE = {"reuse_threshold": 0.2, "start_percent": 0.1, "end_percent": 0.9, "verbose": False}
GUIDANCE = {"multiplier": 0.7}


@pytest.mark.parametrize(
    ("node", "inputs", "name"), [("FreeU", FREE_U, "FreeU"), ("EasyCache", CACHE, "the node of easycache")]
)
def test_what_training_would_not_see_is_refused_by_the_nodes_name(call, node, inputs, name):
    (model,) = call(node, model=tiny(), **inputs)
    for train in (frozen.borrowed, copies.training_copy):
        with pytest.raises(ValueError, match=f"Connect the model from before {name}"):
            train(model)


def test_a_lora_in_bypass_form_is_refused_and_guidance_is_not(call):
    import comfy.patcher_extension

    model = tiny().clone()
    model.set_injections("bypass_lora", [comfy.patcher_extension.PatcherInjection(print, print)])
    with pytest.raises(ValueError, match="in bypass form"):
        frozen.borrowed(model)
    frozen.borrowed(call("RescaleCFG", model=tiny(), **GUIDANCE)[0])


# --- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spin_folder(places):
    folder = places / "output" / "spin"
    folder_paths.add_model_folder_path("spin", str(folder))
    return folder


def load(call, spin_folder, path, **inputs):
    path = Path(path)
    file = path if path.is_file() else path / "unet" / "diffusion_pytorch_model.safetensors"
    name = f"spin: {file.relative_to(spin_folder).as_posix()}"
    return call("SPINLoadCheckpoint", checkpoint=name, **({"strength": 1.0} | inputs))[0]


def test_lora_saved_and_loaded_draws_the_same(call, play, spin_folder):
    model = tiny()
    patched, lora, _, metrics = play(model)
    path = call("SPINSave", filename_prefix="mine", format="ComfyUI LoRA", lora=lora, metrics=metrics)[0]
    torch.testing.assert_close(answer(load(call, spin_folder, path, model=model)), answer(patched))
    half = load(call, spin_folder, path, model=model, strength=0.5)
    assert not torch.equal(answer(half), answer(patched)) and not torch.equal(answer(half), answer(model))
    assert load(call, spin_folder, path, model=model, strength=0.0) is model
    with safe_open(path, "pt") as file:
        written = file.metadata()
    assert written["spin.parent"] == json.loads(metrics)["parent"] and written["spin.round"] == "1"


DIALECTS = {  # (what a layer is called, what its matrices are)
    "kohya": ("lora_unet_{flat}", ("lora_down.weight", "lora_up.weight")),
    "diffusers, before peft": ("unet.{name}", ("lora.down.weight", "lora.up.weight")),
    "diffusers' processors": ("unet.{processor}", ("down.weight", "up.weight")),
    "peft": ("base_model.model.{name}", ("lora_A.weight", "lora_B.weight")),
    "peft, with an adapter's name": ("base_model.model.{name}", ("lora_A.default.weight", "lora_B.default.weight")),
    "diffusers, by peft": ("unet.{name}", ("lora_A.weight", "lora_B.weight")),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_loras_of_every_dialect_are_taken_whole(call, play, spin_folder, caplog, dialect):
    """unet.…to_k.lora.down.weight and base_model.model.… were "another base's"; each draws what our own file draws."""
    model = tiny()
    lora = play(model)[1]
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    theirs = {ours.removesuffix(".weight"): theirs.removesuffix(".weight") for theirs, ours in names.items()}
    called, parts = DIALECTS[dialect]
    state = {}
    for layer in sorted({key.removeprefix("diffusion_model.").split(".lora_")[0] for key in lora if ".lora_" in key}):
        name = theirs[layer]
        processor = re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1_lora", name)
        stem = called.format(name=name, flat=name.replace(".", "_"), processor=processor)
        for part, ours in zip(parts, ("lora_down.weight", "lora_up.weight"), strict=True):
            state[f"{stem}.{part}"] = lora[f"diffusion_model.{layer}.{ours}"].contiguous()
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.zeros(1)
    spin_folder.mkdir(parents=True, exist_ok=True)
    save_file(state, spin_folder / "theirs.safetensors")
    with caplog.at_level("DEBUG"):
        loaded = load(call, spin_folder, spin_folder / "theirs.safetensors", model=model)
    assert len(loaded.patches) == len(lora) // 3
    assert f"{len(lora) // 3} layers; 1 of text encoders are left out" in caplog.text
    torch.testing.assert_close(answer(loaded), answer(comfy_load(model, lora)))
    save_file(dict(list(state.items())[1:]), spin_folder / "cut.safetensors")
    with pytest.raises(ValueError, match=r"not whole: .* has no partner"):
        load(call, spin_folder, spin_folder / "cut.safetensors", model=model)


def lycoris(kind, shape):
    """(part, tensor) of a layer of that shape, as LyCORIS writes it."""
    draw = lambda *size: torch.randn(*size, generator=torch.Generator().manual_seed(sum(size))) * 0.1  # noqa: E731
    rows, columns = shape[0], math.prod(shape[1:])
    if kind == "LoHa":
        return {
            f"hada_w{n}_{side}": draw(*((rows, 2) if side == "a" else (2, columns))) for n in (1, 2) for side in "ab"
        }
    if kind == "LoKr":
        return {"lokr_w1": draw(2, 2), "lokr_w2": draw(rows // 2, columns // 2)}
    if kind == "LoRA":
        return {"lora_up.weight": draw(rows, 2), "lora_down.weight": draw(2, columns)}
    if kind == "GLoRA":
        sizes = {"a1": (columns, 2), "a2": (2, columns), "b1": (rows, 2), "b2": (2, columns)}
        return {f"{part}.weight": draw(*size) for part, size in sizes.items()}
    if kind == "OFT":
        return {"oft_blocks": draw(2, rows // 2, rows // 2)}
    return {"diff": draw(*shape)}


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "GLoRA", "OFT", "diff"])
def test_lycoris_kinds_are_taken_whole(call, spin_folder, caplog, kind):
    """Each draws what the host's own loader draws of it."""
    model = tiny()
    weights = model.model.diffusion_model.state_dict()
    names = comfy.lora.model_lora_keys_unet(model.model, {}).items()
    keys = {key: name for name, key in names if "to_k" in str(key) and name.startswith("lora_unet_")}
    places = {name: key for key, name in keys.items()}  # each layer by one of its two names
    state = {}
    for name, key in places.items():
        shape = weights[key.removeprefix("diffusion_model.")].shape
        state |= {f"{name}.{part}": tensor for part, tensor in lycoris(kind, shape).items()}
    spin_folder.mkdir(parents=True, exist_ok=True)
    save_file(state, spin_folder / f"{kind}.SAFETENSORS")
    with caplog.at_level("DEBUG"):
        loaded = load(call, spin_folder, spin_folder / f"{kind}.SAFETENSORS", model=model)
    assert f"LoRA: {len(places)} of {len(places)} layers" in caplog.text and len(places) > 4
    torch.testing.assert_close(answer(loaded), answer(comfy_load(model, state)))
    assert not torch.equal(answer(loaded), answer(model))


KEY_OF = {"sd1": "middle_block_1_transformer_blocks_0_attn2_to_k", "flux": "transformer_blocks.0.attn.to_q"}


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr", "GLoRA", "OFT", "diff"])
@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_no_kind_of_another_width_is_taken(call, spin_folder, family, kind):
    """The host says so in the log alone and leaves the weights, and the node said "1 of 1 layers". Flux's to_q is a part of a weight."""
    model, layer = tiny(family), {"sd1": "lora_unet_{}", "flux": "transformer.{}"}[family].format(KEY_OF[family])
    place = comfy.lora.model_lora_keys_unet(model.model, {})[layer]
    weight = model.model.state_dict()[place if family == "sd1" else place[0]]
    rows, columns = weight.shape if family == "sd1" else weight.narrow(*place[1]).shape
    spin_folder.mkdir(parents=True)
    for name, changed in {"own": rows, "other": 2 * rows}.items():
        state = {f"{layer}.{part}": tensor for part, tensor in lycoris(kind, (changed, columns)).items()}
        save_file(state, spin_folder / f"{name}.safetensors")
    assert len(load(call, spin_folder, spin_folder / "own.safetensors", model=model).patches) == 1
    with pytest.raises(ValueError, match=r'of "other.safetensors" has another shape in this one'):
        load(call, spin_folder, spin_folder / "other.safetensors", model=model)


PEFT_LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v"


def of_peft(model):
    """A LoRA of one layer, as diffusers writes it."""
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v.weight"
    rows, columns = model.model.state_dict()[name].shape
    return {f"{PEFT_LAYER}.lora_A.weight": torch.ones(4, columns), f"{PEFT_LAYER}.lora_B.weight": torch.ones(rows, 4)}


@pytest.mark.parametrize("part", ["lora_magnitude_vector", "lora_B.bias", "modules_to_save.weight"])
def test_parts_of_a_lora_that_the_host_leaves_out_are_said(call, spin_folder, part):
    model = tiny()
    spin_folder.mkdir(parents=True)
    save_file(of_peft(model) | {f"{PEFT_LAYER}.{part}": torch.ones(8)}, spin_folder / "dora.safetensors")
    with pytest.raises(ValueError, match=rf'does not read 1 tensors of "dora.safetensors" .*{part}'):
        load(call, spin_folder, spin_folder / "dora.safetensors", model=model)


def test_a_lora_has_the_alpha_of_its_header(call, spin_folder):
    """diffusers writes no alpha tensors, and without one the rank is taken: here it is four times the alpha."""
    model = tiny()
    lora, spoken = of_peft(model), {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 1})}
    spin_folder.mkdir(parents=True)
    save_file(lora, spin_folder / "header.safetensors", spoken)
    save_file(lora | {f"{PEFT_LAYER}.alpha": torch.tensor(1.0)}, spin_folder / "tensor.safetensors")
    drawn = [
        answer(load(call, spin_folder, spin_folder / f"{name}.safetensors", model=model))
        for name in ("header", "tensor")
    ]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], answer(model))


def test_lora_needs_its_own_base(call, play, spin_folder):
    path = call("SPINSave", filename_prefix="mine", format="ComfyUI LoRA", lora=play(tiny())[1])[0]
    with pytest.raises(ValueError, match="Connect the model that the LoRA was trained on"):
        load(call, spin_folder, path)
    with pytest.raises(ValueError, match=r"layers of .* are not in this one"):
        load(call, spin_folder, path, model=tiny("flux"))
    with pytest.raises(ValueError, match="another shape"):
        load(call, spin_folder, path, model=tiny(model_channels=64))


def test_saving_says_what_is_missing(call):
    with pytest.raises(ValueError, match="no LoRA to save"):
        call("SPINSave", filename_prefix="x", format="ComfyUI LoRA")
    with pytest.raises(ValueError, match="Connect the trained model"):
        call("SPINSave", filename_prefix="x", format="native U-Net")
    with pytest.raises(ValueError, match="Only U-Nets"):
        call("SPINSave", filename_prefix="x", format="diffusers folder", model=tiny("flux"))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("V_PREDICTION", {}),
        ("V_PREDICTION", {"zsnr": True}),
        ("V_PREDICTION_EDM", {"sigma_max": 100.0, "sigma_min": 0.01}),
    ],
)
def test_a_saved_sdxl_says_what_it_predicts(call, kind, settings):
    """As the host's own files do; a diffusers folder has no place for it."""
    model, kind = tiny("sdxl"), comfy.model_base.ModelType[kind]
    model.model.model_type, model.model.model_config.sampling_settings = kind, settings
    model.model.model_sampling = comfy.model_base.model_sampling(model.model.model_config, kind)
    path = call("SPINSave", filename_prefix="v", format="native U-Net", model=model)[0]
    read = comfy.supported_models.SDXL({})
    assert read.model_type(load_file(path)) == kind and read.sampling_settings == pytest.approx(settings)
    with pytest.raises(ValueError, match="Choose native U-Net"):
        call("SPINSave", filename_prefix="v", format="diffusers folder", model=model)


def test_a_file_that_is_no_model_is_named(call, spin_folder):
    spin_folder.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, spin_folder / "odd.safetensors")
    with pytest.raises(ValueError, match=r'"odd.safetensors" is neither'):
        load(call, spin_folder, spin_folder / "odd.safetensors")


def test_a_sharded_model_is_loaded_whole_or_not_at_all(call, spin_folder):
    """One shard alone left half of the weights random."""
    model = tiny()
    path = Path(call("SPINSave", filename_prefix="mine", format="native U-Net", model=model)[0])
    whole = load_file(path)
    names = sorted(whole)
    shards = [path.with_name(f"unet-{n:05}-of-00002.safetensors") for n in (1, 2)]
    for shard, part in zip(shards, (names[::2], names[1::2]), strict=True):
        save_file({name: whole[name] for name in part}, shard)
    together, _ = load_state(shards[0])
    assert together.keys() == whole.keys() and all(torch.equal(together[name], whole[name]) for name in whole)
    offered = [name for name in checkpoint_names() if "unet-" in name]
    assert offered == [f"spin: {shards[0].name}"]
    shards[1].unlink()
    with pytest.raises(ValueError, match=r"is one of 2; unet-00002-of-00002.safetensors are missing"):
        load(call, spin_folder, shards[0])


def test_a_quantised_file_keeps_its_scales(call, spin_folder):
    """What scales a weight is a tensor, and that it is scaled stands in the file's header: without it weights came out 448 / max too large."""
    with torch.inference_mode():
        plain = transformer("Flux.1", hidden_size=128, num_heads=1, axes_dim=[16, 56, 56], mlp_ratio=4.0)
        state = {name: weight.clone() for name, weight in plain.model.diffusion_model.state_dict().items()}
        layer = next(name.removesuffix(".weight") for name in state if name.endswith("attn.qkv.weight"))
        true = state[f"{layer}.weight"].float()
        state[f"{layer}.weight_scale"] = scale = true.abs().max() / 448
        state[f"{layer}.weight"] = (true / scale).to(torch.float8_e4m3fn)
    spin_folder.mkdir(parents=True)
    how = {"format_version": "1.0", "layers": {layer: {"format": "float8_e4m3fn"}}}
    save_file(state, spin_folder / "fp8.safetensors", {"_quantization_metadata": json.dumps(how)})
    loaded = load(call, spin_folder, spin_folder / "fp8.safetensors")
    recipe, arguments = loaded.cached_patcher_init
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for model in (loaded, recipe(*arguments)):
            linear = model.model.diffusion_model.get_submodule(layer)
            found, expected = linear(x).float() - (0 if linear.bias is None else linear.bias.float()), x @ true.T
            assert (found - expected).norm() < 0.05 * expected.norm()


def test_weights_that_are_not_finite_are_named(call, play, spin_folder):
    lora = play(tiny())[1]
    name = next(name for name in lora if name.endswith("lora_up.weight"))
    path = call(
        "SPINSave", filename_prefix="nan", format="ComfyUI LoRA", lora=lora | {name: lora[name] * float("nan")}
    )[0]
    with pytest.raises(ValueError, match=r"1 weights that are NaN or infinite .for instance .*lora_up"):
        load(call, spin_folder, path, model=tiny())


def test_inpainting_models_are_refused_by_name(play):
    with pytest.raises(ValueError, match="reads 9 channels and a latent has 4: inpainting"):
        play(tiny(in_channels=9))


def test_a_model_that_drawing_has_displaced_is_trained_on(play, move_as_a_gpu, monkeypatch):
    """Short of memory, the opponent's drawing moves the trained copies, inside inference mode, as a GPU's .to() does."""
    sample = comfy.sample.sample

    def displacing(model, *args, **kwargs):
        drawn = sample(model, *args, **kwargs)
        for weight in model.model.parameters():
            weight.data = torch.clone(weight.data)
        comfy.model_management.unload_all_models()
        return drawn

    move_as_a_gpu()
    monkeypatch.setattr(comfy.sample, "sample", displacing)
    loss = play(tiny())[2]
    assert len(loss["loss"]) == 2
