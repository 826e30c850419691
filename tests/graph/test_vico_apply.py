"""Apply ViCo in the real sampler: exact where it must be the plain model, cached where it may be, and never in another's way."""

from dataclasses import replace

import comfy.samplers
import pytest
import torch

from vico_spin.nodes.vico.attach import step_bytes
from vico_spin.tests.graph.vico_bench import PLACES, PROMPT, STEPS, Bench, close, make_concept

ADDS = [f"{layer}.{what}" for layer in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2") for what in ("weight", "bias")]

# The plain model, exactly


def test_strength_0_is_the_plain_model_bit_for_bit(bench):
    model, clip = bench.apply(strength=0.0)
    assert torch.equal(bench.sample(model, clip), bench.plain())
    assert bench.passes == []


def test_image_attention_changes_the_picture(bench):
    assert not close(bench.sample(*bench.apply()), bench.plain(), 0.02)


def test_steps_outside_start_and_end_are_the_plain_model_bit_for_bit(bench):
    """With the range closed before the first step, only the word's vector is left of ViCo."""
    model, clip = bench.apply(start_percent=0.0, end_percent=0.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    assert float(sigmas[0]) < model.get_model_object("model_sampling").percent_to_sigma(0.0)
    assert torch.equal(bench.sample(model, clip), bench.sample(bench.model, clip))
    assert bench.passes == []


def test_a_step_range_pays_for_its_steps_alone(bench):
    model, clip = bench.apply(start_percent=0.5, end_percent=1.0)
    bench.sample(model, clip, steps=4)
    assert bench.passes == [1] * 2 * 2, "two of four steps, two contexts"


def test_the_model_that_went_in_and_its_siblings_stay_as_they_were(bench):
    before = bench.plain()
    model, clip = bench.apply()
    sibling = bench.model.clone()
    first = bench.sample(model, clip)
    assert torch.equal(bench.plain(), before)
    assert torch.equal(bench.sample(sibling, bench.clip), before)
    assert torch.equal(bench.sample(model, clip), first)
    assert torch.equal(bench.sample(model.clone(), clip), first), "a clone of the patched model is patched too"


def test_after_a_failure_in_mid_sampling_the_model_is_as_it_was(bench, monkeypatch):
    before = bench.plain()
    model, clip = bench.apply()
    expected = bench.sample(model, clip)
    unet = bench.model.model.diffusion_model

    def fails(x):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(unet.out, "forward", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            bench.sample(model, clip, seed=9)
    assert torch.equal(bench.plain(), before)
    assert torch.equal(bench.sample(model, clip), expected)


def test_interrupted_in_mid_sampling_the_model_is_as_it_was(bench, monkeypatch):
    import comfy.model_management as mm

    before = bench.plain()
    model, clip = bench.apply()
    expected = bench.sample(model, clip)
    unet, plain = bench.model.model.diffusion_model, bench.model.model.diffusion_model.out.forward

    def interrupts(x):
        mm.interrupt_current_processing()
        return plain(x)

    with monkeypatch.context() as patch:
        patch.setattr(unet.out, "forward", interrupts)
        with pytest.raises(mm.InterruptProcessingException):
            bench.sample(model, clip, seed=9)
    assert torch.equal(bench.plain(), before)
    assert torch.equal(bench.sample(model, clip), expected)


# Batches and conditionings


def test_each_row_of_a_batch_is_what_it_is_alone(bench):
    model, clip = bench.apply()
    batch = bench.sample(model, clip, latent={"samples": torch.zeros(3, 4, 16, 16)}, seed=4)
    noise_of_row = {"samples": torch.zeros(1, 4, 16, 16), "batch_index": [2]}
    alone = bench.sample(model, clip, latent=noise_of_row, seed=4)
    assert close(batch[2:3], alone)
    assert bench.passes[: 2 * STEPS] == [1] * 2 * STEPS, "one reference row a distinct context, whatever the batch"


def test_guidance_in_one_batch_equals_guidance_in_two(bench, monkeypatch):
    model, clip = bench.apply()
    together = bench.sample(model, clip)
    monkeypatch.setattr(type(model), "get_free_memory", lambda *_: 0)  # the host then runs one conditioning at a time
    apart = bench.sample(*bench.apply(reference=bench.make_reference()))
    assert close(together, apart)


def test_prompts_of_unequal_length_see_the_same_reference(bench):
    """The host repeats the shorter prompt; its features are those of the prompt alone, so the bank still has them."""
    long = PROMPT + ", " + "very nice and sunny " * 30
    model, clip = bench.apply()
    bench.sample(model, clip)
    bench.passes.clear()
    bench.sample(model, clip, prompt=long)
    assert bench.passes == [1] * STEPS, "the empty prompt's features were there already"
    assert bench.encode(clip, long)[0][0].shape[1] > 77


def test_a_trigger_in_a_second_chunk_of_77_tokens_is_found(bench):
    model, clip = bench.apply()
    prompt = "very nice and sunny " * 30 + " with a *"
    assert bench.columns(model, bench.encode(clip, prompt))[0].trigger[0] > 77
    bench.sample(model, clip, prompt=prompt)


def test_area_conditioning_has_its_own_rows(bench):
    """Two halves of the picture with a prompt each: the one without the word falls back on its end of text."""
    model, clip = bench.apply()
    left = bench.call(
        "ConditioningSetArea", conditioning=bench.encode(clip, PROMPT), width=64, height=128, x=0, y=0, strength=1.0
    )[0]
    right = bench.call(
        "ConditioningSetArea",
        conditioning=bench.encode(clip, "blue sky"),
        width=64,
        height=128,
        x=64,
        y=0,
        strength=1.0,
    )[0]
    whole = bench.encode(clip, "a * under a sky")
    both = bench.call("ConditioningCombine", conditioning_1=left, conditioning_2=right)[0] + whole
    picture = bench.sample(model, clip, positive=both)
    assert torch.isfinite(picture).all()
    assert sum(bench.passes) == STEPS * 5, (
        "three positive parts; the negative by the word's column, and by the right part's"
    )


def test_the_word_may_stand_twice(bench):
    model, clip = bench.apply()
    assert bench.columns(model, bench.encode(clip, "a * beside a *"))[0].trigger == (2, 5)
    assert torch.isfinite(bench.sample(model, clip, prompt="a * beside a *")).all()


def test_prompt_weights_work_on_the_word(bench):
    _, clip = bench.apply()
    plain, weighted = (bench.encode(clip, text)[0][0] for text in ("a photo of a *", "a photo of a (*:1.5)"))
    assert plain.shape == weighted.shape and not torch.equal(plain, weighted)


def test_image_to_image_and_inpainting(bench):
    model, clip = bench.apply()
    latent = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))}
    half = torch.zeros(1, 128, 128)
    half[:, :64] = 1.0
    masked = bench.call("SetLatentNoiseMask", samples=latent, mask=half)[0]
    out = bench.sample(model, clip, latent=masked)
    assert close(out[:, :, 12:], latent["samples"][:, :, 12:], 1e-3), "what the mask protects stays"
    assert not close(
        bench.sample(model, clip, latent=latent, denoise=0.5), bench.plain(latent=latent, denoise=0.5), 0.02
    )


