"""ViCo's pieces against the numbers of the authors' code (tests/golden/vico/MANIFEST.md): 1e-4 relative, masks exact."""

import pytest
import torch
from safetensors import safe_open

from vico_spin.vico_core import (
    ImageAttention,
    ViCoConcept,
    attention_regularization,
    embed_placeholder,
    find_columns,
    first_end_of_text,
    keep_tokens,
    object_mask,
    otsu_threshold,
)

END_OF_TEXT = 49407


def load(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def block(golden):
    data, metadata = load(golden / "vico" / "01_image_attention_block.safetensors")
    module = ImageAttention(int(metadata["dim"]), int(metadata["heads"]), int(metadata["d_head"]))
    module.load_state_dict({k.removeprefix("weights."): v for k, v in data.items() if k.startswith("weights.")})
    return module, data, metadata


def test_golden_image_attention(block):
    module, data, _ = block
    assert relative_error(module(data["x"], data["xr"], data["mask"]), data["out"]) < 1e-4
    assert relative_error(module(data["x"], data["xr"]), data["out_nomask"]) < 1e-4


def test_golden_image_attention_gradients(block):
    module, data, metadata = block
    x, xr = data["x"].requires_grad_(), data["xr"].requires_grad_()
    (module(x, xr, data["mask"]) * data["cotangent"]).sum().backward()
    parameters = dict(module.named_parameters())
    norms = torch.stack([parameters[name].grad.norm() for name in metadata["grad_norm_order"].split(",")])
    assert relative_error(x.grad, data["grad_x"]) < 2e-3
    assert relative_error(xr.grad, data["grad_xr"]) < 2e-3
    assert relative_error(parameters["attn2.to_k.weight"].grad, data["grad.attn2.to_k.weight"]) < 2e-3
    assert relative_error(norms, data["grad_norms"]) < 2e-3


def test_golden_gathered_keys_equal_masked_keys(block):
    """The fast path: each row attends to its kept tokens alone, and two rows of one context share theirs."""
    module, data, _ = block
    kept = [([row], keep_tokens(data["xr"][row], data["mask"][row])) for row in range(3)]
    assert relative_error(module.forward_kept(data["x"], kept), data["out"]) < 1e-4
    shared = [([0, 1, 2], keep_tokens(data["xr"][0], data["mask"][0]))]
    plain = module(data["x"], data["xr"][:1].expand(3, -1, -1), data["mask"][:1].expand(3, -1))
    assert relative_error(module.forward_kept(data["x"], shared), plain) < 1e-5


def test_golden_otsu(golden):
    data, _ = load(golden / "vico" / "02_otsu.safetensors")
    assert torch.equal(otsu_threshold(data["maps"]), data["threshold"])
    assert torch.equal(otsu_threshold(data["maps16"]), data["threshold16"])
    assert torch.equal(object_mask(data["maps"]), data["mask"])
    assert torch.equal(object_mask(data["maps16"]), data["mask16"])
    assert torch.equal(object_mask(data["constant_map"]), data["constant_mask"])


@pytest.mark.parametrize("batch", ["b1", "b2"])
def test_golden_regularization(golden, batch):
    data, _ = load(golden / "vico" / "03_reg_loss.safetensors")
    placeholder = data[f"{batch}.attn_ph"].requires_grad_()
    eot = data[f"{batch}.attn_eot"].requires_grad_()
    loss = attention_regularization(placeholder, eot)
    loss.backward()
    assert relative_error(loss, data[f"{batch}.loss"]) < 1e-4
    assert relative_error(placeholder.grad, data[f"{batch}.grad_attn_ph"]) < 2e-3
    assert eot.grad is None, "the end-of-text map is detached"
    assert torch.equal(object_mask(placeholder), data[f"{batch}.mask"])


def test_golden_placeholder_embedding(golden):
    data, _ = load(golden / "vico" / "06_embedding_manager.safetensors")
    row = {int(i): r for i, r in zip(data["token_rows_ids"], data["token_rows"], strict=True)}
    token = int(data["placeholder_id"])
    ids = data["token_ids"][:, :16]
    rows = torch.stack([torch.stack([row[int(i)] for i in sentence]) for sentence in ids])
    assert torch.equal(embed_placeholder(rows, ids, token, data["star"]), data["embedded_out"])
    for b, sentence in enumerate(data["token_ids"].tolist()):
        assert find_columns(sentence, token) == [int(data["ph_col"][b])]
        assert first_end_of_text(sentence, END_OF_TEXT) == int(data["eot_col"][b])


def test_golden_original_checkpoint_pair(golden):
    """The authors' files are read, ours comes back the same, and the exported pair is theirs again."""
    folder = golden / "vico" / "ckpt"
    step05, _ = load(golden / "vico" / "05_train_step.safetensors")
    concept = ViCoConcept.from_original(folder / "cross_attention-49.pt", folder / "embeddings_gs-49.pt")
    assert torch.equal(concept.embeddings["l"], step05["ckpt.star"])
    assert (concept.placeholder, concept.step) == ("*", 49)
    assert concept.widths == {"output_blocks.1.1": 64, "output_blocks.3.1": 32}
