"""At which sigma the sampler asks the model, known on the host: reading it off the device would wait for the step before."""

from collections.abc import Hashable

import comfy.k_diffusion.sampling
import torch
from torch import Tensor


def host_samplers(names: str) -> set:
    return {getattr(comfy.k_diffusion.sampling, f"sample_{name}") for name in names.split()}


# The host's samplers that ask the model once a step, at the step's own sigma.
ONCE_A_STEP = host_samplers(
    "ddpm deis dpmpp_2m dpmpp_2m_cfg_pp euler euler_ancestral "
    "euler_ancestral_cfg_pp euler_cfg_pp gradient_estimation gradient_estimation_cfg_pp ipndm ipndm_v "
    "lcm lms res_multistep res_multistep_ancestral res_multistep_ancestral_cfg_pp res_multistep_cfg_pp "
)
# The same, but in a flow model for the first sigma, which they move a little.
ONCE_A_STEP_FROM_BELOW_1 = host_samplers(
    "dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu "
    "er_sde sa_solver "
)
OFF_SCHEDULE = ("s_churn", "use_pece")  # options by which some of them ask at other sigmas, or twice
STEADY = ("comfy.k_diffusion.sampling", "comfy.extra_samplers.uni_pc")  # ask at the same sigmas whatever they draw
ADAPTIVE = "sample_dpm_adaptive"

Walks = dict[Hashable, list[float]]  # the sigmas of whole runs, by sampler and schedule


class Evaluations:
    """One run's: `sigma` is that of the present one, None where only the device knows it.

    walks: what earlier runs came by, for the host's samplers that ask between the steps.
    """

    def __init__(self, sampler, sigmas: Tensor, model_sampling, walks: Walks):
        function, options = getattr(sampler, "sampler_function", None), getattr(sampler, "extra_options", {})
        self.steady = getattr(function, "__module__", None) in STEADY and function.__name__ != ADAPTIVE
        self.key = (function, repr(sorted(options.items())), tuple(sigmas.tolist()))
        self.walks = walks
        self.expected = walks.get(self.key, [])
        if not any(options.get(name) for name in OFF_SCHEDULE):
            if function in ONCE_A_STEP_FROM_BELOW_1:
                sigmas = comfy.k_diffusion.sampling.offset_first_sigma_for_snr(sigmas, model_sampling)
            if function in ONCE_A_STEP | ONCE_A_STEP_FROM_BELOW_1:
                self.expected = sigmas.tolist()[:-1]
        self.seen: list[Tensor] = []
        self.timestep: Tensor | None = None

    def begin(self, timestep: Tensor) -> None:
        """The sampler asks: timestep [B], its sigma on the device."""
        self.seen.append(timestep)
        self.timestep = timestep

    def sigma(self, timestep: Tensor) -> float | None:
        """Of a forward at this timestep: known where it is the very one that the sampler asked for."""
        number = len(self.seen) - 1
        return self.expected[number] if timestep is self.timestep and number < len(self.expected) else None

    def end(self) -> None:
        """The run is over: what it came by is expected of the next one."""
        if self.steady and self.seen and not self.expected:
            self.walks[self.key] = torch.stack([timestep[0] for timestep in self.seen]).tolist()
