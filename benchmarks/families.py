"""What runs on which family of models: python -m vico_spin.benchmarks.families [--only NAME …] [--write README.md] [--json]

A row a family, on a small network of the host's own class with random weights, through the nodes that people run. A cell is
*ok*, or the sentence why not. --write puts the table between the file's lines <!-- families --> and <!-- /families -->.
"""

import gc
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from ..scripts.host import Host
from .harness import finish, flags

ROUND = {"steps": 3, "learning_rate": 1e-3, "beta": 50.0}
OK = "ok"


class Case:
    """One family: its model, and what a person does with it."""

    def __init__(self, host: Host, family: str):
        import torch

        from ..scripts import models, transformers

        self.call, self.family, self.is_unet = host.call, family, family not in transformers.TRANSFORMERS
        with torch.inference_mode():  # as the host's loaders do
            self.model = (models.of_family if self.is_unet else transformers.transformer)(family)
            self.latent = self.model.model.latent_format
            self.clip = models.clip(width=models.TEXT_WIDTH if self.is_unet else transformers.TRANSFORMERS[family].text)
            self.vae = models.vae(self.latent.latent_channels) if self.is_unet else self.pixels(transformers)
        self.texts = self.clip if self.is_unet else transformers.Texts(family)
        self.base_hash = self.hash()

    def pixels(self, transformers):
        return transformers.Pixels(self.family, self.latent.spacial_downscale_ratio)

    def hash(self) -> str:
        import torch

        from ..train_core import weights_hash

        with torch.inference_mode():
            self.model.detach()  # LoRAs that the host had merged go out again
            return weights_hash(self.model.model.state_dict())

    def draws(self) -> None:
        """The opponent's pictures, by the host's sampler."""
        from ..nodes.spin.captions import Captions, OpponentSampling, host_sampler
        from ..spin_core.store import TensorStore

        with tempfile.TemporaryDirectory() as folder:
            captions = Captions(self.texts, TensorStore(Path(folder)))
            how = OpponentSampling("euler", "simple", steps=2, cfg=2.0)
            frames = [1] * (self.latent.latent_dimensions == 3)
            shape = (self.latent.latent_channels, *frames, 8, 8)
            drawn = host_sampler(self.model, captions, how)(["a cat", "an old red dog"], [0, 1], shape)
        require(bool(drawn.isfinite().all()), "its pictures are not finite")

    def trains(self) -> None:
        """A round of self-play by LoRA, counted allocation by allocation."""
        import torch

        from ..nodes.spin import rehearsal, session
        from ..train_core import Allocated

        held, play, need = Allocated(), session.play_method, rehearsal.Rehearsal.need

        def counted(*args):
            gc.collect()
            with held:
                return play(*args)

        def told(rehearsed, *args):
            self.rehearsed, self.need = rehearsed, need(rehearsed, *args)
            return self.need

        pixels = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        captions = "a cat\nan old red dog"
        data = self.call("SPINDataset", source="pictures from the graph", images=pixels, captions=captions)[0]
        opponent = self.call("SPINOpponent", sampler_name="euler", scheduler="simple", steps=2, cfg=2.0)[0]
        inputs = {"run_name": self.family, "batch_size": 1, "resolution": 64, "seed": 1, "preview_prompts": ""}
        inputs |= {"train": {"train": "LoRA", "rank": 2}, "play": ROUND}
        parts = {"model": self.model, "clip": self.texts, "vae": self.vae, "dataset": data, "opponent": opponent}
        with patch.object(session, "play_method", counted), patch.object(rehearsal.Rehearsal, "need", told):
            self.trained, self.lora, losses, self.metrics = self.call("SPINTrain", **parts, **inputs)
        self.peak = held.peak
        require(abs(losses["loss"][0] - 0.6931472) < 1e-6, f"its loss begins at {losses['loss'][0]}, not at ln 2")

    def base_unchanged(self) -> None:
        require(self.hash() == self.base_hash, "its bytes changed")

    def one_copy(self) -> None:
        """Counted: no more beside the base than 12 times the LoRA and the step that was told before."""
        shape = self.rehearsed.corpus.shapes[0]
        step = max(self.need.growth.at(2, shape[-1] * shape[-2]), self.need.drawing)
        allowed = 12 * sum(t.nbytes for t in self.lora.values()) + 1.1 * step
        require(self.peak <= allowed, f"{self.peak} bytes beside the base, {allowed:.0f} allowed")

    def lora_is_read(self) -> None:
        """The saved file by the host's own loader and by Load SPIN Checkpoint: both answer as the trained MODEL does."""
        import torch

        file = self.call(
            "SPINSave", filename_prefix="families", format="ComfyUI LoRA", lora=self.lora, metrics=self.metrics
        )
        name = Path(file[0]).name
        theirs = self.call("LoraLoaderModelOnly", model=self.model, lora_name=name, strength_model=1.0)[0]
        ours = self.call("SPINLoadCheckpoint", checkpoint=f"spin: {name}", strength=1.0, model=self.model)[0]
        expected = self.answer(self.trained)
        for loaded in (theirs, ours):
            torch.testing.assert_close(self.answer(loaded), expected, rtol=1e-6, atol=1e-6)

    def answer(self, model):
        """What the model predicts on the first caption and fixed noise."""
        import torch

        from ..nodes.host import copies, denoiser, frozen

        corpus = self.rehearsed.corpus
        shape = tuple(corpus.shapes[0])
        x_t = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        with copies.training_mode(), torch.no_grad():
            patcher = frozen.borrowed(model)
            with frozen.Frozen([patcher]):
                made = denoiser.ModelDenoiser(patcher)
                return made.predict(x_t, torch.tensor([500]), corpus.context(corpus.prompts[:1], shape))

    def vico_applies(self) -> None:
        """Apply ViCo with an untrained concept changes the picture; at strength 0 it does not."""
        import torch

        from ..nodes.vico.photos import Photo, Reference

        frames = [1] * (self.latent.latent_dimensions == 3)
        empty = torch.zeros(1, self.latent.latent_channels, *frames, 8, 8)
        reference = Reference([Photo(torch.randn_like(empty), torch.zeros(64, 64, 3))])
        given = {"model": self.model, "clip": self.clip, "concept": self.concept(), "reference": reference}
        given |= {"start_percent": 0.0, "end_percent": 1.0, "mask": "automatic"}

        def draw(strength: float):
            model, clip = self.call("ViCoApply", strength=strength, **given)
            words = [self.call("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a * on a beach", "")]
            how = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
            sides = {"positive": words[0], "negative": words[1], "latent_image": {"samples": empty}}
            return self.call("KSampler", model=model, **how, **sides)[0]["samples"]

        plain, changed = draw(0.0), draw(1.0)
        require(bool(changed.isfinite().all()) and not torch.equal(plain, changed), "the picture stays as it was")

    def concept(self):
        """An untrained concept at the model's own places."""
        import torch

        from ..nodes.vico.places import known_family, places_of
        from ..vico_core.training import TrainedConcept

        width = self.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.shape[1]
        made = TrainedConcept(places_of(self.model.model)[1], {"l": torch.randn(1, width)}, 0).concept()
        made.family = known_family(self.model.model)
        return made

    def vico_trains(self) -> None:
        """Three steps of Train ViCo on a photo."""
        import torch

        photo = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        options = self.call("ViCoSPINTrainingOptions", checkpoint_every=0, preview_every=0)[0]
        inputs = {"initialiser": "toy", "placeholder": "*", "steps": 3, "seed": 3, "run_name": self.family, "size": 64}
        inputs |= {"word_lr": 1e-2, "attention_lr": 1e-3, "captions": "a photo of a *", "training_options": options}
        inputs |= {"model": self.model, "clip": self.clip, "vae": self.vae}
        lists = {name: [value] for name, value in inputs.items()}
        losses = self.call("ViCoTrain", photos=[photo], masks=None, **lists)[1]["loss"]
        require(len(losses) == 3, f"it made {len(losses)} of 3 steps")
        self.base_unchanged()


