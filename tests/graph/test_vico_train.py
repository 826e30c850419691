"""Train ViCo in the real host: exact where it must be, interrupted, resumed, previewed, and gone from memory afterwards."""

import gc
import logging
import resource
import signal
from types import SimpleNamespace

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch

from vico_spin.nodes.host import copies
from vico_spin.nodes.host.sampling import Sampling
from vico_spin.nodes.host.training_options import TrainingOptionsNode
from vico_spin.nodes.vico import memory, session, streams
from vico_spin.nodes.vico.attach import ApplySettings, attach, make_subject
from vico_spin.nodes.vico.photos import Photo, Reference
from vico_spin.nodes.vico.places import places_of
from vico_spin.nodes.vico.trigger import start_words, with_trigger
from vico_spin.scores.scorer import Scorer
from vico_spin.scores.sheet import CAPTION, GAP, MARGIN, NAMES
from vico_spin.tests.graph.vico_bench import called
from vico_spin.train_core import LocalEngine, weights_hash
from vico_spin.vico_core import ViCoConcept
from vico_spin.vico_core.training import Batch, TrainedConcept

DEFAULTS = {
    "initialiser": "toy",
    "placeholder": "*",
    "steps": 2,
    "seed": 3,
    "run_name": "test",
    "size": 64,
    "preview_prompts": "",
    "word_lr": 5e-3,
    "attention_lr": 1e-5,
}
OPTIONS = {"checkpoint_every": 0, "preview_every": 0}
OPTION_NAMES = [i.id for i in TrainingOptionsNode.define_schema().inputs]


