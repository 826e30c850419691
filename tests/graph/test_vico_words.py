"""The trigger word in the text encoders of every family, of the host's own classes behind its own tokenizers."""

import pytest
import torch

from vico_spin.nodes.vico.encoders import Columns, context_columns, differing, flat
from vico_spin.nodes.vico.prompts import PromptMemory, find_prompts
from vico_spin.nodes.vico.trigger import identity_of, make_trigger, start_words, with_trigger
from vico_spin.scripts.text_encoders import KINDS, text_encoder

SD1 = "sd1"


@pytest.fixture(scope="module", params=[SD1, *KINDS])
def clip(request, host):
    from vico_spin.scripts import models

    return models.clip() if request.param == SD1 else text_encoder(request.param)


def encode(clip, text, **edits):
    """The prompt as CLIPTextEncode has it encoded."""
    with torch.inference_mode():
        ((cond, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(text) | edits)
    return {"cross_attn": cond, **extra}


def learnt(clip, word="*", vectors=None, spoken=""):
    """A trigger and the CLIP that knows it; its vectors are those of "dog", or given."""
    vectors = start_words(clip, "dog") if vectors is None else vectors
    trigger = make_trigger(clip, identity_of(word, vectors), word, vectors, spoken)
    return trigger, with_trigger(clip, trigger)


def random_vectors(clip, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {e: torch.randn(v.shape, generator=generator) * v.std() for e, v in start_words(clip, "dog").items()}


@pytest.mark.parametrize("prompt", ["a photo of a {}, red", "a {}", "a ({}:1.3) and a {}", "one\n{}\nred"])
def test_a_vector_reads_as_the_token_that_it_was_taken_from(clip, prompt):
    """The word's place, its scale (Gemma's embeddings are scaled) and everything around it: the prompt of `dog` itself."""
    from vico_spin.vico_core import isolate

    _, knows = learnt(clip, spoken="dog")
    got, expected = encode(knows, prompt.format("*", "*")), encode(clip, isolate(prompt.format("*", "*"), "*", "dog"))
    for name, tensor in expected.items():
        if torch.is_tensor(tensor):
            assert torch.allclose(got[name].float(), tensor.float(), atol=1e-5), name


@pytest.mark.parametrize("word", ["*", "sks", "<toy>"])
@pytest.mark.parametrize("prompt", ["a photo of a {} on the beach", "{} and a small {}", "({}:1.3), red"])
def test_the_words_columns_are_where_another_word_would_change_the_context(clip, word, prompt):
    """Of two vectors for one word the contexts differ at its columns, and in an encoder that looks back only, nowhere before."""
    vectors = random_vectors(clip)
    trigger, knows = learnt(clip, word, vectors)
    _, other = learnt(clip, word, random_vectors(clip, 1))
    text = prompt.format(word, word)
    cond = encode(knows, text)
    (columns,) = trigger.memory.find(cond)
    if "t5xxl_ids" in cond:
        tokens = clip.tokenizer.t5xxl.tokenize_with_weights
        rows = [flat(tokens(prompt.format(w, w).replace("(", "( "))) for w in ("dog", "cat")]
        count = len(flat(knows.tokenize(text)["t5xxl"])) - len(rows[0])
        assert len(columns.trigger) == len(differing(*rows)) + count and columns.trigger[0] == min(differing(*rows))
        return
    change = (cond["cross_attn"] - encode(other, text)["cross_attn"])[0].norm(dim=-1)
    assert len(columns.trigger) >= prompt.count("{}")
    parts = (
        [range(77), range(77, len(change))]
        if {"l", "t5xxl"} <= set(vectors) and len(change) == 154
        else [range(len(change))]
    )
    for part in parts:
        assert all(change[i] > 0.5 * change[list(part)].max() for i in columns.trigger if i in part)
    if not {"t5xxl", "umt5xxl"} & set(vectors):
        assert columns.trigger[0] == change.nonzero()[0], "the first row that changed"


def test_a_word_in_upper_case_weighted_or_beside_punctuation_is_the_same(clip):
    trigger, knows = learnt(clip, "sks", random_vectors(clip))
    for text in ("a SKS", "a sks, red", "photo_of_sks", "(Sks:1.2)"):
        (columns,) = trigger.memory.find(encode(knows, text))
        assert columns.trigger, text
    for text in ("mollusks", "flasks and sks2", "a dog"):
        (columns,) = trigger.memory.find(encode(knows, text))
        assert not columns.trigger, text


@pytest.mark.parametrize("text", ["4*4", "sh*t happens", "**bold** text"])
def test_text_that_happens_to_hold_the_word_reads_as_without_it(clip, text):
    _, knows = learnt(clip)
    assert torch.equal(encode(knows, text)["cross_attn"], encode(clip, text)["cross_attn"])


def test_joined_prompts_have_the_columns_of_the_joined_tensor(call, clip):
    trigger, knows = learnt(clip, vectors=random_vectors(clip))
    parts = [encode(knows, text) for text in ("a red sky over a small blue house", "a photo of a *")]
    for part in parts:
        part.pop("t5xxl_ids", None)  # Anima's own test is below
    sky, toy = ([[part["cross_attn"], {"pooled_output": part.get("pooled_output")}]] for part in parts)
    (own,) = trigger.memory.find(parts[1])
    (joined,) = call("ConditioningConcat", conditioning_to=sky, conditioning_from=toy)
    (columns,) = trigger.memory.find({"cross_attn": joined[0][0]})
    assert columns.trigger == tuple(i + sky[0][0].shape[1] for i in own.trigger)
    (mixed,) = call("ConditioningAverage", conditioning_to=sky, conditioning_from=toy, conditioning_to_strength=0.6)
    (columns,) = trigger.memory.find({"cross_attn": mixed[0][0]})
    assert columns.trigger == own.trigger


def test_an_average_is_found_after_many_other_prompts_with_the_word():
    memory, generator = PromptMemory(), torch.Generator().manual_seed(0)
    prompts = [torch.randn(1, 77, 64, generator=generator) for _ in range(60)]
    for prompt in prompts:
        memory.remember(prompt, Columns((5,), 9))
    (mixed,) = memory.find({"cross_attn": 0.4 * prompts[-1] + 0.6 * prompts[-2]})
    assert mixed.trigger == (5,)
    (other,) = memory.find({"cross_attn": torch.randn(1, 77, 64, generator=generator)})
    assert other is None


def test_joined_prompts_of_anima_have_the_columns_of_the_first(call, host):
    """Its context has a row for each T5 token, and the host joins everything but those."""
    clip = text_encoder("anima")
    trigger, knows = learnt(clip, vectors=random_vectors(clip))
    toy, sky = ({**encode(knows, text)} for text in ("a photo of a *", "a red sky"))
    first, second = ([[cond.pop("cross_attn"), cond]] for cond in (toy, sky))
    for order, expected in (((first, second), True), ((second, first), False)):
        ((joined, extra),) = call("ConditioningConcat", conditioning_to=order[0], conditioning_from=order[1])[0]
        found = trigger.memory.find({"cross_attn": joined, **extra})
        assert bool(found[0].trigger) == expected


def test_another_text_in_each_encoder_gives_the_union(host):
    """CLIPTextEncodeSDXL: text_g and text_l share their rows."""
    clip = text_encoder("sdxl")
    trigger, knows = learnt(clip)
    tokens = knows.tokenize("a *") | {"l": knows.tokenize("a photo of a *")["l"]}
    with torch.inference_mode():
        cond = knows.encode_from_tokens(tokens)
    assert trigger.memory.find({"cross_attn": cond})[0].trigger == (2, 5)


def test_a_text_in_an_encoder_that_gives_no_rows_has_no_columns(host):
    """CLIPTextEncodeFlux: CLIP is pooled, the rows are T5's."""
    clip = text_encoder("flux")
    trigger, knows = learnt(clip)
    tokens = knows.tokenize("a dog") | {"l": knows.tokenize("a photo of a *")["l"]}
    with torch.inference_mode():
        cond = knows.encode_from_tokens(tokens)
    assert trigger.memory.find({"cross_attn": cond})[0].trigger == ()


def test_padding_on_the_left_and_a_stripped_template_shift_the_columns():
    """Tokens in minus rows out: 2 rows of a template of 3 tokens are gone; Mistral pads on the left."""
    import comfy.sd1_clip

    class Llm(comfy.sd1_clip.SDClipModel):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.special_tokens = {"start": 1, "pad": 11}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mistral = Llm()

    tokens = {"mistral": [[(i, 1.0) for i in (11, 11, 1, 500, 501, 502)]]}
    columns = context_columns(Model(), tokens, 4, lambda token: token == 501)
    assert columns.trigger == (2,) and columns.end_of_text == 3


def test_a_textual_inversion_in_the_prompt_and_its_name_stay_whole(host, tmp_path):
    """`embedding:my*style` beside the word: its vectors and the word's column, and no comparison of vectors."""
    from vico_spin.scripts import models

    clip = models.clip()
    clip.tokenizer.clip_l.embedding_directory, clip.tokenizer.clip_l.embedding_size = str(tmp_path), 40
    torch.save({"string_to_param": {"*": torch.randn(2, 40)}}, tmp_path / "my*style.pt")
    trigger, knows = learnt(clip, vectors=random_vectors(clip))
    (columns,) = trigger.memory.find(encode(knows, "embedding:my*style a *, (embedding:my*style:1.2)"))
    assert columns.trigger == (4,)
    assert trigger.memory.find(encode(knows, "embedding:my*style a dog"))[0].trigger == ()


def test_the_message_names_the_true_cause(host):
    clip = text_encoder("z-image")
    trigger, knows = learnt(clip)

    def asked(cond):
        return find_prompts({"positive": [cond | {"uuid": 1}], "negative": []}, trigger, [])

    with pytest.raises(ValueError, match='No prompt contains the trigger word "\\*"'):
        asked(encode(knows, "a dog"))
    with pytest.raises(ValueError, match="Another CLIP encoded it"):
        asked(encode(clip, "a *"))
    zeros = encode(knows, "a *")
    with pytest.raises(ValueError, match="is zeroed out"):
        asked(zeros | {"cross_attn": torch.zeros_like(zeros["cross_attn"])})
    assert asked(encode(knows, "a *")).columns(1, 0)


def test_a_memory_that_is_full_forgets_the_oldest_prompt(host):
    from vico_spin.nodes.vico.encoders import Columns

    memory = PromptMemory()
    contexts = [torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(i)) for i in range(257)]
    for context in contexts:
        memory.remember(context, Columns((2,), 7))
    assert memory.find({"cross_attn": contexts[0]}) == [None]
    assert memory.find({"cross_attn": contexts[1]}) == [Columns((2,), 7)]


def test_a_clip_that_knows_the_word_survives_copying_and_pickling(host):
    """Other packs and newer hosts copy what they are given: a proxy answers for no special method before it is whole."""
    import copy
    import pickle

    from vico_spin.scripts import models

    clip = models.clip()
    _, knows = learnt(clip, vectors=random_vectors(clip))
    for copied in (copy.deepcopy(knows.tokenizer), pickle.loads(pickle.dumps(knows.tokenizer))):
        tokens = flat(copied.tokenize_with_weights("a *")["l"])
        assert isinstance(tokens[2], dict) and torch.equal(tokens[2]["data"], knows.tokenizer.trigger.vectors["l"])
    again = copy.deepcopy(knows.cond_stage_model)
    assert again.trigger.identity == knows.cond_stage_model.trigger.identity
