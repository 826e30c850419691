"""Places, placeholder and the bank of reference features."""

import pytest
import torch

from vico_spin.vico_core import (
    FeatureBank,
    ImageAttention,
    Kept,
    check_prompt,
    column_attention,
    decoder_places,
    feature_bytes,
    gather_tokens,
    isolate,
    object_mask,
    paper_places,
    side_by_side,
)
from vico_spin.vico_core.placeholder import check_placeholder, names
from vico_spin.vico_core.reference import Arriving, in_system_memory


def keys(levels, depth=1):
    return [f"output_blocks.{n}.1.transformer_blocks.{d}.attn1.to_q.weight" for n in levels for d in range(depth)]


@pytest.mark.parametrize(
    ("levels", "depth", "expected"),
    [
        (
            range(3, 12),
            1,
            ["output_blocks.4.1", "output_blocks.6.1", "output_blocks.8.1", "output_blocks.10.1"],
        ),  # SD1.x, SD2.x
        (range(6), 10, ["output_blocks.1.1", "output_blocks.3.1", "output_blocks.5.1"]),  # SDXL
        (range(4), 1, ["output_blocks.1.1", "output_blocks.3.1"]),
        ([], 1, []),
    ],
)
def test_places_are_every_second_attention_block_of_the_decoder(levels, depth, expected):
    possible = decoder_places(["input_blocks.1.1.transformer_blocks.0.norm1.weight", *keys(levels, depth)])
    assert [place.name for place in possible] == [f"output_blocks.{level}.1" for level in levels]
    assert [place.name for place in paper_places(possible)] == expected
    assert all(place.block == f"{place.name}.transformer_blocks.{depth - 1}" for place in possible)


@pytest.mark.parametrize(
    ("prompt", "isolated"),
    [
        ("a photo of a *, on the beach", "a photo of a * , on the beach"),
        ("(*:1.2) and *", "( * :1.2) and *"),
        ("photo_of_*", "photo_of_ *"),
        ("a *-shaped cup", "a * -shaped cup"),
        ("一张*的照片", "一张 * 的照片"),
        ("* embedding:my*style, *", "* embedding:my*style, *"),
        ("2*3", "2*3"),
        ("sh*t", "sh*t"),
        ("**bold** and ***", "**bold** and ***"),
        ("no trigger", "no trigger"),
    ],
)
def test_the_placeholder_is_a_word_of_its_own(prompt, isolated):
    assert isolate(prompt, "*") == isolated


@pytest.mark.parametrize("prompt", ["a sks, red", "a SKS", "(Sks:1.3)", "photo_of_sks"])
def test_a_word_is_found_in_any_case_between_spaces_and_punctuation(prompt):
    assert names(prompt, "sks")


@pytest.mark.parametrize("prompt", ["flasks", "sks2", "embedding:sks", "embedding:sks_style and embedding:my-sks"])
def test_a_word_is_not_found_inside_another_or_in_an_embeddings_name(prompt):
    assert not names(prompt, "sks")


def test_a_prompt_without_the_placeholder_gets_a_sentence():
    with pytest.raises(ValueError, match='does not contain the trigger word "\\*"'):
        check_prompt("a photo of a dog", "*")
    check_prompt("a photo of a *", "*")


@pytest.mark.parametrize("word", ["", "two words"])
def test_a_placeholder_that_is_no_word_gets_a_sentence(word):
    with pytest.raises(ValueError, match="words; it must be one"):
        check_placeholder(word)
    check_placeholder("<toy>")


def test_column_attention_by_hand():
    """One head of width 1, scale 1: softmax([ln 1, ln 3]) = (¼, ¾), and twice-named columns are averaged."""
    q = torch.ones(1, 2, 1)
    k = torch.tensor([[[0.0], [torch.tensor(3.0).log()]]])
    assert torch.allclose(column_attention(q, k, 1, [[1]]), torch.tensor([[0.75, 0.75]]))
    assert torch.allclose(column_attention(q, k, 1, [[0, 1]]), torch.tensor([[0.5, 0.5]]))


def test_the_mask_does_not_depend_on_the_scale_of_the_map():
    torch.manual_seed(0)
    attention = torch.rand(5, 64)
    assert torch.equal(object_mask(attention), object_mask(attention * 512))


CPU = torch.device("cpu")


def features(tokens):
    return {"output_blocks.4.1": Kept(torch.randn(tokens, 8))}  # 32 bytes a token


def test_the_bank_gives_back_what_it_was_given():
    bank = FeatureBank()
    kept = features(4)
    bank.put("a", kept, 10_000)
    assert torch.equal(bank.get("a", CPU)["output_blocks.4.1"].tokens, kept["output_blocks.4.1"].tokens)
    assert bank.get("b", CPU) is None
    assert bank.nbytes == 4 * 8 * 4 == feature_bytes([(4, 8)], 4)


def test_the_bank_keeps_to_its_budget_and_never_evicts_the_running_picture():
    bank = FeatureBank()
    bank.begin_run(0)
    for step in range(5):
        bank.put(step, features(10), 3 * 320)
    assert bank.nbytes == 3 * 320
    assert [bank.get(step, CPU) is not None for step in range(5)] == [True, True, True, False, False]


def test_the_bank_evicts_what_an_earlier_picture_left_unused_longest():
    bank = FeatureBank()
    bank.begin_run(0)
    for name in "abc":
        bank.put(name, features(10), 3 * 320)
    bank.begin_run(0)
    bank.get("a", CPU)
    bank.put("new", features(10), 3 * 320)
    assert [name for name in "abc" if bank.get(name, CPU) is None] == ["b"]


def test_features_on_their_way_to_the_device_leave_it_whole():
    """What the bank had fetched back once could not be moved out again: the second unload of the models raised."""

    class Landed(Arriving):
        def here(self):
            return self.kept

    kept = Kept(torch.randn(3, 8), torch.tensor([True, False, True]))
    (moved,) = in_system_memory({"output_blocks.4.1": Landed(kept, None)}).values()
    assert isinstance(moved, Kept) and torch.equal(moved.tokens, kept.tokens) and torch.equal(moved.mask, kept.mask)


def test_tokens_with_their_mask_are_attended_as_gathered_ones():
    module = ImageAttention(16, 2, 8)
    x, tokens, mask = torch.randn(3, 5, 16), torch.randn(12, 16), torch.arange(12) % 3 != 0
    rows = [0, 2]  # and a row between them with another reference
    other = ([1], Kept(torch.randn(4, 16)))
    gathered = module.forward_kept(x, [(rows, gather_tokens(tokens, mask)), other])
    assert torch.equal(gather_tokens(tokens, mask).tokens, tokens[mask])
    assert torch.allclose(module.forward_kept(x, [(rows, Kept(tokens, mask)), other]), gathered, atol=1e-6)
    plain = module(x[rows], tokens[None].expand(2, -1, -1), mask[None].expand(2, -1))
    assert torch.allclose(gathered[rows], plain, atol=1e-6)


def test_photos_with_and_without_a_mask_stand_side_by_side():
    masked, whole = Kept(torch.randn(3, 8), torch.tensor([True, False, True])), Kept(torch.randn(2, 8))
    tokens, mask = side_by_side([masked, whole])
    assert tokens.shape == (5, 8) and mask.tolist() == [True, False, True, True, True]
    assert side_by_side([whole, whole]).mask is None
