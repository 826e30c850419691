"""The image attention block (ViCo §3.1): a transformer block whose cross-attention looks at the reference photo's tokens."""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reference import Kept


class Attention(nn.Module):
    """Multi-head attention from x [B, N, dim] to context [B or 1, M, dim]; one context row serves every row of x."""

    def __init__(self, dim, heads, dim_head, operations=nn, dtype=None, device=None):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = operations.Linear(dim, inner, bias=False, dtype=dtype, device=device)
        self.to_k = operations.Linear(dim, inner, bias=False, dtype=dtype, device=device)
        self.to_v = operations.Linear(dim, inner, bias=False, dtype=dtype, device=device)
        self.to_out = nn.ModuleList([operations.Linear(inner, dim, dtype=dtype, device=device)])

    def forward(self, x: Tensor, context: Tensor, key_mask: Tensor | None = None) -> Tensor:
        rows, length, _ = x.shape
        shared = context.shape[0] == 1 and rows > 1 and (key_mask is None or key_mask.shape[0] == 1)
        q = self.to_q(x)
        if shared:  # queries do not see each other, so the rows of one context are one long row
            q = q.reshape(1, rows * length, -1)
        q, k, v = (self.split(t) for t in (q, self.to_k(context), self.to_v(context)))  # [B, heads, N or M, dim_head]
        mask = None if key_mask is None else key_mask[:, None, None, :]  # [B, 1, 1, M]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out[0](out.transpose(1, 2).reshape(rows, length, -1))

    def split(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GEGLU(nn.Module):
    def __init__(self, dim, inner, operations=nn, dtype=None, device=None):
        super().__init__()
        self.proj = operations.Linear(dim, inner * 2, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim, operations=nn, dtype=None, device=None):
        super().__init__()
        gate = GEGLU(dim, dim * 4, operations, dtype, device)
        self.net = nn.ModuleList([gate, nn.Identity(), operations.Linear(dim * 4, dim, dtype=dtype, device=device)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class ImageAttention(nn.Module):
    """ViCo's image attention block (§3.1): self-attention, attention to the reference's tokens, feed-forward; each residual.

    dim: width of the place; heads × dim_head as in the host's block there. `operations` makes Linear and LayerNorm (ComfyUI's
    casting ones, in the host). The state dict has the original's keys (attn1.to_q.weight … ff.net.2.bias, norm1 … norm3).
    """

    def __init__(self, dim, heads, dim_head, operations=nn, dtype=None, device=None):
        super().__init__()
        self.attn1 = Attention(dim, heads, dim_head, operations, dtype, device)
        self.attn2 = Attention(dim, heads, dim_head, operations, dtype, device)
        self.ff = FeedForward(dim, operations, dtype, device)
        self.norm1 = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.norm2 = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.norm3 = operations.LayerNorm(dim, dtype=dtype, device=device)

    def forward(self, x: Tensor, reference: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """x [B, N, dim], reference [B, M, dim], key_mask bool [B, M] (True = may be attended) -> [B, N, dim]."""
        x = self.attend_self(x)
        x = x + self.attn2(self.norm2(x), reference, key_mask)
        return x + self.ff(self.norm3(x))

    def forward_kept(self, x: Tensor, kept: list[tuple[list[int], Kept]]) -> Tensor:
        """The same on kept tokens: `kept` pairs the rows of x that share a context with theirs.

        Equal to `forward` with the mask that kept them. Every row of x must be in exactly one pair.
        """
        x = self.attend_self(x)
        queries, seen = self.norm2(x), torch.empty_like(x)
        for rows, (tokens, mask) in kept:
            part = self.attn2(take_rows(queries, rows), tokens[None], None if mask is None else mask[None])
            put_rows(seen, rows, part)
        x = x + seen
        return x + self.ff(self.norm3(x))

    @torch.no_grad()
    def begin_as_identity(self) -> None:
        """Zeroes what each residual adds."""
        for last in (self.attn1.to_out[0], self.attn2.to_out[0], self.ff.net[2]):
            last.weight.zero_()
            last.bias.zero_()

    def attend_self(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        return x + self.attn1(normed, normed)


def spans(rows: list[int]) -> list[slice]:
    """[0, 1, 4] -> [0:2, 4:5]: indexing by a list would bring it to the device and wait for it."""
    runs = groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0])
    starts = [[row for _, row in run] for _, run in runs]
    return [slice(run[0], run[-1] + 1) for run in starts]


def take_rows(x: Tensor, rows: list[int]) -> Tensor:
    parts = [x[span] for span in spans(rows)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def put_rows(out: Tensor, rows: list[int], values: Tensor) -> None:
    """out[rows] = values."""
    first = 0
    for span in spans(rows):
        count = span.stop - span.start
        out[span] = values[first : first + count]
        first += count
