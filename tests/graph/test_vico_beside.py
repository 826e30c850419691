"""Apply ViCo beside other nodes: a table of what each combination equals, on small models of SD1.x's and SDXL's kind."""

import comfy.hooks
import comfy.sd
import pytest
import torch

from vico_spin.tests.graph.vico_bench import PROMPT, STEPS, Bench, close, make_concept

FAMILIES = ("sd1", "sdxl")
SMALL = {"output_blocks.1.1": 64, "output_blocks.3.1": 32}  # the places of models.of_family
MODEL_NODES = {  # nodes that take a MODEL and give one: the order with Apply ViCo must not matter
    "FreeU": {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2},
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "PatchModelAddDownscale": {
        "block_number": 1,
        "downscale_factor": 2.0,
        "start_percent": 0.0,
        "end_percent": 0.5,
        "downscale_after_skip": True,
        "downscale_method": "bicubic",
        "upscale_method": "bicubic",
    },
    "NAGuidance": {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5},
    "EasyCache": {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
    "TomePatchModel": {"ratio": 0.3},
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    "RescaleCFG": {"multiplier": 0.7},
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 1.0},
    "APG": {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0},
    "TCFG": {},
    "Mahiro": {},
    "FreSca": {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 4},
    "DifferentialDiffusion": {"strength": 1.0},
    "UNetSelfAttentionMultiply": {"q": 1.1, "k": 0.9, "v": 1.0, "out": 1.0},
    "UNetCrossAttentionMultiply": {"q": 1.1, "k": 0.9, "v": 1.0, "out": 1.0},
    "ModelSamplingDiscrete": {"sampling": "v_prediction", "zsnr": True},
    "HyperTile": {"tile_size": 128, "swap_size": 1, "max_depth": 0, "scale_depth": False},
}
RANDOM = ("HyperTile", "TomePatchModel")  # draw anew at each pass: two pictures of one graph differ without ViCo, too


@pytest.fixture(scope="module", params=FAMILIES)
def parts(request, host, make_clip, make_vae):
    from vico_spin.scripts import models

    return models.of_family(request.param), make_clip(), make_vae()


@pytest.fixture
def bench(call, parts):
    bench = Bench(call, *parts)
    bench.concept = make_concept(places=SMALL)
    yield bench
    del bench.model.model.diffusion_model._forward


def patched(bench, name, model):
    """The model behind a node of the table."""
    settings = MODEL_NODES[name]
    return bench.call(name, model=model, **settings)[0]


def conditioning(bench, clip, text, bare=False):
    ((tensor, extra),) = bench.encode(clip, text)
    return [[tensor, {"pooled_output": extra["pooled_output"]} if bare else extra]]


# Nodes on the MODEL


@pytest.mark.parametrize("name", [name for name in MODEL_NODES if name not in RANDOM])
def test_a_node_before_apply_is_that_node_after_it(bench, name):
    before, clip = bench.apply(model=patched(bench, name, bench.model), start_percent=0.2, end_percent=0.8)
    after, _ = bench.apply(start_percent=0.2, end_percent=0.8)
    assert torch.equal(bench.sample(before, clip), bench.sample(patched(bench, name, after), clip))


@pytest.mark.parametrize("name", [name for name in MODEL_NODES if name not in RANDOM])
def test_beside_a_node_what_is_kept_equals_what_is_computed(bench, name):
    """Filled by the model without the node, then read with it: as with an empty bank, to the bit."""
    shared = bench.make_reference()
    bench.sample(*bench.apply(reference=shared))
    model, clip = bench.apply(reference=shared)
    kept = bench.sample(patched(bench, name, model), clip)
    fresh, clip = bench.apply(reference=bench.make_reference(), cache_mb=0)
    assert torch.equal(kept, bench.sample(patched(bench, name, fresh), clip))


