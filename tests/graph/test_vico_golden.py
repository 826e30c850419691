"""ViCo in the real ComfyUI U-Net and sampler, through Apply ViCo, against the authors' numbers (1e-4 relative, masks exact)."""

import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vico_spin.nodes.vico.encoders import Columns, word_ids
from vico_spin.nodes.vico.photos import Photo, Reference
from vico_spin.nodes.vico.trigger import make_trigger, with_trigger
from vico_spin.tests.graph.vico_bench import called
from vico_spin.vico_core import ImageAttention, Kept, ViCoConcept

END_OF_TEXT = 49407
LAYOUTS = {
    "04_unet_tiny": {"channel_mult": (1, 2), "num_res_blocks": 1, "attention": 2, "heads": 4},
    "08_unet_sdlayout": {"channel_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attention": 3, "heads": 8},
}


def load(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def uniform(name: str, count: int, seed: int) -> np.ndarray:
    """u(name, n, seed) of the manifest: n doubles in [-1, 1)."""
    start = np.uint64((zlib.crc32(name.encode()) + (seed << 32)) % 2**64)
    with np.errstate(over="ignore"):
        z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)) / 2.0**23 - 1


def weight(key: str, shape, seed: int) -> torch.Tensor:
    u = uniform("unet." + key, int(np.prod(shape)), seed)
    if key.endswith("bias"):
        w = 0.05 * u
    elif len(shape) == 1:
        w = 1 + (0.1 * u).astype(np.float32)
    else:
        gain = 2 if key.endswith(("attn2.to_q.weight", "attn2.to_k.weight")) else 1
        w = gain * np.sqrt(3 / np.prod(shape[1:])) * u
    return torch.from_numpy(w.astype(np.float32)).reshape(tuple(shape))


