"""The placeholder: the word of the prompt that stands for the object, its token positions and its learnt vector."""

import re
from collections.abc import Callable

from torch import Tensor


def pattern(placeholder: str) -> re.Pattern:
    """The placeholder as a word of its own: `*` in "a * on" and "(*:1.2)", not in "2*3"."""
    return re.compile(rf"(?<!\w){re.escape(placeholder)}(?!\w)")


def isolate(prompt: str, placeholder: str) -> str:
    """Puts spaces around the placeholder, so that punctuation beside it does not melt into one token with it ("*," -> "* ,")."""
    return pattern(placeholder).sub(lambda found: f" {found[0]} ", prompt)


def find_columns(ids: list[int], token: int) -> list[int]:
    """Positions of `token` in a chunk's ids; a placeholder that stands twice has two."""
    return [position for position, found in enumerate(ids) if found == token]


def first_end_of_text(ids: list[int], end_of_text: int) -> int:
    """Position of the first end-of-text token, whose attention a prompt without the placeholder falls back on."""
    return ids.index(end_of_text)


def check_placeholder(placeholder: str, tokenize: Callable[[str], list[int]]) -> int:
    """The placeholder's token id. `tokenize`: text -> ids without start and end. ValueError where it is not one token."""
    ids = tokenize(placeholder)
    if len(ids) != 1:
        raise ValueError(
            'Choose a short placeholder, such as "*" or "sks".\n'
            f'The trigger word "{placeholder}" is split into {len(ids)} tokens by the tokenizer; it must be one.'
        )
    return ids[0]


def check_prompt(prompt: str, placeholder: str) -> None:
    """ValueError where the prompt lacks the placeholder; asked before minutes of sampling."""
    if not pattern(placeholder).search(prompt):
        raise ValueError(
            f'Write "{placeholder}" where the object should appear.\n'
            f'The prompt "{prompt}" does not contain the trigger word "{placeholder}".'
        )


def embed_placeholder(embedded: Tensor, ids: Tensor, token: int, vector: Tensor) -> Tensor:
    """Replaces the placeholder's rows of embedded tokens [B, T, dim] by `vector` [1, dim], before positions are added.

    ids: [B, T]. Differentiable in `vector` (ViCo §3.3 trains it).
    """
    return embedded.where((ids != token)[..., None], vector.to(embedded.dtype))
