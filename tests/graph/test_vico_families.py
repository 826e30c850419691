"""ViCo on the host's own diffusion transformers, small: applied, sampled, trained, saved, loaded, family by family.

The prompts come from the small CLIP, whose rows are as wide as the family's encoder would give them.
"""

import gc
import inspect

import comfy.ldm.wan.vae
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch

from vico_spin.nodes.host.denoiser import ModelDenoiser
from vico_spin.nodes.host.frozen import Frozen
from vico_spin.nodes.host.sampling import Sampling
from vico_spin.nodes.vico import memory, session
from vico_spin.nodes.vico.capture import CAPTURE
from vico_spin.nodes.vico.drawing import draw
from vico_spin.nodes.vico.photos import Photo, Reference
from vico_spin.nodes.vico.places import known_family, places_of, possible_places, shape_at
from vico_spin.scripts import models, transformers
from vico_spin.train_core import Allocated, weights_hash
from vico_spin.vico_core import ImageAttention, ViCoConcept, object_mask, spread_places, training
from vico_spin.vico_core.training import TrainedConcept

FAMILIES = tuple(transformers.TRANSFORMERS)
PROMPT = "a photo of a * on the beach"
SIDE = 8  # of the latents
COLUMN = 5  # of the trigger word, behind the start token
STEPS = 2


def make_concept(model, width, count=2, seed=0):
    """A concept at `count` places of the model's second half."""
    network = model.model.diffusion_model
    possible = {place.name: place for place in possible_places(network)}
    shapes = [shape_at(network, place) for place in spread_places(list(possible), count)]
    torch.manual_seed(seed)
    modules = {s.name: ImageAttention(s.dim, s.heads, s.dim_head).state_dict() for s in shapes}
    return ViCoConcept(modules, {"l": torch.randn(1, width)}, family=known_family(model.model))


class Bench:
    """A small transformer, a CLIP as wide as its text, a concept and a reference, sampled through the host's own nodes."""

    def __init__(self, call, family):
        self.call, self.family, self.tiny = call, family, transformers.TRANSFORMERS[family]
        self.model, self.clip = transformers.transformer(family), models.clip(width=self.tiny.text)
        self.concept = make_concept(self.model, self.tiny.text)
        self.reference = self.make_reference()
        self.passes = []
        self.count_passes()

    def make_reference(self, side=SIDE, seed=5):
        shape = transformers.latent(self.family, side).shape
        latent = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return Reference([Photo(latent, torch.zeros(8 * side, 8 * side, 3))])

    def count_passes(self):
        """Every reference pass appends the shape of its latent."""
        network = self.model.model.diffusion_model
        name = "_forward" if hasattr(network, "_forward") else "forward_core_with_concat"
        plain = getattr(network, name)

        def forward(*args, **kwargs):
            options = next(v for v in (*args, *kwargs.values()) if isinstance(v, dict))
            if CAPTURE in options:
                self.passes.append(tuple(args[0].shape))
            return plain(*args, **kwargs)

        forward.__signature__ = inspect.signature(plain)
        setattr(network, name, forward)

    def apply(self, **settings):
        inputs = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mask": "automatic", **settings}
        given = {"model": self.model, "clip": self.clip, "concept": self.concept, "reference": self.reference}
        return self.call("ViCoApply", **{**given, **inputs})

    def encode(self, clip, text):
        return self.call("CLIPTextEncode", clip=clip, text=text)[0]

    def sample(self, model, clip, seed=1, batch=1, cfg=4.0, side=SIDE, prompt=PROMPT, latent=None):
        return self.call(
            "KSampler",
            model=model,
            seed=seed,
            steps=STEPS,
            cfg=cfg,
            sampler_name="euler",
            scheduler="simple",
            positive=self.encode(clip, prompt),
            negative=self.encode(clip, ""),
            latent_image={"samples": transformers.latent(self.family, side, batch) if latent is None else latent},
            denoise=1.0,
        )[0]["samples"]


@pytest.fixture(params=FAMILIES)
def bench(call, request):
    return Bench(call, request.param)


def close(a, b, tolerance=1e-5):
    return (a - b).abs().max() <= tolerance * b.abs().max()


def test_the_first_picture_looks_at_the_reference_and_the_second_has_its_features(bench):
    model, clip = bench.apply()
    first = bench.sample(model, clip)
    assert torch.isfinite(first).all()
    assert len(bench.passes) == 2 * STEPS, "once a distinct context and step"
    bench.passes.clear()
    assert torch.equal(bench.sample(model, clip), first)
    bench.sample(model, clip, seed=2, batch=2)
    assert bench.passes == []
    assert not close(first, bench.sample(bench.model, clip), 1e-3)


