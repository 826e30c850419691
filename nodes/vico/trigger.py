"""The CLIP that Apply ViCo returns: the trigger word becomes its learnt vector, and what it encodes is remembered."""

import hashlib
from dataclasses import dataclass, field

from torch import Tensor

from ...vico_core import isolate
from ...vico_core.placeholder import check_placeholder, names
from .encoders import (
    CLIPS,
    SLOTS,
    Columns,
    context_columns,
    differing,
    flat,
    reading,
    text_model,
    token_vectors,
    word_ids,
)
from .prompts import PromptMemory, Queries, memory_of


class WordId(int):
    """An id of the trigger word for an encoder that takes integers alone (Anima's T5)."""

    vico: str


@dataclass(frozen=True)
class Trigger:
    """A word that stands for an object.

    identity: equal for all Applies of one concept's word; vectors: {encoder: [1, width]}; ids: {encoder without a vector: what
    it reads for the word}.
    """

    identity: str
    word: str
    vectors: dict[str, Tensor]
    ids: dict[str, list[int]] = field(default_factory=dict)
    memory: PromptMemory = field(default_factory=PromptMemory)

    def tokens(self, encoder: str) -> list:
        """What stands for the word in the host's tokens: its vector, in the host's form, or its ids."""
        if encoder in self.vectors:
            return [{"type": "embedding", "data": self.vectors[encoder], "vico": self.identity}]
        return [self.marked(number) for number in self.ids[encoder]]

    def marked(self, number: int) -> WordId:
        marked = WordId(number)
        marked.vico = self.identity
        return marked

    def is_word(self, token) -> bool:
        return owner(token) == self.identity


def owner(token) -> str | None:
    """The identity of the trigger word that a token stands for."""
    return token.get("vico") if isinstance(token, dict) else getattr(token, "vico", None)


def identity_of(word: str, vectors: dict[str, Tensor]) -> str:
    """Equal for equal words with equal vectors, whichever node or file they come from."""
    digest = hashlib.blake2b(word.casefold().encode(), digest_size=16)
    for encoder in sorted(vectors):
        digest.update(encoder.encode() + vectors[encoder].detach().float().cpu().numpy().tobytes())
    return f"vico-{digest.hexdigest()}"


def make_trigger(clip, identity: str, word: str, vectors: dict[str, Tensor], spoken: str = "") -> Trigger:
    """Checks that the word is one, that the vectors fit this CLIP, and that no other concept has the word.

    spoken: the word that an encoder without a vector reads; the trigger word itself where none is given.
    """
    check_placeholder(word)
    tokens = clip.tokenize(word)
    readers = reading(clip, tokens)
    if not set(readers) <= set(vectors):
        raise ValueError(
            "Use the checkpoint of the concept, or one of its family.\n"
            f"Its word was learnt for the text encoder {', '.join(vectors)}; this CLIP has {', '.join(readers)}."
        )
    if {owner(token) for chunks in tokens.values() for token in flat(chunks)} - {None, identity}:
        raise ValueError(
            f'Write another trigger word for this concept.\nAnother concept already answers to "{word}" here.'
        )
    for encoder in readers:
        check_width(clip, encoder, vectors[encoder])
    ids = {e: word_ids(clip, e, spoken or word) for e in tokens if e not in readers and e not in CLIPS}
    return Trigger(identity, word, {e: vectors[e] for e in readers}, ids, memory_of(identity))


def check_width(clip, encoder: str, vector: Tensor) -> None:
    width = text_model(clip.cond_stage_model, encoder).transformer.get_input_embeddings().weight.shape[1]
    if vector.shape[1] != width:
        raise ValueError(
            "Use the checkpoint of the concept, or one of its family.\n"
            f"The concept's word has {vector.shape[1]} numbers; this CLIP's tokens have {width}."
        )


