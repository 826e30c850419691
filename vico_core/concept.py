"""A ViCo concept on disk: what was learnt of one object, in one safetensors file; the authors' pair of pickles in and out."""

import base64
import io
import json
import os
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..intake import LIMITS, check_file, check_pickle, write_atomically
from .places import UNET

FORMAT = "vico_concept"
VERSION = "1"
ORIGINAL_PLACES = [f"output_blocks.{level}.1" for level in (4, 6, 8, 10)]
ORIGINAL_KEY = re.compile(r"diffusion_model\.(?P<place>.+)\.image_cross_attention\.(?P<rest>.+)")
OUR_KEY = re.compile(r"image_attention\.(?P<place>[a-z_]+(?:\.\d+)+)\.(?P<rest>[a-z].+)")
PARTS = [
    f"attn{i}.{p}"
    for i in (1, 2)
    for p in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
]
PARTS += [f"ff.net.{p}" for p in ("0.proj.weight", "0.proj.bias", "2.weight", "2.bias")]
PARTS += [f"norm{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")]

# What the authors' embedding file is made of; anything else in a pickle is refused, never executed.
PICKLED = [
    torch.nn.ParameterDict,
    torch.nn.Parameter,
    torch._utils._rebuild_parameter,
    torch._utils._rebuild_tensor_v2,
    OrderedDict,
    set,
]


