"""Trains the Sprite World from nothing: autoencoder, then U-Net and text encoder together, on the CPU or a GPU.

    python -m vico_spin.scripts.train_sprite_world --minutes 100            # start, or go on where an earlier run stopped
    python -m vico_spin.scripts.sprite_world_card --export           # write the averaged weights so far into sprite_world/weights

The U-Net anew beside the shipped autoencoder and text encoder, which stay as they are:

    python -m vico_spin.scripts.train_sprite_world --start sprite_world/weights/base.safetensors --keep-text --steps 4000 --compile

The second world's transformer learns on the first one's autoencoder and text encoder, which stay as they are:

    python -m vico_spin.scripts.train_sprite_world --architecture DiT --steps 7000 --workers 1 --compile
    python -m vico_spin.scripts.sprite_world_card --architecture DiT --export

Everything it keeps lies in --work (default .train/sprite_world or .train/sprite_world_dit): checkpoints (replaced
atomically) and log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..intake import write_atomically
from ..sprite_world import ARCHITECTURES
from ..sprite_world.autoencoder import SpriteAutoencoder, whiten
from ..sprite_world.muon import Muon
from ..sprite_world.pictures import Picture, pictures, render
from ..sprite_world.vocabulary import random_caption
from .get_host import ROOT
from .host import enter

BASE = ROOT / "sprite_world" / "weights" / "base.safetensors"
DATA_SEED = 1
PICTURES = 60_000
CAPTIONS_A_PICTURE = 4
AUTOENCODER_BATCH, AUTOENCODER_RATE = 64, 2e-3
BATCH, DIT_BATCH = 48, 32
MUON_RATE, ADAM_RATE = 0.02, 2e-3
WARM_UP_STEPS = 100
SNAPSHOTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the training: the averaged weights that the card's progress is drawn by
EMA_DECAY = 0.99  # remembers some 100 steps: a run on two cores has no more than a few thousand
CAPTION_DROPOUT = 0.1  # teaches the empty prompt, for classifier-free guidance
STRANGE_WORD = 0.15  # share of captions that carry a word of no meaning, so that unknown words do no harm
MIN_SNR_GAMMA = 5.0
SHORT_TEXT, FLAT_PICTURE = 0.25, 0.125  # shares of the DiT's batches with other numbers of text and image tokens


def work_folder(architecture: str) -> Path:
    """Where an architecture's training keeps its checkpoints."""
    return ROOT / ".train" / ("sprite_world_dit" if architecture == "DiT" else "sprite_world")


def load_world_model(device: str):
    """The host's classes, and this world's model built of them."""
    enter(device=device)
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    from ..nodes.sprite_world import model

    return model


# ---- data ----------------------------------------------------------------------------------------------------------


def drawn_pictures(number: int) -> tuple[Tensor, list[Picture]]:
    """Art [N, 3, 32, 32] uint8 and what it shows."""
    stream = pictures(DATA_SEED)
    drawn = [next(stream) for _ in range(number)]
    art = np.stack([render(picture)[0] for picture in drawn])
    return torch.from_numpy(art).permute(0, 3, 1, 2).contiguous(), drawn


def to_unit(art: Tensor) -> Tensor:
    return art.float() / 127.5 - 1


@dataclass
class Words:
    """The tokens that captions use, as rows of a small table; row 0 stands for every token that they never use."""

    token_ids: list[int]

    def rows(self, tokens: Tensor) -> Tensor:
        lookup = torch.zeros(49408, dtype=torch.long)
        lookup[torch.tensor(self.token_ids)] = torch.arange(1, len(self.token_ids) + 1)
        return lookup[tokens]


def tokenized(host, captions: list[str]) -> Tensor:
    """[N, 77] token ids, by the host's SD1.x tokenizer. Each distinct caption is tokenized once."""
    tokenizer = host.comfy.sd1_clip.SDTokenizer()
    known: dict[str, list[int]] = {}
    for text in set(captions):
        known[text] = [token for token, _ in tokenizer.tokenize_with_weights(text)[0]]
    return torch.tensor([known[text] for text in captions], dtype=torch.int32)


