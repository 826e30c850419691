"""A MODEL as a Denoiser predicts what the host's own apply_model turns into a picture, in every family."""

import pytest
import torch

from vico_spin.nodes.host import copies, denoiser
from vico_spin.nodes.host.families.gradients import differentiable
from vico_spin.scripts import models
from vico_spin.train_core import weights_hash

CHANNELS = {"sd1": 4, "sd2": 4, "sdxl": 4, "sd3": 16, "flux": 16}


def denoised(prediction, x_t, alpha, sigma, kind):
    """x0 of a prediction: (x_t − sigma·eps)/alpha, alpha·x_t − sigma·v, x_t − sigma·velocity."""
    if kind == "epsilon":
        return (x_t - sigma * prediction) / alpha
    return (alpha if kind == "v" else 1) * x_t - sigma * prediction


@pytest.mark.parametrize("family", CHANNELS)
def test_predicts_as_the_host_and_can_be_trained(host, family):
    with torch.inference_mode():
        model = models.of_family(family)
        before = weights_hash(model.model.state_dict())
        with copies.training_mode():
            copy = copies.training_copy(model)
            made, generator = denoiser.ModelDenoiser(copy), torch.Generator().manual_seed(0)
            shape = (CHANNELS[family], 8, 8)
            text = [
                [
                    torch.randn(1, 77, 40, generator=generator),
                    {"pooled_output": torch.randn(1, 40, generator=generator)},
                ]
            ]
            device = copy.load_device
            row = {name: value.to(device) for name, value in denoiser.context_of(copy.model, text, shape).items()}
            context = {name: torch.cat([value, value]) for name, value in row.items()}
            x_t, t = torch.randn(2, *shape, generator=generator).to(device), torch.tensor([3, 700], device=device)
            with differentiable(copy.model.diffusion_model):
                weight = next(p for p in copy.model.diffusion_model.parameters() if p.ndim > 1).requires_grad_(True)
                prediction = made.predict(x_t, t, [row, row])
                prediction.square().mean().backward()
            alpha, sigma = made.schedule.at(t, x_t)
            host_sigma = made.sampling.sigmas.to(device)[t]
            host_x = x_t if made.prediction == "flow" else x_t / alpha
            expected = copy.model.apply_model(host_x, host_sigma, **context)
    found = denoised(prediction, x_t, alpha, sigma, made.prediction)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert weight.grad.abs().sum() > 0
    assert weights_hash(model.model.state_dict()) == before
