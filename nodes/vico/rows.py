"""The rows of a batch by the prompt that they share: one reference pass serves all of them."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from comfy.model_base import BaseModel
from torch import Tensor

from .capture import text_of
from .prompts import Prompts

TOKENS_PER_CHUNK = 77
# What a model is given of the picture that is drawn, and not of its prompt: the reference pass goes without.
OF_THE_PICTURE = (
    "c_concat",
    "control",
    "ref_latents",
    "ref_latents_method",
    "ref_contexts",
    "siglip_feats",
    "denoise_mask",
    "reference_latent",
    "context_latents",
    "time_dim_concat",
    "clip_fea",
    "ref_latent",
    "guiding_frame_index",
    "latent_shapes",
)


@dataclass(frozen=True)
class Call:
    """One call of the host's model: x [B, C, h, w] noisy latent, sigma [B], transformer_options, and what its prompts give.

    given: c_crossattn, y, guidance, attention_mask, num_tokens …, by name.
    """

    model: BaseModel
    x: Tensor
    sigma: Tensor
    options: dict
    given: dict

    @classmethod
    def of(cls, model: BaseModel, x, sigma, c_crossattn, options: dict, more: dict) -> "Call":
        given = {"c_crossattn": c_crossattn} | more
        return cls(model, x, sigma, options, {name: v for name, v in given.items() if of_prompt(name, v)})


def of_prompt(name: str, value) -> bool:
    """Whether it is the prompt's alone: attention masks of more than two axes are over the picture's tokens too."""
    over_picture = name == "attention_mask" and isinstance(value, Tensor) and value.ndim > 2
    return name not in OF_THE_PICTURE and not over_picture


@dataclass(frozen=True)
class Prompt:
    """What the host knows of one prompt: its fingerprint, its own number of tokens, and which is its first that is not zero."""

    mark: bytes
    length: int
    first: int


@dataclass
class Row:
    """One distinct prompt of a batch: the rows of x that have it, and what its features depend on, each a batch of 1.

    text: the prompt's own rows in its context; columns: the placeholder's.
    """

    rows: list[int]
    x: Tensor
    sigma: Tensor
    given: dict
    text: slice
    columns: list[int]


@dataclass
class Conditionings:
    """A sampling's prompts by the identity of their tensors: what is read of them is read once."""

    seen: dict[Hashable, tuple[Prompt, list]] = field(default_factory=dict)

    def prompt(self, cond: dict, row: int) -> Prompt:
        """The row-th picture's, of the host's conditioning, which it repeats over a batch."""
        held = {name: c.cond for name, c in cond["model_conds"].items() if of_prompt(name, c.cond)}
        at = {name: row % len(v) for name, v in held.items() if isinstance(v, Tensor) and v.ndim}
        key = tuple((name, id(value), version(value), at.get(name)) for name, value in held.items())
        if key not in self.seen:  # the tensors stay with it, so that no other gets their id
            own = {name: value[at[name] : at[name] + 1] if name in at else value for name, value in held.items()}
            self.seen[key] = read(own), list(held.values())
        return self.seen[key][0]


def version(value) -> int | None:
    """Counts the writes to a tensor, where torch counts them."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def read(own: dict) -> Prompt:
    """own: of one prompt, each a batch of 1. Waits for the device."""
    context = own["c_crossattn"]
    return Prompt(fingerprint(own), context.shape[1], text_of(context).start)


def fingerprint(own: dict) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(own):
        value = own[name]
        held = value.float().cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        digest.update(name.encode() + held)
    return digest.digest()


def distinct_rows(call: Call, prompts: Prompts, of_row: list[Prompt], sigmas: list, repeats: bool) -> dict:
    """{(sigma, prompt's fingerprint, columns): Row}: the batch's rows by what their features depend on, in any order.

    of_row, sigmas: each row's. By content, not by the prompt's uuid: where prompts have areas, the host gives negative parts
    the uuid of a positive one. Rows of a prompt that leaves the subject off are in none. repeats: the host repeats shorter
    prompts to the length of those beside them.
    """
    uuids, batch = call.options["uuids"], call.x.shape[0]
    chunk = batch // len(uuids)
    rows: dict = {}
    for row, (prompt, sigma) in enumerate(zip(of_row, sigmas, strict=True)):
        columns = prompts.columns(uuids[row // chunk], row % chunk)
        if columns is None:
            continue
        key = (sigma, prompt.mark, columns)
        if key not in rows:
            given = {name: at_row(value, row, batch) for name, value in call.given.items()}
            if repeats:
                given["c_crossattn"] = given["c_crossattn"][:, : prompt.length]
            text = slice(prompt.first, given["c_crossattn"].shape[1])
            one = slice(row, row + 1)
            rows[key] = Row([], call.x[one], call.sigma[one], given, text, list(columns))
        rows[key].rows.append(row)
    return rows


def at_row(value, row: int, batch: int):
    """A batch's tensor at one row; what has no batch is every row's."""
    has_rows = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch
    return value[row : row + 1] if has_rows else value


def read_rows(call: Call, repeats: bool) -> list[Prompt]:
    """Each row's prompt by what it was given, where another node has made the batch. Waits for the device."""
    batch, found = call.x.shape[0], []
    for row in range(batch):
        if row and same_prompt(call.given, row, batch):
            found.append(found[-1])
            continue
        own = {name: at_row(value, row, batch) for name, value in call.given.items()}
        if repeats:
            own["c_crossattn"] = unrepeated(own["c_crossattn"][0])[None]
        found.append(read(own))
    return found


def same_prompt(given: dict, row: int, batch: int) -> bool:
    """Whether the row has the prompt of the row before it, as all rows of one prompt mostly do."""
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    return all(torch.equal(at_row(value, row, batch), at_row(value, row - 1, batch)) for value in tensors)


def unrepeated(context: Tensor) -> Tensor:
    """A prompt's own tokens [T, dim]: the host repeats shorter prompts to the length of those beside them in a batch."""
    chunks = context.shape[0] // TOKENS_PER_CHUNK
    for count in range(chunks, 1, -1):
        if context.shape[0] % count == 0:
            parts = context.unflatten(0, (count, -1))
            if torch.equal(parts, parts[:1].expand_as(parts)):
                return parts[0]
    return context
