"""What every scorer is: pictures, and what they are held against, in; one number a picture out."""

from collections.abc import Sequence

from PIL import Image

from .weights import Checkpoint


class Scorer:
    """The interface that nodes, command line and report use.

    name: as people call it. formula: what the number is. needs_prompt, needs_references: what `score` wants beside the
    pictures. module: the network that the host may load and offload, None for a scorer without one.
    """

    name = ""
    formula = ""
    needs_prompt = False
    needs_references = False
    module = None

    def score(
        self,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str] | None = None,
        references: Sequence[Image.Image] | None = None,
    ) -> list[float]:
        """One number a picture. prompts: one a picture. references: what all the pictures are held against."""
        raise NotImplementedError

    def record(self) -> dict:
        """What a reader needs to make the numbers again: checkpoint, preprocessing, formula."""
        return {"name": self.name, "formula": self.formula}

    def check(self, pictures: Sequence, prompts: Sequence[str] | None, references: Sequence | None) -> None:
        """Raises the sentence for what this scorer lacks."""
        if self.needs_references and not references:
            raise ValueError(f"Connect a reference.\n{self.name} compares with photos of the real thing.")
        if not self.needs_prompt:
            return
        if prompts is None or len(prompts) != len(pictures):
            given = "none" if prompts is None else len(prompts)
            raise ValueError(
                f"Write a prompt for each picture.\n{self.name} needs it: {len(pictures)} pictures, {given} prompts."
            )
        empty = [str(i) for i, prompt in enumerate(prompts) if not prompt.strip()]
        if empty:
            raise ValueError(
                f"Write a prompt for each picture.\n{self.name} has an empty one for picture {', '.join(empty[:8])}."
            )


class ModelScorer(Scorer):
    """A scorer on a torch network: preprocessing, the prompts' or references' part once, then pictures in batches."""

    batch_size = 16  # ViT-H/14 with 16 pictures peaks near 5 GB in float32; larger batches gain nothing on a CPU

    def __init__(self, module, preprocessing, checkpoints: Sequence[Checkpoint]):
        self.module = module.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.checkpoints = checkpoints

    @property
    def device(self):
        return next(self.module.parameters()).device

    def record(self) -> dict:
        files = [{"file": checkpoint.file, "sha256": checkpoint.sha256} for checkpoint in self.checkpoints]
        return {**super().record(), "checkpoints": files, "preprocessing": str(self.preprocessing)}

    def score(self, pictures, prompts=None, references=None) -> list[float]:
        import torch

        self.check(pictures, prompts, references)
        with torch.inference_mode():
            context = self.context(prompts, references)
            batches = range(0, len(pictures), self.batch_size)
            scored = [self.score_batch(pictures, context, slice(i, i + self.batch_size)) for i in batches]
            return torch.cat(scored).tolist() if scored else []

    def score_batch(self, pictures, context, rows: slice):
        """The numbers of one batch of pictures. Returns [B] on the CPU."""
        pixels = self.preprocessing(pictures[rows]).to(self.device)  # [B, 3, H, W]
        return self.score_pixels(pixels, self.context_rows(context, rows)).float().cpu()

    def context(self, prompts, references):
        """What the pictures are held against, computed once for all of them; None where there is nothing."""
        return None

    def context_rows(self, context, rows: slice):
        """The context of some pictures: its rows where there is one a picture, all of it where they share it."""
        return context

    def score_pixels(self, pixels, context):
        """pixels: [B, 3, H, W] on the model's device. Returns [B]."""
        raise NotImplementedError


def distinct(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each prompt once, in order of appearance, and for every prompt its place there."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]