# The bank


def test_the_next_seed_runs_no_reference_pass_and_the_picture_is_the_same(bench):
    model, clip = bench.apply()
    bench.sample(model, clip, seed=1)
    assert bench.passes == [1] * 2 * STEPS
    bench.passes.clear()
    cached = bench.sample(model, clip, seed=2)
    assert bench.passes == []
    fresh = bench.sample(*bench.apply(reference=bench.make_reference(), cache_mb=0), seed=2)
    assert torch.equal(cached, fresh)


def test_a_picture_does_not_hang_on_what_the_bank_holds(bench):
    """Another concept on the same reference leaves the empty prompt's features; the picture is the same to the bit."""
    fresh = bench.sample(*bench.apply(reference=bench.make_reference()), seed=3)
    shared = bench.make_reference()
    bench.sample(*bench.apply(reference=shared, concept=make_concept(seed=1)), seed=3)
    bench.passes.clear()
    assert torch.equal(bench.sample(*bench.apply(reference=shared), seed=3), fresh)
    assert len(bench.passes) == STEPS, "one of the two contexts was there already"


def test_a_new_strength_still_finds_the_features(bench):
    bench.sample(*bench.apply())
    bench.passes.clear()
    bench.sample(*bench.apply(strength=0.5, start_percent=0.1))
    assert bench.passes == []


