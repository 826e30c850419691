"""ViCo's training without a host: what is drawn, the loss by hand, what is trained, and runs that are killed."""

import os
import random
import signal

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from vico_spin.train_core import (
    CheckpointFolder,
    LocalEngine,
    LoopSettings,
    NoiseSchedule,
    keyed_generator,
    read_state,
    scaled_linear_alphas_cumprod,
    train,
    weights_hash,
)
from vico_spin.vico_core import Kept, attention_regularization, object_mask, place_count, spread_places
from vico_spin.vico_core.curve import loss_curve, smoothed
from vico_spin.vico_core.photos import resize
from vico_spin.vico_core.templates import TEMPLATES
from vico_spin.vico_core.training import (
    Batch,
    Draws,
    Photos,
    PlaceShape,
    Predicted,
    TrainedConcept,
    ViCoObjective,
    another,
)

DIM, SIDE = 8, 4
PLACE = PlaceShape("output_blocks.4.1", DIM, 2, 4)


class ToyStreams:
    """A frozen linear model with one place after it, in both streams; the text is two vectors, the word and the end of text."""

    schedule = NoiseSchedule.from_alphas_cumprod(scaled_linear_alphas_cumprod())
    prediction = "epsilon"

    def __init__(self, trained: TrainedConcept):
        generator = torch.Generator().manual_seed(0)
        self.trained = trained
        self.into, self.out = (torch.randn(s, generator=generator) for s in ((4, DIM), (DIM, 4)))
        self.end_of_text = torch.randn(1, DIM, generator=generator)

    def predict(self, x_t, batch):
        x, reference = (t.flatten(2).transpose(1, 2) @ self.into for t in (x_t, batch.reference))  # [B, N, DIM]
        text = torch.cat([self.trained.words["l"], self.end_of_text])
        attention = (reference @ text.T).softmax(-1)  # [B, M, 2]
        mask = object_mask(attention[..., 0])
        x = self.trained.image_attention["output_blocks_4_1"](x + self.trained.words["l"], reference, mask)
        prediction = (x @ self.out).transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return Predicted(prediction, [(attention[..., 0], attention[..., 1])])


def make_photos(count=4, **more):
    return Photos(torch.randn(count, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(9)), **more)


def make_draws(photos=None, batch_size=1, seed=1):
    return Draws(photos or make_photos(), [t.format("*") for t in TEMPLATES], 1000, batch_size, seed)


def make_trained(seed=0):
    return TrainedConcept([PLACE], {"l": torch.ones(1, DIM) / DIM}, seed)


def run(folder, steps, every=1, on_step=None):
    trained = make_trained()
    settings = LoopSettings(steps, checkpoint_every=every)
    objective = ViCoObjective(ToyStreams(trained))
    states = None if folder is None else CheckpointFolder(folder, keep=2)
    train(objective, make_draws(), trained, trained.optimizer(), settings, LocalEngine(), on_step, states)
    return trained


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return weights_hash(a.state_dict()) == weights_hash(b.state_dict())


# Photos