def photos(count=3, size=(96, 96), channels=3, seed=0):
    return torch.rand(count, *size, channels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """models/vico and output of this test."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vico", ([str(tmp_path / "vico")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path


@pytest.fixture(scope="module")
def parts(make_sd1, make_clip, make_vae):
    """SD1.x's layout at a tenth of its width, made as a loader node makes them: under inference mode."""
    with torch.inference_mode():
        return {"model": make_sd1(), "clip": make_clip(), "vae": make_vae()}


@pytest.fixture
def train(call, parts, home):
    """train(images, masks, **settings) → (concept, loss_map, curve, run)."""

    def run(images=None, masks=None, **settings):
        options = {name: settings.pop(name) for name in OPTION_NAMES if name in settings}
        options = call("ViCoSPINTrainingOptions", **(OPTIONS | options))[0]
        inputs = {**parts, **DEFAULTS, **settings, "training_options": options}
        batches = images if isinstance(images, list) else [photos() if images is None else images]
        return call("ViCoTrain", photos=batches, masks=masks, **{name: [value] for name, value in inputs.items()})

    return run


def tensors_of(concept: ViCoConcept) -> dict:
    tensors = {f"{place}.{k}": t for place, module in concept.modules.items() for k, t in module.items()}
    return tensors | concept.embeddings


def same_bits(a: ViCoConcept, b: ViCoConcept) -> bool:
    return weights_hash(tensors_of(a)) == weights_hash(tensors_of(b))


def distance(a: ViCoConcept, b: ViCoConcept) -> float:
    """Largest difference of any number, against the largest change that a step makes (the word's learning rate)."""
    a, b = tensors_of(a), tensors_of(b)
    return max((a[k] - b[k]).abs().max().item() for k in a) / DEFAULTS["word_lr"]


def test_a_concept_comes_out_and_the_model_stays_as_it_was(train, parts):
    modules = (parts["model"].model, parts["clip"].cond_stage_model, parts["vae"].first_stage_model)
    before = [weights_hash(module.state_dict()) for module in modules]
    concept, loss_map, curve, run = train(steps=3)
    assert [weights_hash(module.state_dict()) for module in modules] == before
    assert list(concept.widths) == ["output_blocks.4.1", "output_blocks.6.1", "output_blocks.8.1", "output_blocks.10.1"]
    assert (concept.placeholder, concept.initialiser, concept.step) == ("*", "toy", 3)
    assert concept.settings["steps"] == 3 and concept.base_hash and concept.thumbnail.startswith(b"\x89PNG")
    assert len(loss_map["loss"]) == 3 and curve.shape[0] == 1 and run.startswith("test-")


def test_what_it_learns_hangs_on_the_seed_and_the_photos(train):
    assert same_bits(train(run_name="a")[0], train(run_name="b")[0])
    assert not same_bits(train()[0], train(seed=4)[0])
    assert not same_bits(train()[0], train(photos(seed=1))[0])


@pytest.mark.parametrize("dense", [False, True])
def test_training_sees_what_apply_vico_draws(parts, make_sd1, dense):
    """The noisy stream of a training step is the U-Net that Apply ViCo patches, on the same caption and reference."""
    generator = torch.Generator().manual_seed(0)
    x_t, reference = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    with copies.training_mode():
        patcher, clip = copies.training_copy(parts["model"]), streams.training_clip(parts["clip"])
        trained = TrainedConcept(places_of(patcher.model, dense)[1], {"l": torch.randn(1, 40)})
        host = streams.HostStreams(patcher, clip, trained, "*", LocalEngine())
        t = torch.tensor([400])
        got = host.predict(x_t, Batch(x_t, reference, x_t, t, ["a photo of a *"])).prediction.detach()
    model = make_sd1()
    scale = model.model.latent_format.scale_factor
    photo = Photo(reference / scale, torch.zeros(8, 8, 3))
    with torch.inference_mode():
        concept = trained.concept(placeholder="*")
        subject = make_subject(model, parts["clip"], concept, Reference([photo]), ApplySettings())
        applied, clip = attach(model, subject), with_trigger(parts["clip"], subject.trigger)
        encoded = clip.encode_from_tokens(clip.tokenize("a photo of a *"), return_dict=True)
        (columns,) = subject.trigger.memory.find({"cross_attn": encoded["cond"]})
        comfy.model_management.load_models_gpu([applied, *applied.get_nested_additional_models()])
        expected = called(applied, subject, x_t, t, encoded["cond"], [columns.trigger])
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_batch_of_two_is_two_batches_of_one(train):
    """Each row has its own caption, columns, mask and reference (the authors' batch reads the first row's)."""
    together, single = train(batch_size=2)[0], train(accumulation=2)[0]
    assert distance(together, single) < 1e-2
    assert distance(together, train(batch_size=1)[0]) > 1e-1


def test_gradient_checkpointing_changes_nothing(train):
    plain, checkpointed = train(run_name="a")[0], train(run_name="b", gradient_checkpointing=True)[0]
    assert distance(plain, checkpointed) < 1e-3


def test_a_given_mask_takes_the_place_of_the_automatic_one(train):
    half = torch.zeros(3, 96, 96)
    half[:, :, :48] = 1
    assert not same_bits(train(masks=[half])[0], train()[0])


def test_bf16_keeps_what_it_learns_in_float32(train):
    concept, loss_map, _, _ = train(precision="bf16")
    assert {t.dtype for t in tensors_of(concept).values()} == {torch.float32}
    full = train()[1]["loss"]
    assert loss_map["loss"] == pytest.approx(full, rel=0.05)
    assert distance(concept, train()[0]) < 2.5  # AdamW's first steps are the sign of the gradient: a sign may differ


def test_detaching_the_reference_leaves_its_gradient_out_and_nothing_else(train):
    detached, plain = train(detach_reference=True), train()
    assert detached[1]["loss"][0] == pytest.approx(plain[1]["loss"][0], rel=1e-6)
    assert not torch.equal(detached[0].embeddings["l"], plain[0].embeddings["l"])


def test_captions_are_what_it_reads_instead_of_the_templates(train):
    """The first loss is another by other captions; another caption is another run; each needs the trigger word."""
    plain, tiles, night = train(), train(captions="a large red * on tiles\n"), train(captions="\na * at night")
    assert len({outcome[3] for outcome in (plain, tiles, night)}) == 3
    first = {outcome[1]["loss"][0] for outcome in (plain, tiles, night)}
    assert len(first) == 3
    assert plain[0].settings["captions"] == () and list(tiles[0].settings["captions"]) == ["a large red * on tiles"]
    with pytest.raises(ValueError, match='"a red toy" does not contain the trigger word "\\*"'):
        train(captions="a photo of a *\na red toy")


def test_a_fixed_word_stays_the_initialisers_and_image_attention_learns(train, call, parts, monkeypatch):
    """Beside a large text encoder this is what "automatic" does; here every encoder counts as large."""
    with torch.inference_mode():
        start = start_words(parts["clip"], "toy")
    (options,) = call("ViCoOptions", word="fixed to the initialiser")
    fixed, losses, _, run = train(vico_options=options)
    assert torch.equal(fixed.embeddings["l"], start["l"])
    assert losses["loss"][0] == pytest.approx(train()[1]["loss"][0], rel=1e-6)
    assert not same_bits(fixed, train()[0])
    monkeypatch.setattr(session, "LARGE_ENCODER", 0)
    assert same_bits(train()[0], fixed) and train()[3] == run


def test_dense_image_attention_stands_after_every_decoder_block(train, call, parts):
    """Where the paper's stands after every second one."""
    (options,) = call("ViCoOptions", dense=True)
    dense, _, _, run = train(vico_options=options)
    paper, _, _, other = train()
    assert list(dense.modules) == [f"output_blocks.{level}.1" for level in range(3, 12)]
    assert list(paper.modules) == [f"output_blocks.{level}.1" for level in (4, 6, 8, 10)] and run != other


# Memory before the first step


@pytest.fixture
def rehearsal(parts):
    """Of the small model's training, with what it keeps free: rehearsal.frozen.kept."""
    with copies.training_mode():
        patcher, clip = copies.training_copy(parts["model"]), streams.training_clip(parts["clip"])
        trained = TrainedConcept(places_of(patcher.model)[1], {"l": torch.randn(1, 40)})
        two, kept = streams.HostStreams(patcher, clip, trained, "*", LocalEngine()), []
        frozen = SimpleNamespace(patchers=[patcher, clip.patcher], kept=kept, reserve=kept.append)
        yield memory.Rehearsal(frozen, two, trained, "a photo of a *", side=64)


def test_the_estimate_from_small_steps_is_what_a_large_one_takes(rehearsal):
    """Tried at sides of 16 and 32; 3: the weights and AdamW's two means (gradients are in the step)."""
    need = rehearsal.need()
    assert need.growth.at(1, 48**2) == pytest.approx(rehearsal.step_peak(1, (48, 48)), rel=0.1)
    assert need.trained == 3 * sum(p.nbytes for p in rehearsal.trained.parameters())


def test_the_estimate_names_the_setting_that_would_fit_and_keeps_it_free(rehearsal, monkeypatch):
    need = rehearsal.need()
    monkeypatch.setattr(memory.Rehearsal, "need", lambda self: need)  # it is the same every time
    two, one = need.beside(2, 64**2), need.beside(1, 64**2)

    def told(free: float, batch_size: int, spared: bool) -> str:
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: free - need.base)
        return rehearsal.told(512, batch_size, spared)

    assert told(two + need.base, 2, False) == need.text(2, 64**2) and not rehearsal.frozen.kept
    assert "read from system memory" in told(1.01 * two, 2, False) and rehearsal.frozen.kept == [two]
    assert "it would fit with gradient_checkpointing." in told(0.95 * two, 2, False)
    assert "it would fit with batch_size 1 and accumulation 2." in told(1.01 * one, 2, True)
    assert "it would fit with size 448." in told(0.95 * one, 1, True)
    assert "close other programs first" in told(1, 1, True)


