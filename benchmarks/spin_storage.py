"""Does self-play learn the same beside weights stored in fewer bits? python -m vico_spin.benchmarks.spin_storage [--quick] [--json]

Three rounds by Train SPIN's LoRA in the Sprite World, on finely drawn pictures as in spin_self_play, with the U-Net's weights
stored in float32, bfloat16 and float8, two training seeds each. Prints the taste of what the last round's MODEL draws for 40
prompts, by storage, and whether each lies within the two seeds' spread of float32's, seed by seed. What is trained and measured
is kept in --output: a run goes on where it was cut, and several processes share the work of one folder.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..intake import write_atomically
from ..scripts.get_host import ROOT
from ..scripts.host import Host
from ..sprite_world.measure import to_art
from ..sprite_world.pictures import evaluation_prompts
from .kept import held
from .spin_people import see

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}
SEEDS, DRAWN_AT_ONCE = (0, 1), 20
JUDGED = {"steps": 10, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


@dataclass(frozen=True)
class Sizes:
    real: int = 64
    batch: int = 8
    rounds: int = 3
    steps: str = "100, 50, 50"
    rates: str = "5e-4, 2.5e-4, 1.25e-4"
    beta: str = "500"
    sampling_steps: int = 15
    prompts: int = 40


QUICK = Sizes(real=4, batch=2, rounds=2, steps="2", sampling_steps=3, prompts=4)


class World:
    """The Sprite World as its node gives it, its network's weights stored in a type."""

    def __init__(self, host: Host, dtype: torch.dtype):
        self.call = host.call
        self.model, self.clip, self.vae = self.call("SpriteWorldLoad")
        network = self.model.model.diffusion_model
        with torch.inference_mode():
            for weight in network.parameters():
                weight.data = weight.data.to(dtype)
            network.dtype = dtype
        self.model.set_model_compute_dtype(torch.float32)  # the host does so for types that it cannot compute in

    def train(self, sizes: Sizes, seed: int):
        """The MODEL after the last round."""
        fine = {"creature": "any", "colour": "any", "scene": "any", "size": "any", "taste_from": 1.0, "taste_to": 1.0}
        drawn = self.call("SpriteWorldPictures", number=sizes.real, identity=-1, seed=1 + seed, **fine)
        told = {"images": drawn[0], "captions": drawn[2]}
        data = self.call("SPINDataset", source="pictures from the graph", **told)[0]
        drawing = {"sampler_name": "euler", "scheduler": "normal", "steps": sizes.sampling_steps, "cfg": 3.0}
        opponent = self.call("SPINOpponent", **drawing, batch=DRAWN_AT_ONCE)[0]
        options = self.call("ViCoSPINTrainingOptions", warmup_steps=5, preview_every=0)[0]
        rounds = {"rounds": sizes.rounds, "steps": sizes.steps, "learning_rate": sizes.rates, "beta": sizes.beta}
        parts = {"model": self.model, "clip": self.clip, "vae": self.vae, "dataset": data, "opponent": opponent}
        asked = {"train": {"train": "LoRA", "rank": 16}, "play": rounds, "training_options": options}
        how = {"batch_size": sizes.batch, "resolution": 128, "seed": seed, "run_name": "storage"}
        return self.call("SPINTrain", **parts, **asked, **how)[0]

    def taste(self, model, prompts: list[str], seed: int) -> float:
        """Mean taste of a picture for each prompt, as the host draws them."""
        parts = [prompts[i : i + DRAWN_AT_ONCE] for i in range(0, len(prompts), DRAWN_AT_ONCE)]
        art = [self.draw(model, part, 1000 * seed + number) for number, part in enumerate(parts)]
        return float(see(np.concatenate(art), prompts)[:, 0].mean())

    def draw(self, model, prompts: list[str], seed: int) -> np.ndarray:
        rows = [self.call("CLIPTextEncode", clip=self.clip, text=text)[0] for text in prompts]
        with torch.inference_mode():
            positive = [[torch.cat([row[0][0] for row in rows]), {}]]
        sides = {"positive": positive, "negative": self.call("CLIPTextEncode", clip=self.clip, text="")[0]}
        latent = {"samples": torch.zeros(len(prompts), 4, 16, 16)}
        drawn = self.call("KSampler", model=model, seed=seed, latent_image=latent, **sides, **JUDGED)[0]
        return to_art(self.call("VAEDecode", vae=self.vae, samples=drawn)[0])


def measure(host: Host, sizes: Sizes, folder: Path) -> dict[str, dict[str, list[float]]]:
    """{storage: {"base" | "end": taste by training seed}}. What another process is at is waited for in the end."""
    cells = [(name, seed) for seed in SEEDS for name in STORED]
    for wait in (False, True):
        for name, seed in cells:
            path = folder / f"{name}-{seed}.json"
            with held(folder / "locks" / path.name, wait) as mine:
                if mine and not path.exists():
                    told = json.dumps(tastes(World(host, STORED[name]), sizes, seed))
                    write_atomically(path, lambda partial, told=told: partial.write_text(told))
                    print(path.stem, told, flush=True)
    kept = {cell: json.loads((folder / f"{cell[0]}-{cell[1]}.json").read_text()) for cell in cells}
    return {name: {when: [kept[name, seed][when] for seed in SEEDS] for when in ("base", "end")} for name in STORED}


def tastes(world: World, sizes: Sizes, seed: int) -> dict[str, float]:
    prompts = evaluation_prompts(sizes.prompts, seed=7)
    return {
        "base": world.taste(world.model, prompts, seed),
        "end": world.taste(world.train(sizes, seed), prompts, seed),
    }


def table(found: dict[str, dict[str, list[float]]]) -> str:
    plain = found["float32"]["end"]
    spread = abs(plain[0] - plain[1])
    head = (
        "stored as",
        "taste of its base",
        "after the rounds, by seed",
        "gained",
        "from float32's",
        "in its seeds' spread",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, tastes in found.items():
        away = max(abs(ours - theirs) for ours, theirs in zip(tastes["end"], plain, strict=True))
        ends = ", ".join(f"{taste:.3f}" for taste in tastes["end"])
        gains = ", ".join(f"{end - base:+.3f}" for base, end in zip(tastes["base"], tastes["end"], strict=True))
        held = "" if name == "float32" else "yes" if away <= spread else "no"
        lines.append(f"| {name} | {np.mean(tastes['base']):.3f} | {ends} | {gains} | {away:.3f} | {held} |")
    return "\n".join([*lines, f"\nThe two seeds' spread of float32: {spread:.3f}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: does it run?")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "spin_storage", help="folder of the runs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    host = Host()
    import folder_paths

    folder = options.output / ("quick" if options.quick else "full")
    folder_paths.set_output_directory(str(folder))
    found = measure(host, QUICK if options.quick else Sizes(), folder)
    print(table(found))
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