def caption_tokens(host, drawn: list[Picture]) -> tuple[Tensor, Tensor, list[int]]:
    """([N, captions, 77] ids, the empty caption's [77], the ids that occur)."""
    rng = np.random.default_rng(DATA_SEED)
    captions = [random_caption(rng, p.properties()) for p in drawn for _ in range(CAPTIONS_A_PICTURE)]
    tokens = tokenized(host, [*captions, ""])
    return tokens[:-1].view(len(drawn), CAPTIONS_A_PICTURE, 77), tokens[-1], tokens.unique().tolist()


# ---- autoencoder ---------------------------------------------------------------------------------------------------


def reconstruction_loss(decoded: Tensor, art: Tensor) -> Tensor:
    """L1 for flat colours and crisp edges, the square for the PSNR."""
    difference = decoded.float() - art
    return difference.abs().mean() + 4 * difference.square().mean()


def train_autoencoder(art: Tensor, minutes: float, device: str, log) -> SpriteAutoencoder:
    """Latents are centred to unit variance by batch and get a little noise, so that the decoder forgives errors."""
    torch.manual_seed(DATA_SEED)
    model = SpriteAutoencoder().to(device, memory_format=torch.channels_last)
    kernels = [p for p in model.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    rest = [p for p in model.parameters() if p.ndim != 4 or p.shape[-1] == 1]
    all_optimizers = [
        Muon(kernels, MUON_RATE),
        torch.optim.AdamW(rest, lr=AUTOENCODER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        progress = min(1.0, (time.monotonic() - start) / (60 * minutes))
        factor = min(1, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * progress))
        batch = to_unit(art[torch.randint(len(art), (AUTOENCODER_BATCH,))]).to(
            device, memory_format=torch.channels_last
        )
        with torch.autocast(device, torch.bfloat16):
            latent = model.encode_art(batch)
            latent = (latent - latent.mean((0, 2, 3), keepdim=True)) / latent.std((0, 2, 3), keepdim=True)
            decoded = model.decode_art(latent + 0.03 * torch.randn_like(latent))
        loss = reconstruction_loss(decoded, batch)
        loss.backward()
        for optimizer in all_optimizers:
            set_rate(optimizer, factor)
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            log(part="autoencoder", step=step, loss=loss.item(), minutes=(time.monotonic() - start) / 60)
    return settled(model, art)


@torch.no_grad()
def settled(model: SpriteAutoencoder, art: Tensor) -> SpriteAutoencoder:
    """The model with its batch statistics, then the whitening, folded into its ends."""
    latents = encoded(model, art[:4096])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    first = model.from_white
    first.bias.add_(first.weight[:, :, 0, 0] @ (-mean / std))
    first.weight.div_(std[None, :, None, None])
    inner_weight, inner_bias = first.weight[:, :, 0, 0].clone(), first.bias.clone()
    whiten(model, latents)
    first.bias.copy_(inner_weight @ first.bias + inner_bias)
    first.weight.copy_((inner_weight @ first.weight[:, :, 0, 0])[..., None, None])
    return model.eval()


@torch.no_grad()
def encoded(model: SpriteAutoencoder, art: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return torch.cat([model.encode_art(to_unit(part).to(device)).cpu() for part in art.split(512)])


@torch.no_grad()
def psnr(model: SpriteAutoencoder, art: Tensor) -> float:
    """Decibels over these pictures, peak 255."""
    truth = to_unit(art)
    decoded = model.decode_art(encoded(model, art)).clamp(-1, 1)
    return 10 * math.log10(4 / F.mse_loss(decoded, truth).item())


def autoencoder(work: Path, art: Tensor, minutes: float, device: str, log) -> SpriteAutoencoder:
    path = work / "autoencoder.safetensors"
    if path.exists():
        model = SpriteAutoencoder()
        model.load_state_dict(load_file(path))
        return model.eval().to(device)
    model = train_autoencoder(art, minutes, device, log)
    write_atomically(path, lambda p: save_file({k: v.contiguous() for k, v in model.state_dict().items()}, p))
    log(part="autoencoder", psnr=psnr(model.cpu(), art[-2048:]))
    return model.to(device)


# ---- diffusion -----------------------------------------------------------------------------------------------------


class Workers:
    """The processes that share a batch, one thread each: on shared cores far faster than threads that wait by spinning."""

    def __init__(self, rank: int = 0, number: int = 1, store: Path | None = None):
        self.rank, self.number = rank, number
        if number > 1:
            torch.set_num_threads(1)
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=number)

    def sum(self, tensor: Tensor) -> Tensor:
        if self.number > 1:
            dist.all_reduce(tensor)
        return tensor

    def average_gradients(self, parameters: list[Tensor]) -> None:
        if self.number == 1:
            return
        learning = [p for p in parameters if p.requires_grad]
        flat = torch.cat([p.grad.flatten() for p in learning])
        parts = (self.sum(flat) / self.number).split([p.numel() for p in learning])
        for p, part in zip(learning, parts, strict=True):
            p.grad = part.view_as(p)

    def from_first(self, value: float) -> float:
        """The first worker's number, so that all take the same rate and stop together."""
        return self.sum(torch.tensor([value if self.rank == 0 else 0.0], dtype=torch.float64)).item()


def set_rate(optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


UNET_ENDS = ("input_blocks.0.", "out.2.", "embedding", "time_embed")
DIT_ENDS = ("embedder", "adaLN", "final_layer", "pad_token")


def optimizers(modules: list[nn.Module], ends: tuple[str, ...], weight_decay: float, workers: Workers) -> list:
    """Muon for the matrices inside the networks, which alone decay; AdamW for ends, embeddings, norms and biases."""
    named = [pair for module in modules for pair in module.named_parameters()]
    inner = [p for name, p in named if p.ndim >= 2 and not any(end in name for end in ends)]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    share = (workers.rank, workers.number)
    muon = Muon(inner, MUON_RATE, weight_decay=weight_decay, share=share, sum_over_workers=workers.sum)
    return [muon, torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)]


class SpriteText(nn.Module):
    """The text encoder in training: the host's transformer, fed from a table of only the tokens that occur."""

    def __init__(self, transformer: nn.Module, rows: int):
        super().__init__()
        model = transformer.text_model
        self.layers, self.final_layer_norm = model.encoder.layers, model.final_layer_norm
        self.token_embedding = nn.Embedding(rows, 64)
        self.position_embedding = nn.Embedding(77, 64)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of the table [B, n] -> context [B, n, 64], n at most 77. Out of place, which the host's own forward is not."""
        n = rows.shape[1]
        x = self.token_embedding(rows) + self.position_embedding.weight[:n]
        mask = torch.full((n, n), -torch.inf, device=x.device).triu_(1)
        for layer in self.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), mask, plain_attention)
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.final_layer_norm(x)