def lora_for(model):
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = model.model.state_dict()[key]
    return {key: ("diff", (torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)),))}


def with_lora(model):
    model = model.clone()
    model.add_patches(lora_for(model), 1.0)
    return model


@pytest.mark.parametrize(
    "change", ["prompt", "negative", "reference", "steps", "lora before", "lora after", "mask", "places"]
)
def test_whatever_the_features_depend_on_misses_the_bank(bench, change):
    """What changes is computed anew: never a stale feature. Each then equals a run whose bank was empty."""
    bench.sample(*bench.apply())
    bench.passes.clear()

    def picture(reference):
        settings, sampling, model = {}, {}, None
        if change == "prompt":
            sampling["prompt"] = "a painting of a *"
        elif change == "negative":
            sampling["negative"] = "blurry"
        elif change == "steps":
            sampling["steps"] = STEPS + 1
        elif change == "lora before":
            model = with_lora(bench.model)
        elif change == "mask":
            settings["mask"] = "none"
        elif change == "places":
            settings["place_strengths"] = "1, 1, 1, 0"
        applied, clip = bench.apply(model=model, reference=reference, **settings)
        if change == "lora after":
            applied = with_lora(applied)
        return bench.sample(applied, clip, **sampling)

    other = bench.make_reference(seed=6)
    got = picture(other if change == "reference" else bench.reference)
    assert bench.passes
    assert close(got, picture(bench.make_reference(seed=6 if change == "reference" else 5)))


def test_another_precision_misses_the_bank(bench, make_sd1, call, parts):
    bench.sample(*bench.apply())
    half = Bench(call, make_sd1(dtype=torch.bfloat16), parts[1], parts[2])
    out = half.sample(*half.apply(reference=bench.reference))
    assert half.passes == [1] * 2 * STEPS
    assert torch.isfinite(out).all()


def test_the_bank_holds_what_was_estimated(bench):
    """Without a mask every key is kept: 2 contexts × steps × Σ tokens·width·4 bytes."""
    model, clip = bench.apply(mask="none")
    bench.sample(model, clip)
    tokens = {"output_blocks.4.1": 16, "output_blocks.6.1": 64, "output_blocks.8.1": 64, "output_blocks.10.1": 256}
    assert bench.reference.bank.nbytes == 2 * STEPS * sum(tokens[p] * width for p, width in PLACES.items()) * 4
    (subject,) = [w[0].__self__ for w in model.wrappers["apply_model"].values()]
    shown = step_bytes(subject, bench.model)
    assert bench.reference.bank.nbytes == 2 * STEPS * shown, "the estimate that the node shows"


def test_the_bank_keeps_to_the_budget(bench):
    bench.sample(*bench.apply(cache_mb=0))
    assert bench.reference.bank.nbytes == 0
    model, clip = bench.apply()
    (subject,) = [w[0].__self__ for w in model.wrappers["apply_model"].values()]
    subject.budget = 100_000
    bench.sample(model, clip)
    assert 0 < bench.reference.bank.nbytes <= 100_000


# Other things on the same model


