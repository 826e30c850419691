"""From samples to a corpus: latents and contexts, each made once and kept on disk under the model's hash."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Literal

from torch import Tensor

from ..intake import Report, Unusable
from ..train_core import Context
from .batches import Corpus
from .data import Dataset, Listed, bucket, fit
from .samples import Picture, Sample
from .store import TensorStore, store_key

# encode(picture in its bucket's size, PIL) -> latent [C, H, W], scaled as the denoiser reads it
EncodePicture = Callable[[object], Tensor]


@dataclass(frozen=True)
class Encoder:
    """Turns pictures into latents.

    vae_hash: of the encoder's weights. multiple: of pixels that a latent's side stands for.
    """

    encode: EncodePicture
    vae_hash: str
    store: TensorStore
    resolution: int = 512
    multiple: int = 64

    def key(self, picture: Picture) -> str:
        """The latent's place in the store, made now if it is not there. Raises: ValueError where it does not decode."""
        made_from = {
            "picture": picture.hash(),
            "vae": self.vae_hash,
            "resolution": self.resolution,
            "multiple": self.multiple,
        }
        key = store_key(**made_from)
        if self.store.get(key) is None:
            image = picture.open()
            latent = self.encode(fit(image, bucket(image.size, self.resolution, self.multiple)))
            self.store.put(key, {"latent": latent}, made_from)
        return key

    def latent(self, key: str) -> Tensor:
        return self.store.get(key)["latent"]


@dataclass
class Encoded:
    """Keys and shapes of a data set's latents, one entry a sample."""

    prompts: list[str] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    real: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    liked: list[bool] = field(default_factory=list)

    def balanced(self) -> "Encoded":
        """With the rarer kind of thumbs repeated until there are as many of either, as KTO's authors draw them."""
        kinds = [[i for i, liked in enumerate(self.liked) if liked is kind] for kind in (True, False)]
        if not all(kinds):
            raise ValueError(
                "Add pictures of the other kind.\nKTO learns from liked and disliked pictures, and all of these are "
                + ("liked." if kinds[0] else "disliked.")
            )
        rare, common = sorted(kinds, key=len)
        order = [*range(len(self.liked)), *islice(cycle(rare), len(common) - len(rare))]
        lists = (self.prompts, self.shapes, self.real, self.liked)
        prompts, shapes, real, liked = ([values[i] for i in order] for values in lists)
        return Encoded(prompts, shapes, real, [], liked)


Take = Literal["pictures", "pairs", "thumbs"]
WANTED = {"pictures": "pictures with captions", "pairs": "preference pairs", "thumbs": "pictures with thumbs"}


def taken_by(method: str, dataset: Dataset | Listed) -> Take:
    """What of a data set a method learns from: pictures; pairs; or for KTO, where the first picture has no pair, thumbs."""
    if method in ("spin", "sft"):
        return "pictures"
    first = next(iter(dataset.samples()), None)
    return "thumbs" if method == "kto" and first is not None and first.image_b is None else "pairs"


def encode_dataset(
    dataset: Dataset | Listed,
    encoder: Encoder,
    context: Callable[[list[str], tuple[int, ...]], Context],
    report: Report,
    take: Take = "pictures",
    on_picture: Callable[[int], None] = lambda done: None,
    seed: int = 0,
    text_hash: str = "",
) -> Corpus:
    """Reads the data set once, as a stream. Pictures that do not decode are named in the report and left out.

    take: pictures (of a pair the preferred one, and none with its thumb down); preference pairs alone, with both pictures; or
    pictures with their thumbs.
    seed: of the run; draws one caption where a picture has several. text_hash: of what reads them.
    """
    encoded = Encoded()
    for number, sample in enumerate(dataset.samples(report)):
        try:
            add(sample, sample.caption(seed, number), encoded, encoder, take)
        except Unusable as error:
            report.kept -= 1
            report.leave_out(error.name, error.reason)
        on_picture(len(encoded.prompts))
    if not encoded.prompts:
        raise ValueError(f"Take a data set with {WANTED[take]}.\nNone of this one can be used: {report.in_a_line()}")
    thumbs = {}
    if take == "thumbs":
        encoded = encoded.balanced()
        thumbs = {"liked": encoded.liked}
    rejected = (lambda i: encoder.latent(encoded.rejected[i])) if take == "pairs" else None
    fingerprint = store_key(
        prompts=encoded.prompts, real=encoded.real, rejected=encoded.rejected, text=text_hash, **thumbs
    )
    return Corpus(
        encoded.prompts,
        encoded.shapes,
        lambda i: encoder.latent(encoded.real[i]),
        context,
        rejected,
        fingerprint,
        text_hash,
        encoded.liked.__getitem__ if take == "thumbs" else None,
    )


def add(sample: Sample, caption: str, encoded: Encoded, encoder: Encoder, take: Take) -> None:
    """Encodes one sample. Raises: Unusable with what is wrong with it."""
    thumb = sample.label if sample.image_b is None else None
    if sample.image is None:
        raise Unusable(sample.prompt[:40], "a prompt without a picture")
    if take == "pairs" and sample.image_b is None:
        raise Unusable(sample.prompt[:40], "no second picture to prefer it to")
    if take == "thumbs" and thumb is None:
        raise Unusable(sample.prompt[:40], "no thumb (label true or false; folders liked and disliked)")
    if take == "pictures" and thumb == 0:
        raise Unusable(sample.prompt[:40], "not liked: for KTO alone")
    real = encoder.key(sample.image)
    shape = tuple(encoder.latent(real).shape)
    if take == "pairs":
        rejected = encoder.key(sample.image_b)
        if tuple(encoder.latent(rejected).shape) != shape:
            raise Unusable(sample.prompt[:40], "the two pictures of the pair differ in shape")
        encoded.rejected.append(rejected)
    encoded.prompts.append(caption)
    encoded.shapes.append(shape)
    encoded.real.append(real)
    if take == "thumbs":
        encoded.liked.append(thumb == 1)
