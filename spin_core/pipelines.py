"""A diffusers pipeline (SD1.x, SD2.x, SDXL) as the game needs it: Denoiser, captions, pictures, sampler.

Needs diffusers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from torch import Tensor, nn

from ..intake import read_json
from ..train_core import NoiseSchedule, weights_hash
from .encoding import Encoder
from .settings import PipelineSettings
from .store import TensorStore, store_key

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
SHARDED_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
OTHER_SCHEDULES = ("EDM", "LCM", "TCD", "FlowMatch", "Consistency")


def load_pipeline(settings: PipelineSettings, device: torch.device):
    """The pipeline in float32 on the device, frozen, with DDIM as its sampler.

    Raises: ValueError where it is not there, or has no U-Net.
    """
    import diffusers

    name = settings.model
    if name is None:
        raise ValueError("--checkpoint is read by `python -m vico_spin`, not by spin_core alone: launch -m vico_spin")
    if Path(name).is_file():
        raise ValueError(
            f'"{name}" is a single file, and a pipeline\'s folder is needed: load it in ComfyUI and train there, or write the '
            "folder with diffusers (StableDiffusionPipeline.from_single_file(…).save_pretrained(…))"
        )
    folder = folder_of(settings)
    check_parts(folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, safety_checker=None, variant=settings.variant, local_files_only=True
    )
    if not hasattr(pipeline, "unet"):
        raise ValueError(
            f'"{name}" is no pipeline with a U-Net (SD1.x, SD2.x, SDXL): flow models are trained in ComfyUI'
        )
    check_scheduler(pipeline.scheduler, name)
    check_channels(pipeline, name)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval().to(device)
    return pipeline


def folder_of(settings: PipelineSettings) -> Path:
    """The pipeline's folder, or the hub's copy of it on this machine; the hub itself is asked where the settings say so."""
    import diffusers

    if Path(settings.model).is_dir():
        return Path(settings.model)
    where = {"variant": settings.variant, "local_files_only": not settings.hub}
    try:
        return Path(diffusers.DiffusionPipeline.download(settings.model, **where))
    except (OSError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f'"{settings.model}" is no folder here and not in the hub\'s cache: give a folder, or add --hub to fetch it ({error})'
        ) from error


def check_parts(folder: Path) -> None:
    """ValueError for a part whose configuration would fetch and run a kernel, or quantise: neither is trained here."""
    for path in sorted(folder.glob("*/config.json")):
        config = read_json(path)
        if not isinstance(config, dict):
            raise ValueError(f'"{path}" describes no model: download the folder again')
        kernels = [value for name, value in config.items() if "attn_implementation" in name and "/" in str(value)]
        if kernels or config.get("quantization_config"):
            what = f"attention by the kernel {kernels[0]}" if kernels else "quantised weights"
            raise ValueError(f'"{path}" asks for {what}, which is not trained here: take the plain model')


def check_scheduler(scheduler, name: str) -> None:
    """ValueError for a noise schedule or a prediction that is not known: it would be trained on another one's numbers."""
    kind, config = type(scheduler).__name__, scheduler.config
    if any(word in kind for word in OTHER_SCHEDULES) or "beta_schedule" not in config:
        raise ValueError(f'"{name}" samples with {kind}, whose noise schedule is not trained here (DDPM\'s is)')
    if config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise ValueError(f'"{name}" predicts {config["prediction_type"]}, which is not trained here')


def check_channels(pipeline, name: str) -> None:
    """ValueError for a U-Net that reads more than the latent: inpainting, pix2pix."""
    reads, latent = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if reads != latent:
        raise ValueError(
            f'the U-Net of "{name}" reads {reads} channels and a latent has {latent}: inpainting and pix2pix models are not '
            "trained here"
        )


class UNetDenoiser:
    """A diffusers U-Net as a Denoiser. context: "context" tokens, and for SDXL "pooled" and "time_ids"."""

    def __init__(self, unet: nn.Module, scheduler):
        self.unet = unet
        self.schedule = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
        self.prediction = PREDICTIONS[scheduler.config.prediction_type]

    def predict(self, x_t: Tensor, t: Tensor, context: dict[str, Tensor]) -> Tensor:
        added = {"text_embeds": context["pooled"], "time_ids": context["time_ids"]} if "pooled" in context else None
        return self.unet(x_t, t, encoder_hidden_states=context["context"], added_cond_kwargs=added).sample


