"""What scoring costs beside the network and the decoding: python -m vico_spin.benchmarks.scores_overhead [--pictures 1000]

Scores a folder of PNGs with a tiny CLIP (random weights at the shape of TinyCLIP-ViT-8M-16-Text-3M, the smallest that
is published) through the same `evaluate` that the command line uses, and takes the time of the network's forward and of
Pillow's decoding from the whole. Prints the shares, and with --profile where the rest went.
"""

import cProfile
import io
import pstats
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import ImageFile
from transformers import CLIPConfig, CLIPModel

from ..scores.clip_score import ClipScore, clip_preprocessing
from ..scores.evaluate import evaluate
from ..scores.run import Run
from ..scores.samples import samples_of
from ..scores.tokens import clip_tokenizer
from ..scripts import tiny_scorers as tiny
from .harness import finish, flags


class Clock:
    """Adds up the seconds spent in the functions that it wraps."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function):
        def timed(*arguments, **named):
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def write_pictures(folder: Path, count: int, side: int) -> list[str]:
    """Noisy pictures as PNG, four to a prompt. Returns the prompts."""
    for i in range(count):
        tiny.picture(side, side, seed=i).save(folder / f"{i // 4}_{i % 4}.png")
    return [f"a photo of thing {i}" for i in range(-(-count // 4))]


def tiny_clip(root: Path) -> ClipScore:
    """8 M parameters that see 14 × 14 patches, 3 M that read."""
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 4}
    text = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 16}, projection_dim=512)
    model, words = CLIPModel(config), clip_tokenizer(tiny.write_clip_vocabulary(root / "clip"), "CLIP")
    return ClipScore("TinyCLIP 8M/16", model, clip_preprocessing(model), [], words)


def measure(root: Path, count: int, side: int, profiled: bool) -> dict:
    prompts, scorer = write_pictures(root, count, side), tiny_clip(root)
    samples = samples_of("m", root, prompts, None)
    evaluate(Run(root / "warm"), samples[:32], [lambda: scorer], lambda line: None)
    forward, decoding = Clock(), Clock()
    for tower in (scorer.module.vision_model, scorer.module.text_model):
        tower.forward = forward.around(tower.forward)
    ImageFile.ImageFile.load = decoding.around(ImageFile.ImageFile.load)
    profile, start = cProfile.Profile(), time.perf_counter()
    with profile if profiled else nullcontext():
        evaluate(Run(root / "run"), samples, [lambda: scorer], lambda line: None)
    whole = time.perf_counter() - start
    if profiled:
        print(slowest(profile))
    rest = 1 - (forward.seconds + decoding.seconds) / whole
    shares = {"forward": forward.seconds / whole, "decoding": decoding.seconds / whole, "outside": rest}
    return {"pictures": count, "side": side, "seconds": whole} | shares


def slowest(profile: cProfile.Profile) -> str:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(14)
    return text.getvalue()


def main() -> None:
    parser = flags(__doc__, pictures=(1000, "to be scored"), side=(512, "their size in pixels"))
    parser.add_argument("--profile", action="store_true", help="also print the slowest functions (costs a few percent)")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        finish(measure(Path(root), options.pictures, options.side, options.profile), options)


if __name__ == "__main__":
    main()
