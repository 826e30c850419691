"""Self-play on every family of models: tiny networks of the host's own classes, played with as the node plays."""

import json
import math
from typing import get_args

import comfy.model_management
import folder_paths
import pytest
import torch

from nodes import LoraLoaderModelOnly
from vico_spin.nodes.host import copies, denoiser, frozen
from vico_spin.nodes.host.families import trained_layers
from vico_spin.nodes.host.memory import Growth, Need
from vico_spin.nodes.host.options import TrainingOptions
from vico_spin.nodes.spin import room
from vico_spin.nodes.spin.asked import TrainingRun
from vico_spin.nodes.spin.usual import usual_sampling
from vico_spin.scripts import models, transformers
from vico_spin.spin_core.game import RoundSettings
from vico_spin.train_core import LoRA, LoraLayers, weights_hash

PLAYED = [name for name in transformers.TRANSFORMERS if name != "Cosmos-Predict2"]
ALL = [*PLAYED, *models.FAMILIES]
LAYERS = get_args(LoraLayers)


@pytest.fixture(autouse=True)
def lora_folders(output, tmp_path):
    """What a run saves is found by the host's loader too."""
    folder_paths.add_model_folder_path("loras", str(tmp_path / "spin"), is_default=True)
    folder_paths.add_model_folder_path("spin", str(tmp_path / "spin"), is_default=True)


def tiny(family: str, **changes):
    with torch.inference_mode():  # as the host's loaders do
        return (transformers.transformer if family in PLAYED else models.of_family)(family, **changes)


def conditioning(family: str, tokens: int = 12) -> list:
    if family in PLAYED:
        return transformers.prompt(family, tokens)
    rows = torch.Generator().manual_seed(tokens)
    pooled = torch.randn(1, models.TEXT_WIDTH, generator=rows)
    return [[torch.randn(1, 77, models.TEXT_WIDTH, generator=rows), {"pooled_output": pooled}]]


def latent_shape(model, family: str) -> tuple[int, ...]:
    return (
        model.model.latent_format.latent_channels,
        *([1] if model.model.latent_format.latent_dimensions == 3 else []),
        8,
        8,
    )


@pytest.fixture
def play(call):
    """Train SPIN on a tiny model of a family: play(model, family, **changes) → model, lora, loss, metrics."""

    def run(model, family, steps=3, node="SPINTrain", train="LoRA", **changes):
        pixels = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        captions = "a cat\na red dog\na blue bird\nan old tree"
        data = call("SPINDataset", source="pictures from the graph", images=pixels, captions=captions)[0]
        opponent = call("SPINOpponent", sampler_name="euler", scheduler="simple", steps=2, cfg=2.0)[0]
        inputs = {"run_name": "test", "batch_size": 2, "resolution": 64, "seed": 1, "preview_prompts": ""}
        inputs |= {"train": {"train": train, "rank": 2}, "opponent": opponent}
        game = {"steps": steps, "learning_rate": 1e-2}
        inputs |= {"play": {**game, "beta": 50.0}} if node == "SPINTrain" else {**game, "method": {"method": "SFT"}}
        parts = parts_of(model, family)
        return call(node, model=model, clip=parts[0], vae=parts[1], dataset=data, **inputs | changes)

    return run


def parts_of(model, family: str) -> tuple:
    if family in PLAYED:
        return transformers.Texts(family), transformers.Pixels(
            family, model.model.latent_format.spacial_downscale_ratio
        )
    with torch.inference_mode():
        return models.clip(), models.vae(model.model.latent_format.latent_channels)


def predicted(model, family: str) -> torch.Tensor:
    """What the model answers to fixed noise, in float32."""
    shape = latent_shape(model, family)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with copies.training_mode(), torch.no_grad():
        patcher = frozen.borrowed(model)
        with frozen.Frozen([patcher]):
            t = torch.tensor([3, 700])
            made = denoiser.ModelDenoiser(patcher)
            return made.predict(x, t, [denoiser.context_of(model.model, conditioning(family), shape)] * 2)


