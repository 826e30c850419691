import pytest
import torch
from safetensors.torch import load_file

from vico_spin.train_core.schedule import (
    NoiseSchedule,
    ddim_mean,
    ddim_noise_coefficient,
    ddim_sigma,
    flow_sigmas,
    leading_timesteps,
    scaled_linear_alphas_cumprod,
)


@pytest.fixture
def ddim(golden):
    return load_file(golden / "spin" / "ddim_sd15_f64.safetensors")


def test_golden_alphas_cumprod_of_stable_diffusion(ddim):
    torch.testing.assert_close(scaled_linear_alphas_cumprod(), ddim["alphas_cumprod"], rtol=1e-12, atol=0)


def test_golden_leading_timesteps(ddim):
    timesteps, previous = leading_timesteps(len(ddim["timesteps50"]))
    assert timesteps.tolist() == ddim["timesteps50"].tolist()
    assert previous.tolist() == ddim["prev_timesteps50"].tolist()


@pytest.mark.parametrize("eta", [0, 1])
def test_golden_ddim_sigma_and_noise_coefficient(ddim, eta):
    table, t, prev = ddim["alphas_cumprod"], ddim["timesteps50"], ddim["prev_timesteps50"]
    torch.testing.assert_close(ddim_sigma(table, t, prev, eta), ddim[f"sigma_eta{eta}"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ddim_noise_coefficient(table, t, prev, eta), ddim[f"h_eta{eta}"], rtol=1e-10, atol=1e-12)


def test_ddim_mean_moves_by_h_times_the_noise_error():
    table = scaled_linear_alphas_cumprod()
    t, prev = torch.tensor([501, 21]), torch.tensor([481, 1])
    x_t, eps, other = torch.randn(3, 2, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = ddim_mean(table, x_t, eps, t, prev, 1.0) - ddim_mean(table, x_t, other, t, prev, 1.0)
    expected = ddim_noise_coefficient(table, t, prev, 1.0).view(2, 1, 1, 1) * (eps - other)
    torch.testing.assert_close(moved, expected)


def test_q_sample_by_hand():
    """ᾱ = 0.64 gives alpha = 0.8, sigma = 0.6: x_t = 0.8·2 + 0.6·(−1) = 1.0, v = 0.8·(−1) − 0.6·2 = −2.0."""
    schedule = NoiseSchedule.from_alphas_cumprod(torch.tensor([0.9, 0.64]))
    x0, noise, t = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0), torch.tensor([1])
    assert schedule.q_sample(x0, noise, t).item() == pytest.approx(1.0)
    assert schedule.target(x0, noise, t, "v").item() == pytest.approx(-2.0)
    assert schedule.target(x0, noise, t, "epsilon").item() == -1.0


def test_flow_by_hand():
    """t = 249 of 1000 gives sigma = 0.25: x_t = 0.75·2 + 0.25·(−1) = 1.25; the velocity is −1 − 2 = −3."""
    schedule = NoiseSchedule.from_flow_sigmas(flow_sigmas())
    x0, noise, t = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0), torch.tensor([249])
    assert schedule.q_sample(x0, noise, t).item() == pytest.approx(1.25)
    assert schedule.target(x0, noise, t, "flow").item() == -3.0


def test_flow_shift_of_sd3():
    """shift 3 moves sigma 0.5 to 3·0.5/(1 + 2·0.5) = 0.75 and leaves the end at 1."""
    sigmas = flow_sigmas(1000, shift=3.0)
    assert sigmas[499].item() == pytest.approx(0.75)
    assert sigmas[-1].item() == 1.0


def test_unknown_prediction_is_refused():
    schedule = NoiseSchedule.from_flow_sigmas(flow_sigmas())
    with pytest.raises(ValueError, match="Choose epsilon, v or flow"):
        schedule.target(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0]), "x0")
