"""A CLIP's text encoders, whatever their kind: which of them read, how they split a word, and which row of the context a token becomes."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import comfy.sd1_clip
import torch
from torch import Tensor

CLIPS = ("l", "g", "h")  # the host's names of CLIP's text encoders, whose rows stand side by side in a context
SLOTS = ("dog", "cat")  # two words that every tokenizer has whole: where they make a difference, a word's token stands


@dataclass(frozen=True)
class Columns:
    """Token positions in a context: of the trigger word (none, one or several) and of the end of text.

    end_of_text: of an encoder without such a token (Qwen, Gemma, Mistral), the last that is no padding.
    """

    trigger: tuple[int, ...]
    end_of_text: int


def text_model(clip_model, encoder: str) -> comfy.sd1_clip.SDClipModel | None:
    """The text model behind a name in the host's tokens; None where the CLIP tokenises for it and has no such model."""
    models = (getattr(clip_model, name, None) for name in (f"clip_{encoder}", encoder))
    return next((model for model in models if isinstance(model, comfy.sd1_clip.SDClipModel)), None)


def reading(clip, tokens: dict) -> list[str]:
    """The names in the host's tokens that have a text model."""
    return [encoder for encoder in tokens if text_model(clip.cond_stage_model, encoder)]


def flat(chunks: list) -> list:
    """The tokens of all chunks in a row: integers, and vectors in the host's forms."""
    return [token for chunk in chunks for token, *_ in chunk]


def differing(first: list, second: list) -> set[int]:
    """Positions at which two rows of tokens hold different integers. Vectors are never compared."""
    pairs = enumerate(zip(first, second, strict=True))
    return {i for i, (a, b) in pairs if isinstance(a, Integral) and isinstance(b, Integral) and a != b}


def word_ids(clip, encoder: str, word: str) -> list[int]:
    """The ids into which an encoder's tokenizer splits a word that stands behind another."""
    tokenizer = next(t for n in (f"clip_{encoder}", encoder) if (t := getattr(clip.tokenizer, n, None)))
    rows = [flat(tokenizer.tokenize_with_weights(f"a {text}")) for text in (*SLOTS, word)]
    start, after = min(differing(*rows[:2])), {tokenizer.end_token, tokenizer.pad_token}
    last = max((i for i, token in enumerate(rows[2]) if token not in after), default=0)
    return rows[2][start : last + 1]


def token_vectors(clip, encoder: str, ids: list[int]) -> Tensor:
    """What an encoder reads for these ids [N, width], in float32; scaled as the host scales them (Gemma)."""
    embeddings = text_model(clip.cond_stage_model, encoder).transformer.get_input_embeddings()
    return embeddings(torch.tensor(ids, device=embeddings.weight.device), out_dtype=torch.float32)


def context_columns(clip_model, tokens: dict, length: int, is_word: Callable) -> Columns:
    """Where the trigger word and the end of text stand in the context of `length` rows that is made of the tokens.

    CLIP's encoders share their rows (a word in one of them counts); beside another encoder they come first (SD3) or give
    no rows at all (Flux). Whatever is stripped or put in, such as a template or a picture, stands before the text.
    """
    rows = {encoder: flat(chunks) for encoder, chunks in tokens.items() if text_model(clip_model, encoder)}
    clips = [encoder for encoder in rows if encoder in CLIPS]
    shared = min((len(rows[encoder]) for encoder in clips), default=0)
    large = next((encoder for encoder in rows if encoder not in CLIPS), None)
    offset = length - len(rows[large]) if large else 0
    found = set()
    if clips and (large is None or offset == shared):
        found.update(i for encoder in clips for i, token in enumerate(rows[encoder][:shared]) if is_word(token))
    if large:
        found.update(i + offset for i, token in enumerate(rows[large]) if is_word(token))
    main = large or clips[0]
    end = offset + end_of_text(text_model(clip_model, main), rows[main])
    return Columns(tuple(sorted(i for i in found if 0 <= i < length)), end)


def end_of_text(model: comfy.sd1_clip.SDClipModel, row: list) -> int:
    """The first end-of-text token; where there is none, the last that is no padding."""
    end, padding = model.special_tokens.get("end"), model.special_tokens.get("pad")
    integers = [token if isinstance(token, Integral) else None for token in row]
    if end in integers:
        return integers.index(end)
    return max((i for i, token in enumerate(integers) if token != padding), default=0)