# Files, resume, interrupt


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(train):
    train(run_name="parts", steps=2)
    continued, whole = train(run_name="parts", steps=4), train(run_name="whole", steps=4)
    assert same_bits(continued[0], whole[0])
    assert continued[1] == whole[1]


def test_every_checkpoint_is_a_concept_that_loads(train, home):
    concept, _, _, run = train(steps=5, checkpoint_every=2)
    files = sorted((home / "vico" / run).glob("step-*.safetensors"))
    assert [file.name for file in files] == [
        "step-00002.safetensors",
        "step-00004.safetensors",
        "step-00005.safetensors",
    ]
    assert same_bits(ViCoConcept.load(files[-1]), concept)
    assert ViCoConcept.load(files[0]).step == 2


def test_fewer_steps_than_the_run_has_gone_give_the_kept_step_or_a_sentence(train):
    whole, losses, _, _ = train(steps=4, checkpoint_every=2)
    second, earlier, _, _ = train(steps=2, checkpoint_every=2)
    assert second.step == 2 and earlier["loss"] == losses["loss"][:2] and not same_bits(second, whole)
    with pytest.raises(ValueError, match=r"step 4 already, and step 3 was not kept, but 2, 4"):
        train(steps=3)


def interrupting(at: int, previews: list):
    """The host's progress hook, as a user who presses the cross: it stops the run at a step."""

    def hook(value, total, preview, node_id=None):
        if preview is not None:
            previews.append(preview)
        if value >= at:
            comfy.model_management.interrupt_current_processing()

    return hook