def initialise(unet: nn.Module, text: SpriteText) -> None:
    """The host leaves weights unset. Kaiming for matrices, zero where a residual branch ends, small normal embeddings."""
    for module in [*unet.modules(), *text.modules()]:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for name, module in unet.named_modules():
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            nn.init.zeros_(module.weight)
    nn.init.normal_(text.token_embedding.weight, std=0.3)
    nn.init.normal_(text.position_embedding.weight, std=0.1)


def initialise_dit(dit: nn.Module) -> None:
    """Xavier for matrices; zero for modulations and the output, so that each block starts as the identity (adaLN-Zero)."""
    for name, module in dit.named_modules():
        if isinstance(module, nn.Linear):
            zero = "adaLN" in name or name == "final_layer.linear"
            nn.init.zeros_(module.weight) if zero else nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
    nn.init.normal_(dit.x_pad_token, std=0.02)
    nn.init.normal_(dit.cap_pad_token, std=0.02)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, skip_reshape=False, **kwargs) -> Tensor:
    """Attention as two products: at this world's sizes its backward is three times as fast on a CPU as the fused one."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, N, dim_head]
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    weights = (scores if mask is None else scores + mask).softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


def loss_weight(snr: Tensor) -> Tensor:
    """Weight of the epsilon error: (1 + 1/SNR) makes it the error of v, times min(1, gamma/SNR) (Hang et al. 2023)."""
    return (1 + 1 / snr) * (MIN_SNR_GAMMA / snr).clamp(max=1)


def drawn_timesteps(number: int, generator: torch.Generator) -> Tensor:
    """Timesteps [number]: half of them uniform, half around the middle, where shapes are decided."""
    uniform = torch.rand(number, generator=generator)
    middle = torch.sigmoid(0.2 + 0.9 * torch.randn(number, generator=generator))
    plain = torch.rand(number, generator=generator) < 0.5
    return (1000 * torch.where(plain, uniform, middle)).long().clamp(0, 999)


def flow_times(number: int, generator: torch.Generator) -> Tensor:
    """t in (0, 1) [number], 1 is noise: three tenths uniform, the rest logit-normal around the middle (Esser et al. 2024)."""
    uniform = torch.rand(number, generator=generator)
    middle = torch.sigmoid(0.3 + torch.randn(number, generator=generator))
    return torch.where(torch.rand(number, generator=generator) < 0.3, uniform, middle)


def with_strange_words(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Some captions get the unknown word (row 0) somewhere between the start and the end token."""
    strange = torch.rand(len(rows), generator=generator) < STRANGE_WORD
    at = torch.randint(1, 6, (len(rows),), generator=generator)
    place = torch.arange(77)[None, :]
    shifted = torch.where(place > at[:, None], rows.roll(1, 1), rows)
    shifted = torch.where(place == at[:, None], torch.zeros_like(rows), shifted)
    return torch.where(strange[:, None], shifted, rows)