@dataclass
class ViCoConcept:
    """modules: {place: image attention's state dict}; embeddings: {text encoder ("l", "g", "h"): [1, width]} of the placeholder.

    placeholder: the trigger word; initialiser: the word its vector started from; family: of the model it was trained on, and
    base_hash: that model ("" when unknown); step and settings: of the training; thumbnail: PNG bytes of the reference, or b"".
    """

    modules: dict[str, dict[str, Tensor]]
    embeddings: dict[str, Tensor]
    placeholder: str = "*"
    initialiser: str = ""
    family: str = ""
    base_hash: str = ""
    step: int = 0
    settings: dict = field(default_factory=dict)
    thumbnail: bytes = b""

    @property
    def widths(self) -> dict[str, int]:
        """{place: width of its tokens}."""
        return {place: weights["norm1.weight"].shape[0] for place, weights in self.modules.items()}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ViCoConcept":
        """Reads our file, or the authors' `cross_attention-N.pt` with its `embeddings_gs-N.pt` beside it. ValueError if neither."""
        path = Path(path)
        if path.suffix.lower() == ".safetensors":
            return cls._from_safetensors(path)
        if path.name.startswith("embeddings"):
            raise ValueError(
                f'Choose its cross_attention-N.pt instead.\n"{path.name}" is only the word of an original ViCo pair.'
            )
        return cls.from_original(path, _embeddings_beside(path))

    @classmethod
    def _from_safetensors(cls, path: Path) -> "ViCoConcept":
        tensors, metadata = _read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f'Choose a ViCo concept.\n"{path.name}" is none: its metadata does not say {FORMAT}.')
        if metadata.get("version") != VERSION:
            raise ValueError(
                "Update this pack.\n"
                f'"{path.name}" is a ViCo concept of version {metadata.get("version")}; this pack reads {VERSION}.'
            )
        embeddings = {key.removeprefix("embedding."): t for key, t in tensors.items() if key.startswith("embedding.")}
        modules = _split(tensors, OUR_KEY)
        _check(path.name, modules, embeddings)
        try:
            places = json.loads(metadata.get("places", "null"))
            concept = cls(
                modules,
                embeddings,
                placeholder=metadata.get("placeholder", "*"),
                initialiser=metadata.get("initialiser", ""),
                family=metadata.get("family", ""),
                base_hash=metadata.get("base_hash", ""),
                step=int(metadata.get("step", 0)),
                settings=json.loads(metadata.get("settings", "{}")),
                thumbnail=base64.b64decode(metadata.get("thumbnail", "")),
            )
        except ValueError as error:
            raise ValueError(
                f'Download or save the concept again.\n"{path.name}" has a heading that is damaged ({error}).'
            ) from error
        _check_places(path.name, modules, places)
        return concept

    @classmethod
    def from_original(
        cls, cross_attention_path: str | os.PathLike, embeddings_path: str | os.PathLike
    ) -> "ViCoConcept":
        """Reads the authors' pair (haoosz/ViCo), without executing anything in the pickles."""
        cross_attention_path, embeddings_path = Path(cross_attention_path), Path(embeddings_path)
        weights = _unpickle(cross_attention_path)
        if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
            raise ValueError(
                f'Choose a ViCo concept.\n"{cross_attention_path.name}" is no original ViCo checkpoint (a dict of tensors).'
            )
        modules = _split(weights, ORIGINAL_KEY)
        placeholder, vector = _original_word(embeddings_path)
        embeddings = {"l": vector}  # the original knows SD1.x alone, whose one text encoder ComfyUI calls l
        _check(cross_attention_path.name, modules, embeddings)
        step = re.search(r"-(\d+)\.pt$", cross_attention_path.name)
        return cls(modules, embeddings, placeholder=placeholder, step=int(step[1]) if step else 0)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {
            f"image_attention.{place}.{k}": t for place, weights in self.modules.items() for k, t in weights.items()
        }
        tensors |= {f"embedding.{encoder}": vector for encoder, vector in self.embeddings.items()}
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "placeholder": self.placeholder,
            "initialiser": self.initialiser,
            "family": self.family,
            "base_hash": self.base_hash,
            "places": json.dumps(self.widths),
            "step": str(self.step),
            "settings": json.dumps(self.settings),
            "thumbnail": base64.b64encode(self.thumbnail).decode(),
        }
        tensors = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
        write_atomically(Path(path), lambda partial: save_file(tensors, partial, metadata))

    def save_original(self, cross_attention_path: str | os.PathLike, embeddings_path: str | os.PathLike) -> None:
        """Writes the authors' pair. ValueError where their code cannot load it: another encoder than SD1.x's, or other places."""
        if list(self.embeddings) != ["l"] or self.family not in ("", UNET):
            raise ValueError(
                "Choose another format.\n"
                f"The original ViCo knows SD1.x alone; this concept is of {self.family or 'another model'} with the text encoders "
                f"{', '.join(self.embeddings)}."
            )
        if other := [place for place in self.modules if place not in ORIGINAL_PLACES]:
            raise ValueError(
                "Choose another format.\n"
                f"The original ViCo has the places {', '.join(ORIGINAL_PLACES)} alone; this concept also has {', '.join(other)}."
            )
        weights = {
            f"diffusion_model.{place}.image_cross_attention.{k}": t.detach().cpu()
            for place, module in self.modules.items()
            for k, t in module.items()
        }
        vectors = torch.nn.ParameterDict({self.placeholder: torch.nn.Parameter(self.embeddings["l"].detach().cpu())})
        # The token's id is the tokenizer's to say; the authors' loader reads the vectors alone.
        word = {"string_to_token": {}, "string_to_param": vectors}
        write_atomically(Path(cross_attention_path), lambda partial: _pickled(weights, partial))
        try:
            write_atomically(Path(embeddings_path), lambda partial: _pickled(word, partial))
        except OSError:
            Path(cross_attention_path).unlink()  # half a pair is no concept
            raise


def _pickled(value, path: Path) -> None:
    """torch.save, which says nothing of a full disk where it writes by itself: an OSError here."""
    content = io.BytesIO()
    torch.save(value, content)
    path.write_bytes(content.getbuffer())


def concept_files(path: Path) -> list[Path]:
    """The files that ViCoConcept.load reads for this one: itself, and the word of an original pair where it is there."""
    beside = path.with_name(path.name.replace("cross_attention", "embeddings_gs"))
    return [path] if beside == path or not beside.is_file() else [path, beside]


def _embeddings_beside(path: Path) -> Path:
    """`cross_attention-N.pt` -> `embeddings_gs-N.pt` of the same folder."""
    embeddings = path.with_name(path.name.replace("cross_attention", "embeddings_gs"))
    if embeddings == path or not embeddings.is_file():
        raise ValueError(
            "Put its embeddings_gs-N.pt beside it.\n"
            f'"{path.name}" is half of an original ViCo concept: the word is missing.'
        )
    return embeddings


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    check_file(path, LIMITS.weights_bytes)
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f'Download or save the concept again.\n"{path.name}" is not a whole safetensors file ({error}).'
        ) from error


