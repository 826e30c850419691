"""How well does the automatic object mask find the creature? python -m vico_spin.benchmarks.vico_masks [--creatures 20] [--json]

In both Sprite Worlds, whose truth is known: a creature that the model never saw, drawn large in any scene, goes through the
model as a reference does (clean, at a noise level of the sampling), with its class word as the trigger word. At every possible place
ViCo's Otsu turns the picture's attention to that word into a mask; its overlap with the true one (intersection over union)
is averaged over creatures and noise levels. Rules of the attention, where text and picture have one in common:

text: softmax over the prompt's tokens alone. all keys: over text and picture. picture: of the word's token over the picture.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from ..scripts.get_host import ROOT
from ..scripts.host import Host
from .vico_evidence import LEVELS, OBJECT_SIZE, World, evaluated_identities, overlap

RULES = ("text", "all keys", "picture")


class Masks:
    """One world's model, at whose places the attention is read."""

    def __init__(self, host: Host, architecture: str):
        from ..nodes.host.copies import load_for_training, training_copy, training_mode
        from ..nodes.vico.places import possible_places, tokens_of
        from ..nodes.vico.streams import HostStreams, training_clip
        from ..train_core import LocalEngine
        from ..vico_core.training import TrainedConcept
        from .vico_evidence import PLANS

        self.world = World(host, PLANS[architecture], architecture)
        with training_mode():
            patcher, clip = training_copy(self.world.model), training_clip(self.world.clip)
            load_for_training([patcher, clip.patcher])
        self.network = patcher.model.diffusion_model
        self.places = {place.name: place for place in possible_places(self.network)}
        self.tokens = {name: tokens_of(self.network, place) for name, place in self.places.items()}
        self.make = lambda words: HostStreams(patcher, clip, TrainedConcept([], words), "*", LocalEngine())
        self.clip = clip

    def of_creature(self, seed: int) -> dict[tuple[str, str], list[float]]:
        """{(place, rule): overlap at each noise level}."""
        import torch

        from ..nodes.vico.trigger import start_words
        from ..sprite_world.pictures import chosen_pictures, render, show

        picture = next(chosen_pictures(seed, identity_seed=seed, size=OBJECT_SIZE))
        art, truth = render(picture)
        with torch.no_grad():
            streams = self.make(start_words(self.clip, picture.who.class_word))
            pixels = torch.from_numpy(show(art)).float()[None] / 255
            x = self.world.model.model.process_latent_in(self.world.vae.encode(pixels)).clone()
            caption = streams.encode(picture.caption().replace(picture.who.class_word, "*"), x)
            found = defaultdict(list)
            for level in LEVELS:
                t = torch.tensor([round(level * len(streams.schedule))])
                self.read(streams, x, t, caption, torch.from_numpy(truth), found)
        return found

    def read(self, streams, x, t, caption, truth, found) -> None:
        """One pass over the clean picture; adds every place's overlap by every rule."""
        from ..nodes.host.families.image_tokens import LATENT
        from ..nodes.vico.capture import OVERRIDE, TextAttention, text_of
        from ..nodes.vico.streams import replaced_forwards

        text = text_of(caption.conditions["c_crossattn"])
        blocks = [self.network.get_submodule(place.block) for place in self.places.values()]

        def reading(name, plain):
            tokens = self.tokens[name]

            def forward(*args, transformer_options, **kwargs):
                maps = {}
                override = TextAttention(
                    tokens, text, transformer_options, lambda a: maps.update(text=a[..., caption.columns])
                )
                attend = other_rules(override, caption.columns, maps) if tokens.joint else override
                out = plain(*args, transformer_options={**transformer_options, OVERRIDE: attend}, **kwargs)
                for rule, attention in maps.items():
                    grid = tokens.grid(transformer_options)
                    found[name, rule].append(overlap(attention.mean(-1), truth, grid))
                return out

            return forward

        pairs = zip(self.places, blocks, strict=True)
        timestep = streams.denoiser.timestep(t)
        with replaced_forwards(blocks, [reading(name, block.forward) for name, block in pairs]):
            streams.denoiser.forward(x, timestep, caption.conditions, {LATENT: x.shape})


def other_rules(override, columns: list[int], maps: dict):
    """The same override of a joint attention, which also tells what the two other rules see."""

    def attend(plain, q, k, v, heads, *args, **kwargs):
        start = override.tokens.start_of_last(q.shape[2], override.count)
        scores = q[:, :, start : start + override.count] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        maps["all keys"] = scores.softmax(-1).mean(1)[..., columns]
        maps["picture"] = scores[..., columns].softmax(-2).mean(1)
        return override(plain, q, k, v, heads, *args, **kwargs)

    return attend


def measured(host: Host, architecture: str, creatures: int) -> dict[str, dict[str, float]]:
    """{rule: {place: mean overlap}}."""
    masks, found = Masks(host, architecture), defaultdict(list)
    for seed in evaluated_identities(creatures):
        for key, values in masks.of_creature(seed).items():
            found[key] += values
    rules = {rule: {p: v for (p, r), v in found.items() if r == rule} for rule in RULES}
    return {rule: {p: sum(v) / len(v) for p, v in of.items()} for rule, of in rules.items() if of}


def as_markdown(worlds: dict) -> str:
    lines = ["| world | rule | place: overlap |", "| --- | --- | --- |"]
    for architecture, rules in worlds.items():
        for rule, places in rules.items():
            told = ", ".join(f"{place} {value:.2f}" for place, value in places.items())
            lines.append(f"| {architecture} | {rule} | {told} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--creatures", type=int, default=20)
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "output" / "vico_evidence", help="folder of vico_masks.md and .json"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    host = Host()
    worlds = {architecture: measured(host, architecture, options.creatures) for architecture in ("U-Net", "DiT")}
    options.docs.mkdir(parents=True, exist_ok=True)
    (options.docs / "vico_masks.md").write_text(as_markdown(worlds), encoding="utf-8")
    (options.docs / "vico_masks.json").write_text(json.dumps(worlds, indent=1), encoding="utf-8")
    print(as_markdown(worlds))
    if options.json:
        print(json.dumps(worlds))


if __name__ == "__main__":
    main()
