import math

import pytest
import torch

from vico_spin.spin_core import kto_loss, pair_loss, sft_loss
from vico_spin.spin_core.objectives import safeguard_scale


def predictions(seed=0, count=6, dtype=torch.float32, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 4, 5, 3, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def test_loss_at_the_start_of_a_round_is_ln_2():
    """θ = θ_k, so z = 0 and softplus(0) = ln 2, whatever the data (SPIN eq. 4.9)."""
    real, generated, target_real, target_generated = predictions(count=4)
    found = pair_loss(real, generated, real, generated, target_real, target_generated, 5000.0)
    assert found.loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert found.weight.tolist() == [0.5, 0.5, 0.5]


def test_a_pair_by_hand():
    """e(θ;real) = 0.04, e(θk;real) = 0.09, e(θ;gen) = 0.16, e(θk;gen) = 0.01, beta 20, κ = 1/2:

    z = −0.5·20·{(0.04 − 0.09) − (0.16 − 0.01)} = 2.0; loss = log(1 + e^−2) = 0.126928.
    """
    parts = [torch.full((1, 1, 2, 2), value) for value in (0.2, 0.4, 0.3, 0.1, 0.0, 0.0)]
    found = pair_loss(*parts, 20.0)
    assert found.logits.item() == pytest.approx(2.0, rel=1e-5)
    assert found.loss.item() == pytest.approx(0.126928, rel=1e-5)
    assert found.implicit_accuracy.item() == 1.0
    assert [e.item() for e in found.errors] == pytest.approx([0.04, 0.16, 0.09, 0.01], rel=1e-5)


@pytest.mark.parametrize(
    "errors, logits, loss",
    [((0.2, 0.4, 0.3, 0.1), (1.0, 3.0), 0.158184), ((0.2, 0.4, 0.5, 0.5), (1.2, 1.2), 0.231475)],
    ids=["threshold 0", "threshold 0.15"],
)
def test_kto_by_hand(errors, logits, loss):
    """Diffusion-KTO, beta 20, g = e(θk) − e(θ).

    Real 0.09 − 0.04 = 0.05, generated 0.01 − 0.16 = −0.15: their mean is below 0, so Q = 0, z = 20·0.05 and 20·0.15;
    loss = (1 − σ(1) + 1 − σ(3))/2 = (0.268941 + 0.047426)/2. Then 0.25 − 0.04 = 0.21 and 0.25 − 0.16 = 0.09: Q = 0.15,
    z = 20·0.06 for both; loss = 1 − σ(1.2).
    """
    policy, reference = (torch.tensor(side)[:, None, None].expand(2, 3, 2) for side in (errors[:2], errors[2:]))
    found = kto_loss(policy, reference, torch.zeros(2, 3, 2), torch.tensor([True, False]), 20.0)
    assert found.logits.tolist() == pytest.approx(logits, rel=1e-4)
    assert found.loss.item() == pytest.approx(loss, rel=1e-4)


def test_kto_of_thumbs_without_pairs_by_hand():
    """Two liked, one disliked; e(θ) 0.04, 0.16, 0.01, e(θk) 0.25, 0.09, 0.16: g = 0.21, −0.07, 0.15, Q = 0.29/3, beta 20.

    z = 20·(0.21 − Q) = 2.2667, 20·(−0.07 − Q) = −3.3333, 20·(Q − 0.15) = −1.0667; 1 − σ(z) = 0.093921, 0.965555, 0.743962: their
    mean is 0.601146. With an SFT term of 0.3: 0.3·(0.04 + 0.16)/2 = 0.03 more.
    """
    policy, reference = (torch.tensor(side)[:, None].expand(3, 4) for side in ((0.2, 0.4, 0.1), (0.5, 0.3, 0.4)))
    known = (policy, reference, torch.zeros(3, 4), torch.tensor([True, True, False]), 20.0)
    found = kto_loss(*known)
    assert found.logits.tolist() == pytest.approx([2.266667, -3.333333, -1.066667], rel=1e-5)
    assert found.loss.item() == pytest.approx(0.601146, rel=1e-5)
    assert kto_loss(*known, sft_weight=0.3).loss.item() == pytest.approx(0.631146, rel=1e-5)
    assert found.errors.policy_real.tolist() == pytest.approx([0.04, 0.16])
    assert found.errors.reference_generated.tolist() == pytest.approx([0.16])


def test_kto_starts_at_one_half():
    policy, target = predictions(count=2)
    assert kto_loss(policy, policy, target, torch.tensor([True, False, True]), 5000.0).loss.item() == 0.5


@pytest.mark.parametrize(
    "policy_real, logit, gradient_of_generated",
    [(0.2, 2.0, -1.0), (0.3, 1.5, -1.0), (0.4, -2.2, 1.0)],
    ids=["ahead", "level", "behind"],
)
def test_seppo_by_hand(policy_real, logit, gradient_of_generated):
    """SePPO (arXiv 2410.05255) with e(θ;gen) = 0.16, e(θk;gen) = 0.01, e(θk;real) = 0.09, beta 20, κ = 1/2.

    While e(θ;real) is at most 0.09, SPIN's logit: −10·{(0.04 − 0.09) − 0.15} = 2, −10·{0 − 0.15} = 1.5, and the generated
    picture is driven off. At e(θ;real) = 0.16 the player is behind on the anchor: −10·{(0.16 − 0.09) + 0.15} = −2.2, and the
    generated picture is learnt too. The safeguard then holds nothing back.
    """
    parts = [torch.full((1, 1, 2, 2), value) for value in (policy_real, 0.4, 0.3, 0.1, 0.0, 0.0)]
    parts[1].requires_grad_()
    found = pair_loss(*parts, 20.0, adaptive=True)
    assert found.logits.item() == pytest.approx(logit, rel=1e-5)
    (gradient,) = torch.autograd.grad(found.loss, parts[1])
    assert gradient.sign().unique().tolist() == [gradient_of_generated]
    if gradient_of_generated > 0:
        (guarded,) = torch.autograd.grad(pair_loss(*parts, 20.0, adaptive=True, safeguard=0.5).loss, parts[1])
        assert torch.equal(guarded, gradient)


def test_half_precision_predictions_are_judged_in_float32():
    parts = predictions(dtype=torch.bfloat16)
    found, expected = pair_loss(*parts, 5000.0), pair_loss(*[part.float() for part in parts], 5000.0)
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, expected.logits)