def test_two_subjects_stack(bench):
    other = make_concept(seed=9)
    first, clip = bench.apply()
    both, clip = bench.apply(
        model=first, clip=clip, concept=other, reference=bench.make_reference(seed=8), trigger="sks"
    )
    prompt = "a photo of a * and a sks"
    picture = bench.sample(both, clip, prompt=prompt)
    assert not close(picture, bench.sample(first, clip, prompt=prompt), 0.02)
    assert bench.passes[: 4 * STEPS] == [1] * 4 * STEPS, "each subject has a reference pass of its own"


def test_a_subjects_reference_never_sees_another_subject(bench):
    """The features of "*" are the same whether another subject is on the model or not."""
    first, clip = bench.apply(concept=make_concept(seed=9), reference=bench.make_reference(seed=8), trigger="sks")
    both, clip = bench.apply(model=first, clip=clip)
    bench.sample(both, clip, prompt="a photo of a * and a sks")
    alone_reference = bench.make_reference()
    alone, _ = bench.apply(reference=alone_reference)
    positive = bench.encode(clip, "a photo of a * and a sks")
    bench.sample(alone, clip, positive=positive)
    beside, by_itself = (r.bank.entries.values() for r in (bench.reference, alone_reference))
    for a, b in zip(beside, by_itself, strict=True):
        assert all(torch.equal(a.features[place].tokens, b.features[place].tokens) for place in PLACES)


def test_several_photos_are_looked_at_side_by_side(bench):
    two = bench.make_reference(photos=2, seed=7)
    chained = bench.make_reference(seed=11, size=(96, 160), more=two)
    assert len(chained.photos) == 3
    bench.sample(*bench.apply(reference=two, mask="none"))
    single = bench.make_reference(seed=7)
    bench.sample(*bench.apply(reference=single, mask="none"))
    assert two.bank.nbytes == 2 * single.bank.nbytes
    assert torch.isfinite(bench.sample(*bench.apply(reference=chained))).all()


def test_an_effect_mask_confines_image_attention(bench):
    """At a place the tokens outside the mask are untouched; black everywhere is the plain model with the word."""
    black = torch.zeros(1, 128, 128)
    model, clip = bench.apply(effect_mask=black)
    assert torch.equal(bench.sample(model, clip), bench.sample(bench.model, clip))
    white = bench.sample(*bench.apply(effect_mask=torch.ones(1, 128, 128)))
    assert close(white, bench.sample(*bench.apply()))


def test_a_given_mask_decides_what_is_attended(bench):
    left = torch.zeros(1, 128, 128)
    left[:, :, :64] = 1.0
    halved = bench.make_reference(mask=left)
    bench.sample(*bench.apply(reference=halved, mask="given"))
    whole = bench.make_reference()
    bench.sample(*bench.apply(reference=whole, mask="none"))
    assert halved.bank.nbytes * 2 == whole.bank.nbytes


def small_controlnet(seed=4):
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    net = comfy.cldm.cldm.ControlNet(
        image_size=32,
        in_channels=4,
        hint_channels=3,
        model_channels=32,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4],
        num_heads=8,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_middle=1,
        use_spatial_transformer=True,
        context_dim=40,
        legacy=False,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.1)
    device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNet(net, load_device=device, manual_cast_dtype=None)


def test_a_controlnet_steers_the_picture_and_not_the_reference(bench):
    model, clip = bench.apply()
    bench.sample(model, clip)
    bench.passes.clear()
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(2))
    controlled = bench.call(
        "ControlNetApply",
        conditioning=bench.encode(clip, PROMPT),
        control_net=small_controlnet(),
        image=hint,
        strength=1.0,
    )[0]
    picture = bench.sample(model, clip, positive=controlled)
    assert bench.passes == [], "the features are those of the picture without control"
    assert not close(picture, bench.sample(model, clip), 0.02)