def start_words(clip, initialiser: str) -> dict[str, Tensor]:
    """{text encoder: [1, width]}: the vector of a word that the model knows; the mean of its tokens where an encoder splits it.

    ValueError where every encoder splits it.
    """
    word = initialiser.strip()
    ids = {encoder: word_ids(clip, encoder, word) for encoder in reading(clip, clip.tokenize(word))}
    shortest = min(map(len, ids.values()))
    if shortest != 1:
        raise ValueError(
            'Choose one everyday word, such as "toy", "dog" or "cup".\n'
            f'The initialiser "{initialiser}" is {shortest} tokens to the tokenizer; it must be one.'
        )
    return {encoder: token_vectors(clip, encoder, ids[encoder]).mean(0, keepdim=True) for encoder in ids}


class TriggerTokenizer:
    """The host's tokenizer, with the trigger word's vector where the word stands; weights, chunks and templates stay as they are."""

    def __init__(self, tokenizer, trigger: Trigger):
        self.tokenizer = tokenizer
        self.trigger = trigger

    def __getattr__(self, name):
        if name.startswith("__"):  # copying and pickling ask before __init__ has run
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        word = self.trigger.word
        if not names(text, word):
            return self.tokenizer.tokenize_with_weights(text, return_word_ids, **kwargs)
        slotted, other = (
            self.tokenizer.tokenize_with_weights(isolate(text, word, slot), return_word_ids, **kwargs) for slot in SLOTS
        )
        return {
            encoder: [self.placed(encoder, *pair) for pair in zip(chunks, other[encoder], strict=True)]
            for encoder, chunks in slotted.items()
        }

    def placed(self, encoder: str, chunk: list, other: list) -> list:
        """A chunk with the word's tokens where it differs from the same one with another word there."""
        if encoder not in self.trigger.vectors and encoder not in self.trigger.ids:
            return chunk
        at = differing([token for token, *_ in chunk], [token for token, *_ in other])
        tokens = self.trigger.tokens(encoder) if at else []
        return [p for i, t in enumerate(chunk) for p in ([(token, *t[1:]) for token in tokens] if i in at else [t])]


class TriggerEncoder:
    """The host's text encoder, which remembers where in its output the trigger word stands."""

    def __init__(self, model, trigger: Trigger):
        self.model = model
        self.trigger = trigger

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.model, name)

    def encode_token_weights(self, tokens, *args, **kwargs):
        encoded = self.model.encode_token_weights(tokens, *args, **kwargs)
        columns = context_columns(self.model, tokens, encoded[0].shape[1], self.trigger.is_word)
        self.trigger.memory.remember(encoded[0], columns, queries_of(tokens, encoded, self.trigger))
        return encoded


def queries_of(tokens: dict, encoded: tuple, trigger: Trigger) -> Queries | None:
    """T5's ids, where the encoder gives them to the model beside its rows (Anima)."""
    if len(encoded) < 3 or "t5xxl_ids" not in encoded[2]:
        return None
    row = flat(tokens["t5xxl"])
    word = tuple(i for i, token in enumerate(row) if trigger.is_word(token))
    return Queries(tuple(row), Columns(word, len(row) - 1))


def columns_of(clip_model, tokens: dict, encoded: tuple, trigger: Trigger) -> Columns:
    """Where the word stands in the context that the diffusion model receives of tokens as they were encoded."""
    if queries := queries_of(tokens, encoded, trigger):
        return queries.columns
    return context_columns(clip_model, tokens, encoded[0].shape[1], trigger.is_word)


def with_word(clip, trigger: Trigger):
    """A clone of the CLIP that reads the trigger word as its vector."""
    clip = clip.clone()
    clip.tokenizer = TriggerTokenizer(clip.tokenizer, trigger)
    return clip


def with_trigger(clip, trigger: Trigger):
    """A clone of the CLIP that knows the word, and whose prompts the sampler finds it in. The CLIP itself where it knows it."""
    if any(trigger.is_word(token) for chunks in clip.tokenize(trigger.word).values() for token in flat(chunks)):
        return clip
    clip = with_word(clip, trigger)
    clip.cond_stage_model = TriggerEncoder(clip.cond_stage_model, trigger)
    return clip
