"""The shipped files of the Sprite World out of a training's checkpoint, pictures drawn by them, and the card.

python -m vico_spin.scripts.sprite_world_card --export      # weights/base.safetensors from the averaged weights so far
python -m vico_spin.scripts.sprite_world_card --grid G.png  # a grid of samples
python -m vico_spin.scripts.sprite_world_card               # 500 held-out prompts, every figure, CARD.md and its pictures

Each for the second world with --architecture DiT: weights/dit.safetensors, CARD_DIT.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..intake import write_atomically
from ..sprite_world import ARCHITECTURES
from ..sprite_world.autoencoder import SpriteAutoencoder
from ..sprite_world.identity import identity
from ..sprite_world.measure import accuracies, features, frechet_distance, identity_similarity, measure, report, to_art
from ..sprite_world.pictures import PIXELS, evaluation_prompts, is_held_out_pair, pictures, render, show
from ..sprite_world.scenes import ART
from ..sprite_world.vocabulary import read_caption
from .train_sprite_world import (
    BASE,
    CAPTIONS_A_PICTURE,
    DATA_SEED,
    PICTURES,
    ROOT,
    DiTTrainer,
    Trainer,
    UNetTrainer,
    encoded,
    load_world_model,
    shipped_name,
    to_unit,
    work_folder,
)

DOCS = ROOT / "docs" / "sprite_world"
STEPS, CFG, COLUMNS = 25, 5.0, 8
FIRST = ("class_word", "colour", "scene")


@dataclass(frozen=True)
class Architecture:
    """What a card says that differs between the worlds, and where its files lie."""

    name: str
    trainer: type[Trainer]
    card: str
    docs: Path  # the training's log, the card's figures and pictures
    layout: str
    learnt: str
    method: str
    cores: str
    examples: str = ""  # rows of the table
    controlnet: Path | None = None  # the figures of its ControlNet

    @property
    def weights(self) -> Path:
        return ARCHITECTURES[self.name]


CARDS = {
    card.name: card
    for card in (
        Architecture(
            "U-Net",
            UNetTrainer,
            "CARD.md",
            DOCS,
            "A small text-to-image model of Stable Diffusion 1.x's block layout, trained on procedurally drawn pixel art: "
            "autoencoder and text encoder from nothing at commit `ca419e6`, the U-Net from nothing beside them.",
            "U-Net",
            "Muon with a weight decay of 0.1, AdamW; min-SNR weights",
            "two cores",
            "| the examples of the Load nodes | `python -m vico_spin.scripts.make_examples`: concepts of two creatures that "
            "the world's model never saw, and a LoRA of one round of self-play, in float16 |\n"
            "| the ControlNet | `python -m vico_spin.scripts.train_controlnet`: a Control-LoRA on edges as the host's Canny node "
            "draws them, in float16 |\n",
            DOCS / "controlnet.json",
        ),
        Architecture(
            "DiT",
            DiTTrainer,
            "CARD_DIT.md",
            DOCS / "dit",
            "A small diffusion transformer of Z-Image's class, trained from nothing on procedurally drawn pixel art; text "
            "encoder and autoencoder are those of the [U-Net's world](CARD.md).",
            "transformer",
            "Muon, AdamW; flow matching",
            "one core shared with other work",
        ),
    )
}


def latent_colours(codec: SpriteAutoencoder) -> Tensor:
    """[5, 3]: the linear map from a latent of the VAE (and one) to the colour of its 8 x 8 pixels, for previews."""
    art = np.stack([render(picture)[0] for picture in itertools.islice(pictures(3), 256)])
    colours = torch.from_numpy(art).permute(0, 3, 1, 2)
    latent = encoded(codec, colours).movedim(1, -1).flatten(0, -2)
    target = torch.nn.functional.avg_pool2d(to_unit(colours), 2).movedim(1, -1).flatten(0, -2)
    return torch.linalg.lstsq(torch.cat([latent, torch.ones(len(latent), 1)], 1), target).solution


def exported(state: dict, codec: SpriteAutoencoder) -> dict[str, Tensor]:
    """The shipped tensors, halves: the averaged weights under the host's names, and with a text encoder also the VAE."""
    weights = {shipped_name(name): value for name, value in state["average"].items()}
    weights["latent_rgb"] = latent_colours(codec)
    if "text" not in state:
        return halves(weights)
    weights |= {f"vae.{key}": value for key, value in codec.state_dict().items()}
    return halves(weights) | {"token_ids": torch.tensor(state["token_ids"], dtype=torch.int32)}


