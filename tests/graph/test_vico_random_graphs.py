"""Random graphs of Apply ViCo and other nodes in random order: kept equals computed, queued again equals, strength 0 is plain.

pytest tests/graph/test_vico_random_graphs.py --graphs 200
"""

import random

import pytest
import torch

from vico_spin.tests.graph.test_vico_beside import MODEL_NODES, RANDOM, SMALL, bypass_lora
from vico_spin.tests.graph.vico_bench import Bench, make_concept

WORDS = {"*": 0, "sks": 9}  # the trigger words of two concepts, by the seeds of their weights
TEXTS = ("a photo of a *", "a red sky", "(*:1.3) beside a SKS", "a sks, blue", "embedding:none 4*4 and a *")
OTHERS = [*(name for name in MODEL_NODES if name not in RANDOM), "LoRA", "bypass LoRA"]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def parts(request, host, make_clip, make_vae):
    from vico_spin.scripts import models

    return models.of_family(request.param), make_clip(), make_vae()


class RandomGraph:
    """2 to 5 nodes on the model, one or two of them Apply ViCo, and a positive prompt joined from one to three texts."""

    def __init__(self, seed: int):
        draw = random.Random(seed)
        subjects = draw.sample(list(WORDS), draw.choice((1, 1, 2)))
        others = draw.sample(OTHERS, draw.randint(max(0, 2 - len(subjects)), 5 - len(subjects)))
        self.nodes = [*subjects, *others]
        draw.shuffle(self.nodes)
        self.settings = {
            word: {
                "strength": draw.choice((0.5, 1.0, 1.5)),
                "start_percent": draw.choice((0.0, 0.2)),
                "end_percent": draw.choice((0.8, 1.0)),
                "mask": draw.choice(("automatic", "none")),
                "effect_mask": draw.choice((None, torch.ones(1, 128, 128).tril())),
            }
            for word in subjects
        }
        named = [text for text in TEXTS if any(word in text.lower().replace("4*4", "") for word in subjects)]
        self.texts = [draw.choice(named), *draw.sample(TEXTS, draw.randint(0, 2))]
        self.joins = [draw.choice(("ConditioningConcat", "ConditioningCombine", "ConditioningAverage")) for _ in TEXTS]
        self.sampling = {"batch": draw.choice((1, 2)), "cfg": draw.choice((1.0, 5.0)), "seed": seed}

    def references(self, bench) -> dict:
        return {word: bench.make_reference(seed=seed + 5) for word, seed in WORDS.items()}

    def picture(self, bench, references: dict, **changes):
        """The graph's picture; changes: to every Apply ViCo."""
        return self.sample(bench, *self.build(bench, references, **changes))

    def sample(self, bench, model, clip, positive):
        return bench.sample(model, clip, positive=positive, **self.sampling)

    def build(self, bench, references: dict, **changes):
        model, clip = bench.model, bench.clip
        for node in self.nodes:
            if node in WORDS:
                inputs = {**self.settings[node], "trigger": node, **changes}
                concept = make_concept(seed=WORDS[node], places=SMALL)
                given = {"model": model, "clip": clip, "concept": concept, "reference": references[node]}
                model, clip = bench.apply(**given, **inputs)
            else:
                model = self.other(bench, node, model)
        return model, clip, self.positive(bench, clip)

    def plain(self, bench):
        """The same graph with its Apply ViCo nodes bypassed."""
        model = bench.model
        for node in self.nodes:
            model = model if node in WORDS else self.other(bench, node, model)
        return self.sample(bench, model, bench.clip, self.positive(bench, bench.clip))

    def other(self, bench, node, model):
        if node == "bypass LoRA":
            return bypass_lora(bench, model)
        if node == "LoRA":
            model = model.clone()
            key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
            model.add_patches({key: ("diff", (torch.full_like(model.model.state_dict()[key], 0.01),))}, 1.0)
            return model
        return bench.call(node, model=model, **MODEL_NODES[node])[0]

    def positive(self, bench, clip):
        first, *rest = (bench.encode(clip, text) for text in self.texts)
        for node, conditioning in zip(self.joins, rest, strict=False):
            names = ("conditioning_1", "conditioning_2")
            if node != "ConditioningCombine":
                names = ("conditioning_to", "conditioning_from")
            inputs = dict(zip(names, (first, conditioning), strict=True))
            more = {"conditioning_to_strength": 0.7} if node == "ConditioningAverage" else {}
            (first,) = bench.call(node, **inputs, **more)
        return first


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--graphs")))


def test_a_random_graph(call, parts, seed):
    bench, graph = Bench(call, *parts), RandomGraph(seed)
    try:
        references = graph.references(bench)
        built = graph.build(bench, references)
        first = graph.sample(bench, *built)
        assert torch.isfinite(first).all(), graph.nodes
        bench.passes.clear()
        assert torch.equal(graph.sample(bench, *built), first), f"queued again: {graph.nodes}"
        assert bench.passes == [], f"the features were there: {graph.nodes}"
        graph.sampling["seed"] += 1000
        kept = graph.sample(bench, *built)
        fresh = graph.picture(bench, graph.references(bench), cache_mb=0)
        assert torch.equal(kept, fresh), f"kept equals computed: {graph.nodes}"
        assert torch.equal(graph.picture(bench, references, strength=0.0), graph.plain(bench)), f"{graph.nodes}"
    finally:
        del bench.model.model.diffusion_model._forward