@pytest.fixture
def golden09(golden):
    with safe_open(golden / "vico" / "09_preprocess.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_golden_photos_are_resized_as_in_training(golden09):
    """Bicubic to a square, no crop, no flip, [-1, 1]; the reference is another photo of the set."""
    squares = [resize(golden09[f"image{i}"] / 255, 16, 16, Image.Resampling.BICUBIC) * 2 - 1 for i in range(3)]
    for i in range(3):
        assert torch.allclose(squares[i], golden09[f"item{i}.image"], atol=1e-6)
        others = [square for j, square in enumerate(squares) if j != i]
        assert any(torch.allclose(other, golden09[f"item{i}.image_ref"], atol=1e-6) for other in others)


def test_golden_reference_is_resized_as_in_inference(golden09):
    square = resize(golden09["image0"] / 255, 512, 512) * 2 - 1
    assert torch.allclose(square.movedim(-1, 0)[:, ::32, ::32], golden09["inference.image0_512_strided32"], atol=1e-6)
    assert square.mean().item() == pytest.approx(golden09["inference.image0_mean"].item(), abs=1e-5)


def test_the_reference_is_another_photo_and_each_other_one_in_turn():
    generator = keyed_generator("test")
    drawn = [another(1, 4, generator) for _ in range(300)]
    assert set(drawn) == {0, 2, 3} and min(drawn.count(other) for other in (0, 2, 3)) > 60
    assert another(0, 1, generator) == 0


def test_a_batch_is_a_function_of_its_number_alone():
    draws, again = make_draws(), make_draws()
    draws(0), draws(5)
    for tensor, same in zip(vars(draws(3)).values(), vars(again(3)).values(), strict=True):
        assert torch.equal(tensor, same) if isinstance(tensor, torch.Tensor) else tensor == same


def test_what_a_sample_is_does_not_hang_on_the_batch_that_it_sits_in():
    single, pairs = make_draws(), make_draws(batch_size=2)
    for name in ("x0", "reference", "noise", "t"):
        assert torch.equal(getattr(pairs(1), name)[1], getattr(single(3), name)[0]), name
    assert pairs(1).captions == [single(2).captions[0], single(3).captions[0]]


def test_each_epoch_takes_every_photo_once():
    photos = make_photos(5)
    drawn = [make_draws(photos)(i).x0[0] for i in range(5)]
    assert all(any(torch.equal(x0, photo) for x0 in drawn) for photo in photos.mean)


def test_latents_are_samples_of_the_posterior():
    """mean + std · noise, other noise at every step: over many draws their mean and spread are the posterior's."""
    photos = Photos(torch.full((1, 4, 8, 8), 2.0), torch.full((1, 4, 8, 8), 0.5))
    drawn = torch.stack([make_draws(photos)(i).x0 for i in range(40)])
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.02) and drawn.std().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(make_draws(photos)(0).x0, make_draws(photos)(0).reference)


def test_masks_are_those_of_the_references():
    photos = make_photos(3, masks=torch.arange(3.0)[:, None, None].expand(3, 2, 2))
    draws = make_draws(photos, batch_size=4)
    batch = draws(0)
    for reference, mask in zip(batch.reference, batch.masks, strict=True):
        assert torch.equal(photos.mean[int(mask[0, 0])], reference)


def test_templates_are_distinct_and_name_the_object_once():
    assert len(set(TEMPLATES)) == len(TEMPLATES) > 30
    assert all(template.count("{}") == 1 and template.islower() for template in TEMPLATES)


# The loss


class FixedStreams(ToyStreams):
    def __init__(self, maps):
        self.maps = maps

    def predict(self, x_t, batch):
        return Predicted(torch.full_like(x_t, 0.5), self.maps)


def test_the_loss_is_mse_and_the_weighted_sum_over_places():
    """noise 0 and prediction 0.5: MSE 0.25. Maps (1, 2) / 2 against (4, 4) / 4: (0.5² + 0) / 2 = 0.125 a place; two places."""
    place = (torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 4.0]]))
    zeros, calls = torch.zeros(1, 4, 2, 2), []
    batch = Batch(zeros, zeros, zeros, torch.tensor([10]), ["*"])
    metrics = ViCoObjective(FixedStreams([place, place]), weight=0.2)(batch, calls.append)
    assert metrics["mse"].item() == pytest.approx(0.25)
    assert metrics["regularization"].item() == pytest.approx(0.2 * 2 * 0.125)
    assert metrics["loss"].item() == pytest.approx(0.25 + 0.05) and calls == [metrics["loss"]]


def test_without_places_the_loss_is_the_plain_one():
    """Textual inversion: no reference stream, no regularisation."""
    zeros = torch.zeros(1, 4, 2, 2)
    metrics = ViCoObjective(FixedStreams([]))(Batch(zeros, zeros, zeros, torch.tensor([1]), ["*"]), lambda loss: None)
    assert metrics["loss"].item() == pytest.approx(0.25) and metrics["regularization"].item() == 0


def test_the_regularisation_reaches_the_word_and_not_image_attention():
    trained = make_trained()
    predicted = ToyStreams(trained).predict(torch.zeros(1, 4, SIDE, SIDE), make_draws()(0))
    sum(attention_regularization(*maps) for maps in predicted.maps).backward()
    assert trained.words["l"].grad.abs().max() > 0
    assert all(p.grad is None for p in trained.image_attention.parameters())


# What is trained


def test_both_rates_and_the_decay_are_the_papers():
    groups = make_trained().optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(5e-3, 0.01), (1e-5, 0.01)]
    assert [len(group["params"]) for group in groups] == [1, 20]