@pytest.mark.parametrize("name", [name for name in MODEL_NODES if name not in RANDOM])
def test_beside_a_node_strength_0_is_that_node_alone(bench, name):
    model, clip = bench.apply(strength=0.0)
    plain = bench.sample(patched(bench, name, bench.model), bench.clip)
    assert torch.equal(bench.sample(patched(bench, name, model), clip), plain)


@pytest.mark.parametrize("name", RANDOM)
def test_beside_a_node_that_draws_at_random_the_features_are_those_without_it(bench, name):
    model, clip = bench.apply()
    assert torch.isfinite(bench.sample(patched(bench, name, model), clip)).all()
    bench.passes.clear()
    bench.sample(model, clip)
    assert bench.passes == []


def test_clip_skip_and_attention_before_apply_are_those_after_it(bench):
    model, _ = bench.apply()
    skip = {"stop_at_clip_layer": -1}
    multiply = {"q": 1.1, "k": 0.9, "v": 1.0, "out": 1.0}
    for node, settings in (("CLIPSetLastLayer", skip), ("CLIPAttentionMultiply", multiply)):
        before = bench.apply(clip=bench.call(node, clip=bench.clip, **settings)[0])[1]
        after = bench.call(node, clip=bench.apply()[1], **settings)[0]
        assert torch.equal(bench.sample(model, before), bench.sample(model, after)), node


def bypass_lora(bench, model):
    key = "diffusion_model.output_blocks.0.1.transformer_blocks.0.attn1.to_q"
    weight = model.model.state_dict()[f"{key}.weight"]
    generator = torch.Generator().manual_seed(0)
    lora = {
        "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.randn(
            weight.shape[0], 2, generator=generator
        ),
        "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.randn(
            2, weight.shape[1], generator=generator
        ),
    }
    with torch.inference_mode():
        return comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 1.0)[0]


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_lora_in_bypass_form_misses_the_bank(bench, order):
    """It changes the forward and no patches_uuid."""
    bench.sample(*bench.apply())

    def picture(reference):
        if order == "before":
            return bench.sample(*bench.apply(model=bypass_lora(bench, bench.model), reference=reference))
        model, clip = bench.apply(reference=reference)
        return bench.sample(bypass_lora(bench, model), clip)

    assert not torch.equal(bench.sample(bypass_lora(bench, bench.model), bench.clip), bench.plain())
    assert torch.equal(picture(bench.reference), picture(bench.make_reference()))


@pytest.mark.parametrize("order", ["before", "after", "between"])
def test_another_nodes_patch_of_a_layer_misses_the_bank(bench, order):
    bench.sample(*bench.apply())
    path = "diffusion_model.output_blocks.0.1.transformer_blocks.0.forward"
    if order == "between":
        path = "diffusion_model.output_blocks.1.1.transformer_blocks.0.forward"  # a place, whose forward is Apply's already

    def halved(model):
        model, previous = model.clone(), model.get_model_object(path)
        model.add_object_patch(path, lambda *args, **kwargs: previous(*args, **kwargs) * 0.5)
        return model

    def picture(reference):
        if order == "before":
            return bench.sample(*bench.apply(model=halved(bench.model), reference=reference))
        model, clip = bench.apply(reference=reference)
        return bench.sample(halved(model), clip)

    picture(bench.make_reference())  # an object that is gone may leave its id to the next
    assert torch.equal(picture(bench.reference), picture(bench.make_reference()))


# The way from CLIP to sampler


def test_prompts_encoded_once_serve_a_second_apply_of_the_concept(bench):
    """A hires pass at half strength: its own Apply, the first one's prompts."""
    _, first = bench.apply()
    second, clip = bench.apply(strength=0.5)
    once = bench.sample(second, clip, positive=bench.encode(first, PROMPT))
    assert torch.equal(once, bench.sample(second, clip))


