"""The CLIP that Apply ViCo returns: the trigger word becomes its learnt vector, and what it encodes remembers where that stood."""

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from ...vico_core import first_end_of_text, isolate
from ...vico_core.placeholder import check_placeholder

COLUMNS = "vico_columns"  # in a CONDITIONING's dict: {subject: Columns}
END_OF_TEXT = 49407  # CLIP's, in every text encoder of the SD family


@dataclass(frozen=True)
class Columns:
    """Token positions in an encoded prompt: of the trigger word (none, one or several) and of the first end of text."""

    trigger: tuple[int, ...]
    end_of_text: int


@dataclass(frozen=True)
class Trigger:
    """subject: unique key of one Apply; tokens: {encoder: the word's id}; vectors: {encoder: [1, width]}."""

    subject: str
    word: str
    tokens: dict[str, int]
    vectors: dict[str, Tensor]

    def vector_token(self, encoder: str) -> dict:
        """The host's form of a token that is a vector already; `vico` lets us find it again."""
        return {"type": "embedding", "data": self.vectors[encoder], "vico": self.subject}


def plain_ids(clip, text: str) -> dict[str, list[int]]:
    """{encoder: ids of the text's first chunk, without start and end}."""
    found = {}
    for encoder, chunks in clip.tokenize(text).items():
        ids = [token for token, *_ in chunks[0]]
        found[encoder] = ids[1 : ids.index(END_OF_TEXT)]
    return found


def make_trigger(clip, subject: str, word: str, embeddings: dict[str, Tensor]) -> Trigger:
    """Checks that the word is one token of every encoder, that no other subject has it, and that the vectors fit."""
    encoders = list(clip.tokenize(word))
    if set(encoders) != set(embeddings):
        raise ValueError(
            f"The concept's word was learnt for the text encoder {', '.join(embeddings)}; this CLIP has {', '.join(encoders)}. "
            "Use the checkpoint (or one of its family) that the concept was trained on."
        )
    if any(isinstance(token, dict) for chunks in clip.tokenize(word).values() for token, *_ in chunks[0]):
        raise ValueError(
            f'Another concept already answers to "{word}" here. Give this one another trigger word (an input of Apply ViCo).'
        )
    for encoder, vector in embeddings.items():
        check_width(clip, encoder, vector)
    tokens = {
        encoder: check_placeholder(word, lambda text, e=encoder: plain_ids(clip, text)[e]) for encoder in encoders
    }
    return Trigger(subject, word, tokens, embeddings)


def check_width(clip, encoder: str, vector: Tensor) -> None:
    model = getattr(clip.cond_stage_model, f"clip_{encoder}", clip.cond_stage_model)
    width = model.transformer.get_input_embeddings().weight.shape[1]
    if vector.shape[1] != width:
        raise ValueError(
            f"The concept's word has {vector.shape[1]} numbers; this CLIP's tokens have {width}. Use the checkpoint (or one of its "
            "family) that the concept was trained on."
        )


class TriggerTokenizer:
    """The host's tokenizer, with the trigger word's token replaced by its vector; weights and 77-token chunks stay as they are."""

    def __init__(self, tokenizer, trigger: Trigger):
        self.tokenizer = tokenizer
        self.trigger = trigger

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        tokens = self.tokenizer.tokenize_with_weights(isolate(text, self.trigger.word), return_word_ids, **kwargs)
        return {
            encoder: [[self.replace(encoder, t) for t in chunk] for chunk in chunks]
            for encoder, chunks in tokens.items()
        }

    def replace(self, encoder, token):
        if token[0] != self.trigger.tokens.get(encoder):
            return token
        return (self.trigger.vector_token(encoder), *token[1:])


class TriggerEncoder:
    """The host's text encoder, whose output also tells where the trigger word stood."""

    def __init__(self, model, trigger: Trigger):
        self.model = model
        self.trigger = trigger

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode_token_weights(self, tokens):
        cond, pooled, *rest = self.model.encode_token_weights(tokens)
        extra = dict(rest[0]) if rest else {}
        extra[COLUMNS] = extra.get(COLUMNS, {}) | {self.trigger.subject: find_trigger(tokens, self.trigger.subject)}
        return cond, pooled, extra


def find_trigger(tokens: dict, subject: str) -> Columns:
    """Positions over all chunks; the encoders of one prompt share them."""
    row = [token for chunk in next(iter(tokens.values())) for token, *_ in chunk]
    trigger = tuple(i for i, token in enumerate(row) if isinstance(token, dict) and token.get("vico") == subject)
    return Columns(trigger, first_end_of_text(row, END_OF_TEXT))


def with_trigger(clip, trigger: Trigger):
    """A clone of the CLIP that knows the word."""
    clip = clip.clone()
    clip.tokenizer = TriggerTokenizer(clip.tokenizer, trigger)
    clip.cond_stage_model = TriggerEncoder(clip.cond_stage_model, trigger)
    return clip


def columns_of_prompts(conds: dict[str, list[dict]], trigger: Trigger) -> dict:
    """{a prompt's uuid: the token positions whose attention makes its object mask}, from a guider's named conditionings.

    A prompt with the trigger word has its own. A negative prompt takes those of the positive one, as the original does; a
    positive part without the word takes its end of text. ValueError where no positive prompt has the word.
    """
    own = {c["uuid"]: c.get(COLUMNS, {}).get(trigger.subject) for name in conds for c in conds[name]}
    positive = [c["uuid"] for name in conds if "negative" not in name for c in conds[name]]
    prompt = next((own[u].trigger for u in positive if own[u] and own[u].trigger), None)
    if prompt is None:
        raise ValueError(
            f'No prompt contains the trigger word "{trigger.word}" of this ViCo concept. Write it where the object should appear, '
            f'for example "a photo of a {trigger.word} on the beach", and encode the prompt with the CLIP that Apply ViCo returns.'
        )
    fallback = {u: (own[u].end_of_text,) for u in positive if own[u]}
    found = {u: (columns.trigger if columns else ()) or fallback.get(u, prompt) for u, columns in own.items()}
    return defaultdict(lambda: prompt, found)  # a guidance node may bring conditionings of its own
