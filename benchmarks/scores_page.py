"""How long a report page of 1,000 pictures takes to make and to open: python -m vico_spin.benchmarks.scores_page [--keep DIR]

Sprite World draws the pictures: two models' taste differs by a known amount, and the scorer reads the taste that each
was drawn with, plus noise. Opens the page in headless Chromium and prints the seconds.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ..scores.evaluate import evaluate
from ..scores.report import write_report
from ..scores.run import Run
from ..scores.samples import Sample
from ..scores.scorer import Scorer
from ..scripts.browser import chromium
from ..sprite_world.pictures import pictures, render, show
from .harness import finish, flags

SEEDS, TASTES = 4, {"base": (0.25, 0.30), "round 1": (0.50, 0.25), "round 2": (0.62, 0.25)}  # mean and spread


class DrawnTaste(Scorer):
    """The taste that a picture was drawn with, which `draw_models` left in the file, and a rater's noise."""

    formula = "the taste in the picture's own recipe, plus noise"

    def __init__(self, noise: float, seed: int):
        self.name = f"Drawn taste, noise {noise}"
        self.noise, self.generator = noise, np.random.default_rng(seed)

    def score(self, pictures, prompts=None, references=None):
        return [float(picture.info["taste"]) + float(self.generator.normal(0, self.noise)) for picture in pictures]


def photo_like(art: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """The art at 512 × 512 with grain, as heavy to pack as a photo."""
    large = np.asarray(Image.fromarray(art).resize((512, 512), Image.BICUBIC)).astype(np.int16)
    return Image.fromarray((large + generator.integers(-25, 26, large.shape)).clip(0, 255).astype(np.uint8))


def draw_models(root: Path, prompts: int, models: list[str], noisy: bool) -> list[Sample]:
    """prompts × models × seeds pictures as PNG, the taste kept in the file."""
    from PIL.PngImagePlugin import PngInfo

    stream, generator, samples = pictures(seed=3), np.random.default_rng(3), []
    for i in range(prompts):
        recipe = next(stream)
        for model in models:
            for seed in range(SEEDS):
                taste = float(np.clip(generator.normal(*TASTES[model]), 0, 1))
                art, _ = render(dataclasses.replace(recipe, taste=taste, seed=recipe.seed + seed))
                path, info = root / model / f"{i:05d}_{seed}.png", PngInfo()
                info.add_text("taste", str(taste))
                path.parent.mkdir(parents=True, exist_ok=True)
                (photo_like(art, generator) if noisy else Image.fromarray(show(art))).save(path, pnginfo=info)
                samples.append(Sample(model, path, recipe.caption(), str(seed)))
    return samples


def seconds_to_open(browser, page: Path, screenshot: Path) -> float:
    """From the request to the load event and the first painted frame after it, in headless Chromium."""
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    start = time.perf_counter()
    view.goto(page.resolve().as_uri(), wait_until="load")
    view.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seconds = time.perf_counter() - start
    view.screenshot(path=screenshot)
    view.close()
    return seconds


def measure(root: Path, count: int, models: int, noisy: bool, browser) -> dict:
    names = list(TASTES)[:models]
    samples = draw_models(root, count // (SEEDS * models), names, noisy)
    run = Run(root / "run")
    evaluate(run, samples, [lambda: DrawnTaste(0.05, 0), lambda: DrawnTaste(0.6, 1)], lambda line: None)
    start = time.perf_counter()
    page = write_report(root / "run", root / "report.html", rounds=names, title="Sprite World, drawn taste")[0]
    made = time.perf_counter() - start
    opened = max(seconds_to_open(browser, page, root / "page.png") for _ in range(3))
    size = page.stat().st_size / 1e6
    return {"pictures": len(samples), "megabytes": size, "made": made, "slowest of 3 openings": opened}


def main() -> None:
    parser = flags(__doc__, pictures=(1000, "on the page"))
    parser.add_argument("--models", type=int, default=2, choices=(2, 3))
    parser.add_argument("--noisy", action="store_true", help="512 × 512 with grain, as heavy as photos")
    parser.add_argument("--keep", type=Path, help="make everything in this folder and leave it there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        root = arguments.keep or Path(scratch)
        found = measure(root, arguments.pictures, arguments.models, arguments.noisy, browser)
    finish(found, arguments)


if __name__ == "__main__":
    main()
