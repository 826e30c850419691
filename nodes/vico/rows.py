"""The rows of a batch by the context that they share: one reference pass serves all of them."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompts import Prompts

TOKENS_PER_CHUNK = 77


@dataclass
class Row:
    """One distinct context of a batch: the rows of x that have it, and what its features depend on."""

    rows: list[int]
    t: Tensor
    context: Tensor
    y: Tensor | None
    columns: list[int]


def distinct_rows(x, timesteps, context, y, transformer_options, prompts: Prompts) -> dict:
    """{(t, context's fingerprint): Row}: the batch's rows by what their features depend on, in any order of conditionings.

    By content, not by the prompt's uuid: where prompts have areas, the host gives negative parts the uuid of a positive one.
    Rows of a prompt that leaves the subject off are in none.
    """
    uuids = transformer_options["uuids"]
    chunk = x.shape[0] // len(uuids)
    times = timesteps.tolist()
    rows: dict = {}
    for row in range(x.shape[0]):
        if row % chunk == 0 or not same_prompt(context, y, row):
            own = unrepeated(context[row])
            of_row = None if y is None else y[row]
            mark = fingerprint(own, of_row)
        columns = prompts.columns(uuids[row // chunk], row % chunk)
        if columns is None:
            continue
        key = (times[row], mark, columns)
        if key not in rows:
            rows[key] = Row([], timesteps[row], own, of_row, list(columns))
        rows[key].rows.append(row)
    return rows


def same_prompt(context, y, row: int) -> bool:
    """Whether the row has the context of the row before it, as all rows of one prompt mostly do."""
    return torch.equal(context[row], context[row - 1]) and (y is None or torch.equal(y[row], y[row - 1]))


def unrepeated(context: Tensor) -> Tensor:
    """A prompt's own tokens [T, dim]: the host repeats shorter prompts to the length of those beside them in a batch."""
    chunks = context.shape[0] // TOKENS_PER_CHUNK
    for count in range(chunks, 1, -1):
        if context.shape[0] % count == 0:
            parts = context.unflatten(0, (count, -1))
            if torch.equal(parts, parts[:1].expand_as(parts)):
                return parts[0]
    return context


def fingerprint(*tensors: Tensor | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.digest()
