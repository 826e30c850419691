"""ViCo (arXiv 2306.00971) as plain PyTorch: image attention to one photo of an object, beside a frozen diffusion model."""

from .attention_maps import (
    attention_of_heads,
    attention_regularization,
    column_attention,
    object_mask,
    otsu_threshold,
    read_columns,
    text_attention,
)
from .base import base_hash, same_base
from .concept import ViCoConcept, concept_files
from .image_attention import ImageAttention
from .placeholder import check_prompt, embed_placeholder, find_columns, first_end_of_text, isolate
from .places import Place, decoder_places, paper_places, place_count, place_parameters, spread_places
from .reference import FeatureBank, Features, Kept, feature_bytes, gather_tokens, keep_tokens, side_by_side

__all__ = [
    "FeatureBank",
    "Features",
    "ImageAttention",
    "Kept",
    "Place",
    "ViCoConcept",
    "attention_of_heads",
    "attention_regularization",
    "base_hash",
    "check_prompt",
    "column_attention",
    "concept_files",
    "decoder_places",
    "embed_placeholder",
    "feature_bytes",
    "find_columns",
    "first_end_of_text",
    "gather_tokens",
    "isolate",
    "keep_tokens",
    "object_mask",
    "otsu_threshold",
    "paper_places",
    "place_count",
    "place_parameters",
    "read_columns",
    "same_base",
    "side_by_side",
    "spread_places",
    "text_attention",
]
