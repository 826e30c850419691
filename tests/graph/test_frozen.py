"""Training beside the user's own weights: in place, as they are stored, with nothing of them kept a second time."""

import gc
import json
from contextlib import nullcontext

import comfy.sd
import pytest
import torch

from vico_spin.nodes.host import copies, denoiser, frozen
from vico_spin.nodes.host.families import trained_layers
from vico_spin.nodes.host.families.gradients import differentiable
from vico_spin.nodes.spin import rehearsal, session
from vico_spin.scripts import models, transformers
from vico_spin.train_core import Allocated, LoRA, weights_hash

PLAYED = [name for name in transformers.TRANSFORMERS if name != "Cosmos-Predict2"]
ROWS = 2  # of a forward: one pair


pytestmark = pytest.mark.usefixtures("output")


def tiny(family: str, **changes):
    with torch.inference_mode():  # as the host's loaders do
        return (transformers.transformer if family in PLAYED else models.of_family)(family, **changes)


def conditioning(family: str) -> list:
    if family in PLAYED:
        return transformers.prompt(family)
    rows = torch.Generator().manual_seed(0)
    pooled = torch.randn(1, models.TEXT_WIDTH, generator=rows)
    return [[torch.randn(1, 77, models.TEXT_WIDTH, generator=rows), {"pooled_output": pooled}]]


def gradient(patcher, family: str) -> torch.Tensor:
    """Of a LoRA on attention, one step on fixed noise; the model must be ready for it."""
    network = patcher.model.diffusion_model
    lora = LoRA(network, trained_layers(network, "attention"), 2)
    for number, layer in enumerate(lora.layers().values()):
        torch.nn.init.normal_(layer.up, std=0.1, generator=torch.Generator().manual_seed(number))
    frames = [1] * (patcher.model.latent_format.latent_dimensions == 3)
    shape = (patcher.model.latent_format.latent_channels, *frames, 8, 8)
    x, noise = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    contexts = [denoiser.context_of(patcher.model, conditioning(family), shape)] * 2
    with lora.attached():
        answer = denoiser.ModelDenoiser(patcher).predict(x, torch.tensor([3, 700]), contexts)
        (answer * noise).sum().backward()
    return torch.cat([p.grad.flatten() for p in lora.parameters()])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", models.FAMILIES[:3])
def test_what_a_unet_computes_again_is_not_kept_and_changes_no_bit(host, monkeypatch, family, precision):
    """A norm, the SiLU behind it and a gated GELU keep one tensor each instead of two to four."""
    network = tiny(family).model.diffusion_model
    context = torch.randn(2, 77, models.TEXT_WIDTH)
    vector = torch.randn(2, models.TEXT_WIDTH + 6 * 256) if family == "sdxl" else None
    found = []
    for spared in (True, False):
        if not spared:
            monkeypatch.setattr(frozen, "recomputed", lambda network: nullcontext())
        with copies.training_mode(), frozen.graded(network), torch.autocast("cpu", precision):
            x = torch.ones(2, 4, 16, 16, requires_grad=True)
            with Allocated() as held:
                answer = network(x, torch.tensor([3.0, 700.0]), context=context, y=vector)
            kept = held.held
            answer.float().square().mean().backward()
        found.append((x.grad, kept))
    (again, less), (plain, more) = found
    assert torch.equal(again, plain) and less < 0.85 * more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("family", [*PLAYED, *models.FAMILIES])
def test_the_gradient_is_that_of_a_deep_copy_in_float32(host, family, dtype):
    model = tiny(family, dtype=dtype)
    before = weights_hash(model.model.state_dict())
    with copies.training_mode():
        copied = copies.training_copy(model)
        copied.model.diffusion_model.float()
        with differentiable(copied.model):
            expected = gradient(copied, family)
        own = frozen.borrowed(model)
        with frozen.Frozen([own]):
            found = gradient(own, family)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert weights_hash(model.model.state_dict()) == before
    assert model.model.get_dtype() == dtype


def test_a_lora_on_the_model_is_seen_and_leaves_no_trace(host):
    """The host merges it while the model is loaded; the user's own bytes are back afterwards."""
    model = tiny("Qwen-Image")
    before, network = (weights_hash(part.state_dict()) for part in (model.model, model.model.diffusion_model))
    layer = "diffusion_model.transformer_blocks.0.attn.to_q"
    lora = {f"{layer}.lora_up.weight": torch.randn(64, 2), f"{layer}.lora_down.weight": torch.randn(2, 64)}
    patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
    with copies.training_mode():
        plain, changed = (frozen.borrowed(m) for m in (model, patched))
        hashes = [frozen.patched_hash(p) for p in (plain, changed)]
        gradients = []
        for patcher in (plain, changed):
            with frozen.Frozen([patcher]):
                gradients.append(gradient(patcher, "Qwen-Image"))
                assert frozen.patched_hash(patcher) == hashes[len(gradients) - 1], "the same whether loaded or not"
    assert hashes[0] == network and hashes[1] != hashes[0]
    assert (gradients[0] - gradients[1]).norm() > 1e-2 * gradients[0].norm()
    with torch.inference_mode():
        changed.detach()
    assert weights_hash(model.model.state_dict()) == before


