"""U-Nets on their way between diffusers and the host predict the same."""

import json

import comfy.model_management
import diffusers
import folder_paths
import pytest
import torch

from vico_spin.intake import LIMITS
from vico_spin.scripts import models

SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


@pytest.fixture(autouse=True)
def places(output):
    folder_paths.add_model_folder_path("spin", str(output / "spin"))
    return output


def host_prediction(model, x, t, context):
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    device = model.load_device
    with torch.inference_mode():
        context = {name: value.to(device) for name, value in context.items()}
        return model.model.diffusion_model(x.to(device), t.to(device).float(), **context).cpu()


def close_to_1e_5(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_saved_diffusers_folder_predicts_as_the_model(call, family):
    with torch.inference_mode():
        model = models.of_family(family)
    path = call("SPINSave", filename_prefix="folder", format="diffusers folder", model=model)[0]
    unet = diffusers.UNet2DConditionModel.from_pretrained(path, subfolder="unet").eval()
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 40, generator=generator)
    t = torch.tensor([3, 700])
    ours, theirs = {"context": text}, {}
    if family == "sdxl":
        pooled, sizes = torch.randn(2, 40, generator=generator), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        embedded = model.model.embedder(sizes.flatten()).view(2, -1)
        ours["y"] = torch.cat([pooled, embedded], dim=1)
        theirs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    with torch.inference_mode():
        expected = unet(x, t, encoder_hidden_states=text, **theirs).sample
    close_to_1e_5(host_prediction(model, x, t, ours), expected)


@pytest.fixture
def hub_folder(places, monkeypatch):
    """A U-Net of SD1.5's true shape as the hub has it: 860 million weights, all of them views of one small buffer."""
    monkeypatch.setattr(LIMITS, "overlap", 1000)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SD15)
    buffer = 0.03 * torch.randn(2**18, generator=torch.Generator().manual_seed(0))
    state = {name: overlapping(buffer, weight.shape) for name, weight in unet.state_dict().items()}
    folder = places / "spin" / "SPIN-Diffusion-iter1" / "unet"
    folder.mkdir(parents=True)
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(unet.config))
    unet.load_state_dict(state, assign=True)
    return unet.eval()


def overlapping(buffer, shape):
    """A view of that shape whose rows start where few others do, so that no two weights are multiples of each other."""
    strides = [1] * len(shape)
    room = len(buffer) - 1
    for axis in range(len(shape)):
        strides[axis] = max(1, min(641 - 2 * axis, room // max(1, shape[axis] * len(shape))))
    return buffer.as_strided(tuple(shape), tuple(strides))


def test_a_hub_folder_of_sd15s_true_shape_loads_as_it_is(call, hub_folder, caplog):
    caplog.set_level("DEBUG")
    model = call(
        "SPINLoadCheckpoint", checkpoint="spin: SPIN-Diffusion-iter1/unet/diffusion_pytorch_model.bin", strength=1.0
    )[0]
    layers = len({name.rpartition(".")[0] for name in hub_folder.state_dict()})
    assert f"U-Net: {layers} of {layers} layers" in caplog.text
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 768, generator=generator)
    t = torch.tensor([500])
    with torch.inference_mode():
        expected = hub_folder(x, t, encoder_hidden_states=text).sample
    assert torch.isfinite(expected).all() and expected.std() > 0
    close_to_1e_5(host_prediction(model, x, t, {"context": text}), expected)


def test_a_part_of_a_model_is_refused_and_says_how_much_it_holds(call, hub_folder, places):
    """Under a name of its own, one shard loaded, and the weights of the others were whatever the memory held."""
    file = places / "spin" / "SPIN-Diffusion-iter1" / "unet" / "diffusion_pytorch_model.bin"
    whole = torch.load(file, weights_only=True)
    part = {name: tensor for name, tensor in whole.items() if not name.startswith("up_blocks.1.attentions.2.")}
    torch.save(part, file.with_name("part.bin"))
    held, layers = (len({name.rpartition(".")[0] for name in state}) for state in (part, whole))
    with pytest.raises(ValueError, match=rf'"part.bin" holds {held} of the {layers} layers'):
        call("SPINLoadCheckpoint", checkpoint="spin: SPIN-Diffusion-iter1/unet/part.bin", strength=1.0)


def test_another_architecture_cannot_be_mixed(call, hub_folder):
    with pytest.raises(ValueError, match="another architecture"), torch.inference_mode():
        call(
            "SPINLoadCheckpoint",
            checkpoint="spin: SPIN-Diffusion-iter1/unet/diffusion_pytorch_model.bin",
            strength=0.5,
            model=models.of_family(),
        )