def test_strength_0_is_the_plain_model_bit_for_bit(bench):
    plain = bench.sample(bench.model, bench.clip)
    assert torch.equal(bench.sample(*bench.apply(strength=0.0)), plain)
    bench.sample(*bench.apply())
    assert torch.equal(bench.sample(bench.model, bench.clip), plain), "the model that went in stays as it was"


# A plain restatement: the model's own forward, the module called by hand between its blocks

TEXT = 77


def alone(number):
    """The picture has a stream of its own, the number-th of what the block returns."""
    return lambda out, n: (out[number], lambda x: (*out[:number], x, *out[number + 1 :]))


def behind(text):
    """The picture comes after `text` tokens of one sequence."""

    def taken(out, n):
        return out[:, text : text + n], lambda x: torch.cat([out[:, :text], x, out[:, text + n :]], 1)

    return taken


def whole(out, n):
    return out.flatten(1, -2), lambda x: x.view(out.shape)


FLUX = {"double_blocks": alone(0), "single_blocks": behind(TEXT)}
BY_HAND = {  # {family: {list of blocks: where the picture is}}; the side of its grid where a token is not 2 x 2 of the latent
    "Flux.1": FLUX,
    "Flux.1 Schnell": FLUX,
    "Flux.2": {"double_blocks": alone(0), "single_blocks": behind(512)},
    "Chroma": FLUX,
    "Qwen-Image": {"transformer_blocks": alone(1)},
    "Z-Image": {"layers": behind(96)},
    "Lumina 2": {"layers": behind(TEXT)},
    "SD3.5": {"joint_blocks": alone(1)},
    "Krea 2": {"blocks": behind(TEXT)},
    "Anima": {"blocks": whole},
    "Cosmos-Predict2": {"blocks": whole},
    "HunyuanImage 2.1": FLUX,
    "Wan": {"blocks": whole},
}
TOKENS = {"Flux.2": SIDE**2, "HunyuanImage 2.1": SIDE**2}
SEPARATE = ("Anima", "Cosmos-Predict2", "Wan")


