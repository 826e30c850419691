"""The rows of a batch by the context that they share: one reference pass serves all of them."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompts import Prompts

TOKENS_PER_CHUNK = 77
# What a forward is given of the picture that is drawn, and not of its prompt: the reference pass goes without.
OF_THE_PICTURE = (
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
)


@dataclass(frozen=True)
class Call:
    """One forward of a diffusion model: its latent, its timesteps, and by name whatever else it was given."""

    forward: Callable
    bound: inspect.BoundArguments
    x: Tensor
    timesteps: Tensor
    named: dict

    @classmethod
    def of(cls, forward: Callable, args, kwargs) -> "Call":
        """forward(*args, **kwargs), whose first two arguments are latent and timesteps in every family."""
        bound = inspect.signature(forward).bind(*args, **kwargs)
        named = dict(bound.arguments)
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        x, timesteps = (named.pop(name) for name in list(bound.signature.parameters)[:2])
        return cls(forward, bound, x, timesteps, named)

    @property
    def options(self) -> dict:
        return self.named["transformer_options"]

    def on(self, executor, options: dict):
        """The same call of another, with these transformer_options."""
        by_name = "transformer_options" in self.bound.kwargs
        args = [options if value is self.options else value for value in self.bound.args]
        return executor(*args, **self.bound.kwargs | ({"transformer_options": options} if by_name else {}))

    def conditions(self) -> dict:
        """What the prompt and the settings give to each row: context, y, guidance, attention_mask, num_tokens …"""
        own = {k: v for k, v in self.named.items() if v is None or k not in (*OF_THE_PICTURE, "transformer_options")}
        mask = own.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim > 2:  # over the picture's tokens too
            own["attention_mask"] = None
        return own | ({"control": None} if "control" in self.named else {})


@dataclass
class Row:
    """One distinct context of a batch: the rows of x that have it, and what its features depend on, each a batch of 1."""

    rows: list[int]
    t: Tensor
    conditions: dict
    columns: list[int]


def distinct_rows(call: Call, prompts: Prompts, repeats: bool) -> dict:
    """{(t, conditions' fingerprint, columns): Row}: the batch's rows by what their features depend on, in any order.

    By content, not by the prompt's uuid: where prompts have areas, the host gives negative parts the uuid of a positive one.
    Rows of a prompt that leaves the subject off are in none. repeats: the host repeats shorter prompts to the length of
    those beside them.
    """
    uuids, conditions = call.options["uuids"], call.conditions()
    batch = call.x.shape[0]
    chunk = batch // len(uuids)
    rows: dict = {}
    for row in range(batch):
        if row % chunk == 0 or not same_prompt(conditions, row, batch):
            own = {name: of_row(value, row, batch) for name, value in conditions.items()}
            if repeats:
                own["context"] = unrepeated(own["context"][0])[None]
            mark = fingerprint(own)
        columns = prompts.columns(uuids[row // chunk], row % chunk)
        if columns is None:
            continue
        t = call.timesteps[row : row + 1]
        key = (tuple(t.flatten().tolist()), mark, columns)
        if key not in rows:
            rows[key] = Row([], t, own, list(columns))
        rows[key].rows.append(row)
    return rows


def of_row(value, row: int, batch: int):
    """A batch's tensor at one row; what has no batch is every row's."""
    has_rows = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch
    return value[row : row + 1] if has_rows else value


def same_prompt(conditions: dict, row: int, batch: int) -> bool:
    """Whether the row has the conditions of the row before it, as all rows of one prompt mostly do."""
    tensors = [value for value in conditions.values() if isinstance(value, Tensor)]
    return all(torch.equal(of_row(value, row, batch), of_row(value, row - 1, batch)) for value in tensors)


def unrepeated(context: Tensor) -> Tensor:
    """A prompt's own tokens [T, dim]: the host repeats shorter prompts to the length of those beside them in a batch."""
    chunks = context.shape[0] // TOKENS_PER_CHUNK
    for count in range(chunks, 1, -1):
        if context.shape[0] % count == 0:
            parts = context.unflatten(0, (count, -1))
            if torch.equal(parts, parts[:1].expand_as(parts)):
                return parts[0]
    return context


def fingerprint(conditions: dict) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(conditions):
        value = conditions[name]
        held = value.float().cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        digest.update(name.encode() + held)
    return digest.digest()