def test_an_interrupt_keeps_what_was_learnt_and_the_next_run_goes_on(train, home, monkeypatch):
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupting(1, []))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run_name="stopped", steps=3)
    (kept,) = (home / "vico").glob("stopped-*/step-*.safetensors")
    assert 1 <= ViCoConcept.load(kept).step < 3
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    assert same_bits(train(run_name="stopped", steps=3)[0], train(run_name="whole", steps=3)[0])


def test_previews_are_shown_and_change_nothing(train, monkeypatch):
    previews = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupting(99, previews))
    monkeypatch.setattr(session, "PREVIEW", Sampling(steps=2))
    shown = train(run_name="shown", preview_prompts="a photo of a *\na * on the beach", preview_every=1)[0]
    assert [preview[1].size for preview in previews] == [(128, 64)] * 2
    assert same_bits(shown, train(run_name="plain")[0])


class Judge(Scorer):
    """Rates previews as the test says; remembers the prompts and how many photos it was given to compare with."""

    name, formula, needs_prompt, needs_references = "judge", "as the test says", True, True

    def __init__(self, *numbers):
        self.numbers, self.seen = list(numbers), []

    def score(self, pictures, prompts=None, references=None):
        self.check(pictures, prompts, references)
        self.seen.append((tuple(prompts), len(references)))
        return [self.numbers[len(self.seen) - 1]] * len(pictures)


def test_a_scorer_chooses_the_best_step_and_ends_the_run(train, home, caplog):
    """Scores 0.1, 0.7, 0.2, 0.3 with patience 2: step 2's concept comes out, bit for bit, and 4 of 9 steps are done."""
    judge, told = Judge(0.1, 0.7, 0.2, 0.3), {"preview_prompts": "a photo of a *", "preview_every": 1, "patience": 2}
    with caplog.at_level("DEBUG"):
        concept, loss_map, _, run = train(steps=9, scorer=judge, **told)
    assert "score 0.7000" in caplog.text and "Best score 0.7000, after step 2." in caplog.text
    assert judge.seen == [(("a photo of a toy",), 3)] * 4 and len(loss_map["loss"]) == 4
    assert concept.step == 2 and same_bits(concept, train(steps=2, run_name="plain")[0])
    last = train(steps=9, scorer=Judge(), result="last step", **told)
    assert last[3] == run and last[0].step == 4 and same_bits(last[0], train(steps=4, run_name="plain")[0])


def test_a_fixed_words_run_has_a_best_step_and_writes_lost_concepts_again(train, call, home):
    """Its states hold no word, and could not be read back."""
    (options,) = call("ViCoOptions", word="fixed to the initialiser")
    told = {"preview_prompts": "a photo of a *", "preview_every": 1, "vico_options": options, "checkpoint_every": 1}
    concept, _, _, run = train(steps=2, scorer=Judge(0.7, 0.1), **told)
    assert concept.step == 1 and same_bits(concept, train(steps=1, run_name="plain", vico_options=options)[0])
    (home / "vico" / run / "step-00001.safetensors").unlink()
    assert train(steps=3, scorer=Judge(0.2), **told)[0].step == 1
    assert same_bits(ViCoConcept.load(home / "vico" / run / "step-00001.safetensors"), concept)


