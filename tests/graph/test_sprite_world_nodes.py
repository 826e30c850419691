"""The Sprite World's nodes in the real host: its classes, a real graph, the pictures and the measure."""

import inspect

import comfy.model_base
import comfy.sd
import pytest
import torch
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from vico_spin.sprite_world import ARCHITECTURES


@pytest.fixture(scope="module")
def world(call):
    return call("SpriteWorldLoad")


@pytest.fixture(scope="module")
def dit_world(call):
    return call("SpriteWorldLoad", architecture="DiT")


def test_load_gives_the_hosts_own_classes_with_vico_s_places(world):
    model, clip, vae = world
    assert (
        isinstance(model.model, comfy.model_base.BaseModel) and model.model.model_type == comfy.model_base.ModelType.EPS
    )
    assert isinstance(clip, comfy.sd.CLIP) and isinstance(vae, comfy.sd.VAE)
    blocks = model.model.diffusion_model.output_blocks
    with_attention = [i for i, block in enumerate(blocks) if any("Transformer" in type(m).__name__ for m in block)]
    assert with_attention == list(range(3, 12))


def test_the_dit_is_z_image_s_class_with_its_padding_and_shift(dit_world):
    model = dit_world[0].model
    assert type(model) is comfy.model_base.Lumina2 and type(model.diffusion_model) is NextDiT
    assert model.model_type == comfy.model_base.ModelType.FLOW and model.model_sampling.shift == 3.0
    assert model.diffusion_model.pad_tokens_multiple == 32 and len(model.diffusion_model.layers) == 8


def test_the_unet_takes_what_the_host_s_takes_by_the_same_names(world):
    """Wrappers of the forward look for context and transformer_options by name."""
    forward = world[0].model.diffusion_model._forward
    assert inspect.signature(forward) == inspect.signature(UNetModel._forward.__get__(object()))


def test_both_architectures_read_prompts_alike(world, dit_world):
    encode = lambda clip: clip.encode_from_tokens(clip.tokenize("a red crab on sand"))  # noqa: E731
    assert torch.equal(encode(world[1]), encode(dit_world[1]))


def test_the_networks_are_small_files():
    """Eight megabytes for the DiT, twenty for the U-Net with text encoder and VAE."""
    sizes = {name: path.stat().st_size / 1e6 for name, path in ARCHITECTURES.items()}
    assert sizes["DiT"] < 8 and sizes["U-Net"] < 20


@pytest.mark.parametrize("load", [{}, {"architecture": "U-Net"}, {"architecture": "DiT"}])
def test_a_graph_of_the_hosts_nodes_draws_what_the_prompt_says(host, load):
    """Also a prompt that was saved before there were two architectures."""
    prompt = {
        "1": {"class_type": "SpriteWorldLoad", "inputs": load},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red crab on sand"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 1,
                "steps": 12,
                "cfg": 5.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {
            "class_type": "SpriteWorldMeasure",
            "inputs": {
                "images": ["6", 0],
                "captions": "a red crab on sand",
                "identity": -1,
                "creature": "any",
                "colour": "any",
            },
        },
        "8": {"class_type": "PreviewAny", "inputs": {"source": ["7", 4]}},
    }
    (text,) = host.run(prompt)["8"]["text"]
    assert all(f"{name} as the caption says: 100.0%" in text for name in ("class", "colour", "scene")), text


def test_the_dit_draws_sizes_that_need_padding_and_prompts_of_other_lengths(dit_world, call):
    """20 x 20 latents are 100 tokens, padded to 128; a prompt of two chunks is 154 tokens, padded to 160."""
    model, clip, _ = dit_world
    positive, negative = (call("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red crab, " * 40, ""))
    latent = {"samples": torch.zeros(1, 4, 20, 20)}
    sampling = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    (drawn,) = call("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **sampling)
    assert drawn["samples"].shape == (1, 4, 20, 20) and drawn["samples"].isfinite().all()


@torch.inference_mode()
def test_any_word_can_be_encoded_and_unknown_words_read_alike(world):
    clip = world[1]
    encode = lambda text: clip.encode_from_tokens(clip.tokenize(text))  # noqa: E731
    assert encode("a photo of *").shape == (1, 77, 64)
    assert torch.equal(encode("a zebra on sand"), encode("a violin on sand"))
    assert not torch.equal(encode("a crab on sand"), encode("a ghost on sand"))


@torch.inference_mode()
def test_a_long_prompt_and_weights_are_read_in_chunks_as_with_sd1(world):
    clip = world[1]
    assert clip.encode_from_tokens(clip.tokenize("a (red:1.3) crab on sand, " * 20)).shape[1] % 77 == 0


def test_vae_round_trip_and_tiled_decoding_agree(world, call):
    vae = world[2]
    images = call("SpriteWorldPictures", **ONE_CREATURE)[0][:2]
    with torch.inference_mode():
        latent = vae.encode(images)
        plain, tiled = vae.decode(latent), vae.decode_tiled(latent, tile_x=32, tile_y=32, overlap=8)
    assert latent.shape == (2, 4, 16, 16)
    assert (plain - images).square().mean() < 10**-2.8
    assert torch.allclose(plain, tiled, atol=1e-4)


def test_other_sizes_can_be_decoded(world):
    assert world[2].decode(torch.zeros(1, 4, 24, 16)).shape == (1, 192, 128, 3)


@pytest.mark.parametrize(
    ("architecture", "key"), [("U-Net", "diffusion_model.out.2.weight"), ("DiT", "diffusion_model.x_embedder.weight")]
)
def test_a_deep_copy_of_the_model_shares_no_weights(call, architecture, key):
    model = call("SpriteWorldLoad", architecture=architecture)[0]
    copy = model.clone(force_deepcopy=True)
    ours, theirs = model.model.state_dict()[key], copy.model.state_dict()[key]
    assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()


ONE_CREATURE = {
    "number": 3,
    "size": "any",
    "creature": "ghost",
    "colour": "blue",
    "scene": "any",
    "identity": 7,
    "taste_from": 1.0,
    "taste_to": 1.0,
    "seed": 2,
}


def test_pictures_of_one_identity_are_measured_as_this_identity(call):
    images, mask, captions, caption_list = call("SpriteWorldPictures", **ONE_CREATURE)
    assert images.shape == (3, 128, 128, 3) and mask.shape == (3, 128, 128)
    assert caption_list == captions.splitlines() and all("blue ghost" in caption for caption in caption_list)
    followed, similarity, taste, table, text = call(
        "SpriteWorldMeasure", images=images, captions=captions, identity=7, creature="ghost", colour="blue"
    )
    assert followed > 0.9 and similarity > 0.9 and taste > 0.8
    assert table.shape == (1, 3 * 128, 512, 3) and "3 pictures" in text


def test_wrong_number_of_captions_is_a_sentence(call):
    images = call("SpriteWorldPictures", **ONE_CREATURE)[0]
    with pytest.raises(ValueError, match="3 pictures have 2 captions"):
        call("SpriteWorldMeasure", images=images, captions="a\nb", identity=-1, creature="any", colour="any")
