"""The placeholder: the word of the prompt that stands for the object, its token positions and its learnt vector."""

import re

from torch import Tensor

# Letters and digits of scripts that put spaces between words: beside one of these a word does not stand alone.
LETTER = r"[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
EMBEDDING = r"embedding:[^\s,()<>\[\]]*"  # a textual inversion's name, as the host reads it out of a prompt


def pattern(placeholder: str) -> re.Pattern:
    """The placeholder (group 1) where it stands alone between spaces or punctuation, in any case.

    `*` in "a * on", "(*:1.2)" and "photo_of_*"; not in "2*3", "sh*t" or "**bold**", nor in the name of an `embedding:…`.
    """
    word = re.escape(placeholder)
    alone = rf"(?<!{LETTER})(?<!{word})({word})(?!{word})(?!{LETTER})"
    return re.compile(f"{EMBEDDING}|{alone}", re.IGNORECASE)


def names(prompt: str, placeholder: str) -> bool:
    """Whether the placeholder stands in the prompt."""
    return any(found[1] for found in pattern(placeholder).finditer(prompt))


def isolate(prompt: str, placeholder: str, written: str | None = None) -> str:
    """Puts a space on each side of the placeholder, so that nothing beside it melts into one token with it ("*," -> "* ,").

    written: another word to put in its place.
    """

    def spaced(found: re.Match) -> str:
        if not found[1]:
            return found[0]
        before = " " if prompt[: found.start()][-1:] not in ("", " ") else ""
        after = " " if prompt[found.end() :][:1] not in ("", " ") else ""
        return before + (written or found[0]) + after

    return pattern(placeholder).sub(spaced, prompt)


def find_columns(ids: list[int], token: int) -> list[int]:
    """Positions of `token` in a chunk's ids; a placeholder that stands twice has two."""
    return [position for position, found in enumerate(ids) if found == token]


def first_end_of_text(ids: list[int], end_of_text: int) -> int:
    """Position of the first end-of-text token, whose attention a prompt without the placeholder falls back on."""
    return ids.index(end_of_text)


def check_placeholder(placeholder: str) -> None:
    """ValueError where the placeholder is no single word."""
    if len(placeholder.split()) != 1:
        raise ValueError(
            'Choose one short word, such as "*" or "sks".\n'
            f'The trigger word "{placeholder}" is {len(placeholder.split())} words; it must be one.'
        )


def check_prompt(prompt: str, placeholder: str) -> None:
    """ValueError where the prompt lacks the placeholder; asked before minutes of sampling."""
    if not names(prompt, placeholder):
        raise ValueError(
            f'Write "{placeholder}" where the object should appear.\n'
            f'The prompt "{prompt}" does not contain the trigger word "{placeholder}".'
        )


def embed_placeholder(embedded: Tensor, ids: Tensor, token: int, vector: Tensor) -> Tensor:
    """Replaces the placeholder's rows of embedded tokens [B, T, dim] by `vector` [1, dim], before positions are added.

    ids: [B, T]. Differentiable in `vector` (ViCo §3.3 trains it).
    """
    return embedded.where((ids != token)[..., None], vector.to(embedded.dtype))
