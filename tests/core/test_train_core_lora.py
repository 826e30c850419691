import json

import pytest
import torch
from torch import nn

from vico_spin.train_core import LoRA, find_layers, gradient_checkpointing, stack_lora, weights_hash
from vico_spin.train_core.lora_dialects import peft_settings, plain_lora, read_dialect, with_alphas


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.attn = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_out": nn.Sequential(nn.Linear(8, 5))})
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)  # [B, N, 8]
        return self.attn["to_out"](self.norm(self.attn["to_q"](tokens)))


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block()


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def adapter(block, rank=2, seed=0, alpha=None):
    """An adapter on every layer, with an up that is not zero any more."""
    lora = LoRA(block, find_layers(block, "."), rank, alpha, seed)
    generator = torch.Generator().manual_seed(seed + 10)
    for layer in lora.layers().values():
        layer.up.data.normal_(generator=generator)
    return lora


def test_layers_are_found_by_name_in_the_models_order(block):
    assert find_layers(block, r"\.(to_q|to_out\.0)$") == ["attn.to_q", "attn.to_out.0"]
    assert find_layers(block, r"\.conv$") == ["conv"]


def test_no_layer_of_that_name_is_an_error(block):
    with pytest.raises(ValueError, match='named like "to_k"'):
        find_layers(block, "to_k")


def test_a_new_adapter_changes_nothing(block, x):
    before = block(x)
    with LoRA(block, find_layers(block, "."), 2).attached():
        assert torch.equal(block(x), before)


def test_hooks_equal_merged_weights(block, x):
    lora = adapter(block, alpha=3.0)
    with lora.attached():
        hooked = block(x)
    lora.merge_into_weights()
    torch.testing.assert_close(block(x), hooked, rtol=1e-5, atol=1e-5)


def test_off_is_the_model_without_the_newest_adapter_only(block, x):
    first, second = adapter(block, seed=1), adapter(block, seed=2)
    with first.attached():
        one = block(x)
        with second.attached():
            assert not torch.allclose(block(x), one)
            with second.off():
                assert torch.equal(block(x), one)


def test_attaching_and_training_leave_the_model_bit_identical(block, x):
    before = weights_hash(block.state_dict())
    lora = adapter(block)
    with lora.attached():
        block(x).square().mean().backward()
        torch.optim.AdamW(lora.parameters()).step()
    assert weights_hash(block.state_dict()) == before
    assert not block.conv._forward_hooks


def test_the_stacked_state_is_the_sum_of_the_rounds(block, x):
    first, second = adapter(block, rank=2, seed=1, alpha=1.0), adapter(block, rank=3, seed=2, alpha=6.0)
    with first.attached(), second.attached():
        expected = block(x)
    both = LoRA(block, find_layers(block, "."), rank=5)
    both.load_lora_state_dict(stack_lora([first.lora_state_dict(), second.lora_state_dict()]))
    with both.attached():
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_state_dict_survives_the_round_trip(block):
    first, other = adapter(block, seed=1, alpha=1.0), adapter(block, seed=2)
    other.load_lora_state_dict(first.lora_state_dict())
    assert weights_hash(other.lora_state_dict()) == weights_hash(first.lora_state_dict())
    assert "diffusion_model.attn.to_q.lora_up.weight" in first.lora_state_dict()


def test_a_lora_of_another_rank_is_refused(block):
    with pytest.raises(ValueError, match="Take the model and the rank"):
        adapter(block, rank=2).load_lora_state_dict(adapter(block, rank=3).lora_state_dict())


def test_gradient_checkpointing_keeps_the_gradients(block, x):
    lora = adapter(block)
    with lora.attached():
        block(x).square().mean().backward()
        plain = [p.grad.clone() for p in lora.parameters()]
        lora.zero_grad()
        with gradient_checkpointing([block.conv, block]):
            block(x).square().mean().backward()
    for found, expected in zip([p.grad for p in lora.parameters()], plain, strict=True):
        torch.testing.assert_close(found, expected)
    assert "forward" not in block.__dict__