def halves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().half().contiguous() for key, value in weights.items()}


def draw_progress(work: Path, codec: SpriteAutoencoder, state: dict, docs: Path) -> None:
    """A row of the same prompts and noise for each snapshot of the training, the last one below."""
    averages = [load_file(path) for path in sorted(work.glob("step-*.safetensors"))] + [state["average"]]
    rows, path = [], work / "progress.safetensors"
    for average in averages:
        save_file(exported(state | {"average": average}, codec), path)
        rows.append(
            as_bytes(World(path, None if "text" in state else BASE).draw(evaluation_prompts()[:COLUMNS], seed=0))
        )
    path.unlink()
    tiled(np.concatenate(rows), COLUMNS).save(docs / "progress.png", optimize=True)


def export(work: Path, path: Path, docs: Path) -> None:
    codec = SpriteAutoencoder()
    codec.load_state_dict(load_file(work / "autoencoder.safetensors"))
    state = torch.load(work / "state.pt", weights_only=True)
    metadata = {"format": "sprite-world-1", "step": str(state["step"]), "minutes": f"{state['minutes']:.1f}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: save_file(exported(state, codec.eval()), p, metadata))
    docs.mkdir(parents=True, exist_ok=True)
    write_atomically(docs / "log.jsonl", lambda p: shutil.copyfile(work / "log.jsonl", p))
    draw_progress(work, codec, state, docs)


class World:
    """MODEL, CLIP and VAE as the node gives them, and a batch sampler on top.

    base: the file with text encoder and VAE, where that is not the network's own.
    """

    def __init__(self, network: Path, base: Path | None = None):
        host, base = load_world_model("cpu"), base or network
        self.model, self.clip = host.load_model(str(network)), host.load_clip(str(base))
        self.vae = host.load_vae(str(base), SpriteAutoencoder())

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(prompt)) for prompt in prompts])

    @torch.inference_mode()
    def draw(
        self,
        prompts: list[str],
        seed: int,
        steps: int = STEPS,
        cfg: float = CFG,
        sampler: str = "euler",
        more: dict | None = None,
    ) -> Tensor:
        """One picture a prompt: [B, 128, 128, 3] in 0..1. more: what both conditionings carry besides, a ControlNet."""
        import comfy.sample

        latent = torch.zeros(len(prompts), 4, 16, 16)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        positive, negative = ([[self.encode(texts), {**(more or {})}]] for texts in (prompts, [""]))
        samples = comfy.sample.sample(
            self.model, noise, steps, cfg, sampler, "normal", positive, negative, latent, seed=seed, disable_pbar=True
        )
        return self.vae.decode(samples)


def tiled(images: np.ndarray, columns: int) -> Image.Image:
    """[N, H, W, 3] uint8 as one picture, row by row."""
    rows = [np.concatenate(list(images[i : i + columns]), 1) for i in range(0, len(images), columns)]
    return Image.fromarray(np.concatenate(rows, 0))


def as_bytes(images: Tensor) -> np.ndarray:
    return (images.numpy() * 255).round().astype(np.uint8)


