"""The originals' numbers, every file of golden/spin.

Nothing here knows a value: inputs, outputs and settings are the files'.
"""

import json

import pytest
import torch
from safetensors import safe_open

from vico_spin.spin_core import pair_loss, trajectory_beta, trajectory_bound, trajectory_loss, trajectory_margins
from vico_spin.spin_core.objectives import KAPPA
from vico_spin.train_core import NoiseSchedule, flow_sigmas, scaled_linear_alphas_cumprod

PAIRS = [
    "dpo_sf_f64",
    "dpo_init_f64",
    "dpo_saturated_f64",
    "spin_shared_f64",
    "spin_shared_f32",
    "spin_indep_f64",
    "spin_beta_vec_f64",
]
STEPS = [f"step_{kind}_{noise}_f64" for kind in ("epsilon", "v_prediction", "flow") for noise in ("shared", "indep")]
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "flow": "flow"}


class Golden:
    def __init__(self, folder, name):
        with safe_open(folder / "spin" / f"{name}.safetensors", framework="pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dictionary)
        self.meta = json.loads((folder / "spin" / "index.json").read_text())[name]["meta"]

    def __getitem__(self, key):
        return self.tensors[key]

    def close(self, found, key):
        """1e-4 for float32 inputs, 1e-10 for float64."""
        single = any(t.dtype == torch.float32 for name, t in self.tensors.items() if name.startswith("in."))
        tolerance = 1e-4 if single else 1e-10
        expected = self[key]
        found = found.detach().double().reshape(expected.shape)
        scale = max(expected.abs().max().item(), 1e-30)
        torch.testing.assert_close(
            found / scale, expected / scale, rtol=tolerance, atol=tolerance, msg=lambda m: f"{key}: {m}"
        )

    def beta_of_ours(self, sample):
        """The file's beta in our convention: mean over pixels and κ = 1/2, whatever the file's own."""
        beta = self["in.beta"] * float(self.meta["kappa"]) / KAPPA
        return beta * (sample[0].numel() if self.meta["reduction"] == "sum" else 1)

    def check_outputs(self, found, sample):
        pixels = sample[0].numel() if self.meta["reduction"] == "sum" else 1
        self.close(found.loss, "out.loss")
        self.close(found.per_sample, "out.per_sample")
        self.close(found.logits, "out.logits")
        self.close(found.implicit_accuracy, "out.implicit_acc")
        self.close(found.weight, "out.weight")
        names = ("out.err_model_w", "out.err_model_l", "out.err_ref_w", "out.err_ref_l")
        for error, name in zip(found.errors, names, strict=True):
            self.close(error * pixels, name)


@pytest.mark.parametrize("name", PAIRS)
def test_golden_pair_loss_and_gradients(golden, name):
    file = Golden(golden, name)
    real, generated = file["in.policy_real"].requires_grad_(), file["in.policy_gen"].requires_grad_()
    found = pair_loss(
        real,
        generated,
        file["in.ref_real"],
        file["in.ref_gen"],
        file["in.target_real"],
        file["in.target_gen"],
        file.beta_of_ours(real),
    )
    found.loss.backward()
    file.check_outputs(found, real)
    file.close(real.grad, "out.grad_m_w")
    file.close(generated.grad, "out.grad_m_l")


def test_golden_trajectory_form_and_its_bound(golden):
    file = Golden(golden, "spin_traj_f64")
    torch.testing.assert_close(trajectory_beta(file["in.sigma_t"], float(file.meta["lam"])), file["in.beta_t"])
    for loss, kind in ((trajectory_loss, "traj"), (trajectory_bound, "step")):
        real, generated = (file[f"in.mu_policy_{side}"].clone().requires_grad_() for side in ("real", "gen"))
        margins = trajectory_margins(
            real, generated, file["in.mu_ref_real"], file["in.mu_ref_gen"], file["in.xprev_real"], file["in.xprev_gen"]
        )
        value, logits = loss(margins, file["in.beta_t"])
        value.backward()
        file.close(value, f"out.{kind}_loss")
        file.close(logits, f"out.{kind}_logits")
        file.close(real.grad, f"out.{kind}_grad_real")
        file.close(generated.grad, f"out.{kind}_grad_gen")


def linear_model(file, x_t, t, suffix=""):
    """pred = W x_t (a 1×1 convolution) + b·t/1000 + U cond, over all pixels: the model that the step files describe."""
    W, b, U = (file[f"in.{name}{suffix}"] for name in "WbU")
    shift = b * (t.double() / 1000)[:, None] + file["in.cond"] @ U.T  # [B, C]
    return torch.einsum("oc,bchw->bohw", W, x_t) + shift[:, :, None, None]


@pytest.mark.parametrize("name", STEPS)
def test_golden_whole_step_down_to_the_weights(golden, name):
    file = Golden(golden, name)
    flow = file.meta["prediction_type"] == "flow"
    schedule = (
        NoiseSchedule.from_flow_sigmas(flow_sigmas())
        if flow
        else NoiseSchedule.from_alphas_cumprod(scaled_linear_alphas_cumprod())
    )
    prediction, t = PREDICTIONS[file.meta["prediction_type"]], file["in.t"]
    weights = [file[f"in.{letter}"].requires_grad_() for letter in "WbU"]
    parts = {"policy": [], "reference": [], "target": []}
    for side in ("real", "gen"):
        x0, noise = file[f"in.x0_{side}"], file[f"in.noise_{side}"]
        x_t, target = schedule.q_sample(x0, noise, t), schedule.target(x0, noise, t, prediction)
        file.close(x_t, f"mid.xt_{side}")
        file.close(target, f"mid.target_{side}")
        parts["policy"].append(linear_model(file, x_t, t))
        parts["reference"].append(linear_model(file, x_t, t, "_ref"))
        parts["target"].append(target)
    for policy in parts["policy"]:
        policy.retain_grad()
    found = pair_loss(*parts["policy"], *parts["reference"], *parts["target"], file.beta_of_ours(parts["policy"][0]))
    found.loss.backward()
    file.check_outputs(found, parts["policy"][0])
    for policy, key in zip(parts["policy"], ("out.grad_m_w", "out.grad_m_l"), strict=True):
        file.close(policy.grad, key)
    for weight, letter in zip(weights, "WbU", strict=True):
        file.close(weight.grad, f"out.grad_{letter}")