@pytest.mark.parametrize("family", PLAYED)
def test_a_round_starts_at_ln_2_and_the_lora_is_what_the_host_loads(play, call, output, family):
    """loss = softplus(0) at θ = θ_k; the base keeps its bytes; the file predicts the same by the host's loader and by ours."""
    model = tiny(family)
    before, plain = weights_hash(model.model.state_dict()), predicted(model, family)
    patched, lora, loss, metrics = play(model, family)
    assert loss["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(loss["loss"]) == 3 and json.loads(metrics)["rounds"][0][2]["metrics"]["drift"] > 0
    learnt = predicted(patched, family)
    assert weights_hash(model.model.state_dict()) == before or unpatched_hash(model) == before
    path = call("SPINSave", filename_prefix="mine", format="ComfyUI LoRA", lora=lora, metrics=metrics)[0]
    name = path.rsplit("/", 1)[1]
    with torch.inference_mode():
        theirs = LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]
    ours = call("SPINLoadCheckpoint", checkpoint=f"spin: {name}", strength=1.0, model=model)[0]
    assert not torch.allclose(learnt, plain, rtol=1e-3)
    for loaded in (theirs, ours):
        torch.testing.assert_close(predicted(loaded, family), learnt, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(predicted(model, family), plain, rtol=0, atol=0)


def unpatched_hash(model) -> str:
    with torch.inference_mode():
        model.detach()
    return weights_hash(model.model.state_dict())


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("family", ALL)
def test_a_gradient_comes_to_every_lora_layer_and_to_nothing_else(host, family, layers):
    model = tiny(family)
    shape = latent_shape(model, family)
    with copies.training_mode():
        patcher = frozen.borrowed(model)
        network = patcher.model.diffusion_model
        lora = LoRA(network, trained_layers(network, layers), 2)
        for number, layer in enumerate(lora.layers().values()):
            torch.nn.init.normal_(layer.up, std=0.1, generator=torch.Generator().manual_seed(number))
        x, noise = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
        contexts = [denoiser.context_of(model.model, conditioning(family, tokens), shape) for tokens in (12, 12)]
        with frozen.Frozen([patcher]), lora.attached():
            answer = denoiser.ModelDenoiser(patcher).predict(x, torch.tensor([3, 700]), contexts)
            (answer * noise).sum().backward()
    without = [name for name, p in lora.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("family", PLAYED)
def test_texts_of_other_lengths_do_not_change_each_other(host, family):
    """Each row of a batch of unequal prompts is answered as it is alone: nothing is repeated or padded to a common length."""
    model = tiny(family)
    shape = latent_shape(model, family)
    x, t = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700, 900])
    contexts = [denoiser.context_of(model.model, conditioning(family, tokens), shape) for tokens in (12, 9, 12)]
    with copies.training_mode(), torch.no_grad():
        patcher = frozen.borrowed(model)
        with frozen.Frozen([patcher]):
            made = denoiser.ModelDenoiser(patcher)
            together = made.predict(x, t, contexts)
            alone = [made.predict(x[i : i + 1], t[i : i + 1], contexts[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_cosmos_predict2_is_refused_with_its_reason(play):
    with pytest.raises(ValueError, match="it predicts as COSMOS_RFLOW"):
        play(transformers.transformer("Cosmos-Predict2"), "Cosmos-Predict2")


def test_a_baseline_of_a_transformer(play):
    loss = play(tiny("Qwen-Image"), "Qwen-Image", node="SPINTrainBaseline")[2]
    assert len(loss["loss"]) == 3


@pytest.mark.parametrize("family", ["Flux.1", "Krea 2", "sdxl"])
def test_blocks_that_are_computed_twice_learn_the_same(play, call, family):
    """Flux adds to its residual stream in place: a block that is computed again must find what it was first given."""
    sparing = call("ViCoSPINTrainingOptions", gradient_checkpointing=True, preview_every=0)[0]
    plain, spared = (
        play(tiny(family), family, run_name=name, **more)
        for name, more in (("plain", {}), ("spared", {"training_options": sparing}))
    )
    for name, tensor in plain[1].items():
        torch.testing.assert_close(spared[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_a_kernel_without_a_gradient_is_named_before_anything_is_drawn(play, monkeypatch):
    """Anima as the host has it: its fused norm and rotation has no backward pass."""
    monkeypatch.setattr(
        "vico_spin.nodes.host.families.gradients.graded_qkv", lambda attention, plain, *args, **kw: plain(*args, **kw)
    )
    monkeypatch.setattr(
        "vico_spin.nodes.spin.captions.sample_latents", lambda *args: pytest.fail("a picture was drawn")
    )
    with pytest.raises(ValueError, match=r"(?s)kernel.*(rms_rope_split_half|blocks.0.self_attn)"):
        play(tiny("Anima"), "Anima")


@pytest.mark.parametrize(
    "family, sampler, steps, cfg",
    [
        ("sd1", "ddim", 50, 7.5),
        ("Qwen-Image", "euler", 20, 4.0),
        ("Flux.1", "euler", 20, 1.0),
        ("Flux.2", "euler", 20, 1.0),
        ("Flux.1 Schnell", "euler", 4, 1.0),
    ],
)
def test_without_an_opponent_a_model_is_drawn_with_as_it_is_meant_to_be(host, family, sampler, steps, cfg):
    """Guidance that is distilled into a model is a condition of it: CFG on top would draw what it never draws."""
    found = usual_sampling(tiny(family))
    assert (found.sampler, found.steps, found.cfg) == (sampler, steps, cfg)


def test_a_model_whose_answer_is_no_prediction_is_refused_with_the_reason(call, play):
    """LCM's sampling class descends from EPS in the host, and was trained as if it were one."""
    distilled = call("ModelSamplingDiscrete", model=tiny("sd1"), sampling="lcm", zsnr=False)[0]
    with pytest.raises(ValueError, match="it predicts as LCM"):
        play(distilled, "sd1")


def test_what_would_fit_is_looked_for_and_the_run_goes_on_as_it_was(play, monkeypatch):
    """Flux adds to its stream in place: a look at checkpointing took the copies away that the training stands on."""
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device, split=False: (0, 0) if split else 0)
    said = []
    monkeypatch.setattr("vico_spin.nodes.spin.train.say", said.append)
    loss = play(tiny("Flux.1"), "Flux.1")[2]["loss"]
    assert loss[0] == pytest.approx(math.log(2), abs=1e-6) and len(loss) == 3
    assert any(
        "are there: it would fit with gradient_checkpointing" in text or "use a smaller model" in text for text in said
    )


@pytest.mark.parametrize("method, offered", [("spin", True), ("dpo", False)])
def test_only_settings_that_the_node_has_are_offered_where_memory_is_short(method, offered):
    """Train Baseline has no SPIN Options, and was told to switch low_memory on there."""
    asked = TrainingRun(RoundSettings(batch_size=2), TrainingOptions(checkpointing=True), method=method)
    words = [words for words, _ in room.savings(None, None, Need(0, 0, Growth(0, 0, 0), 0), 4, 64, asked)]
    assert any("low_memory" in told for told in words) == offered
    assert any("batch_size 1" in told for told in words)
