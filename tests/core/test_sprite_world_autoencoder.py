"""The autoencoder's algebra, and the shipped one's fidelity."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sprite_world
from vico_spin.sprite_world.autoencoder import SCALE, SpriteAutoencoder, whiten
from vico_spin.sprite_world.identity import identity
from vico_spin.sprite_world.measure import identity_similarity, to_art
from vico_spin.sprite_world.muon import Muon, orthogonalized
from vico_spin.sprite_world.pictures import pictures, render, show

WEIGHTS = Path(sprite_world.__file__).parent / "weights" / "base.safetensors"


def test_latents_are_an_eighth_of_any_size_that_eight_divides():
    model = SpriteAutoencoder()
    latent = model.encode(torch.zeros(2, 3, 64, 96))
    assert latent.shape == (2, 4, 8, 12)
    assert model.decode(latent).shape == (2, 3, 64, 96)


@torch.no_grad()
def test_whitening_gives_unit_uncorrelated_latents_and_leaves_the_reconstruction():
    torch.manual_seed(0)
    model, art = SpriteAutoencoder(), torch.rand(16, 3, 32, 32) * 2 - 1
    latent = model.encode_art(art)
    torch.nn.init.eye_(model.from_white.weight[:, :, 0, 0])
    torch.nn.init.zeros_(model.from_white.bias)
    before = model.decode_art(latent)
    whiten(model, latent)
    white = model.encode_art(art)
    flat = white.movedim(1, -1).flatten(0, -2)
    assert torch.allclose(flat.T.cov(), torch.eye(4), atol=1e-2)
    assert torch.allclose(model.decode_art(white), before, atol=1e-4)


def test_orthogonalized_matrices_have_singular_values_near_one():
    """Muon's quintic holds them in about 0.7 to 1.2 after five steps."""
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(2, 24, 40)))
    assert values.min() > 0.5 and values.max() < 1.3


def test_muon_s_weight_decay_shrinks_by_rate_times_decay():
    p = torch.nn.Parameter(torch.full((3, 4), 2.0))
    p.grad = torch.zeros(3, 4)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(p, torch.full((3, 4), 1.9))


@pytest.fixture(scope="module")
def decoded():
    """(held-out pictures, their pixels, the shipped autoencoder's reconstruction), both [N, 128, 128, 3] in 0..1."""
    model = SpriteAutoencoder().requires_grad_(False)
    weights = load_file(WEIGHTS)
    model.load_state_dict({k.removeprefix("vae."): v.float() for k, v in weights.items() if k.startswith("vae.")})
    drawn = list(islice(pictures(55, held_out=True), 40))
    truth = torch.from_numpy(np.stack([show(render(picture)[0]) for picture in drawn])).float() / 255
    latent = model.encode(truth.movedim(-1, 1) * 2 - 1)
    assert (latent * SCALE).std() == pytest.approx(1, abs=0.15)
    return drawn, truth, model.decode(latent).movedim(1, -1).clamp(-1, 1) / 2 + 0.5


def test_shipped_autoencoder_reaches_28_decibels(decoded):
    _, truth, again = decoded
    assert 10 * torch.log10(1 / (truth - again).square().mean()) >= 28


def test_shipped_autoencoder_keeps_identities_apart(decoded):
    drawn, _, again = decoded
    art = to_art(again)
    own = [identity_similarity(art[i : i + 1], p.who)[0] for i, p in enumerate(drawn)]
    other = [
        identity_similarity(art[i : i + 1], identity(p.who.seed + 1, p.who.class_word, p.who.colour))[0]
        for i, p in enumerate(drawn)
    ]
    assert np.mean(own) >= 0.9
    assert np.mean(own) > np.mean(other) + 0.2