def _unpickle(path: Path):
    """A pickle's tensors, through torch's allow-list alone."""
    check_pickle(path, also=("torch.nn.modules.container.ParameterDict",))
    try:
        with torch.serialization.safe_globals(PICKLED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f'Download the concept again, or ask for a .safetensors file.\n"{path.name}" is broken, or holds more than the '
            f"tensors of a ViCo checkpoint ({reason}). Nothing in it was executed."
        ) from error


def _original_word(path: Path) -> tuple[str, Tensor]:
    """The placeholder and its vector [1, width] from the authors' embedding file."""
    word = _unpickle(path)
    try:
        vectors = word["string_to_param"]
    except (TypeError, KeyError) as error:
        raise ValueError(
            f'Choose another concept.\n"{path.name}" is no original ViCo embedding file (it has no string_to_param).'
        ) from error
    if isinstance(
        vectors, torch.nn.ParameterDict
    ):  # files of torch 1.10 restore without the key list of later versions
        vectors = dict(vectors._parameters) or {key: vectors[key] for key in vectors}
    if len(vectors) != 1:
        raise ValueError(f'Choose another concept.\n"{path.name}" holds {len(vectors)} words; a ViCo concept has one.')
    (placeholder, vector), *_ = vectors.items()
    return placeholder, vector.detach()


def _split(tensors: dict[str, Tensor], form: re.Pattern) -> dict[str, dict[str, Tensor]]:
    """{place: state dict} of the keys that match."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if found := form.fullmatch(key):
            modules.setdefault(found["place"], {})[found["rest"]] = tensor
    return dict(sorted(modules.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]))


def _check(name: str, modules: dict[str, dict[str, Tensor]], embeddings: dict[str, Tensor]) -> None:
    """The sentence that a user sees for a file that is no whole concept."""
    if not modules or not embeddings:
        raise ValueError(
            f'Choose a ViCo concept.\n"{name}" is none: it has no {"word" if modules else "image-attention weights"}.'
        )
    for place, weights in modules.items():
        missing = [part for part in PARTS if part not in weights]
        if missing:
            raise ValueError(
                "Download or save the concept again.\n"
                f'"{name}" is incomplete: {place} lacks {missing[0]} ({len(missing)} of {len(PARTS)} weights).'
            )
        _check_shapes(name, place, weights)
    for where, tensor in _named(modules, embeddings):
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f'Use an earlier checkpoint.\n"{name}" holds NaN or infinity in {where}: its training went wrong.'
            )
    for encoder, vector in embeddings.items():
        if vector.ndim != 2 or vector.shape[0] != 1:
            raise ValueError(
                "Download or save the concept again.\n"
                f'The word of encoder {encoder} in "{name}" has shape {tuple(vector.shape)}; it must be [1, width].'
            )


def _check_places(name: str, modules: dict[str, dict[str, Tensor]], told: dict[str, int] | None) -> None:
    lost = [place for place in told or () if place not in modules]
    if lost:
        raise ValueError(
            f'Download or save the concept again.\n"{name}" is incomplete: it lacks the weights of the place {lost[0]}.'
        )


def _check_shapes(name: str, place: str, weights: dict[str, Tensor]) -> None:
    dim = weights["norm1.weight"].shape[0]
    wide = {"ff.net.0.proj.weight": (8 * dim, dim), "ff.net.0.proj.bias": (8 * dim,), "ff.net.2.weight": (dim, 4 * dim)}
    for part in PARTS:
        square = (dim, dim) if part.startswith("attn") and part.endswith("weight") else (dim,)
        expected = wide.get(part, square)
        if tuple(weights[part].shape) != expected:
            raise ValueError(
                "Download or save the concept again.\n"
                f'{place}.{part} of "{name}" has shape {tuple(weights[part].shape)}; it must be {expected}.'
            )


def _named(modules, embeddings):
    for place, weights in modules.items():
        yield from ((f"{place}.{part}", tensor) for part, tensor in weights.items())
    yield from ((f"the word of encoder {encoder}", vector) for encoder, vector in embeddings.items())
