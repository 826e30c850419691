"""From samples to a corpus: latents and contexts, each made once and kept on disk under the model's hash."""

from collections.abc import Callable
from dataclasses import dataclass, field

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


def encode_dataset(
    dataset: Dataset | Listed,
    encoder: Encoder,
    context: Callable[[list[str], tuple[int, ...]], Context],
    report: Report,
    pairs: bool = False,
    on_picture: Callable[[int], None] = lambda done: None,
    seed: int = 0,
) -> Corpus:
    """Reads the data set once, as a stream. Pictures that do not decode are named in the report and left out.

    pairs: keep preference pairs alone, with both pictures (for DPO); otherwise the preferred picture counts.
    seed: of the run; draws one caption where a picture has several.
    """
    encoded = Encoded()
    for number, sample in enumerate(dataset.samples(report)):
        try:
            add(sample, sample.caption(seed, number), encoded, encoder, pairs)
        except Unusable as error:
            report.kept -= 1
            report.leave_out(error.name, error.reason)
        on_picture(len(encoded.prompts))
    if not encoded.prompts:
        wanted = "preference pairs" if pairs else "pictures with captions"
        raise ValueError(f"Take a data set with {wanted}.\nNone of this one can be used: {report.in_a_line()}")
    rejected = (lambda i: encoder.latent(encoded.rejected[i])) if pairs else None
    fingerprint = store_key(prompts=encoded.prompts, real=encoded.real, rejected=encoded.rejected)
    return Corpus(
        encoded.prompts,
        encoded.shapes,
        lambda i: encoder.latent(encoded.real[i]),
        context,
        rejected,
        fingerprint,
    )


def add(sample: Sample, caption: str, encoded: Encoded, encoder: Encoder, pairs: bool) -> None:
    """Encodes one sample. Raises: Unusable with what is wrong with it."""
    if sample.image is None:
        raise Unusable(sample.prompt[:40], "a prompt without a picture")
    if pairs and sample.image_b is None:
        raise Unusable(sample.prompt[:40], "no second picture to prefer it to")
    real = encoder.key(sample.image)
    shape = tuple(encoder.latent(real).shape)
    if pairs:
        rejected = encoder.key(sample.image_b)
        if tuple(encoder.latent(rejected).shape) != shape:
            raise Unusable(sample.prompt[:40], "the two pictures of the pair differ in shape")
        encoded.rejected.append(rejected)
    encoded.prompts.append(caption)
    encoded.shapes.append(shape)
    encoded.real.append(real)