OPTIONS = {"optimized_attention_override": lambda _, *args, **kwargs: plain_attention(*args, **kwargs)}


TEXT_NAMES = {
    "text.layers.": "text.text_model.encoder.layers.",
    "text.final_layer_norm.": "text.text_model.final_layer_norm.",
    "text.position_embedding.": "text.text_model.embeddings.position_embedding.",
    "text.token_embedding.weight": "token_rows",
}


def shipped_name(name: str) -> str:
    """A trained tensor's name in the shipped file, which has the host's names."""
    start = next((start for start in TEXT_NAMES if name.startswith(start)), None)
    return name if start is None else name.replace(start, TEXT_NAMES[start])


class Trainer:
    """What learns, its average, and all that a resumed run needs. A subclass says what learns and by which loss."""

    part: str  # its name in the log
    batch_size: int
    weight_decay = 0.0  # of what Muon moves

    def __init__(
        self, modules: dict[str, nn.Module], ends: tuple[str, ...], words: Words, device: str, workers: Workers
    ):
        self.modules, self.words, self.device, self.workers = modules, words, device, workers
        self.optimizers = optimizers(list(modules.values()), ends, self.weight_decay, workers)
        self.parameters = list(self.weights().values())
        self.average = {name: value.detach().clone() for name, value in self.weights().items()}
        self.generator = torch.Generator()
        self.step, self.minutes = 0, 0.0

    def loss(self, latent: Tensor, rows: Tensor) -> Tensor:
        """The mean error over latents [B, 4, 16, 16] with captions [B, 77]."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": p for part, module in self.modules.items() for name, p in module.named_parameters()}

    def batch(self, latents: Tensor, tokens: Tensor, empty: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Latents [B, 4, 16, 16] and rows [B, 77] of one caption each, some strange, some empty.

        Drawn afresh from (seed, step, worker), so a resumed run goes on as if it had never stopped.
        """
        self.generator.manual_seed((DATA_SEED * 1_000_003 + self.step) * 64 + self.workers.rank)
        index = torch.randint(len(latents), (size,), generator=self.generator)
        which = torch.randint(CAPTIONS_A_PICTURE, (size,), generator=self.generator)
        rows = with_strange_words(tokens[index, which].long(), self.generator)
        dropped = torch.rand(size, generator=self.generator) < CAPTION_DROPOUT
        rows = torch.where(dropped[:, None], empty.long(), rows)
        return latents[index].float().to(self.device), rows.to(self.device)

    def warm_up(self, size: int) -> None:
        """Compiles, so that the minutes of training count none of it."""
        latent, rows = torch.zeros(size, 4, 16, 16), torch.zeros(size, 77, dtype=torch.long)
        self.loss(latent.to(self.device), rows.to(self.device)).backward()
        for module in self.modules.values():
            module.zero_grad()

    def train_step(self, latent: Tensor, rows: Tensor, factor: float) -> float:
        loss = self.loss(latent, rows)
        loss.backward()
        self.workers.average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            set_rate(optimizer, factor)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters], 1 - decay)
        return loss.item()

    @torch.no_grad()
    def start_from(self, shipped: dict[str, Tensor], part: str = "") -> None:
        """Takes over the weights of a shipped file, or of a part of it, with fresh optimizers."""
        require_words(shipped, self.words)
        for name, p in self.weights().items():
            if name.startswith(part):
                p.copy_(shipped[shipped_name(name)])
                self.average[name].copy_(p)

    def state(self) -> dict:
        return {name: module.state_dict() for name, module in self.modules.items()} | {
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "token_ids": self.words.token_ids,
            "step": self.step,
            "minutes": self.minutes,
        }

    def restore(self, state: dict) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.minutes = state["step"], state["minutes"]