def test_attention_patches_of_others_do_not_reach_the_reference(bench):
    model, clip = bench.apply()
    bench.sample(model, clip)
    patched, seen = model.clone(), []

    def halve(n, context, value, extra_options):
        seen.append(n.shape[0])
        return n * 0.5, context, value

    patched.set_model_attn2_patch(halve)
    picture = bench.sample(patched, clip)
    fresh_model, fresh_clip = bench.apply(reference=bench.make_reference())
    fresh = fresh_model.clone()
    fresh.set_model_attn2_patch(halve)
    seen.clear()
    assert torch.equal(bench.sample(fresh, fresh_clip), picture)
    assert set(seen) == {2}, "called for the main pass's two rows alone"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(call, make_sd1, parts, dtype):
    full, half = Bench(call, *parts), Bench(call, make_sd1(dtype=dtype), parts[1], parts[2])
    exact, rounded = full.sample(*full.apply(), steps=1), half.sample(*half.apply(), steps=1)
    del full.model.model.diffusion_model._forward
    assert close(rounded, exact, 0.1)


def test_a_compiled_model_gives_the_same_picture(bench):
    """torch.compile by the host's own wrapper (eager backend: what is tested is the tracing, not a compiler)."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    del bench.model.model.diffusion_model._forward
    model, clip = bench.apply()
    expected = bench.sample(model, clip)
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    assert close(bench.sample(compiled, clip), expected)
    assert close(bench.sample(compiled, clip, seed=2), bench.sample(model, clip, seed=2))
    bench.count_passes()


def test_a_clone_with_another_network_runs_that_networks_blocks(bench, make_sd1):
    """The host makes one to compile a model, and where prompts have hooks; two subjects, one over the other."""
    with torch.inference_mode():
        other = make_sd1(seed=9)
    model, clip = bench.apply()
    second = bench.apply(model, clip, make_concept(3), bench.make_reference(7), trigger="+")
    expected = bench.apply(other)
    expected = bench.apply(*expected, make_concept(3), bench.make_reference(7), trigger="+")
    moved = second[0].clone(model_override=other.get_clone_model_override())
    prompt = "a photo of a * and a + on the beach"
    assert close(bench.sample(moved, second[1], prompt), bench.sample(*expected, prompt))
    assert not close(bench.sample(*second, prompt), bench.sample(*expected, prompt), 0.01)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_no_steps_give_back_what_went_in(bench, call, sampler):
    """As SplitSigmas at step 0 leaves them."""
    model, clip = bench.apply()
    (how,) = call("KSamplerSelect", sampler_name=sampler)
    sides = {"positive": bench.encode(clip, PROMPT), "negative": bench.encode(clip, "")}
    inputs = {"add_noise": False, "noise_seed": 1, "cfg": 5.0, "sampler": how, "sigmas": torch.tensor([14.6])}
    latent = {"samples": torch.ones(1, 4, 16, 16)}
    drawn = call("SamplerCustom", model=model, **inputs, **sides, latent_image=latent)[0]["samples"]
    assert torch.equal(
        drawn, call("SamplerCustom", model=bench.model, **inputs, **sides, latent_image=latent)[0]["samples"]
    )


def test_all_places_off_is_the_plain_model_bit_for_bit(bench):
    assert torch.equal(bench.sample(*bench.apply(place_strengths="0")), bench.plain())


def test_a_concept_may_sit_behind_any_decoder_block(bench):
    """At four more places that add nothing the picture is that of the paper's four, bit for bit; one that adds something changes it."""
    widths = {f"output_blocks.{level}.1": width for level, width in zip((3, 5, 7, 11), (128, 128, 64, 32), strict=True)}
    more = make_concept(seed=3, places=widths)
    nothing = {place: {**weights, **{k: 0 * weights[k] for k in ADDS}} for place, weights in more.modules.items()}
    expected = bench.sample(*bench.apply())
    for modules, same in (
        (nothing, True),
        ({**nothing, "output_blocks.11.1": more.modules["output_blocks.11.1"]}, False),
    ):
        concept = replace(bench.concept, modules={**bench.concept.modules, **modules})
        assert torch.equal(bench.sample(*bench.apply(concept=concept)), expected) == same


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_bases_have_places_by_the_same_rule(call, make_vae, family):
    """SD2.x (v-prediction) and SDXL (its size and pooled conditioning go into the reference pass too)."""
    from vico_spin.scripts import models

    bench = Bench(call, models.of_family(family), models.clip(), make_vae())
    bench.concept = make_concept(places={"output_blocks.1.1": 64, "output_blocks.3.1": 32})
    model, clip = bench.apply()
    first = bench.sample(model, clip)
    assert bench.passes == [1] * 2 * STEPS
    assert not close(first, bench.plain(), 1e-3)
    bench.passes.clear()
    assert torch.equal(bench.sample(model, clip), first) and bench.passes == []


