"""The sockets of this pack's own values, and the two of core's LoRA trainer that its trainers also have."""

from comfy_api.latest import io

ConceptSocket = io.Custom("VICO_CONCEPT")
ReferenceSocket = io.Custom("VICO_REFERENCE")
DatasetSocket = io.Custom("SPIN_DATASET")
ViCoOptionsSocket = io.Custom("VICO_OPTIONS")
OpponentSocket = io.Custom("SPIN_OPPONENT")
SPINOptionsSocket = io.Custom("SPIN_OPTIONS")
TrainingOptionsSocket = io.Custom("TRAINING_OPTIONS")
ScorerSocket = io.Custom("SCORER")
LoraSocket = io.Custom("LORA_MODEL")
LossSocket = io.Custom("LOSS_MAP")