class UNetTrainer(Trainer):
    """U-Net and text encoder together, by the error of v with min-SNR weights.

    Its blocks add to a stream that nothing normalizes: where weights only grow, the inner levels' features come to thousands,
    and their gradient in bfloat16 to noise. With the decay their rms stays below ten.
    """

    part, batch_size, weight_decay = "unet", BATCH, 0.1

    def __init__(self, host, words: Words, device: str, workers: Workers, compiled: bool = False):
        from comfy.ldm.modules.attention import SpatialTransformer
        from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

        torch.manual_seed(DATA_SEED)
        base = host.build_unet()
        unet = base.diffusion_model.requires_grad_(True).train()
        text = SpriteText(host.SpriteTextModel().transformer, len(words.token_ids) + 1).requires_grad_(True).train()
        initialise(unet, text)
        unet.to(device, memory_format=torch.channels_last)
        text.to(device)
        if compiled:
            compile_blocks(block for block in unet.modules() if isinstance(block, (ResBlock, SpatialTransformer)))
            compile_blocks(text.layers)
        self.predict, self.encode = unet, text
        self.sigmas = base.model_sampling.sigmas.to(device)
        super().__init__({"unet": unet, "text": text}, UNET_ENDS, words, device, workers)

    def keep_text(self, shipped: dict[str, Tensor]) -> None:
        """The text encoder of a shipped file, which learns no more: the DiT, and concepts, stand on it."""
        self.start_from(shipped, "text.")
        self.modules["text"].requires_grad_(False)

    def loss(self, latent: Tensor, rows: Tensor) -> Tensor:
        t = drawn_timesteps(len(latent), self.generator).to(self.device)
        eps = torch.randn(latent.shape, generator=self.generator).to(self.device)
        snr = 1 / self.sigmas[t].square()
        signal, noise = (snr / (1 + snr)).sqrt()[:, None, None, None], (1 / (1 + snr)).sqrt()[:, None, None, None]
        x_t = (signal * latent + noise * eps).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16):
            predicted = self.predict(x_t, t.float(), context=self.encode(rows), transformer_options=OPTIONS)
        return (loss_weight(snr) * (predicted.float() - eps).square().mean((1, 2, 3))).mean()