def test_start_values_hang_on_the_seed_and_leave_chance_as_it_was():
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    assert same_bits(make_trained(1), make_trained(1)) and not same_bits(make_trained(1), make_trained(2))
    assert torch.equal(torch.rand(1), expected)


def test_a_concept_is_a_copy_of_what_was_learnt_so_far():
    trained = make_trained()
    concept = trained.concept(placeholder="*", step=7)
    before = concept.embeddings["l"].clone()
    with torch.no_grad():
        trained.words["l"].add_(1)
    assert torch.equal(concept.embeddings["l"], before) and concept.widths == {"output_blocks.4.1": DIM}


def test_training_lowers_the_loss():
    def loss_of(trained):
        objective = ViCoObjective(ToyStreams(trained))
        with torch.no_grad():
            return sum(objective(make_draws(seed=77)(i), lambda loss: None)["loss"].item() for i in range(50))

    trained = make_trained()
    before = loss_of(trained)
    settings = LoopSettings(150)
    optimizer = trained.optimizer(word_lr=1e-2, attention_lr=3e-3)
    train(ViCoObjective(ToyStreams(trained)), make_draws(), trained, optimizer, settings, LocalEngine())
    assert loss_of(trained) < 0.8 * before


# Runs


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    run(tmp_path, 5)
    assert same_bits(run(tmp_path, 12), run(None, 12))


@pytest.fixture
def one_thread():
    """A forked child has one, and the number of threads decides the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_kill_9_at_ten_random_moments_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path, one_thread):
    every, chance, seen = 3, random.Random(0), 0
    for _ in range(10):
        seen = killed_run(tmp_path, every, seen + chance.randint(1, 9))
        states = CheckpointFolder(tmp_path)
        for step in states.steps():
            assert read_state(states.file(step))["step"] == step, "no broken file"
        assert states.steps()[-1] >= seen - seen % every
    last = CheckpointFolder(tmp_path).steps()[-1]
    assert same_bits(run(tmp_path, last + 2), run(None, last + 2))


def killed_run(folder, every: int, until: int) -> int:
    """Goes on with the run in a child, kills it once it has told of step `until`, and returns the last step it told of."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        run(folder, 10**6, every, lambda report: os.write(writing, report.step.to_bytes(4, "big")))
    os.close(writing)
    step = 0
    with os.fdopen(reading, "rb", buffering=0) as told:
        while step < until:
            step = int.from_bytes(told.read(4), "big")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for rest in iter(lambda: told.read(4), b""):
            step = int.from_bytes(rest, "big")
    return step


# The curve


def test_the_curve_shows_every_run_length():
    for losses in ([0.5], [0.5, 0.4], [1.0 / (i + 1) for i in range(400)], [0.0, 0.0]):
        assert loss_curve(losses).size == (640, 320)
    assert smoothed([1.0, 2.0, 3.0]) == [1.5, 2.0, 2.5]


def test_image_attention_that_begins_as_the_identity_changes_nothing_and_learns():
    shapes = [PlaceShape("layers.2", 32, 2, 16)]
    trained = TrainedConcept(shapes, {"l": torch.randn(1, 8)}, learn_word=False, zero_init=True)
    x, tokens = torch.randn(1, 6, 32), torch.randn(4, 32)
    out = trained.image_attention["layers_2"].forward_kept(x, [([0], Kept(tokens))])
    assert torch.equal(out, x)
    (out - 1).square().mean().backward()
    assert trained.image_attention["layers_2"].attn2.to_out[0].weight.grad.abs().max() > 0
    assert [len(group["params"]) for group in trained.groups()] == [len(list(trained.image_attention.parameters()))]


@pytest.mark.parametrize(
    ("dim", "parameters", "count"),
    [(3840, 6.15e9, 1), (3072, 20.4e9, 4), (3072, 11.9e9, 4), (1536, 2.5e9, 3), (64, 1e5, 1)],
)
def test_as_many_places_as_come_closest_to_the_papers_share(dim, parameters, count):
    """20 d² + 17 d a place against 6% of the model: Z-Image, Qwen-Image, Flux.1, SD3.5 medium, and a tiny one."""
    assert place_count(dim, parameters) == count


def test_places_lie_evenly_over_the_second_half():
    blocks = [f"layers.{i}" for i in range(30)]
    assert [place.block for place in spread_places(blocks, 4)] == ["layers.16", "layers.20", "layers.24", "layers.28"]
    assert [place.block for place in spread_places(blocks, 1)] == ["layers.22"]