def drawn_in_batches(world: World, prompts: list[str], batch: int = 25) -> Tensor:
    """A picture for each prompt; seeds 0, 1, ... by batch."""
    return torch.cat([world.draw(prompts[i : i + batch], seed=i // batch) for i in range(0, len(prompts), batch)])


def shown_figures(world: World, prompts: list[str]) -> tuple[dict, Tensor]:
    """How the base follows held-out prompts, and how far its pictures are from held-out renders."""
    started = time.monotonic()
    images = drawn_in_batches(world, prompts)
    seconds = (time.monotonic() - started) / len(prompts)
    art = to_art(images)
    measured = measure(art, prompts)
    pairs = [
        m for m in measured if is_held_out_pair(read_caption(m.caption)["class_word"], read_caption(m.caption)["scene"])
    ]
    renders = np.stack([render(picture)[0] for picture in itertools.islice(pictures(4, held_out=True), len(prompts))])
    figures = {f"{name}, held-out prompts": share for name, share in accuracies(measured).items()}
    figures |= {
        f"{name}, held-out class and scene pairs": share for name, share in accuracies(pairs).items() if name in FIRST
    }
    figures["taste of the samples, mean"] = float(np.mean([m.shown["taste"] for m in measured]))
    figures["Fréchet distance to held-out renders"] = frechet_distance(features(art), features(renders))
    figures["seconds a picture, in batches of 25"] = seconds
    return figures, images


def codec_figures(world: World, number: int = 200) -> dict:
    """The autoencoder on held-out renders: PSNR, and whether decoded pictures keep their identity."""
    drawn = list(itertools.islice(pictures(5, held_out=True), number))
    truth = np.stack([show(render(picture)[0]) for picture in drawn])
    decoded = as_bytes(world.vae.decode(world.vae.encode(torch.from_numpy(truth).float() / 255)))
    error = np.square(decoded.astype(float) - truth).mean()
    art = decoded.reshape(number, ART, PIXELS, ART, PIXELS, 3)[:, :, 0, :, 0]
    own = [identity_similarity(art[i : i + 1], p.who)[0] for i, p in enumerate(drawn)]
    rivals = [identity(p.who.seed + 1, p.who.class_word, p.who.colour) for p in drawn]
    other = [identity_similarity(art[i : i + 1], rival)[0] for i, rival in enumerate(rivals)]
    return {
        "autoencoder PSNR, dB": 10 * math.log10(255**2 / error),
        "decoded picture, similarity with itself: mean": float(np.mean(own)),
        "decoded picture, similarity with itself: 5th percentile": float(np.percentile(own, 5)),
        "decoded picture, similarity with another of its class and colour: mean": float(np.mean(other)),
    }


def speed_figures(network: Path) -> tuple[dict, World]:
    """Seconds of the first load and of one picture, and how large the file is."""
    load_world_model("cpu")
    started = time.monotonic()
    world = World(network, BASE)
    loaded = time.monotonic()
    world.draw(["a red crab on sand"], seed=0)
    first = time.monotonic()
    world.draw(["a blue ghost at night"], seed=0)
    return {
        "seconds to load (host already imported)": loaded - started,
        "seconds for the first picture": first - loaded,
        "seconds for the next": time.monotonic() - first,
        "MB of its file": network.stat().st_size / 1e6,
    }, world


def read_log(docs: Path, part: str) -> list[dict]:
    """The training's log entries of one part."""
    entries = [json.loads(line) for line in (docs / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry["part"] == part]


def losses(of: Architecture) -> list[dict]:
    """Each step once: where a resumed run went over steps again, its own count."""
    return list({entry["step"]: entry for entry in read_log(of.docs, of.trainer.part)}.values())


def draw_loss_curve(entries: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot([e["step"] for e in entries], [e["loss"] for e in entries], linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    figure.savefig(path, dpi=110)


CARD = """# The Sprite World's card: {name}

{layout}
A base model on pictures of mixed taste; nothing was tuned on top. GPL-3.0, as the pack.

![samples for held-out prompts](../{docs}/samples.png)

The samples: {columns} a row, prompts that no training picture has, {steps} steps of Euler at CFG {cfg}.

## Training

| | |
|---|---|
| commands | {commands}, on {cores}; then `python -m vico_spin.scripts.sprite_world_card --architecture {name} --export` |
| data | {pictures} pictures drawn from seed {seed}, {captions} captions each; a tenth of the identities, a tenth of the (class, colour, scene) triples and one scene of each class held out |
| {learnt} | {step} steps of {batch} pictures ({samples} samples), {minutes:.0f} minutes; {method}; averaged weights shipped |
| last loss | {loss:.4f} |
{examples}
![loss curve](../{docs}/loss.png)

![samples along the training](../{docs}/progress.png)

The same prompts and noise after {snapshots} steps.

## Figures

Measured on the shipped weights by `python -m vico_spin.scripts.sprite_world_card --architecture {name} --prompts {number}`; {number} held-out prompts, {steps} steps, CFG {cfg}. Seconds are the measuring machine's, with its other work; the Fréchet distance hangs on the number of pictures.

{table}

The measures' own accuracy on held-out renders, by `python -m vico_spin.sprite_world.measure`:

{measures}
{controlnet}"""
CONTROLNET_PART = """
## The ControlNet

Captions of held-out pictures, drawn with and without their picture's edges, from the same noise: `python -m vico_spin.scripts.train_controlnet --measure`.

{table}
"""


def as_table(figures: dict) -> str:
    rows = [f"| {name} | {value:.3f} |" for name, value in figures.items()]
    return "\n".join(["| figure | value |", "|---|---|", *rows])


def controlnet_part(of: Architecture) -> str:
    """The card's part on the ControlNet; nothing for a world without one."""
    if of.controlnet is None:
        return ""
    return CONTROLNET_PART.format(table=as_table(json.loads(of.controlnet.read_text(encoding="utf-8"))))


def write_card(of: Architecture, number: int) -> None:
    """Measures the shipped weights and writes the card with its pictures."""
    of.docs.mkdir(parents=True, exist_ok=True)
    speed, world = speed_figures(of.weights)
    shown, images = shown_figures(world, evaluation_prompts()[:number])
    figures = shown | codec_figures(world) | speed
    tiled(as_bytes(images[:40]), COLUMNS).save(of.docs / "samples.png", optimize=True)
    entries = losses(of)
    draw_loss_curve(entries, of.docs / "loss.png")
    with safe_open(of.weights, "pt") as file:
        trained = file.metadata()
    step = int(trained["step"])
    text = CARD.format(
        name=of.name,
        layout=of.layout,
        docs=of.docs.relative_to(ROOT).as_posix(),
        learnt=of.learnt,
        method=of.method,
        cores=of.cores,
        examples=of.examples,
        columns=COLUMNS,
        steps=STEPS,
        cfg=CFG,
        minutes=float(trained["minutes"]),
        pictures=PICTURES,
        seed=DATA_SEED,
        captions=CAPTIONS_A_PICTURE,
        step=step,
        batch=of.trainer.batch_size,
        samples=step * of.trainer.batch_size,
        loss=entries[-1]["loss"],
        commands=", ".join(f"`{entry['text']}`" for entry in read_log(of.docs, "command")),
        snapshots=", ".join(str(entry["step"]) for entry in read_log(of.docs, "snapshot")) + f" and {step}",
        number=number,
        table=as_table(figures),
        measures=as_table(report()),
        controlnet=controlnet_part(of),
    )
    (ROOT / "sprite_world" / of.card).write_text(text, encoding="utf-8")
    (of.docs / "figures.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=CARDS, default="U-Net")
    parser.add_argument("--work", type=Path, help="where the training keeps its checkpoints")
    parser.add_argument("--prompts", type=int, default=500, help="held-out prompts for the card")
    parser.add_argument("--export", action="store_true", help="only write the weights")
    parser.add_argument("--grid", type=Path, help="only draw a grid of samples into this file")
    options = parser.parse_args()
    of = CARDS[options.architecture]
    if options.export:
        export(options.work or work_folder(of.name), of.weights, of.docs)
    elif options.grid:
        images = World(of.weights, BASE).draw(evaluation_prompts()[:16], seed=1)
        tiled(as_bytes(images), COLUMNS).save(options.grid)
    else:
        write_card(of, options.prompts)


if __name__ == "__main__":
    main()