def test_another_nodes_lora_on_the_text_encoder_is_left_there(parts, make_clip):
    """A text was encoded with it before: the plain encoder's copy had it too."""
    with torch.inference_mode():
        clip = make_clip()
        name = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
        plain = comfy.utils.get_attr(clip.patcher.model, name).clone()
        changed = clip.clone()
        assert changed.patcher.add_patches({name: ("diff", (torch.ones_like(plain),))})
        changed.encode_from_tokens_scheduled(changed.tokenize("a cat"))
    with copies.training_mode():
        own = streams.training_clip(clip)
        assert torch.equal(comfy.utils.get_attr(own.patcher.model, name), plain)
        own = streams.training_clip(changed)
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([own.patcher])
        torch.testing.assert_close(comfy.utils.get_attr(own.patcher.model, name), plain + 1)


def test_previews_that_a_scorer_could_rate_are_asked_for(train):
    with pytest.raises(ValueError, match="Write preview prompts"):
        train(scorer=Judge(), preview_every=1)


def test_a_concept_lost_in_a_kill_is_written_again(train, home):
    _, _, _, run = train(steps=2, checkpoint_every=2)
    lost = home / "vico" / run / "step-00002.safetensors"
    before = ViCoConcept.load(lost)
    lost.unlink()
    train(steps=4, checkpoint_every=2)
    assert same_bits(ViCoConcept.load(lost), before)


def test_a_loss_that_is_no_number_stops_with_a_sentence_and_keeps_the_last_good_step(train, home):
    with pytest.raises(ArithmeticError, match=r"Training stopped at step \d+: .*The weights are those after step"):
        train(run_name="wild", steps=30, attention_lr=1.0, word_lr=1e30)
    kept = list((home / "vico").glob("wild-*/step-*.safetensors"))
    assert all(torch.isfinite(t).all() for file in kept for t in tensors_of(ViCoConcept.load(file)).values())


# Bad input


def test_one_photo_is_its_own_reference_and_is_warned_of(train, caplog):
    with caplog.at_level(logging.DEBUG):
        train(photos(1))
    assert "One photo: it is its own reference" in caplog.text


