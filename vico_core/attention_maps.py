"""What the placeholder looks at in the reference: its text attention, the object mask made of it, and its regularisation."""

import torch
from einops import rearrange
from torch import Tensor

LEVELS = 10  # the original's candidate thresholds: 0, 0.1 … 0.9


def text_attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Softmax attention averaged over heads, in float32: q [B, M, inner], k [B, T, inner] of a text cross-attention -> [B, M, T]."""
    return attention_of_heads(*(rearrange(t, "b n (heads dim) -> b heads n dim", heads=heads) for t in (q, k)))


def attention_of_heads(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax over the given keys alone, averaged over heads, in float32: q [B, heads, M, dim], k [B, heads, T, dim] -> [B, M, T].

    In a joint attention of picture and text, q are the picture's and k the text's: what a patch looks at, of the prompt's
    tokens. bias: added to the scores, broadcast to [B, heads, M, T] (padded text).
    """
    with torch.amp.autocast(
        q.device.type, enabled=False
    ):  # a mask must not depend on how training lowers its precision
        scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias.float()).softmax(dim=-1).mean(dim=1)


def read_columns(attention: Tensor, columns: list[list[int]]) -> Tensor:
    """attention [B, M, T] and each row's token positions -> the mean of its columns [B, M]."""
    picked = [[row[:, column] for column in where] for row, where in zip(attention, columns, strict=True)]
    return torch.stack([torch.stack(maps, dim=-1).mean(dim=-1) for maps in picked])


def column_attention(q: Tensor, k: Tensor, heads: int, columns: list[list[int]]) -> Tensor:
    """Each patch's attention to given text tokens, averaged over heads and over the row's columns, in float32.

    q [B, M, inner] and k [B, T, inner] of a text cross-attention; columns[b]: token positions of row b. Returns [B, M].
    """
    return read_columns(text_attention(q, k, heads), columns)


def otsu_threshold(attention: Tensor, levels: int = LEVELS) -> Tensor:
    """Otsu's threshold of each map, on `levels` steps of its min-max range (ViCo §3.2).

    attention: [B, M], any scale. Returns [B] in [0, 1); NaN for a constant map.
    """
    return _otsu(_scaled(attention), levels)


def object_mask(attention: Tensor) -> Tensor:
    """The patches that the original takes for the object: attention [B, M] >= 0 -> bool [B, M]; a constant map is all True."""
    scaled = _scaled(attention.detach())
    return ~(scaled < _otsu(scaled, LEVELS)[:, None])  # not >=: a constant map is NaN throughout


def attention_regularization(placeholder: Tensor, eot: Tensor) -> Tensor:
    """Mean of (a_ph / max a_ph - a_eot / max a_eot)² (ViCo eq. 5), maps [B, M] each -> scalar. No gradient through `eot`."""
    eot = eot.detach()
    difference = placeholder / placeholder.amax(dim=-1, keepdim=True) - eot / eot.amax(dim=-1, keepdim=True)
    return difference.square().mean()


def _scaled(attention: Tensor) -> Tensor:
    low, high = attention.aminmax(dim=-1, keepdim=True)
    return (attention - low) / (high - low)


def _otsu(scaled: Tensor, levels: int) -> Tensor:
    steps = torch.arange(levels, device=scaled.device, dtype=scaled.dtype) / levels
    high = scaled[:, None, :] >= steps[None, :, None]  # [B, levels, M]
    values = scaled.double()[:, None, :]
    n_high = high.sum(-1).double()
    n_low = scaled.shape[-1] - n_high
    mean_high = (values * high).sum(-1) / n_high
    mean_low = (values * ~high).sum(-1) / n_low
    variance = n_low * n_high * (mean_low - mean_high).square()  # [B, levels]; NaN where a class is empty
    best = variance.nan_to_num(nan=-1.0).argmax(dim=-1)  # the first of equals, as the original's strict comparison
    threshold = steps[best]
    return torch.where(scaled.isnan().any(-1), torch.nan, threshold)
