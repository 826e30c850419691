"""Trains what the Load nodes offer as Sprite World examples, in float16: two creatures, one for the DiT too, a SPIN LoRA.

    python -m vico_spin.scripts.make_examples        # some minutes on two cores; a stopped training goes on
    python -m vico_spin.scripts.make_examples "DiT concept"        # that one alone

Both come out of the nodes themselves, with the settings below; runs are kept in .train/examples.
"""

import argparse
import json
from dataclasses import replace
from typing import NamedTuple

from .get_host import ROOT
from .host import Host

WORK = ROOT / ".train" / "examples"
ANY = {"creature": "any", "colour": "any", "scene": "any", "size": "any", "taste_from": 1.0, "taste_to": 1.0}


RATES = {  # of each architecture's concept
    "U-Net": {"steps": 500, "word_lr": 0.02, "attention_lr": 0.006},
    "DiT": {"steps": 300, "word_lr": 0.01, "attention_lr": 0.002, "zero_init": True},
}


class Creature(NamedTuple):
    """An identity that the world's model never saw: large, and with a bold marking."""

    number: int
    kind: str
    colour: str

    def captions(self) -> str:
        return "\n".join(f"{start} large {self.colour} * on tiles" for start in ("a", "a photo of a", "a picture of a"))


CACTUS, ROBOT = Creature(94, "cactus", "pink"), Creature(182, "robot", "blue")


def train_concept(host: Host, architecture: str, creature: Creature):
    """The creature as vico_train_a_concept learns it, with more steps."""
    world = load_world(host, architecture)
    drawn = {**ANY, "scene": "tiles", "size": "large"}
    photos = host.call("SpriteWorldPictures", number=4, identity=creature.number, seed=0, **drawn)[0]
    (options,) = host.call("ViCoSPINTrainingOptions", preview_every=0, checkpoint_every=100)
    asked = {"initialiser": creature.kind, "placeholder": "*", "seed": 0, "run_name": "example", "size": 128}
    asked |= {"batch_size": 4, "captions": creature.captions(), **RATES[architecture]}
    asked |= {**world, "training_options": options}
    return host.call("ViCoTrain", photos=[photos], **{name: [value] for name, value in asked.items()})[0]


def load_world(host: Host, architecture: str) -> dict:
    return dict(zip(("model", "clip", "vae"), host.call("SpriteWorldLoad", architecture=architecture), strict=True))


def save_concept(host: Host, architecture: str, creature: Creature, path) -> None:
    concept = train_concept(host, architecture, creature)
    halves = {place: {name: t.half() for name, t in module.items()} for place, module in concept.modules.items()}
    replace(concept, modules=halves).save(str(path))


def train_lora(host: Host) -> dict:
    """One round of self-play with finely drawn pictures, as in spin_self_play."""
    world = load_world(host, "U-Net")
    drawn = host.call("SpriteWorldPictures", number=64, identity=-1, seed=1, **ANY)
    dataset = host.call("SPINDataset", source="pictures from the graph", images=drawn[0], captions=drawn[2])[0]
    (options,) = host.call("ViCoSPINTrainingOptions", preview_every=0)
    (opponent,) = host.call("SPINOpponent", sampler_name="euler", scheduler="normal", steps=20, cfg=3.0, batch=16)
    asked = {
        "batch_size": 8,
        "resolution": 128,
        "seed": 0,
        "run_name": "example",
        "train": {"train": "LoRA", "rank": 16},
    }
    play = {"play": "one round", "steps": 100, "learning_rate": 5e-4, "beta": 500.0}
    parts = {**world, "dataset": dataset, "training_options": options, "opponent": opponent}
    return host.call("SPINTrain", **parts, **asked, play=play)[1:4:2]


def save_example_lora(host: Host, path) -> None:
    from ..nodes.spin.checkpoints import file_metadata, save_lora

    lora, metrics = train_lora(host)
    save_lora({name: tensor.half() for name, tensor in lora.items()}, path, file_metadata(json.loads(metrics)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="LoRA, U-Net concept, U-Net robot, DiT concept; none: all")
    wanted = parser.parse_args().only
    host = Host()
    import folder_paths

    from ..sprite_world import EXAMPLE_CONCEPT, EXAMPLE_CONCEPT_DIT, EXAMPLE_LORA, EXAMPLE_ROBOT

    folder_paths.set_output_directory(str(WORK / "output"))
    folder_paths.folder_names_and_paths["vico"] = ([str(WORK / "vico")], {".safetensors"})
    examples = {
        "LoRA": (lambda path: save_example_lora(host, path), EXAMPLE_LORA),
        "U-Net concept": (lambda path: save_concept(host, "U-Net", CACTUS, path), EXAMPLE_CONCEPT),
        "U-Net robot": (lambda path: save_concept(host, "U-Net", ROBOT, path), EXAMPLE_ROBOT),
        "DiT concept": (lambda path: save_concept(host, "DiT", CACTUS, path), EXAMPLE_CONCEPT_DIT),
    }
    for name, (save, path) in examples.items():
        if not wanted or name in wanted:
            save(path)
            print(f"{path} ({path.stat().st_size / 2**20:.2f} MB)")


if __name__ == "__main__":
    main()