def test_the_host_may_draw_in_mid_training(host, move_as_a_gpu):
    """What it moves then, inside inference mode, is trained beside again afterwards."""
    model = tiny("SD3.5")
    move_as_a_gpu()
    with copies.training_mode():
        patcher = frozen.borrowed(model)
        with frozen.Frozen([patcher]) as training:
            first = gradient(patcher, "SD3.5")
            with training.given_back(), torch.inference_mode():
                for weight in model.model.parameters():
                    weight.data = torch.clone(weight.data)
                patcher.detach()
            assert torch.equal(gradient(patcher, "SD3.5"), first)


def test_what_fails_on_the_way_in_leaves_nothing_behind(host):
    """Layers whose forward was replaced would go on reading weights for a training that there is not."""
    model = tiny("sd1")

    def failing():
        raise torch.OutOfMemoryError

    with copies.training_mode():
        training = frozen.Frozen([frozen.borrowed(model)], within=[failing])
        with pytest.raises(torch.OutOfMemoryError), training:
            pass
    assert not [name for name, module in model.model.named_modules() if "forward" in vars(module)]


def test_a_layer_that_the_host_keeps_quantised_passes_gradients(host):
    """fp8 with a scale a layer, as the host's loader builds it out of such a file: weights as they are, by its own classes."""
    plain = tiny("Flux.1", hidden_size=128, num_heads=1, axes_dim=[16, 56, 56], mlp_ratio=4.0)
    state = {name: t.clone() for name, t in plain.model.diffusion_model.state_dict().items()}
    layers = [name.removesuffix(".weight") for name in state if name.endswith("attn.qkv.weight")]
    mark = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    quantised = dict(state)
    for layer in layers:
        scale = state[f"{layer}.weight"].abs().max() / 448
        eighth = (state[f"{layer}.weight"] / scale).to(torch.float8_e4m3fn)
        state[f"{layer}.weight"] = eighth.float() * scale  # the same numbers, as an ordinary layer holds them
        quantised |= {f"{layer}.weight": eighth, f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": mark}
    with torch.inference_mode():
        plain.model.diffusion_model.load_state_dict(state)
        model = comfy.sd.load_diffusion_model_state_dict(quantised)
    network = model.model.diffusion_model
    assert not isinstance(network.get_submodule(layers[0]), torch.nn.Linear)
    assert layers[0] in trained_layers(network, "attention")
    before, gradients = weights_hash(model.model.state_dict()), []
    with copies.training_mode():
        for patcher in map(frozen.borrowed, (model, plain)):
            with frozen.Frozen([patcher]):
                gradients.append(gradient(patcher, "Flux.1"))
    assert weights_hash(model.model.state_dict()) == before
    found, expected = gradients
    assert (found - expected).norm() <= 0.05 * expected.norm(), "but for the activations' own eight bits"


@pytest.mark.parametrize("family", [*PLAYED, "sd1"])
def test_a_round_holds_the_base_once(call, monkeypatch, family):
    """Counted allocation by allocation: beside the base as stored, what the node said before the first step, and no more."""
    model = tiny(family)
    base = sum(p.nbytes for p in model.model.diffusion_model.parameters())
    told = []
    need = rehearsal.Rehearsal.need
    monkeypatch.setattr(rehearsal.Rehearsal, "need", lambda *args: told.append((args[0], need(*args))) or told[-1][1])
    held, play = Allocated(), session.play_method

    def counted(*args):
        gc.collect()
        with held:
            return play(*args)

    monkeypatch.setattr(session, "play_method", counted)
    lora = train(call, model, family)
    (rehearsed, needed), weights = told[0], sum(t.nbytes for t in lora.values())
    shape = rehearsed.corpus.shapes[0]
    step = needed.growth.at(ROWS, shape[-1] * shape[-2])
    assert held.peak <= 12 * weights + max(step, needed.drawing) * 1.1
    assert base + held.peak == pytest.approx(base + needed.beside(ROWS, shape[-1] * shape[-2]), rel=0.1)
    layer = max(p.numel() for p in model.model.diffusion_model.parameters()) * 4
    assert held.largest <= max(0.05 * base, layer, largest_of_a_drawing(rehearsed))


def largest_of_a_drawing(rehearsed) -> int:
    """The largest single tensor of a forward without a gradient: none of the base."""
    with Allocated() as held, torch.no_grad():
        rehearsed.draw(2)
    return held.largest


def train(call, model, family: str) -> dict:
    scale = model.model.latent_format.spacial_downscale_ratio
    if family in PLAYED:
        clip, vae = transformers.Texts(family), transformers.Pixels(family, scale)
    else:
        with torch.inference_mode():
            clip, vae = models.clip(), models.vae(model.model.latent_format.latent_channels)
    pixels = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    data = call("SPINDataset", source="pictures from the graph", images=pixels, captions="a cat\na dog")[0]
    opponent = call("SPINOpponent", sampler_name="euler", scheduler="simple", steps=2, cfg=2.0)[0]
    inputs = {
        "run_name": "t",
        "batch_size": 1,
        "resolution": 64,
        "seed": 1,
        "preview_prompts": "",
        "opponent": opponent,
    }
    inputs |= {"train": {"train": "LoRA", "rank": 2}}
    inputs |= {"play": {"steps": 2, "learning_rate": 1e-3, "beta": 50.0}}
    return call("SPINTrain", model=model, clip=clip, vae=vae, dataset=data, **inputs)[1]