@dataclass(frozen=True)
class PipelineText:
    """Captions through the pipeline's text encoders; each is encoded once and kept on disk under their hash."""

    pipeline: object
    store: TensorStore
    device: torch.device
    encoders_hash: str

    @classmethod
    def of(cls, pipeline, store: TensorStore, device: torch.device) -> "PipelineText":
        parts = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
        encoders_hash = ":".join(weights_hash(part.state_dict()) for part in parts if part is not None)
        return cls(pipeline, store, device, encoders_hash)

    def encoded(self, prompt: str) -> dict[str, Tensor]:
        """Tokens [1, N, d] and, for SDXL, the pooled text [1, d]."""
        made_from = {"prompt": prompt, "text encoders": self.encoders_hash}
        key = store_key(**made_from)
        found = self.store.get(key)
        if found is None:
            with torch.no_grad():
                parts = self.pipeline.encode_prompt(
                    prompt, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
                )
            found = {"context": parts[0]} | ({"pooled": parts[2]} if len(parts) == 4 else {})
            self.store.put(key, found, made_from)
        return found

    def __call__(self, prompts: list[str], shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Contexts of a batch beside latents of that shape."""
        rows = [self.encoded(prompt) for prompt in prompts]
        context = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        if "pooled" in context:
            height, width = (side * self.pipeline.vae_scale_factor for side in shape[-2:])
            context["time_ids"] = torch.tensor(
                [[height, width, 0, 0, height, width]] * len(prompts), dtype=torch.float32
            )
        return context


def pipeline_encoder(pipeline, store: TensorStore, resolution: int, device: torch.device) -> Encoder:
    """Pictures to the latents that the U-Net reads: the mean of the VAE's posterior, scaled."""

    def encode(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(numpy.asarray(image, dtype=numpy.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            latent = pipeline.vae.encode(pixels.to(device)).latent_dist.mean
        return latent[0] * pipeline.vae.config.scaling_factor

    multiple = 64 if resolution >= 256 else 16
    return Encoder(encode, weights_hash(pipeline.vae.state_dict()), store, resolution, multiple)


def pipeline_sampler(pipeline, unet: nn.Module, text: PipelineText, settings, device) -> Callable[..., Tensor]:
    """The pipeline's own sampling with `unet` as it is now. Each picture's first noise hangs on its own seed alone."""

    def sample(prompts: list[str], seeds: list[int], shape: tuple[int, ...]) -> Tensor:
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        kept, pipeline.unet = pipeline.unet, unet
        try:
            with torch.no_grad():
                return pipeline(
                    **prompt_inputs(text, prompts, settings.negative, device),
                    latents=torch.stack(noise).to(device),
                    height=shape[-2] * pipeline.vae_scale_factor,
                    width=shape[-1] * pipeline.vae_scale_factor,
                    guidance_scale=settings.cfg,
                    num_inference_steps=settings.sampling_steps,
                    output_type="latent",
                ).images
        finally:
            pipeline.unet = kept

    return sample


def prompt_inputs(text: PipelineText, prompts: list[str], negative: str, device) -> dict[str, Tensor]:
    """Prompts as the pipeline takes them when they are encoded already."""
    wanted, unwanted = ([text.encoded(p) for p in many] for many in (prompts, [negative] * len(prompts)))
    names = {"context": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    inputs = {}
    for ours, theirs in names.items():
        if ours in wanted[0]:
            inputs[theirs] = torch.cat([row[ours] for row in wanted]).to(device)
            inputs[f"negative_{theirs}"] = torch.cat([row[ours] for row in unwanted]).to(device)
    return inputs


def kohya_names(state: dict[str, Tensor], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    """A LoRA on a diffusers U-Net's layers, renamed to what ComfyUI and others read: lora_unet_down_blocks_0_…"""
    renamed = {}
    for key, tensor in state.items():
        stem = next(end for end in (".lora_up.weight", ".lora_down.weight", ".alpha") if key.endswith(end))
        layer = key.removeprefix(prefix).removesuffix(stem).replace(".", "_")
        renamed[f"lora_unet_{layer}{stem}"] = tensor
    return renamed