class DiTTrainer(Trainer):
    """The DiT alone, by flow matching; the text encoder of a shipped base gives its context and stays as it is."""

    part, batch_size = "dit", DIT_BATCH

    def __init__(
        self, host, words: Words, base: dict[str, Tensor], device: str, workers: Workers, compiled: bool = False
    ):
        from ..nodes.host.copies import training_mode

        require_words(base, words)
        torch.manual_seed(DATA_SEED)
        self.dit = host.build_dit().diffusion_model.requires_grad_(True).train()
        initialise_dit(self.dit)
        self.dit.to(device)
        if compiled:
            compile_blocks([*self.dit.noise_refiner, *self.dit.context_refiner, *self.dit.layers])
        self.encode = shipped_text(host, words, base).to(device)
        self.training_mode = training_mode
        super().__init__({"dit": self.dit}, DIT_ENDS, words, device, workers)

    def varied(self, latent: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Some batches with a shorter text or a flatter picture: the image's place in the sequence varies, as its padding."""
        short, flat = torch.rand(2, generator=self.generator).tolist()
        return latent[:, :, 2:] if flat < FLAT_PICTURE else latent, rows[:, :32] if short < SHORT_TEXT else rows

    def loss(self, latent: Tensor, rows: Tensor) -> Tensor:
        latent, rows = self.varied(latent, rows)
        t = flow_times(len(latent), self.generator).to(self.device)
        eps = torch.randn(latent.shape, generator=self.generator).to(self.device)
        x_t = torch.lerp(latent, eps, t[:, None, None, None])
        with torch.no_grad():
            context = self.encode(rows)
        with self.training_mode(), torch.autocast(self.device, torch.bfloat16):
            predicted = self.dit(x_t, t, context, context.shape[1], transformer_options=dict(OPTIONS))
        return (predicted.float() - (eps - latent)).square().mean()


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Each block by itself; the few shapes that occur each get their own code.

    Not the network as a whole: torch 2.13's inductor loses the gradient of a U-Net's inner levels on a CPU.
    """
    torch._dynamo.config.recompile_limit = 64
    for block in blocks:
        block.compile(dynamic=False)


def require_words(shipped: dict[str, Tensor], words: Words) -> None:
    if shipped["token_ids"].tolist() != words.token_ids:
        raise ValueError("The weights to start from were trained on other words than this world's captions use now.")


def shipped_text(host, words: Words, base: dict[str, Tensor]) -> SpriteText:
    """The text encoder of a shipped base, as it is."""
    text = SpriteText(host.SpriteTextModel().transformer, len(words.token_ids) + 1)
    text.load_state_dict({name: base[shipped_name(f"text.{name}")].float() for name, _ in text.named_parameters()})
    return text.requires_grad_(False).eval()


def rate_factor(step: int, progress: float) -> float:
    """Short warm-up, flat for two thirds, then linear to nothing at the known end."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, max(0.0, (1 - progress) / 0.35))


def train(trainer: Trainer, data, options: argparse.Namespace, log) -> None:
    """Goes on to the end: so many minutes, or so many steps where --steps says so."""

    def progress() -> float:
        return trainer.step / options.steps if options.steps else trainer.minutes / options.minutes

    latents, tokens, empty = data
    path, saved, losses = options.work / "state.pt", time.monotonic(), []
    due = [share for share in SNAPSHOTS if share > progress()]
    started = saved - 60 * trainer.minutes
    while progress() < 1:
        factor = rate_factor(trainer.step, progress())
        batch = trainer.batch(latents, tokens, empty, trainer.batch_size // trainer.workers.number)
        losses.append(trainer.train_step(*batch, factor))
        trainer.minutes = trainer.workers.from_first((time.monotonic() - started) / 60)
        if trainer.workers.rank:
            continue
        if trainer.step % 25 == 0:
            log(
                part=trainer.part,
                step=trainer.step,
                loss=sum(losses[-25:]) / len(losses[-25:]),
                minutes=round(trainer.minutes, 2),
            )
        if due and progress() >= due[0]:
            due.pop(0)
            log(part="snapshot", step=trainer.step)
            average = {name: value.half().contiguous() for name, value in trainer.average.items()}
            write_atomically(
                options.work / f"step-{trainer.step:06}.safetensors", lambda p, average=average: save_file(average, p)
            )
        if time.monotonic() - saved > 150 or progress() >= 1:
            write_atomically(path, lambda p: torch.save(trainer.state(), p))
            saved = time.monotonic()


def prepare(work: Path, number: int, autoencoder_minutes: float, device: str, log, start: Path | None = None) -> None:
    """Draws the pictures, trains the autoencoder, and keeps latents and tokens in work/data.pt; once."""
    if (work / "data.pt").exists():
        return
    if start and not (work / "autoencoder.safetensors").exists():
        codec = {k.removeprefix("vae."): v.float() for k, v in load_file(start).items() if k.startswith("vae.")}
        write_atomically(work / "autoencoder.safetensors", lambda p: save_file(codec, p))
    host = load_world_model(device)
    art, drawn = drawn_pictures(number)
    codec = autoencoder(work, art, autoencoder_minutes, device, log)
    tokens, empty, token_ids = caption_tokens(host, drawn)
    words = Words(token_ids)
    data = {
        "latents": encoded(codec, art).half(),
        "tokens": words.rows(tokens.long()).to(torch.int16),
        "empty": words.rows(empty.long()),
        "token_ids": token_ids,
    }
    write_atomically(work / "data.pt", lambda p: torch.save(data, p))


def new_trainer(host, words: Words, workers: Workers, options: argparse.Namespace) -> Trainer:
    """The architecture's trainer; its weights from --start where it stands on them."""
    if options.architecture == "DiT":
        return DiTTrainer(host, words, load_file(options.start), options.device, workers, options.compile)
    trainer = UNetTrainer(host, words, options.device, workers, options.compile)
    if options.start and options.keep_text:
        trainer.keep_text(load_file(options.start))
    elif options.start:
        trainer.start_from(load_file(options.start))
    return trainer


def work_as(rank: int, options: argparse.Namespace) -> None:
    """One worker's part in the training of the architecture."""
    workers = Workers(rank, options.workers, options.work / "workers")
    data = torch.load(options.work / "data.pt", weights_only=True)
    host, words = load_world_model(options.device), Words(data["token_ids"])
    trainer = new_trainer(host, words, workers, options)
    if (options.work / "state.pt").exists():
        trainer.restore(torch.load(options.work / "state.pt", weights_only=True))
    if options.compile:
        trainer.warm_up(trainer.batch_size // workers.number)
    inputs = (data["latents"], data["tokens"], data["empty"])
    train(trainer, inputs, options, logger(options.work))


def logger(work: Path):
    """log(part=…, loss=…) adds a line to work/log.jsonl."""

    def log(**entry) -> None:
        with (work / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    return log


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="U-Net")
    parser.add_argument("--minutes", type=float, default=100, help="the training in all; the rate falls to its end")
    parser.add_argument("--steps", type=int, help="the training in all, where minutes would depend on what else runs")
    parser.add_argument("--autoencoder-minutes", type=float, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work", type=Path, help="where checkpoints and the log are kept")
    parser.add_argument(
        "--compile", action="store_true", help="1.5 times as fast after some minutes of compiling; wants a C++ compiler"
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="a shipped base.safetensors: the U-Net goes on from it where --work is empty; the DiT stands on its "
        "autoencoder and text encoder (default: the one that is shipped)",
    )
    parser.add_argument(
        "--keep-text",
        action="store_true",
        help="of --start only autoencoder and text encoder, as they are: the U-Net learns from nothing beside them",
    )
    parser.add_argument("--pictures", type=int, default=PICTURES, help="size of the training set")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (CPU only)")
    options = parser.parse_args()
    options.workers = options.workers if options.device == "cpu" else 1
    options.work = options.work or work_folder(options.architecture)
    if options.architecture == "DiT":
        options.start = options.start or BASE
    return options


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    log = logger(options.work)
    log(part="command", text=shlex.join(["python", "-m", "vico_spin.scripts.train_sprite_world", *sys.argv[1:]]))
    prepare(options.work, options.pictures, options.autoencoder_minutes, options.device, log, options.start)
    (options.work / "workers").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work_as, (options,), nprocs=options.workers)


if __name__ == "__main__":
    main()
