"""The Sprite World's training: its formulas by hand, and a resumed run that equals an uninterrupted one."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from vico_spin.scripts import sprite_world_card as card
from vico_spin.scripts.train_sprite_world import (
    BASE,
    DiTTrainer,
    Trainer,
    UNetTrainer,
    Words,
    Workers,
    drawn_timesteps,
    flow_times,
    load_world_model,
    loss_weight,
    plain_attention,
    rate_factor,
    shipped_name,
    tokenized,
    with_strange_words,
)
from vico_spin.scripts.train_sprite_world import (
    main as train_main,
)

SHIPPED = sorted(BASE.parent.rglob("*.safetensors"))


def test_loss_weight_by_hand():
    """(1 + 1/SNR) min(1, 5/SNR): 11 at 0.1, 1.2 at 5, (1 + 1/20)·5/20 at 20."""
    assert loss_weight(torch.tensor([0.1, 5.0, 20.0])).tolist() == pytest.approx([11.0, 1.2, 0.2625])


def test_rate_warms_up_holds_and_falls_to_nothing():
    assert rate_factor(0, 0.0) == pytest.approx(0.01)
    assert rate_factor(500, 0.2) == 1.0
    assert rate_factor(500, 0.825) == pytest.approx(0.5)
    assert rate_factor(500, 1.0) == 0.0


def test_timesteps_cover_the_range_and_favour_the_middle():
    t = drawn_timesteps(20_000, torch.Generator().manual_seed(0))
    assert t.min() < 10 and t.max() > 990
    middle = ((t > 300) & (t < 800)).float().mean()
    assert 0.55 < middle < 0.75


def test_flow_times_cover_the_range_and_favour_noise_a_little():
    """Three tenths uniform, seven logit-normal about 0.3: the median lies at 0.3·0.5 + 0.7·0.574 = 0.55 or so."""
    t = flow_times(20_000, torch.Generator().manual_seed(0))
    assert 0 <= t.min() < 0.01 and 0.99 < t.max() <= 1
    assert t.median() == pytest.approx(0.56, abs=0.02)


def test_a_strange_word_is_put_in_and_the_rest_moves_on():
    rows = torch.arange(1, 78).repeat(200, 1)
    mixed = with_strange_words(rows, torch.Generator().manual_seed(0))
    strange = mixed[(mixed == 0).any(1)]
    assert 10 < len(strange) < 60
    place = (strange[0] == 0).nonzero().item()
    assert 1 <= place <= 5
    assert strange[0].tolist() == [*range(1, place + 1), 0, *range(place + 1, 77)]


def test_words_share_row_zero_where_no_caption_uses_them():
    assert Words([5, 9]).rows(torch.tensor([9, 5, 7, 40_000])).tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("mask", [None, torch.full((9, 7), -torch.inf).triu_(1)])
def test_plain_attention_equals_the_fused_one(mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    heads = [x.unflatten(-1, (2, 8)).transpose(1, 2) for x in (q, k, v)]
    fused = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
    assert torch.allclose(plain_attention(q, k, v, 2, mask), fused, atol=1e-6)


def trainer() -> Trainer:
    return UNetTrainer(load_world_model("cpu"), Words([1, 2, 3]), "cpu", Workers())


def dit_trainer() -> Trainer:
    base = load_file(BASE)
    return DiTTrainer(load_world_model("cpu"), Words(base["token_ids"].tolist()), base, "cpu", Workers())


def steps(one: Trainer, number: int) -> None:
    torch.manual_seed(3)
    latents, tokens = torch.randn(8, 4, 16, 16), torch.randint(0, 4, (8, 4, 77), dtype=torch.int16)
    for _ in range(number):
        one.train_step(*one.batch(latents, tokens, torch.zeros(77, dtype=torch.long), 2), factor=0.5)


@pytest.mark.parametrize("trainer", [trainer, dit_trainer])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(trainer, tmp_path):
    whole, first, second = trainer(), trainer(), trainer()
    steps(whole, 3)
    steps(first, 1)
    torch.save(first.state(), tmp_path / "state.pt")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(second, 2)
    for name, value in whole.state()["average"].items():
        assert torch.equal(value, second.state()["average"][name]), name
    for p, q in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(p, q)


def test_every_matrix_of_the_u_net_learns_beside_a_text_encoder_that_stays():
    """Four steps: residual branches end in zeros, so that what is in them moves from the third on."""
    ours = trainer()
    shipped = {shipped_name(name): torch.full_like(p, 0.25) for name, p in ours.weights().items()}
    before = {name: p.clone() for name, p in ours.modules["unet"].named_parameters()}
    ours.keep_text(shipped | {"token_ids": torch.tensor([1, 2, 3])})
    steps(ours, 4)
    assert all((p == 0.25).all() for p in ours.modules["text"].parameters())
    assert all((ours.average[f"text.{name}"] == 0.25).all() for name, _ in ours.modules["text"].named_parameters())
    learnt = {name: p for name, p in ours.modules["unet"].named_parameters() if p.ndim > 1}
    still = [name for name, p in learnt.items() if torch.equal(p, before[name])]
    assert still == []


def test_muon_moves_every_matrix_inside_the_u_net_and_lets_it_decay():
    """Without decay the stream through the inner levels grows until their gradient is lost in bfloat16."""
    ours = trainer()
    (group,) = ours.optimizers[0].param_groups
    moved = {id(p) for p in group["params"]}
    ends = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"]
    others = [name for name, p in ours.modules["unet"].named_parameters() if p.ndim > 1 and id(p) not in moved]
    assert others == [f"{end}.weight" for end in ends]
    assert group["weight_decay"] == 0.1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_nothing_shipped_is_as_it_was_initialised(path):
    """A tensor that no gradient reached is still the zeros or the ones that it began with."""
    tensors = load_file(path).items()
    still = [name for name, t in tensors if t.is_floating_point() and t.numel() > 1 and (t == t.flatten()[0]).all()]
    assert still == []


def test_a_training_can_go_on_from_the_shipped_names():
    ours = trainer()
    shipped = {shipped_name(name): torch.full_like(p, 0.25) for name, p in ours.weights().items()}
    assert {"token_rows", "text.text_model.final_layer_norm.weight", "unet.out.2.weight"} <= set(shipped)
    ours.start_from(shipped | {"token_ids": torch.tensor([1, 2, 3])})
    assert all((p == 0.25).all() for p in ours.parameters)
    with pytest.raises(ValueError, match="other words"):
        ours.start_from(shipped | {"token_ids": torch.tensor([4])})


def test_the_dit_starts_at_zero_and_learns():
    """Zero output at the start, so the loss is E|eps - x|² = 2 on white latents; forty steps on one batch lower it."""
    one = dit_trainer()
    torch.manual_seed(3)
    latents, rows = torch.randn(8, 4, 16, 16), torch.randint(0, 20, (8, 77))
    first, *_, last = [one.train_step(latents, rows, factor=0.5) for _ in range(40)]
    assert first == pytest.approx(2, abs=0.1)
    assert last < 0.9 * first


def test_the_dit_trains_on_the_context_that_the_shipped_clip_gives():
    host, base = load_world_model("cpu"), load_file(BASE)
    one = dit_trainer()
    tokens = tokenized(host, ["a red crab on sand"])
    clip = host.load_clip(str(BASE))
    with torch.no_grad():
        shipped = clip.encode_from_tokens(clip.tokenize("a red crab on sand"))
        assert torch.allclose(one.encode(one.words.rows(tokens.long())), shipped, atol=1e-5)
    assert not any(p.requires_grad for p in one.encode.parameters()) and "text" not in one.state()
    with pytest.raises(ValueError, match="other words"):
        DiTTrainer(host, Words([4]), base, "cpu", Workers())


def test_some_batches_have_a_short_text_or_a_flat_picture():
    one = dit_trainer()
    latents, rows = torch.zeros(2, 4, 16, 16), torch.zeros(2, 77, dtype=torch.long)
    shapes = [tuple(x.shape[-2:] for x in one.varied(latents, rows)) for _ in range(400)]
    assert {shape for shape, _ in shapes} == {(16, 16), (14, 16)}
    assert {shape for _, shape in shapes} == {(2, 77), (2, 32)}
    both = sum(shape == ((16, 16), (2, 77)) for shape in shapes)
    assert both / 400 == pytest.approx(0.75 * 0.875, abs=0.06)


def test_the_steps_end_a_training_and_its_export_loads_in_the_host(tmp_path, monkeypatch):
    """From the command to the file: three steps, the averaged halves, the class that the node gives."""
    monkeypatch.setattr(card, "draw_progress", lambda *args: None)
    options = ["--architecture", "DiT", "--steps", "3", "--workers", "1", "--work", str(tmp_path), "--pictures", "300"]
    monkeypatch.setattr(sys, "argv", ["train", *options])
    train_main()
    card.export(tmp_path, tmp_path / "dit.safetensors", tmp_path)
    model = load_world_model("cpu").load_model(str(tmp_path / "dit.safetensors")).model
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 3
    assert torch.equal(model.diffusion_model.x_pad_token, state["average"]["dit.x_pad_token"].half().float())