def original_weights(name: str, data: dict, model) -> dict:
    """The U-Net's weights and image attention's, in the original's key names."""
    if name == "04_unet_tiny":
        return {k.removeprefix("unet."): v.float() for k, v in data.items() if k.startswith("unet.")}
    unet = {k: weight(k, p.shape, 8) for k, p in model.model.diffusion_model.state_dict().items()}
    block = {"4": 128, "6": 64, "8": 64, "10": 32}
    for n, dim in block.items():
        for k, p in ImageAttention(dim, 8, dim // 8).state_dict().items():
            key = f"output_blocks.{n}.1.image_cross_attention.{k}"
            unet[key] = weight(key, p.shape, 8)
    return unet


class Applied:
    """The golden U-Net with Apply ViCo on it, as the sampler would call it."""

    def __init__(self, name, golden, make_sd1, make_clip):
        self.data, _ = load(golden / "vico" / f"{name}.safetensors")
        self.model = make_sd1(context_dim=40, **LAYOUTS[name])
        weights = original_weights(name, self.data, self.model)
        for key in (k for k in self.data if k.startswith("check.")):
            assert torch.equal(weights[key.removeprefix("check.")].flatten()[:8], self.data[key]), key
        plain = {k: v for k, v in weights.items() if ".image_cross_attention." not in k}
        self.model.model.diffusion_model.load_state_dict(plain)
        modules = {}
        for k, v in weights.items():
            place, _, rest = k.partition(".image_cross_attention.")
            if rest:
                modules.setdefault(place, {})[rest] = v
        ordered = dict(sorted(modules.items(), key=lambda item: int(item[0].split(".")[1])))
        self.concept = ViCoConcept(ordered, {"l": torch.zeros(1, 40)})
        self.clip = make_clip()
        self.captures = []

    def apply(self, call, latents, mask="automatic"):
        """Apply ViCo on reference latents in the model's scale."""
        reference = call_reference(self.model, latents)
        applied, clip = call(
            "ViCoApply",
            model=self.model,
            clip=self.clip,
            concept=self.concept,
            reference=reference,
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
            mask=mask,
        )
        self.subject = subject_of(applied)
        self.subject.on_masks = self.captures.extend
        return applied, clip


def call_reference(model, latents):
    scale = model.model.latent_format.scale_factor
    return Reference([Photo(latent[None] / scale, torch.zeros(8, 8, 3)) for latent in latents])


def subject_of(model):
    from comfy.patcher_extension import WrappersMP

    (wrappers,) = model.wrappers[WrappersMP.APPLY_MODEL].values()
    return wrappers[0].__self__


def forward(model, subject, x, t, context, columns):
    """One call of the patched U-Net, a conditioning a row, as the sampler's wrappers prepare it."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    with torch.inference_mode():
        return called(model, subject, x, t, context, columns)


@pytest.mark.parametrize("name", LAYOUTS)
def test_golden_unet_with_image_attention(name, golden, make_sd1, make_clip, call):
    applied = Applied(name, golden, make_sd1, make_clip)
    data = applied.data
    context = load(golden / "vico" / "04_unet_tiny.safetensors")[0]["context"]
    for row in range(2):  # each row has a reference of its own in the golden data
        model, _ = applied.apply(call, data["x_ref"][row : row + 1])
        one = slice(row, row + 1)
        got = forward(
            model, applied.subject, data["x_t"][one], data["t"][one], context[one], [[int(data["ph_col"][row])]]
        )
        assert relative_error(got, data["eps_vico"][one]) < 1e-4
        capture = applied.captures.pop()
        for place in applied.concept.modules:
            assert torch.equal(capture.masks[place][0], data[f"ica.{place}.mask"][row]), place


@pytest.mark.parametrize("name", LAYOUTS)
def test_golden_unet_plain_and_reference_stream(name, golden, make_sd1, make_clip):
    applied = Applied(name, golden, make_sd1, make_clip)
    data = applied.data
    context = load(golden / "vico" / "04_unet_tiny.safetensors")[0]["context"]
    with torch.inference_mode():
        unet = applied.model.model.diffusion_model
        assert relative_error(unet(data["x_t"], data["t"].float(), context), data["eps_plain"]) < 1e-4
        assert relative_error(unet(data["x_ref"], data["t"].float(), context), data["eps_ref_plain"]) < 1e-4


def test_golden_unet_tokens_at_the_places(golden, make_sd1, make_clip, call):
    applied = Applied("04_unet_tiny", golden, make_sd1, make_clip)
    data = applied.data
    model, _ = applied.apply(call, data["x_ref"][:1])
    forward(model, applied.subject, data["x_t"][:1], data["t"][:1], data["context"][:1], [[int(data["ph_col"][0])]])
    tokens = applied.captures.pop().tokens["output_blocks.1.1"][0]
    assert relative_error(tokens, data["ica.output_blocks.1.1.xr_row0"][0]) < 1e-4
    kept = [([0], Kept(tokens[data["ica.output_blocks.1.1.mask"][0]]))]
    module = applied.subject.modules["output_blocks_1_1"]
    with torch.inference_mode():
        got = module.forward_kept(data["ica.output_blocks.1.1.x_in_row0"], kept)
    assert relative_error(got, data["ica.output_blocks.1.1.x_out_row0"]) < 1e-4


@pytest.fixture
def clip06(golden, make_clip):
    """The host's CLIP with golden 06's weights."""
    data, metadata = load(golden / "vico" / "06_embedding_manager.safetensors")
    clip = make_clip(
        width=int(metadata["hidden"]),
        intermediate=int(metadata["intermediate"]),
        layers=int(metadata["layers"]),
        heads=int(metadata["heads"]),
    )
    text = clip.cond_stage_model.clip_l.transformer
    weights = {k.removeprefix("clip."): v for k, v in data.items() if k.startswith("clip.")}
    missing, unexpected = text.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"text_model.embeddings.token_embedding.weight", "text_projection.weight"}
    with torch.no_grad():
        text.get_input_embeddings().weight[data["token_rows_ids"]] = data["token_rows"]
    return clip, data


def with_star(clip, star):
    trigger = make_trigger(clip, "golden", "*", {"l": star})
    return with_trigger(clip, trigger), trigger


def encode_ids(clip, trigger, ids):
    """Encodes given token ids (the golden vocabulary is a toy one), the placeholder's replaced as the tokenizer would."""
    (word,) = word_ids(clip, "l", "*")
    row = [trigger.tokens("l")[0] if i == word else i for i in ids]
    with torch.inference_mode():
        return clip.encode_from_tokens({"l": [[(token, 1.0) for token in row]]}, return_dict=True)


def test_golden_placeholder_through_the_text_encoder(clip06):
    clip, data = clip06
    clip, trigger = with_star(clip, data["star"])
    assert word_ids(clip, "l", "*") == [int(data["placeholder_id"])]
    for b in range(2):
        out = encode_ids(clip, trigger, data["token_ids"][b].tolist())
        assert relative_error(out["cond"], data["context"][b : b + 1]) < 1e-4
        (columns,) = trigger.memory.find({"cross_attn": out["cond"]})
        assert columns.trigger == (int(data["ph_col"][b]),)
        assert columns.end_of_text == int(data["eot_col"][b])
    with torch.inference_mode():
        empty = clip.encode_from_tokens(clip.tokenize(""))
    assert relative_error(empty, data["uncond_context"]) < 1e-4


def ddim_sigmas(model, timesteps):
    """The host's sigmas of the original's DDIM steps, from the noisiest down; the original's last step ends at t = 0's alpha."""
    sampling = model.get_model_object("model_sampling")
    return torch.cat([sampling.sigma(timesteps.flip(0).float()), sampling.sigmas[:1]])


@pytest.mark.parametrize(("scale", "expected"), [(7.5, "samples"), (1.0, "samples_scale1")])
def test_golden_ddim_with_guidance(golden, make_sd1, make_clip, call, scale, expected):
    """Two pictures, rows of both kinds in one batch, through ComfyUI's own guider and sampler."""
    import comfy.samplers

    data, _ = load(golden / "vico" / "07_ddim_cfg.safetensors")
    clip, _ = load(golden / "vico" / "06_embedding_manager.safetensors")
    applied = Applied("04_unet_tiny", golden, make_sd1, make_clip)
    model, _ = applied.apply(call, data["x_ref"])
    columns = Columns((int(data["ph_col"][0]),), int(data["eot_col"][0]))
    positive = [[clip["context"][1:2], {}]]
    applied.subject.trigger.memory.remember(positive[0][0], columns)
    negative = [[clip["uncond_context"], {}]]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(scale)
    sigmas = ddim_sigmas(model, data["timesteps"])
    steps = []
    # The original starts from x_T as it is; the host scales the noise it is given: give it what becomes x_T.
    start = model.get_model_object("model_sampling").noise_scaling(sigmas[0], torch.ones(1), torch.zeros(1)).item()
    noise = data["x_T"] * (1 + float(sigmas[0]) ** 2) ** 0.5 / start
    sampler = comfy.samplers.ksampler("euler")
    got = guider.sample(
        noise, torch.zeros_like(noise), sampler, sigmas, callback=lambda i, d, x, n: steps.append(x), disable_pbar=True
    )
    # x in the host is x / sqrt(alphas_cumprod): the last sigma is not zero, so the picture is still at that scale.
    final = got * model.model.latent_format.scale_factor / (1 + float(sigmas[-1]) ** 2) ** 0.5
    assert relative_error(final, data[expected]) < 1e-4
    if scale != 1.0:
        for step in (1, 3):
            x = steps[step] / (1 + float(sigmas[step]) ** 2) ** 0.5
            assert relative_error(x, data[f"x_after_step{step}"]) < 1e-4
        unconditional, conditional = masks_of_first_step(applied.captures, data)
        assert unconditional and conditional


def masks_of_first_step(captures, data):
    """Whether the unconditional and the conditional row of the first step have the original's masks, whatever their order."""
    found = {
        place: [capture.masks[place][row] for capture in captures[:1] for row in range(2)]
        for place in ("output_blocks.1.1", "output_blocks.3.1")
    }
    return tuple(
        all(any(torch.equal(m, data[f"first_mask.{place}"][r]) for m in found[place]) for place in found)
        for r in (0, 2)
    )