class ByHand:
    """Hooks behind the concept's blocks, and the reference by a whole forward of its own before each of the picture's."""

    def __init__(self, bench):
        self.bench = bench
        self.n = TOKENS.get(bench.family, (SIDE // 2) ** 2)
        self.kept, self.calls, self.recording = {}, [], False
        network = bench.model.model.diffusion_model
        self.hooks, self.modules = [], {}
        for place, weights in bench.concept.modules.items():
            shape = shape_at(network, next(p for p in possible_places(network) if p.name == place))
            module = ImageAttention(shape.dim, shape.heads, shape.dim_head).requires_grad_(False)
            module.load_state_dict(weights)
            self.modules[place] = module
            block = network.get_submodule(place)
            self.hooks.append(block.register_forward_pre_hook(lambda *_: self.calls.clear()))
            self.hooks.append(block.register_forward_hook(lambda b, args, out, place=place: self.after(place, out)))

    def attention(self, plain, q, k, v, heads, *args, **kwargs):
        split = (lambda x: x) if kwargs.get("skip_reshape") else lambda x: x.unflatten(-1, (heads, -1)).movedim(1, 2)
        self.calls.append((split(q), split(k)))
        return plain(q, k, v, heads, *args, **kwargs)

    def mask(self, place):
        q, k = self.calls[1 if self.bench.family in SEPARATE else 0]
        if self.bench.family not in SEPARATE:
            first = {"Z-Image": 96, "Flux.2": 512}.get(self.bench.family, TEXT)
            before = 512 - TEXT if self.bench.family == "Flux.2" else 0
            q, k = q[:, :, first : first + self.n], k[:, :, before : before + TEXT]
        scores = torch.einsum("bhnd,bhtd->bhnt", q, k) / q.shape[-1] ** 0.5
        return object_mask(scores.softmax(-1).mean(1)[..., COLUMN])

    def after(self, place, out):
        image, back = BY_HAND[self.bench.family][place.split(".")[0]](out, self.n)
        if self.recording:
            self.kept[place] = image.clone(), self.mask(place)
            return out
        return back(self.modules[place](image, *self.kept[place]))

    def __call__(self, apply_model, args):
        model = self.bench.model.model
        latent = model.process_latent_in(self.bench.reference.photos[0].latent)
        latent = latent / model.model_sampling.calculate_input(
            args["timestep"], torch.ones(1)
        )  # Cosmos scales what it is given
        options = {**args["c"]["transformer_options"], "optimized_attention_override": self.attention}
        given = {**args["c"], "transformer_options": options}
        self.recording = True
        apply_model(latent, args["timestep"], **given)
        self.recording = False
        return apply_model(args["input"], args["timestep"], **given)


def test_it_is_the_models_own_forward_with_the_module_called_between_its_blocks(bench):
    model, clip = bench.apply()
    applied = bench.sample(model, clip, cfg=1.0)
    by_hand = ByHand(bench)
    plain = bench.model.clone()
    plain.set_model_unet_function_wrapper(by_hand)
    restated = bench.sample(plain, clip, cfg=1.0)
    for hook in by_hand.hooks:
        hook.remove()
    assert all(0 < mask.float().mean() < 1 for _, mask in by_hand.kept.values())
    assert close(applied, restated)


def test_latents_that_fill_no_whole_number_of_patches(bench):
    shape = transformers.latent(bench.family).shape
    odd = torch.zeros(*shape[:-2], 7, 9)
    effect = torch.zeros(1, 56, 72)
    effect[:, :, :36] = 1
    bench.reference = bench.make_reference(side=5)
    for settings in ({}, {"effect_mask": effect}):
        assert torch.isfinite(bench.sample(*bench.apply(**settings), latent=odd)).all()


# Sentences


def test_a_concept_of_another_family_is_refused_by_name(call):
    flux, qwen = Bench(call, "Flux.1"), Bench(call, "Qwen-Image")
    flux.concept = qwen.concept
    with pytest.raises(ValueError, match=r"it sits at transformer_blocks\.2 \(width 64\).*of Qwen-Image.*of Flux"):
        flux.apply()


def test_a_variant_with_a_forward_of_its_own_is_refused(call):
    import comfy.ldm.wan.model

    class Variant(comfy.ldm.wan.model.WanModel):
        def forward_orig(self, *args, **kwargs):
            return super().forward_orig(*args, **kwargs)

    bench = Bench(call, "Wan")
    bench.model.model.diffusion_model.__class__ = Variant
    with pytest.raises(ValueError, match="has no place for ViCo"):
        bench.apply()


def test_a_transformer_that_reads_more_than_the_latent_is_refused(call):
    """Flux Fill beside a concept of Flux: torch said that shapes cannot be multiplied, at the first step."""
    flux, dev = Bench(call, "Flux.1"), transformers.TRANSFORMERS["Flux.1"]
    config = comfy.supported_models.FluxInpaint({**dev.unet, "dtype": torch.float32, "in_channels": 96})
    config.set_inference_dtype(torch.float32, None)
    fill = config.get_model({}, device=None)
    flux.model = comfy.model_patcher.CoreModelPatcher(fill, torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match="takes 96 channels, which ViCo cannot fill from a photo"):
        flux.apply()
    with pytest.raises(ValueError, match="It reads 96 channels and a latent has 16"):
        ModelDenoiser(flux.model)


def test_a_vae_of_frames_gives_pictures(call):
    """ViCo Checkpoint Grid got [1, T, H, W, 3] of the host's Wan VAE, and no picture is made of that."""
    bench = Bench(call, "Wan")
    with torch.inference_mode():
        small = {"attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0}
        weights = comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, **small)
        vae, how = comfy.sd.VAE(sd=models.seeded(weights, 0).state_dict()), Sampling("euler", "simple", 1, 1.0)
        drawn = draw(bench.model, bench.clip, vae, ["a cat", "a dog"], [0], how, (16, 1, SIDE, SIDE))
    assert drawn.shape == (2, 64, 64, 3)


# Training


@pytest.fixture
def home(tmp_path, monkeypatch):
    """models/vico and output of this test."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vico", ([str(tmp_path / "vico")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path


def vae_of(bench):
    """A TAESD, whose latents have no frames; Flux.2's packs four positions into the channels, and has no small one."""
    with torch.inference_mode():
        return transformers.Pixels("Flux.2", 8) if bench.family == "Flux.2" else models.vae(bench.tiny.channels)


def train(bench, **settings):
    """Train ViCo through the node: (concept, loss map, curve, run)."""
    photos = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    options = {"checkpoint_every": 0, "preview_every": 0}
    inputs = {
        "model": bench.model,
        "clip": bench.clip,
        "vae": vae_of(bench),
        "training_options": bench.call("ViCoSPINTrainingOptions", **options)[0],
        "initialiser": "toy",
        "placeholder": "*",
        "steps": 3,
        "seed": 3,
        "run_name": "test",
        "size": 64,
        "word_lr": 1e-2,
        "attention_lr": 1e-3,
        "captions": "a photo of a *",
        **settings,
    }
    return bench.call("ViCoTrain", photos=[photos], masks=None, **{name: [value] for name, value in inputs.items()})


TRAINED = tuple(name for name in FAMILIES if name != "Cosmos-Predict2")


class SameNoise:
    """One moment and one noise for every step, so that a falling loss is what was learnt."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(training, "keyed_generator", lambda *key: torch.Generator().manual_seed(7))


@pytest.mark.parametrize("family", TRAINED)
def test_what_is_trained_is_kept_and_drawn_with(call, family, home, monkeypatch):
    with torch.inference_mode():
        bench = Bench(call, family)
    SameNoise(monkeypatch)
    before = weights_hash(bench.model.model.state_dict())
    concept, losses, _, run = train(bench)
    assert losses["loss"][0] > losses["loss"][2]
    assert weights_hash(bench.model.model.state_dict()) == before
    untrained = TrainedConcept(places_of(bench.model.model)[1], {"l": torch.zeros(1, 1)}, 3).concept()
    for place, weights in concept.modules.items():
        assert all(not torch.equal(t, untrained.modules[place][k]) for k, t in weights.items() if "to_k" not in k), (
            place
        )
    start = bench.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    assert not any(torch.allclose(concept.embeddings["l"], row, atol=1e-3) for row in start[:, None])
    assert concept.family == known_family(bench.model.model)
    (path,) = (home / "vico" / run).glob("step-*.safetensors")
    loaded = ViCoConcept.load(path)
    bench.concept, drawn = concept, []
    for bench.concept in (concept, loaded):
        bench.reference = bench.make_reference()
        drawn.append(bench.sample(*bench.apply()))
    assert torch.equal(*drawn) and torch.isfinite(drawn[0]).all()
    bench.concept = train(bench, vico_options={"dense": True}, steps=1)[0]
    assert len(bench.concept.modules) == 2 * len(concept.modules)
    assert not torch.equal(bench.sample(*bench.apply()), drawn[0])


def test_a_model_of_unknown_prediction_is_not_trained(call, home):
    bench = Bench(call, "Cosmos-Predict2")
    with pytest.raises(ValueError, match="can be sampled but not trained here"):
        train(bench)


# The other U-Nets


class UNetBench(Bench):
    """SD2.x (v-prediction) or SDXL (its size and pooled text) of the host's own class, small."""

    def __init__(self, call, family):
        self.call, self.family, self.tiny = call, family, transformers.Tiny(None, {}, channels=4)
        self.model, self.clip = models.of_family(family), models.clip()
        self.reference = Reference([Photo(torch.randn(1, 4, SIDE, SIDE), torch.zeros(64, 64, 3))])

    def sample(self, model, clip, **settings):
        return super().sample(model, clip, latent=torch.zeros(1, 4, SIDE, SIDE), **settings)


UNETS = ("sd1", "sd2", "sdxl")


@pytest.mark.parametrize("family", UNETS[1:])
def test_sd2_and_sdxl_train_save_load_and_draw(call, family, home, monkeypatch):
    with torch.inference_mode():
        bench = UNetBench(call, family)
    SameNoise(monkeypatch)
    concept, losses, _, run = train(bench)
    assert losses["loss"][0] > losses["loss"][2]
    assert concept.family == "U-Net" and list(concept.widths) == ["output_blocks.1.1", "output_blocks.3.1"]
    (path,) = (home / "vico" / run).glob("step-*.safetensors")
    drawn = []
    for bench.concept in (concept, ViCoConcept.load(path)):
        bench.reference = Reference(bench.reference.photos)
        drawn.append(bench.sample(*bench.apply()))
    assert torch.equal(*drawn) and not close(drawn[0], bench.sample(bench.model, bench.clip), 1e-3)


@pytest.mark.parametrize("family", [*TRAINED, *UNETS])
def test_a_training_holds_the_base_once(call, family, home, monkeypatch):
    """Counted allocation by allocation: beside the base as stored what the node said before the first step, and no more."""
    with torch.inference_mode():
        bench = (UNetBench if family in UNETS else Bench)(call, family)
    told, held, need, plain = [], Allocated(), memory.Rehearsal.need, session.train
    monkeypatch.setattr(memory.Rehearsal, "need", lambda *args: told.append((*args, need(*args))) or told[-1][-1])

    def counted(*args):
        gc.collect()
        with held:
            return plain(*args)

    monkeypatch.setattr(session, "train", counted)
    train(bench)
    (rehearsal, needed), network = told[0], bench.model.model.diffusion_model
    weights, largest = (choose(p.nbytes for p in rehearsal.trained.parameters()) for choose in (sum, max))
    step = needed.growth.at(1, rehearsal.side**2)
    assert held.peak <= 12 * weights + 1.1 * step
    assert weights + held.peak == pytest.approx(needed.beside(1, rehearsal.side**2), rel=0.1)
    base, layer = (choose(p.nbytes for p in network.parameters()) for choose in (sum, max))
    assert held.largest <= max(0.05 * base, layer, largest, largest_of_a_forward(rehearsal))


def largest_of_a_forward(rehearsal) -> int:
    """The largest single tensor of a forward without a gradient: none of the base."""
    with Allocated() as held, Frozen(rehearsal.frozen.patchers), torch.no_grad():
        batch = rehearsal.batch(1, (rehearsal.side, rehearsal.side))
        rehearsal.streams.predict(batch.x0, batch)
    return held.largest
