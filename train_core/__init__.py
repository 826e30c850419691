"""What both trainers stand on: noise schedule, Denoiser, training loop, checkpoints, LoRA. Plain PyTorch, no host."""

from .checkpoint import CheckpointFolder, is_whole, read_identity, read_state, save_tensors
from .denoiser import Context, Denoiser, MixedPrecision, cat_contexts, map_context
from .engine import Engine, LocalEngine
from .held_out import SCORE, HeldOut, best_step
from .loop import LoopSettings, Objective, StepReport, Training, TrainingDiverged, load_trained, lr_factor, train
from .lora import (
    ALL,
    LoRA,
    LoraLayers,
    find_layers,
    layer_pattern,
    lora_delta,
    lora_of_parameters,
    stack_lora,
    unet_layers,
)
from .memory import Allocated, gradient_checkpointing
from .randomness import DataOrder, keyed_generator, random_states, restore_random_states, weights_hash
from .schedule import NoiseSchedule, Prediction, flow_sigmas, scaled_linear_alphas_cumprod
from .sharding import load_weights, shard, whole

__all__ = [
    "ALL",
    "SCORE",
    "Allocated",
    "CheckpointFolder",
    "Context",
    "DataOrder",
    "Denoiser",
    "Engine",
    "HeldOut",
    "LoRA",
    "LocalEngine",
    "LoopSettings",
    "LoraLayers",
    "MixedPrecision",
    "NoiseSchedule",
    "Objective",
    "Prediction",
    "StepReport",
    "Training",
    "TrainingDiverged",
    "best_step",
    "cat_contexts",
    "find_layers",
    "flow_sigmas",
    "gradient_checkpointing",
    "is_whole",
    "keyed_generator",
    "layer_pattern",
    "load_trained",
    "load_weights",
    "lora_delta",
    "lora_of_parameters",
    "lr_factor",
    "map_context",
    "random_states",
    "read_identity",
    "read_state",
    "restore_random_states",
    "save_tensors",
    "scaled_linear_alphas_cumprod",
    "shard",
    "stack_lora",
    "train",
    "unet_layers",
    "weights_hash",
    "whole",
]
