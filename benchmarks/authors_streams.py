"""The step of ViCo's training as haoosz/ViCo writes it: a yardstick for benchmarks/vico_training.py, not for use.

Both streams run to the end, attention matrices are kept, Otsu is a loop, image attention sees all keys under a mask.
"""

from contextlib import contextmanager


def host_name(place) -> tuple[str, int, int]:
    """A place as the host's patches_replace names it."""
    numbers = [int(part) for part in place.block.split(".") if part.isdigit()]
    return "output", numbers[0], numbers[-1]


class AuthorsStreams:
    """vico_core's TwoStreams in the U-Net, with the modules and the encoder, of `ours`."""

    def __init__(self, ours):
        import torch

        from ..vico_core.training import Predicted

        self.torch, self.ours, self.predicted = torch, ours, Predicted
        self.schedule, self.prediction = ours.schedule, ours.prediction

    def predict(self, x_t, batch):
        from ..train_core import cat_contexts

        captions = [self.ours.encode(caption, x_t) for caption in batch.captions]
        context = cat_contexts([caption.conditions for caption in captions])
        timestep = batch.t.float()
        self.tokens, self.masks, self.maps = {}, {}, {}
        self.columns, self.end_of_text = captions[0].columns, captions[0].end_of_text
        options = {"optimized_attention_override": lambda plain, *a, **k: self.attention(*a, **k)}
        with self.at_places(self.reference_block):
            places = {host_name(place): self.text_attention(place) for place in self.ours.places}
            self.ours.denoiser.forward(
                batch.reference, timestep, context, {**options, "patches_replace": {"attn2": places}}
            )
        with self.at_places(self.noisy_block):
            prediction = self.ours.denoiser.forward(x_t, timestep, context, options)
        return self.predicted(prediction, [self.maps[place.name] for place in self.ours.places])

    @contextmanager
    def at_places(self, make):
        import comfy.utils

        blocks = [comfy.utils.get_attr(self.ours.unet, place.block) for place in self.ours.places]
        for block, place in zip(blocks, self.ours.places, strict=True):
            block.forward = make(block.forward, place)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def reference_block(self, plain, place):
        def forward(x, context=None, transformer_options=None):
            self.tokens[place.name] = plain(x, context=context, transformer_options=transformer_options)
            return self.tokens[place.name]

        return forward

    def noisy_block(self, plain, place):
        module = self.ours.modules[place.name.replace(".", "_")]

        def forward(x, context=None, transformer_options=None):
            x = plain(x, context=context, transformer_options=transformer_options)
            normed = module.norm1(x)
            x = x + self.attend(module.attn1, normed, normed)
            x = x + self.attend(module.attn2, module.norm2(x), self.tokens[place.name], self.masks[place.name])
            return x + module.ff(module.norm3(x))

        return forward

    def text_attention(self, place):
        def attention(q, k, v, extra_options):
            out, probabilities = self.explicit(q, k, v, extra_options["n_heads"])
            mean = probabilities.mean(1)  # [B, M, T]
            self.maps[place.name] = (mean[:, :, self.columns[0]], mean[:, :, self.end_of_text[0]])
            self.masks[place.name] = self.otsu(self.maps[place.name][0].detach())
            return out

        return attention

    def otsu(self, maps):
        """Threshold by threshold and map by map, in Python, as the original does."""
        masks = []
        for a in maps:
            a = (a - a.min()) / (a.max() - a.min())
            best, threshold = 0.0, 0.0
            for t in (i * 0.1 for i in range(10)):
                low, high = a[a < t], a[a >= t]
                if low.numel() and high.numel():
                    variance = low.numel() * high.numel() / a.numel() ** 2 * (low.mean() - high.mean()) ** 2
                    if variance > best:
                        best, threshold = variance, t
            masks.append(a >= threshold)
        return self.torch.stack(masks)

    def attend(self, attn, x, context, mask=None):
        out, _ = self.explicit(attn.to_q(x), attn.to_k(context), attn.to_v(context), attn.heads, mask)
        return attn.to_out[0](out)

    def attention(self, q, k, v, heads, **_):
        return self.explicit(q, k, v, heads)[0]

    def explicit(self, q, k, v, heads, mask=None):
        """softmax(q kᵀ / √d) v with the matrix written out: (out [B, N, inner], probabilities [B, heads, N, M])."""
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        similarity = self.torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            similarity = similarity.masked_fill(~mask[:, None, None], -self.torch.finfo(similarity.dtype).max)
        probabilities = similarity.softmax(dim=-1)
        out = self.torch.einsum("bhij,bhjd->bhid", probabilities, v)
        return out.transpose(1, 2).flatten(2), probabilities