def test_newer_hosts_do_not_record_memory_while_it_samples(bench, monkeypatch):
    """From 0.34 on, a host may take back what was allocated inside a block; the reference's features must outlive it."""
    import contextlib

    import comfy.model_prefetch

    paused = []

    @contextlib.contextmanager
    def pause():
        paused.append(len(bench.passes))
        yield
        paused.append(len(bench.passes))

    monkeypatch.setattr(comfy.model_prefetch, "pause_malloc_graph", pause, raising=False)
    bench.sample(*bench.apply())
    assert paused == [0, 2 * STEPS]


# Sentences


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"concept": make_concept(places={"output_blocks.1.1": 64})}, "has no place for this ViCo concept"),
        ({"concept": make_concept(width=768)}, "The concept's word has 768 numbers; this CLIP's tokens have 40"),
        ({"mask": "given"}, "the reference has none"),
        ({"place_strengths": "1, 2"}, "has 2 numbers; this model has 4 places"),
        ({"place_strengths": "one"}, "Write place_strengths as numbers"),
    ],
)
def test_what_does_not_fit_is_said_at_apply(bench, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        bench.apply(**inputs)


def test_two_concepts_of_one_word_are_refused(bench):
    first, clip = bench.apply()
    with pytest.raises(ValueError, match=r'already answers to "\*"'):
        bench.apply(model=first, clip=clip, concept=make_concept(seed=9))


def test_a_prompt_without_the_word_is_said_before_sampling(bench):
    model, clip = bench.apply()
    with pytest.raises(ValueError, match='No prompt contains the trigger word "\\*"'):
        bench.sample(model, clip, prompt="a photo of a dog")
    with pytest.raises(ValueError, match="Encode the prompt with the CLIP that Apply ViCo returns"):
        bench.sample(model, bench.clip)


def test_a_model_without_places_is_refused(bench, make_sd1):
    with pytest.raises(ValueError, match="has no place for ViCo, which needs a U-Net"):
        bench.apply(
            model=make_sd1(channel_mult=(1, 2), num_res_blocks=1, attention=0, config={"transformer_depth_middle": 0})
        )


@pytest.mark.parametrize(
    ("image", "mask", "sentence"),
    [
        (torch.rand(1, 1, 1, 3), None, "1×1 pixels: too small"),
        (torch.full((1, 64, 64, 3), torch.nan), None, "NaN or infinity"),
        (torch.rand(1, 64, 64, 3), torch.zeros(1, 32, 64), "mask is empty"),
    ],
)
def test_a_useless_reference_gets_a_sentence(bench, image, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        bench.call("ViCoReference", vae=bench.vae, image=image, size=128, mask=mask)


@pytest.mark.parametrize(("height", "width"), [(100, 300), (77, 33), (512, 64)])
def test_a_reference_of_any_size_and_aspect(bench, height, width):
    reference = bench.make_reference(size=(height, width))
    assert torch.isfinite(bench.sample(*bench.apply(reference=reference))).all()


# The mask preview


def test_mask_preview_shows_each_place(bench):
    overlay, masks = bench.call(
        "ViCoMaskPreview",
        model=bench.model,
        clip=bench.clip,
        concept=bench.concept,
        reference=bench.reference,
        prompt=PROMPT,
        percent=0.5,
        mask="automatic",
    )
    assert overlay.shape == (4, 128, 128, 3) and masks.shape == (4, 128, 128)
    assert all(0 < mask.mean() < 1 for mask in masks)