THINGS: dict[str, Callable[[Case], None]] = {
    "draws": Case.draws,
    "trains": Case.trains,
    "base unchanged": Case.base_unchanged,
    "one copy": Case.one_copy,
    "LoRA saved and read by the host": Case.lora_is_read,
    "ViCo applies": Case.vico_applies,
    "ViCo trains": Case.vico_trains,
}
AFTER_TRAINING = ("base unchanged", "one copy", "LoRA saved and read by the host")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def row(host: Host, family: str) -> dict[str, str]:
    """{thing: ok, or the sentence why not}."""
    case, cells = Case(host, family), {}
    for thing, tried in THINGS.items():
        if thing in AFTER_TRAINING and cells["trains"] != OK:
            cells[thing] = cells["trains"]
            continue
        try:
            tried(case)
            cells[thing] = OK
        except Exception as error:  # whatever it is, it is what the table reports
            cells[thing] = " ".join(str(error).split()) or type(error).__name__
    return cells


def measure(host: Host, families: list[str]) -> dict[str, dict[str, str]]:
    """{family: {thing: ok or sentence}}, in folders of its own."""
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        for kind in ("spin", "loras"):
            folder_paths.add_model_folder_path(kind, f"{folder}/spin", is_default=True)
        folder_paths.add_model_folder_path("vico", f"{folder}/vico", is_default=True)
        return {family: row(host, family) for family in families}


def table(found: dict[str, dict[str, str]]) -> str:
    """Markdown; sentences stand below, once each."""
    notes: dict[str, int] = {}
    lines = ["| family | " + " | ".join(THINGS) + " |", "| --- |" + " --- |" * len(THINGS)]
    for family, cells in found.items():
        shown = [cell if cell == OK else f"no ({notes.setdefault(cell, len(notes) + 1)})" for cell in cells.values()]
        lines.append(f"| {family} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, *(f"\n({number}) {note}" for note, number in notes.items())])


def write(path: Path, text: str) -> None:
    """Puts the table between the file's marks. Raises: ValueError where it has none."""
    before = path.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- families -->\n).*?(\n<!-- /families -->)", re.DOTALL)
    if not pattern.search(before):
        raise ValueError(f'"{path}" has no lines <!-- families --> and <!-- /families --> to write between')
    path.write_text(pattern.sub(lambda marks: marks[1] + text + marks[2], before), encoding="utf-8")


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="families by name; all by default")
    parser.add_argument("--write", type=Path, help="a Markdown file with the two marks, such as README.md")
    options = parser.parse_args()
    host = Host()
    from ..scripts import models, transformers

    titles = {"sd1": "SD1.x", "sd2": "SD2.x", "sdxl": "SDXL"}
    wanted = options.only or [*titles, *transformers.TRANSFORMERS]
    unknown = set(wanted) - {*models.FAMILIES, *transformers.TRANSFORMERS}
    if unknown:
        parser.error(
            f"there is no family {', '.join(sorted(unknown))}: choose of {', '.join(transformers.TRANSFORMERS)}"
        )
    found = {titles.get(family, family): cells for family, cells in measure(host, wanted).items()}
    if options.write:
        write(options.write, table(found))
    finish(found, options, table(found))


if __name__ == "__main__":
    main()
