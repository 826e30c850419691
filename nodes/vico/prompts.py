"""Where the trigger word stands in a sampling's prompts, told by what their tensors hold.

A conditioning's dict is lost on the way (joined, averaged, rebuilt by other nodes); the rows that the word became are not.
"""

import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoders import Columns

KEPT = 256  # encoded prompts whose rows of the word are remembered
WHOLE_BYTES = 64 * 2**20  # of all rows of the newest of them
SAME = (
    3e-3  # a row counts as another's multiple where this share of it, or less, is left over (bfloat16's rounding: 0.1%)
)
CHUNK = 77  # rows: joined prompts of CLIP are shifted by whole chunks
MIXED = 2e-2  # what share of a mixed row must be the word's


@dataclass
class Encoded:
    """One prompt as it was encoded.

    columns: positions in this tensor; word [N, dim], end [1, dim]: its rows of the trigger word and of the end of text, unit
    length; whole [T, dim]: all its rows, in half precision, or None where newer prompts needed the room; queries: where a
    context has other rows (Anima), those.
    """

    columns: Columns
    word: Tensor
    end: Tensor
    whole: Tensor | None
    queries: "Queries | None" = None


@dataclass(frozen=True)
class Queries:
    """Anima's context: a row for each of T5's ids, whatever its text encoder reads; and the columns there."""

    ids: tuple[int, ...]
    columns: Columns


@dataclass
class PromptMemory:
    """What the CLIPs of one word have encoded. All Applies of a word share it, and it lives as long as one of them."""

    encoded: deque[Encoded] = field(default_factory=lambda: deque(maxlen=KEPT))

    def remember(self, cond: Tensor, columns: Columns, queries: Queries | None = None) -> None:
        """cond: [1, T, dim] as an encoder gives it; columns: positions in it."""
        word, end = (unit(cond[0, list(where)]) for where in (columns.trigger, [columns.end_of_text]))
        self.encoded.append(Encoded(columns, word, end, unit(cond[0]).half(), queries))
        held = 0
        for encoded in reversed(self.encoded):
            held += 0 if encoded.whole is None else encoded.whole.nbytes
            if held > WHOLE_BYTES:
                encoded.whole = None

    def find(self, cond: dict) -> list[Columns | None]:
        """The columns of each prompt in the host's conditioning; None for one that holds nothing of what was encoded."""
        context = cond.get("cross_attn")
        if context is None:
            return [None]
        known = [e for e in self.encoded if e.word.shape[-1] == context.shape[-1]]
        if not known:
            return [None] * context.shape[0]
        if "t5xxl_ids" in cond:
            return [find_queries(cond["t5xxl_ids"], unit(row), known) for row in context]
        return [find_rows(unit(row), known) for row in context]


MEMORIES: weakref.WeakValueDictionary[str, PromptMemory] = weakref.WeakValueDictionary()


def memory_of(identity: str) -> PromptMemory:
    """The memory that all Applies of one word share."""
    return MEMORIES.setdefault(identity, PromptMemory())


def find_rows(rows: Tensor, known: list[Encoded]) -> Columns | None:
    trigger = positions(rows, [e.word for e in known]) or mixed_positions(rows, known)
    ends = positions(rows, [e.end for e in known])
    return Columns(tuple(trigger), ends[0] if ends else trigger[-1]) if trigger or ends else None


def find_queries(ids: Tensor, rows: Tensor, known: list[Encoded]) -> Columns | None:
    """By T5's ids; where they fit several prompts, by the end of the text too."""
    fitting = [e for e in known if e.queries and e.queries.ids == tuple(ids.flatten().tolist())]
    fitting = [e for e in fitting if positions(rows, [e.end])] or fitting
    return fitting[-1].queries.columns if fitting else None


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.detach().float().cpu(), dim=-1)


def positions(rows: Tensor, wanted: list[Tensor]) -> list[int]:
    """Positions of the rows [T, dim] that are a multiple of a wanted one."""
    return parallel(rows, torch.cat(wanted)).any(-1).nonzero().flatten().tolist()


def parallel(rows: Tensor, others: Tensor) -> Tensor:
    """bool [T, N]: which rows [T, dim] are a multiple of which others [N, dim], both of unit length."""
    return (rows @ others.T) ** 2 >= 1 - SAME**2


def mixed_positions(rows: Tensor, known: list[Encoded]) -> list[int]:
    """Positions of the rows that are the word's mixed with rows of other prompts at the same place (averaged prompts)."""
    wholes = [e.whole.float() for e in known if e.whole is not None]
    found = set()
    for column in {column for e in known for column in e.columns.trigger}:
        places = range(column, rows.shape[0], CHUNK) if rows.shape[0] % CHUNK == 0 else [column]
        others = [whole[place] for whole in wholes for place in places if place < whole.shape[0]]
        places = [place for place in places if place < rows.shape[0]]
        if others and places:
            others = unit(torch.stack(others))
            # A prompt's row as it was encoded is no mixture: so most searches end here.
            places = [p for p, own in zip(places, parallel(rows[places], others).any(1), strict=True) if not own]
            words = [word for e in known for word, at in zip(e.word, e.columns.trigger, strict=True) if at == column]
            found.update(place for place in places if mixes(rows[place], torch.stack(words), others))
    return sorted(found)