def test_an_apply_may_take_the_clip_of_another_of_the_same_concept(bench):
    _, first = bench.apply()
    second, clip = bench.apply(clip=first, strength=0.5)
    assert clip is first
    assert torch.equal(bench.sample(second, clip), bench.sample(*bench.apply(strength=0.5)))


def test_one_concept_applied_for_each_half_is_what_the_two_halves_are(bench):
    """1.0 until half-way, 0.5 after: what two samplers give that each draw one half."""
    first, clip = bench.apply(end_percent=0.5)
    both, _ = bench.apply(model=first, strength=0.5, start_percent=0.5001)
    second, _ = bench.apply(strength=0.5, start_percent=0.5001)

    def half(model, latent, start, end):
        parts = {"positive": bench.encode(clip, PROMPT), "negative": bench.encode(clip, "")}
        settings = {"cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "noise_seed": 1, "steps": 4}
        return bench.call(
            "KSamplerAdvanced",
            model=model,
            latent_image=latent,
            start_at_step=start,
            end_at_step=end,
            add_noise="enable" if start == 0 else "disable",
            return_with_leftover_noise="enable" if start == 0 else "disable",
            **parts,
            **settings,
        )[0]

    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    apart = half(second, half(first, empty, 0, 2), 2, 4)["samples"]
    together = half(both, half(both, empty, 0, 2), 2, 4)["samples"]
    assert torch.equal(together, apart)
    assert not torch.equal(together, bench.sample(first, clip, steps=4))


def test_a_conditioning_without_its_dict_is_that_conditioning(bench):
    """Text nodes of other packs build [[cond, {pooled}]] themselves."""
    model, clip = bench.apply()
    bare = bench.sample(model, clip, positive=conditioning(bench, clip, PROMPT, bare=True))
    assert torch.equal(bare, bench.sample(model, clip))


def test_prompts_on_a_clip_schedule_keep_their_columns(bench):
    model, clip = bench.apply()
    hooks = comfy.hooks.create_hook_lora({}, 0.0, 0.0)
    (scheduled,) = bench.call("SetClipHooks", clip=clip, apply_to_conds=False, schedule_clip=True, hooks=hooks)
    positive = bench.encode(scheduled, PROMPT)
    assert "clip_start_percent" in positive[0][1]
    assert close(bench.sample(model, clip, positive=positive), bench.sample(model, clip), 1e-5)


@pytest.mark.parametrize("word_in", ["first", "second", "both"])
def test_joined_prompts_have_the_word_where_it_stands(bench, word_in):
    model, clip = bench.apply()
    texts = {"first": (PROMPT, "a red sky"), "second": ("a red sky", PROMPT), "both": (PROMPT, PROMPT)}[word_in]
    to, source = (bench.encode(clip, text) for text in texts)
    (joined,) = bench.call("ConditioningConcat", conditioning_to=to, conditioning_from=source)
    (columns,) = bench.columns(model, joined)
    assert columns.trigger == {"first": (5,), "second": (82,), "both": (5, 82)}[word_in]
    picture = bench.sample(model, clip, positive=joined)
    assert not close(picture, bench.sample(bench.model, clip, positive=joined), 1e-3)


@pytest.mark.parametrize("strength", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("word_in", ["to", "from"])
def test_averaged_prompts_have_the_word_where_it_stood(bench, word_in, strength):
    model, clip = bench.apply()
    texts = (PROMPT, "a red sky") if word_in == "to" else ("a red sky", PROMPT)
    to, source = (bench.encode(clip, text) for text in texts)
    inputs = {"conditioning_to": to, "conditioning_from": source, "conditioning_to_strength": strength}
    (mixed,) = bench.call("ConditioningAverage", **inputs)
    (columns,) = bench.columns(model, mixed)
    if strength == 1.0 and word_in == "from":
        assert columns.trigger == ()
        return
    assert columns.trigger == (5,)
    assert torch.isfinite(bench.sample(model, clip, positive=mixed)).all()


def test_a_multiplied_prompt_keeps_its_columns(bench):
    model, clip = bench.apply()
    (weak,) = bench.call("ConditioningMultiply", conditioning=bench.encode(clip, PROMPT), multiplier=0.5)
    assert bench.columns(model, weak)[0].trigger == (5,)


def test_several_prompts_in_one_tensor_are_each_what_they_are_alone(bench):
    model, clip = bench.apply()
    texts = (PROMPT, "a * and a red sky")
    alone = [bench.encode(clip, text) for text in texts]
    tensor = torch.cat([cond[0][0] for cond in alone])
    pooled = torch.cat([cond[0][1]["pooled_output"] for cond in alone])
    batch = bench.sample(model, clip, positive=[[tensor, {"pooled_output": pooled}]], batch=2)
    for row, text in enumerate(texts):
        noise_of_row = {"samples": torch.zeros(1, 4, 16, 16), "batch_index": [row]}
        assert close(batch[row : row + 1], bench.sample(model, clip, prompt=text, latent=noise_of_row)), text


def test_with_two_subjects_a_prompt_that_names_one_leaves_the_other_off(bench):
    first, clip = bench.apply()
    other = make_concept(seed=9, places=SMALL)
    reference = bench.make_reference(seed=8)
    both, knows = bench.apply(model=first, clip=clip, concept=other, reference=reference, trigger="sks")
    assert torch.equal(bench.sample(both, knows, prompt="a *"), bench.sample(first, knows, prompt="a *"))
    with pytest.raises(ValueError, match="No prompt contains the trigger word"):
        bench.sample(both, knows, prompt="a dog")


def test_with_two_subjects_each_part_of_the_picture_has_its_own(bench):
    """Two prompts with a mask each: in the one that names "*" only "*" works, exactly."""
    first, clip = bench.apply()
    other = make_concept(seed=9, places=SMALL)
    both, knows = bench.apply(
        model=first, clip=clip, concept=other, reference=bench.make_reference(seed=8), trigger="sks"
    )
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1

    def positive(texts):
        parts = []
        for text, mask in zip(texts, (left, 1 - left), strict=True):
            inputs = {"mask": mask, "strength": 1.0, "set_cond_area": "default"}
            parts += bench.call("ConditioningSetMask", conditioning=bench.encode(knows, text), **inputs)[0]
        return parts

    apart = bench.sample(both, knows, positive=positive(["a *", "a sks"]), cfg=1.0, steps=1)
    alone = bench.sample(first, knows, positive=positive(["a *", "a *"]), cfg=1.0, steps=1)
    assert close(apart[..., :8], alone[..., :8], 1e-5)
    assert not close(apart[..., 8:], alone[..., 8:], 1e-3)


# Masks and pictures


def test_a_mask_in_every_form_of_the_host_is_the_same_mask(bench):
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 32:96] = 1
    forms = [mask, mask[0], mask[:, None], mask.half(), mask.bool(), mask.to(torch.bfloat16)]
    masks = [bench.make_reference(mask=form).photos[0].mask for form in forms]
    assert all(torch.equal(masks[0], other) for other in masks[1:])
    pictures = [bench.sample(*bench.apply(effect_mask=form), steps=1) for form in forms]
    assert all(torch.equal(pictures[0], other) for other in pictures[1:])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_picture_of_one_three_or_four_channels_in_any_precision(bench, channels, dtype):
    image = torch.full((1, 64, 64, channels), 0.5, dtype=dtype)
    (reference,) = bench.call("ViCoReference", vae=bench.vae, image=image, size=128)
    expected = bench.call("ViCoReference", vae=bench.vae, image=torch.full((1, 64, 64, 3), 0.5), size=128)[0]
    assert torch.equal(reference.photos[0].latent, expected.photos[0].latent)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"image": torch.rand(1, 64, 64, 2)}, "one, three or four channels"),
        ({"image": torch.rand(0, 64, 64, 3)}, "one, three or four channels"),
        ({"mask": torch.zeros(0, 64, 64)}, "It has no pixels"),
        ({"mask": torch.full((1, 64, 64), torch.nan)}, "NaN or infinity"),
        ({"mask": torch.zeros(1, 32, 32)}, "mask is empty"),
        ({"mask": torch.ones(1, 32, 32), "invert_mask": True}, "mask is empty"),
    ],
)
def test_an_empty_picture_or_mask_is_said_at_the_reference(bench, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        bench.call("ViCoReference", vae=bench.vae, size=128, **{"image": torch.rand(1, 64, 64, 3), **inputs})
    if "mask" in inputs and sentence != "mask is empty":
        with pytest.raises(ValueError, match=sentence):
            bench.apply(effect_mask=inputs["mask"])


def test_load_images_black_mask_is_no_mask_until_it_is_asked_for(bench):
    """It gives one of 64×64 for a picture without alpha."""
    reference = bench.make_reference(mask=torch.zeros(1, 64, 64))
    assert reference.photos[0].mask is None
    assert bench.make_reference(mask=torch.zeros(1, 64, 64), invert_mask=True).photos[0].mask is None
    with pytest.raises(ValueError, match="the reference has none"):
        bench.apply(reference=reference, mask="given")
    assert torch.equal(bench.sample(*bench.apply(effect_mask=torch.zeros(1, 64, 64))), bench.sample(*bench.apply()))


def test_a_transparent_background_is_left_out_by_invert(bench):
    cut_out = torch.ones(1, 128, 128)  # Load Image's: white where it is transparent
    cut_out[:, 32:64] = 0
    assert torch.equal(bench.make_reference(mask=cut_out, invert_mask=True).photos[0].mask, 1 - cut_out[0])


def test_an_effect_mask_for_each_picture_of_the_batch(bench):
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    model, clip = bench.apply(effect_mask=torch.cat([left, 1 - left]))
    batch = bench.sample(model, clip, batch=2)
    for row, mask in enumerate((left, 1 - left)):
        noise_of_row = {"samples": torch.zeros(1, 4, 16, 16), "batch_index": [row]}
        assert close(batch[row : row + 1], bench.sample(*bench.apply(effect_mask=mask), latent=noise_of_row))


def test_a_line_of_three_pixels_in_the_effect_mask_counts(bench):
    line = torch.zeros(1, 128, 128)
    line[:, 61:64] = 1
    model, clip = bench.apply(effect_mask=line)
    change = (bench.sample(model, clip, steps=1) - bench.sample(bench.model, clip, steps=1)).abs()
    assert change.max() > 1e-3


def test_an_effect_mask_is_cut_as_another_nodes_tiles_are(bench):
    """White is white in every tile; a mask of the left half leaves the right tile plain."""
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1

    def tiled(model):
        model = model.clone()

        def wrapper(apply_model, params):
            halves = params["input"].chunk(2, dim=-1)
            return torch.cat([apply_model(half, params["timestep"], **params["c"]) for half in halves], dim=-1)

        model.set_model_unet_function_wrapper(wrapper)
        return model

    model, clip = bench.apply(effect_mask=left)
    masked, plain = (bench.sample(tiled(m), clip, steps=1) for m in (model, bench.model))
    whole = bench.sample(tiled(bench.apply()[0]), clip, steps=1)
    assert torch.equal(masked[..., 8:], plain[..., 8:])
    assert torch.equal(masked[..., :8], whole[..., :8])


# Order and range


def test_percents_are_read_when_sampling_starts(bench):
    """Of the sampling that is then in force: a node behind Apply that changes it counts as one before it."""
    shifted = {"sampling": "lcm", "zsnr": True}
    before, clip = bench.apply(
        model=bench.call("ModelSamplingDiscrete", model=bench.model, **shifted)[0], start_percent=0.4
    )
    after = bench.call("ModelSamplingDiscrete", model=bench.apply(start_percent=0.4)[0], **shifted)[0]
    assert torch.equal(bench.sample(before, clip, steps=4), bench.sample(after, clip, steps=4))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"start_percent": 0.6, "end_percent": 0.4}, "It starts at 0.6 and ends at 0.4"),
        ({"place_strengths": "1, nan"}, "Write place_strengths as numbers"),
        ({"place_strengths": "inf"}, "Write place_strengths as numbers"),
    ],
)
def test_a_range_or_a_strength_that_cannot_be_is_said(bench, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        bench.apply(**inputs)


# Another base


def test_a_word_under_apply_where_the_base_is_another(bench, host):
    from vico_spin.nodes.vico.attach import describe_base
    from vico_spin.scripts import models
    from vico_spin.vico_core import base_hash

    unet = bench.model.model.diffusion_model
    assert describe_base(bench.concept, bench.model) == "", "a concept that knows no base"
    bench.concept.base_hash = base_hash(unet.named_parameters())
    assert describe_base(bench.concept, bench.model) == ""
    half = {name: weight.to(torch.bfloat16) for name, weight in unet.named_parameters()}
    bench.concept.base_hash = base_hash(half.items())
    assert describe_base(bench.concept, bench.model) == "", "the same in another precision"
    other = models.of_family("sd1" if len(bench.concept.modules) == 2 else "sd2", seed=7)
    assert "another base" in describe_base(bench.concept, other)
    bench.concept.base_hash = "of an older file"
    assert "another base" in describe_base(bench.concept, bench.model)


def test_the_mask_preview_has_applys_trigger(bench):
    inputs = {"model": bench.model, "clip": bench.clip, "concept": bench.concept, "reference": bench.reference}
    told = {"percent": 0.5, "mask": "automatic"}
    _, own = bench.call("ViCoMaskPreview", **inputs, **told, prompt="a photo of a *")
    _, other = bench.call("ViCoMaskPreview", **inputs, **told, prompt="a photo of a SKS", trigger="sks")
    assert torch.equal(own, other)
    with pytest.raises(ValueError, match='does not contain the trigger word "sks"'):
        bench.call("ViCoMaskPreview", **inputs, **told, prompt="a photo of a *", trigger="sks")


def pix2pix_model():
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher

    from vico_spin.scripts import models

    config = models.family_config("sd1", {"in_channels": 8, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    built = comfy.model_base.SD15_instructpix2pix(config)
    models.seeded(built.diffusion_model, 0)
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(built, *devices)


def inpainting_model():
    from vico_spin.scripts import models

    model = models.of_family("sd1", in_channels=9)
    model.model.set_inpaint()
    return model


def test_pix2pix_is_shown_the_photo_as_the_picture_to_edit(bench, call, parts):
    pix2pix = Bench(call, pix2pix_model(), *parts[1:])
    pix2pix.concept = bench.concept
    model, clip = pix2pix.apply()
    assert not close(pix2pix.sample(model, clip), pix2pix.sample(pix2pix.model, clip), 1e-3)
    assert pix2pix.passes == [1] * 2 * STEPS


@pytest.mark.parametrize("make", [pix2pix_model, inpainting_model])
def test_the_mask_preview_of_a_model_that_reads_more_than_the_latent(bench, make):
    given = {"clip": bench.clip, "concept": bench.concept, "reference": bench.reference, "prompt": "a photo of a *"}
    _, masks = bench.call("ViCoMaskPreview", model=make(), **given, percent=0.5, mask="automatic")
    assert len(masks) == 2 and all(0 < mask.mean() < 1 for mask in masks)


def test_a_base_of_other_channels_is_refused_by_name(bench):
    from vico_spin.scripts import models

    wide = models.of_family("sd1", in_channels=7)
    with pytest.raises(ValueError, match="takes 7 channels"):
        bench.apply(model=wide)
