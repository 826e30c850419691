"""Trains what the Load nodes offer as the Sprite World example: a concept and a SPIN LoRA, in float16.

    python -m vico_spin.scripts.make_examples        # some minutes on two cores; a stopped training goes on

Both come out of the nodes themselves, with the settings below; runs are kept in .train/examples.
"""

from dataclasses import replace

from .get_host import ROOT
from .host import Host

WORK = ROOT / ".train" / "examples"
ANY = {"creature": "any", "colour": "any", "scene": "any", "size": "any", "taste_from": 1.0, "taste_to": 1.0}
CREATURE = 94  # an identity that the world's model never saw: a large pink cactus with a bold marking
CAPTIONS = ["a large pink * on tiles", "a photo of a large pink * on tiles", "a picture of a large pink * on tiles"]


def train_concept(host: Host, world: dict):
    """The creature as vico_train_a_concept learns it, with more steps."""
    drawn = {**ANY, "scene": "tiles", "size": "large"}
    photos = host.call("SpriteWorldPictures", number=4, identity=CREATURE, seed=0, **drawn)[0]
    (options,) = host.call("ViCoSPINTrainingOptions", preview_every=0, checkpoint_every=100)
    asked = {"initialiser": "cactus", "placeholder": "*", "steps": 500, "seed": 0, "run_name": "example", "size": 128}
    asked |= {"word_lr": 0.02, "attention_lr": 0.006, "batch_size": 4, "captions": "\n".join(CAPTIONS)}
    asked |= {**world, "training_options": options}
    return host.call("ViCoTrain", photos=[photos], **{name: [value] for name, value in asked.items()})[0]


def train_lora(host: Host, world: dict) -> dict:
    """One round of self-play with finely drawn pictures, as in spin_self_play."""
    drawn = host.call("SpriteWorldPictures", number=32, identity=-1, seed=1, **{**ANY, "taste_from": 0.8})
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
    play = {"play": "one round", "steps": 60, "learning_rate": 1e-3, "beta": 500.0}
    parts = {**world, "dataset": dataset, "training_options": options, "opponent": opponent}
    return host.call("SPINTrain", **parts, **asked, play=play)[1:4:2]


def main() -> None:
    host = Host()
    import json

    import folder_paths

    from ..nodes.spin.checkpoints import file_metadata, save_lora
    from ..sprite_world import EXAMPLE_CONCEPT, EXAMPLE_LORA

    folder_paths.set_output_directory(str(WORK / "output"))
    folder_paths.folder_names_and_paths["vico"] = ([str(WORK / "vico")], {".safetensors"})
    world = dict(zip(("model", "clip", "vae"), host.call("SpriteWorldLoad"), strict=True))
    lora, metrics = train_lora(host, world)
    save_lora({name: tensor.half() for name, tensor in lora.items()}, EXAMPLE_LORA, file_metadata(json.loads(metrics)))
    concept = train_concept(host, world)
    halves = {place: {name: t.half() for name, t in module.items()} for place, module in concept.modules.items()}
    replace(concept, modules=halves).save(str(EXAMPLE_CONCEPT))
    for path in (EXAMPLE_CONCEPT, EXAMPLE_LORA):
        print(f"{path} ({path.stat().st_size / 2**20:.2f} MB)")


if __name__ == "__main__":
    main()