def test_photos_of_several_sizes_and_with_alpha(train):
    concept, _, _, _ = train([photos(1, (96, 64)), photos(2, (48, 80), channels=4)])
    assert concept.step == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"initialiser": "teddybear plush"}, "it must be one"),
        ({"initialiser": ""}, "0 tokens"),
        ({"placeholder": "two words"}, "is 2 words; it must be one"),
        ({"images": photos(2, (16, 64))}, "Photo 1 is 64×16 pixels"),
        ({"images": photos(2) * float("nan")}, "NaN"),
        ({"masks": [torch.ones(2, 96, 96)]}, "There are 3 photos and 2 masks"),
        ({"masks": [torch.zeros(3, 96, 96)]}, "mask of photo 1 is empty"),
        ({"preview_prompts": "a photo"}, "does not contain the trigger word"),
        ({"caption_dropout": 0.1}, "no caption dropout"),
    ],
)
def test_bad_input_is_said_in_a_sentence(train, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(**settings)


def test_a_model_without_places_is_said_in_a_sentence(train, make_sd1):
    with pytest.raises(ValueError, match="no place for ViCo"):
        train(model=make_sd1(attention=0))


def test_an_unwritable_folder_is_said_before_the_first_step(train, home):
    (home / "vico").write_text("a file in the folder's place")
    with pytest.raises(OSError, match="could not be written"):
        train()
    assert not list((home / "output").rglob("step-*"))


@pytest.fixture
def full_disk():
    """full_disk(): from now on no file can grow beyond 50 kB, as on a disk that is nearly full."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_said_in_a_sentence_and_leaves_no_broken_file(train, home, full_disk):
    full_disk()
    with pytest.raises(OSError, match=r"(?s)the disk has room.*could not be written"):
        train(checkpoint_every=1)
    assert {file.name for file in home.rglob("*") if file.is_file()} == {"settings.json"}


# The grid, and memory


def test_the_grid_has_a_labelled_row_a_checkpoint(train, call, parts):
    _, _, _, run = train(steps=4, checkpoint_every=2)
    reference = call("ViCoReference", vae=parts["vae"], image=photos(1), size=64)[0]
    inputs = {
        **parts,
        "reference": reference,
        "prompts": "a *\na * on grass",
        "seed": 1,
        "seeds": 2,
        "steps": 2,
        "cfg": 2.0,
    }
    grid, last = call("ViCoCheckpointGrid", run=run, **inputs)
    assert last.step == 4
    rows, columns = 2 * (256 + CAPTION + GAP), 4 * (256 + GAP)
    assert grid.shape == (1, MARGIN + CAPTION + rows - GAP + MARGIN, MARGIN + NAMES + columns - GAP + MARGIN, 3)
    with pytest.raises(ValueError, match="no checkpoint"):
        call("ViCoCheckpointGrid", run="nothing", **inputs)
    with pytest.raises(ValueError, match="not the name of a ViCo run"):
        call("ViCoCheckpointGrid", run="../elsewhere", **inputs)


def test_a_row_is_chosen_without_drawing_again_and_a_new_checkpoint_alone_is_drawn(train, call, parts, monkeypatch):
    rows = []

    def hook(value, total, preview, node_id=None):
        rows.append((preview[1].height if preview else 0, total))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    _, _, _, run = train(steps=4, checkpoint_every=2)
    reference = call("ViCoReference", vae=parts["vae"], image=photos(1), size=64)[0]
    inputs = {**parts, "reference": reference, "prompts": "a *", "seed": 1, "seeds": 1, "steps": 2, "cfg": 2.0}
    rows.clear()
    grid, last = call("ViCoCheckpointGrid", run=run, **inputs)
    heights = [height for height, _ in rows if height]
    assert len(heights) == 2 and heights[0] < heights[1] == grid.shape[1]  # it fills row by row
    assert max(total for _, total in rows) == 2 * 2  # two rows of two sampling steps
    monkeypatch.setattr("vico_spin.nodes.vico.grid.draw_with_concept", None)  # from here on, drawing would fail
    again, chosen = call("ViCoCheckpointGrid", run=run, choice=2, **inputs)
    assert chosen.step == 2 and last.step == 4 and torch.equal(again, grid)
    with pytest.raises(ValueError, match=r"Choose one of the steps 2, 4"):
        call("ViCoCheckpointGrid", run=run, choice=3, **inputs)


def test_a_run_that_was_trained_says_so(train, caplog):
    with caplog.at_level("DEBUG"):
        train(steps=2)
        assert "Trained: 2 of 2 steps." in caplog.text
        caplog.clear()
        train(steps=2)
        assert "Already trained: 2 of 2 steps." in caplog.text


def live_bytes() -> int:
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, torch.nn.Parameter) and found.device.type == "cpu" and not found.is_sparse:
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_memory_is_given_back_over_20_runs(train):
    train(steps=1, seed=0)
    before, loaded = live_bytes(), len(comfy.model_management.current_loaded_models)
    for seed in range(1, 21):
        train(steps=1, seed=seed)
    assert live_bytes() <= 1.05 * before
    assert len(comfy.model_management.current_loaded_models) <= loaded


def test_clip_and_vae_still_work_when_training_made_them_move(train, parts, call, move_as_a_gpu):
    """A move outside inference mode breaks the weights of the host for good."""
    with torch.inference_mode():
        before = call("CLIPTextEncode", clip=parts["clip"], text="a toy")[0][0][0]
    move_as_a_gpu()
    train(preview_prompts="a photo of a *", preview_every=1)
    train(seed=4)
    after = call("CLIPTextEncode", clip=parts["clip"], text="a toy")[0][0][0]
    assert torch.equal(after, before)
    call("VAEDecode", samples={"samples": torch.zeros(1, 4, 8, 8)}, vae=parts["vae"])