def mixes(row: Tensor, words: Tensor, others: Tensor) -> bool:
    """Whether a row [dim] is made of the newest others [P, dim], few beside dim, with a part of a word's among them [N, dim].

    Of independent rows, what a row has of one is its product with that one's dual, which is at right angles to the rest.
    """
    newest = torch.cat([words, others])[-row.shape[0] // 4 :]  # words that are not among the others come as the oldest
    twice = parallel(newest, newest).triu(diagonal=1).any(1)  # of equals, the last stays
    basis = newest[~twice]
    _, sizes, across = torch.linalg.svd(basis, full_matrices=False)
    across = across[sizes > SAME * sizes.amax()]
    duals = unit(torch.linalg.pinv(basis, rtol=SAME).T)
    shares = (duals @ row)[parallel(basis, words).any(1)]
    return bool((shares.abs() > MIXED).any() and (across @ row).square().sum() >= 1 - SAME**2)


@dataclass(frozen=True)
class Prompts:
    """The columns by which each prompt of a sampling makes its object mask.

    rows: {a conditioning's uuid: a tuple of columns for each prompt in it, None where the subject is left off}; default: the
    same for conditionings that a guidance node brings in later.
    """

    rows: dict
    default: list[tuple[int, ...]]

    def columns(self, uuid, row: int) -> tuple[int, ...] | None:
        """Of the row-th picture that is drawn by a conditioning; the host repeats a conditioning's prompts over a batch."""
        own = self.rows.get(uuid, self.default)
        return own[row % len(own)]


def find_prompts(conds: dict[str, list[dict]], trigger, others: Iterable) -> Prompts | None:
    """The columns of a guider's named conditionings. others: triggers of further subjects on the model.

    A prompt with the word has its own columns. A negative prompt takes those of the positive one, as the original does; a
    positive part without the word takes its end of text, and leaves the subject off where it names another one. None where
    the prompts name other subjects only. Raises: ValueError with the true cause where no positive prompt has the word.
    """
    own = {c["uuid"]: trigger.memory.find(c) for name in conds for c in conds[name]}
    positive = [c for name in conds if "negative" not in name for c in conds[name]]
    words = [[r.trigger if r else () for r in own[c["uuid"]]] for c in positive]
    first = next((rows for rows in words if any(rows)), [])
    prompt = [columns or next(filter(None, first)) for columns in first]  # of the first conditioning that has the word
    named = {c["uuid"]: names_another(others, c, len(own[c["uuid"]])) for c in positive}
    if not prompt and any(any(rows) for rows in named.values()):
        return None
    if not prompt:
        raise ValueError(why_missing(trigger.word, positive, own))
    rows = {uuid: of_negative(found, prompt) for uuid, found in own.items()}
    for uuid, another in named.items():
        rows[uuid] = [of_positive(r, prompt[0], a) for r, a in zip(own[uuid], another, strict=True)]
    return Prompts(rows, prompt)


def names_another(others: Iterable, cond: dict, count: int) -> list[bool]:
    """Of each of the `count` prompts in a conditioning, whether it has the word of another subject."""
    found = [other.memory.find(cond) for other in others]
    return [any(rows[i] is not None and rows[i].trigger for rows in found) for i in range(count)]


def of_negative(own: list[Columns | None], prompt: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each prompt's own columns; those of the positive prompt beside it where it has none."""
    words = [row.trigger if row else () for row in own]
    return [words[i % len(words)] or prompt[i % len(prompt)] for i in range(max(len(words), len(prompt)))]


def of_positive(own: Columns | None, prompt: tuple[int, ...], names_another: bool) -> tuple[int, ...] | None:
    if own is not None and own.trigger:
        return own.trigger
    if names_another:
        return None
    return prompt if own is None else (own.end_of_text,)


def why_missing(word: str, positive: list[dict], own: dict) -> str:
    """The sentence that a user needs who sees no positive prompt with the word."""
    tensors = [c["cross_attn"] for c in positive if "cross_attn" in c]
    if tensors and not any(tensor.any() for tensor in tensors):
        return f'Connect the positive prompt itself.\nIt is zeroed out, so the trigger word "{word}" is not in it.'
    if any(r is not None for c in positive for r in own[c["uuid"]]):
        return (
            f'Write "{word}" where the object should appear.\n'
            f'No prompt contains the trigger word "{word}" of this ViCo concept.'
        )
    return (
        "Encode the prompt with the CLIP that Apply ViCo returns.\n"
        f'Another CLIP encoded it, or a node after it changed it beyond recognition (trigger word "{word}").'
    )
