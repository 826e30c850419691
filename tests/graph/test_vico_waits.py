"""An active step of Apply ViCo makes the host wait for nothing that the plain step does not: counted on the CPU."""

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch._dynamo.utils import counters

from vico_spin.benchmarks.waits import counted_steps
from vico_spin.nodes.vico import capture, evaluations
from vico_spin.tests.graph import test_vico_families
from vico_spin.tests.graph.vico_bench import Bench, close, make_concept
from vico_spin.vico_core import Kept


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Tokens stay with their mask, as where gathering them would wait."""
    monkeypatch.setattr(capture, "keep_tokens", Kept)


def per_step(bench, model, clip, **sampling):
    model = model.clone()
    found = counted_steps(model)
    bench.sample(model, clip, **sampling)
    return found


def half_mask():
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    return mask


CASES = {
    "as it comes": ({}, {}),
    "a batch": ({}, {"batch": 3}),
    "a long negative prompt": ({}, {"negative": "ugly, " * 60}),
    "from a percent to a percent": ({"start_percent": 0.2, "end_percent": 0.7}, {"steps": 5}),
    "weaker": ({"strength": 0.6}, {}),
    "an effect mask": ({"effect_mask": half_mask()}, {}),
    "a given mask": ({"mask": "given"}, {}),
    "no mask": ({"mask": "none"}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", ["gathered", "masked"])
def test_no_step_of_a_first_or_a_further_picture_waits_for_more_than_a_plain_one(bench, case, device, request):
    if device == "masked":
        request.getfixturevalue("as_on_a_device")
    settings, sampling = CASES[case]
    reference = bench.make_reference(mask=half_mask())
    model, clip = bench.apply(reference=reference, **settings)
    plain = per_step(bench, bench.model, bench.clip, **sampling)
    assert per_step(bench, model, clip, **sampling) == plain
    assert bench.passes, "the first picture looked at the reference"
    assert per_step(bench, model, clip, seed=2, **sampling) == plain


def test_nor_does_a_step_of_two_subjects(bench):
    first, clip = bench.apply()
    reference = bench.make_reference(seed=8)
    both, clip = bench.apply(model=first, clip=clip, concept=make_concept(seed=9), reference=reference, trigger="sks")
    plain = per_step(bench, bench.model, bench.clip)
    for seed in (1, 2):
        assert per_step(bench, both, clip, prompt="a * beside a sks", seed=seed) == plain


def test_tokens_with_their_mask_draw_the_picture_of_gathered_ones(bench, monkeypatch):
    gathered = bench.sample(*bench.apply())
    monkeypatch.setattr(capture, "keep_tokens", Kept)
    assert close(bench.sample(*bench.apply(reference=bench.make_reference())), gathered)


SAMPLERS = [name for name in comfy.samplers.SAMPLER_NAMES if name not in ("dpm_fast", "dpm_adaptive", "ar_video")]


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sigmas_that_are_expected_of_a_sampler_are_those_it_asks_for(bench, name, flow, monkeypatch):
    """At once where it asks once a step; of the others from the second run on."""
    runs = []
    ended = evaluations.Evaluations.end
    monkeypatch.setattr(evaluations.Evaluations, "end", lambda self: (runs.append(self), ended(self)))
    applied, clip = bench.apply()
    model = bench.call("ModelSamplingSD3", model=applied, shift=3.0)[0] if flow else applied
    for seed in (1, 2):
        settings = {"sampler_name": name, "scheduler": "simple", "denoise": 1.0, "steps": 4, "cfg": 1.0, "seed": seed}
        bench.call(
            "KSampler",
            model=model,
            positive=bench.encode(clip, "a *"),
            negative=bench.encode(clip, ""),
            latent_image={"samples": torch.zeros(1, 4, 8, 8)},
            **settings,
        )
    first, second = runs
    seen = [float(timestep[0]) for timestep in second.seen]
    assert second.expected == seen
    once = evaluations.ONCE_A_STEP | evaluations.ONCE_A_STEP_FROM_BELOW_1
    if comfy.samplers.sampler_object(name).sampler_function in once:
        assert first.expected == seen


def test_an_adaptive_sampler_and_one_of_another_pack_are_asked():
    def theirs(model, x, sigmas, **more):
        return x

    sigmas, walks = torch.tensor([3.0, 1.0, 0.0]), {}
    for function in (theirs, comfy.k_diffusion.sampling.sample_dpm_adaptive):
        run = evaluations.Evaluations(comfy.samplers.KSAMPLER(function), sigmas, None, walks)
        run.begin(sigmas[:1])
        assert run.sigma(run.timestep) is None
        run.end()
    assert walks == {}


def test_a_node_that_asks_the_model_at_another_sigma_is_looked_at(bench):
    """The features are those of the sigma that the model is given, not of the sampler's."""

    def also_elsewhere(args):
        comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"] * 0.5, args["model_options"]
        )
        return args["denoised"]

    applied, clip = bench.apply()
    fresh = bench.sample(applied, clip)
    count = len(bench.passes)
    applied.set_model_sampler_post_cfg_function(also_elsewhere)
    assert torch.equal(bench.sample(applied, clip), fresh)
    assert len(bench.passes) == count + 2, "one more a step, for the sigma that was not in the bank"


def torch_attention(chosen, *args, **kwargs):
    return attention_pytorch(
        *args, **kwargs
    )  # on the CPU the host's own asks the system for free memory, and breaks the graph


@pytest.mark.parametrize("order", ["Apply ViCo, then compile", "compile, then Apply ViCo"])
def test_a_compiled_model_is_one_graph_with_image_attention_in_it(call, order):
    torch._dynamo.reset()
    counters.clear()
    bench = test_vico_families.Bench(call, "Z-Image")
    del bench.model.model.diffusion_model._forward
    bench.model.model_options["transformer_options"]["optimized_attention_override"] = torch_attention
    applied, clip = bench.apply()
    expected = bench.sample(applied, clip)
    if order.startswith("compile"):
        bench.model = bench.model.clone()
        set_torch_compile_wrapper(model=bench.model, backend="eager", fullgraph=True)
        compiled, clip = bench.apply()
    else:
        compiled = applied.clone()
        set_torch_compile_wrapper(model=compiled, backend="eager", fullgraph=True)
    assert torch.equal(bench.sample(compiled, clip), expected)
    graphs = counters["stats"]["unique_graphs"]
    bench.sample(compiled, clip, seed=2)
    assert counters["stats"]["unique_graphs"] == graphs, "a further picture compiles nothing"
    assert not counters["graph_break"]


@pytest.mark.gpu
def test_a_further_picture_never_makes_the_host_wait_for_the_gpu(call, parts):
    """Half of its features lie in pinned memory, so that fetching is tried as well."""
    model, clip, vae = parts
    bench = Bench(call, model, clip, vae)
    reference = bench.make_reference()
    applied, clip = bench.apply(reference=reference)
    first = bench.sample(applied, clip)
    entries = list(reference.bank.entries.values())
    reference.bank.leave_device()
    assert all(part.is_pinned() for entry in entries for kept in entry.features.values() for part in kept)
    strict = applied.clone()

    def without_waiting(executor, *args, **kwargs):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return executor(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    strict.add_wrapper("predict_noise", without_waiting)
    assert close(bench.sample(strict, clip), first)
    reference.bank.leave_device()  # a second time, what was fetched back in the meantime
    assert all(part.is_pinned() for entry in entries for kept in entry.features.values() for part in kept)
    assert close(bench.sample(applied, clip), first)
