"""Prompts of every kind, queued one behind the other: python -m vico_spin.benchmarks.queue_mix [--prompts 300] [--json]

On the Sprite World, in one host with the host's own caches: no subject, one, two, a SPIN LoRA or none, masks, batches, seeds, in
a random order. Every picture is held against the same prompt's in a process that has run nothing else, to the bit. The
memory is looked at after a third of the prompts, when every kind has been met, and at the end.
"""

import hashlib
import itertools
import json
import os
import random
import tempfile
from pathlib import Path

from .harness import finish, flags, resident

SUBJECTS = ((), (94,), (7,), (94, 7), (7, 94))  # creatures by their number, each its photo
WORDS = ("*", "@")  # one a subject
CHOICES = (SUBJECTS, (False, True), ("automatic", "none"), (1, 2), (1, 2))  # and LoRA, mask, pictures at once, seed
TEXT = {0: "a large pink crab in snow", 1: "a photo of a large pink * in snow", 2: "a large * and a small @ on grass"}


def graph(subjects: tuple[int, ...], lora: bool, mask: str, batch: int, seed: int) -> dict:
    """One prompt in API format."""
    nodes, model, clip = {"world": ("SpriteWorldLoad", {})}, ["world", 0], ["world", 1]
    if lora:
        nodes["lora"] = (
            "SPINLoadCheckpoint",
            {"checkpoint": "(Sprite World example)", "strength": 1.0, "model": model},
        )
        model = ["lora", 0]
    photo = {"number": 1, "creature": "any", "colour": "any", "scene": "any", "seed": 5, "size": "large"}
    photo |= {"taste_from": 1.0, "taste_to": 1.0}
    how = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mask": mask, "place_strengths": ""}
    for number, identity in enumerate(subjects):
        name = lambda part, number=number: f"{part}{number}"  # noqa: E731
        nodes[name("concept")] = ("ViCoLoadConcept", {"concept": "(Sprite World example)"})
        nodes[name("photo")] = ("SpriteWorldPictures", {**photo, "identity": identity})
        nodes[name("reference")] = (
            "ViCoReference",
            {"size": 128, "vae": ["world", 2], "image": [name("photo"), 0]},
        )
        given = {"concept": [name("concept"), 0], "reference": [name("reference"), 0], "model": model, "clip": clip}
        trigger = "" if number == 0 else WORDS[number]
        nodes[name("apply")] = ("ViCoApply", {**how, **given, "trigger": trigger, "cache_mb": 64})
        model, clip = [name("apply"), 0], [name("apply"), 1]
    nodes["positive"] = ("CLIPTextEncode", {"text": TEXT[len(subjects)], "clip": clip})
    nodes["negative"] = ("CLIPTextEncode", {"text": "", "clip": clip})
    nodes["empty"] = ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": batch})
    sampling = {
        "seed": seed,
        "steps": 3,
        "cfg": 2.0,
        "sampler_name": "ddim",
        "scheduler": "ddim_uniform",
        "denoise": 1.0,
    }
    links = {"model": model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["empty", 0]}
    nodes["sample"] = ("KSampler", {**sampling, **links})
    nodes["decode"] = ("VAEDecode", {"samples": ["sample", 0], "vae": ["world", 2]})
    nodes["save"] = ("SaveImage", {"filename_prefix": "mix", "images": ["decode", 0]})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def drawn(host, prompt: dict, output: Path) -> str:
    """The hash of the pictures' pixels."""
    from ..intake import open_picture

    pixels = hashlib.sha256()
    for item in host.run(prompt)["save"]["images"]:
        path = output / item["subfolder"] / item["filename"]
        pixels.update(open_picture(path, path.name).tobytes())
        path.unlink()
    return pixels.hexdigest()


def alone(host, prompt: dict, output: Path) -> str:
    """The same in a child that has run nothing before."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, drawn(host, prompt, output).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        found = told.read()
    os.waitpid(child, 0)
    if not found:
        raise RuntimeError(f"a prompt failed by itself: {json.dumps(prompt)}")
    return found


def measure(prompts: int, seed: int = 0) -> dict:
    """How many prompts differ from their single run, and the memory's change in per cent."""
    from ..scripts.host import Host

    host = Host()
    import folder_paths
    import torch

    torch.set_num_threads(1)  # threads do not come along through a fork
    draw, kinds = random.Random(seed), list(itertools.product(*CHOICES))
    queued = [draw.choice(kinds) for _ in range(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        single = {kind: alone(host, graph(*kind), Path(folder)) for kind in dict.fromkeys(queued)}
        differ, memory = [], 0
        for number, kind in enumerate(queued, start=1):
            # the host returns nothing for a prompt whose every node it has kept: another prefix runs the last one again
            prompt = graph(*kind)
            prompt["save"]["inputs"]["filename_prefix"] = f"mix{number}"
            if drawn(host, prompt, Path(folder)) != single[kind]:
                differ.append(kind)
            if number == max(1, prompts // 3):
                memory = resident("VmRSS")
        grown = 100 * (resident("VmRSS") - memory) / memory
    print("\n".join(f"differs: {kind}" for kind in differ))
    return {"prompts": prompts, "kinds": len(single), "differ": len(differ), "memory grown, %": round(grown, 2)}


def main() -> None:
    options = flags(__doc__, prompts=(300, "how many are queued")).parse_args()
    finish(measure(options.prompts), options)


if __name__ == "__main__":
    main()