def test_float64_stays_float64():
    assert pair_loss(*predictions(dtype=torch.float64), 1.0).loss.dtype == torch.float64


@pytest.mark.parametrize("shape", [(1, 3), (2, 4, 7), (5, 16, 3, 2, 2)], ids=str)
def test_any_shape_of_prediction(shape):
    parts = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    assert pair_loss(*parts, torch.ones(shape[0])).per_sample.shape == shape[:1]


def test_a_clamped_pair_no_longer_pulls():
    parts = predictions()
    free = pair_loss(*parts, 5000.0)
    parts[0].requires_grad_()
    limit = free.logits.abs().sort().values[1].item() * 1.0001  # between the second and the third of the three pairs
    clamped = pair_loss(*parts, 5000.0, margin_clamp=limit)
    clamped.loss.backward()
    pulled = parts[0].grad.flatten(1).abs().sum(dim=1) > 0
    assert clamped.logits.abs().max().item() == pytest.approx(limit)
    assert pulled.sum() <= 2 and not pulled[free.logits.abs().argmax()]


def test_sft_term_adds_the_real_error():
    parts = predictions()
    plain, with_term = pair_loss(*parts, 3.0), pair_loss(*parts, 3.0, sft_weight=0.7)
    expected = plain.per_sample + 0.7 * sft_loss(parts[0], parts[4])
    torch.testing.assert_close(with_term.per_sample, expected)


def test_safeguard_scale_by_hand():
    """g_w = (3, 4), g_l = (6, 8): |g_w|² = 25, g_l·g_w = 50, so λ = (1 − 0.2)·25/50 = 0.4.

    Opposite g_l: λ = 1. Small g_l: cut to 1.
    """
    g_w = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    g_l = torch.tensor([[6.0, 8.0], [-6.0, -8.0], [0.3, 0.4]])
    assert safeguard_scale(g_w, g_l, 0.2).tolist() == pytest.approx([0.4, 1.0, 1.0])


def test_safeguard_leaves_the_winner_falling():
    """A bias moves both predictions alike.

    The loser's pull is three times the winner's; guarded, the real error still falls.
    """
    x = torch.tensor([[1.0, 2.0, -1.0]])

    def real_error_after_a_step(**options):
        bias, target = torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 3)
        pair_loss(x + bias, 3 * x + bias, x, 3 * x, target, target, 1.0, **options).loss.backward()
        return (x - 1e-3 * bias.grad).square().mean().item()

    assert real_error_after_a_step() > x.square().mean().item()
    assert real_error_after_a_step(safeguard=0.1) < x.square().mean().item()


def test_safeguard_changes_the_gradient_and_not_the_loss():
    parts = predictions()
    assert torch.equal(pair_loss(*parts, 100.0).loss, pair_loss(*parts, 100.0, safeguard=0.5).loss)


@pytest.mark.parametrize("beta", [10.0, torch.tensor([10.0, 0.1, 5000.0])], ids=["one", "per sample"])
def test_gradient_in_two_halves_is_the_whole_gradient(beta):
    """The loss depends on the two predictions apart: each half with the other detached.

    The low-memory step rests on it.
    """
    parts = predictions(dtype=torch.float64)
    real, generated = (part.requires_grad_() for part in parts[:2])
    options = dict(safeguard=0.3, sft_weight=0.5)
    whole = torch.autograd.grad(pair_loss(*parts, beta, **options).loss, [real, generated])
    first = torch.autograd.grad(pair_loss(real, generated.detach(), *parts[2:], beta, **options).loss, real)[0]
    second = torch.autograd.grad(pair_loss(real.detach(), generated, *parts[2:], beta, **options).loss, generated)[0]
    assert torch.equal(whole[0], first) and torch.equal(whole[1], second)