def test_half_precision_layers_keep_float32_masters(block, x):
    half = block.to(torch.bfloat16)
    lora = LoRA(half, find_layers(half, "."), 2)
    with lora.attached():
        half(x.to(torch.bfloat16)).float().square().mean().backward()
    assert {p.dtype for p in lora.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in lora.parameters()} == {torch.float32}


LAYER = "mid_block.attn1.to_q"


def of_peft(rank=4, network="unet.", **more):
    """A LoRA of one layer, as peft names it, with more of its tensors."""
    found = {"lora_A.weight": torch.ones(rank, 8), "lora_B.weight": torch.ones(8, rank)} | more
    return {f"{network}{LAYER}.{part}": tensor for part, tensor in found.items()}


@pytest.mark.parametrize("part", ["lora_magnitude_vector", "lora_B.bias", "modules_to_save.weight"])
def test_parts_that_a_plain_lora_has_not_are_said(part):
    """They were dropped, and the rest of a DoRA was merged as a LoRA."""
    with pytest.raises(ValueError, match=rf'Take a plain LoRA\.\n"x" has parts of another kind .*{part}'):
        plain_lora(of_peft(**{part: torch.ones(8)}), [LAYER], "x")


def test_layers_of_text_encoders_are_left_out_and_counted():
    text = {f"text_encoder.q_proj.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    found = read_dialect(of_peft() | text | {"bundle_emb.cat.clip_l": torch.ones(1, 8)}, [LAYER])
    assert found.layers == [LAYER] and not found.unknown and not found.strange
    assert found.text == ["text_encoder.q_proj", "bundle_emb.cat.clip_l"]


@pytest.mark.parametrize(
    ("settings", "network", "alpha"),
    [
        ({}, "unet.", None),
        ({"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.lora_alpha": 9}, "unet.", 2),
        ({"text_encoder.lora_alpha": 9}, "unet.", None),
        ({"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"attn1.to_q": 3, "to_k": 5}}, "transformer.", 3),
        ({"lora_alpha": 2, "alpha_pattern": {"^mid_block.*to_q": 3}}, "base_model.model.", 3),
        ({"lora_alpha": 2, "alpha_pattern": {"q": 3}}, "", 2),
        ({"lora_alpha": 2, "use_rslora": True, "peft_type": "LORA"}, "base_model.model.", 4),
    ],
)
def test_alphas_are_taken_from_pefts_settings(settings, network, alpha):
    """Rank-stabilised LoRA divides by √4 where a plain one divides by 4: its alpha of 2 is a plain one's of 4."""
    found = with_alphas(of_peft(network=network), settings, "x").get(f"{network}{LAYER}.alpha")
    assert found == alpha if alpha is None else found.item() == alpha


def test_an_alpha_among_the_tensors_goes_before_the_settings():
    state = of_peft(alpha=torch.tensor(1.0))
    assert with_alphas(state, {"unet.lora_alpha": 2}, "x") == state


@pytest.mark.parametrize(
    "settings",
    [
        {"unet.use_dora": True},
        {"peft_type": "LOHA"},
        {"lora_alpha": "2"},
        {"alpha_pattern": ["to_q"]},
        {"alpha_pattern": {"to_q[": 2}},
        {"alpha_pattern": {"(a+)+b": 2}},
    ],
    ids=str,
)
def test_settings_that_are_not_a_plain_loras_are_refused(settings):
    with pytest.raises(ValueError, match=r'LoRA.*\n.*"x"'):
        with_alphas(of_peft(), settings, "x")


def test_pefts_own_file_has_its_settings_beside_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2}))
    assert peft_settings(tmp_path / "adapter_model.safetensors", {}) == {"lora_alpha": 2}
    assert peft_settings(tmp_path / "another.safetensors", {}) == {}
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 3})}
    assert peft_settings(tmp_path / "another.safetensors", header) == {"unet.lora_alpha": 3}
    with pytest.raises(ValueError, match="no JSON object"):
        peft_settings(tmp_path / "another.safetensors", {"lora_adapter_metadata": "[]"})
