"""ViCo's evidence: how its measures are read and put together, on numbers made up; the runs themselves take hours."""

import pytest
import torch

from vico_spin.benchmarks.vico_evidence import ALL, OtherReferences, gains, overlap, table
from vico_spin.vico_core.training import Draws, Photos

GRID = (4, 4)


def creature(**conditions: list[float]) -> dict:
    """What is kept of one creature: each condition's identity by picture."""
    return {name.replace("_", " "): {"identity": found, "seconds": 0.1} for name, found in conditions.items()}


def test_overlap_of_a_map_with_the_true_mask():
    truth = torch.zeros(16, 16)
    truth[:8] = 1
    bright = torch.full(GRID, 0.1)
    bright[:2] = 1
    assert overlap(bright.flatten()[None], truth, GRID) == 1
    assert overlap(bright.flip(0).flatten()[None], truth, GRID) == 0
    bright[:] = 0.1
    bright[0] = 1
    assert overlap(bright.flatten()[None], truth, GRID) == 0.5


def test_what_vico_adds_is_told_by_the_creatures_that_have_both():
    """The third creature, by far the best, was run without the trial."""
    results = [
        creature(ViCo=[0.4, 0.6], mask_off=[0.3, 0.3]),
        creature(ViCo=[0.5, 0.5], mask_off=[0.4, 0.4]),
        creature(ViCo=[1.0, 1.0]),
    ]
    rows = table(results)
    assert (rows["ViCo"]["identities"], rows["mask off"]["identities"]) == (3, 2)
    assert rows["ViCo"]["identity"] == pytest.approx(2 / 3)
    assert gains(results)["mask off"]["identity"][0] == pytest.approx(0.15)
    assert "class word" not in rows and "class word" not in gains(results)


def test_conditions_that_draw_by_one_concept_share_its_training():
    """An unseen reference changes the drawing alone; every trial changes the training."""
    learnt = {name: how.learnt_as for name, how in ALL.items() if how.learns}
    assert learnt.pop("unseen reference") == learnt["ViCo"]
    assert len(set(learnt.values())) == len(learnt)


def test_larger_references_come_with_the_same_samples():
    """Only the reference differs: it is the larger latent of the very photo that the plain stream takes."""
    small = Photos(torch.arange(3.0)[:, None, None, None].expand(3, 4, 2, 2))
    large = Photos(torch.arange(3.0)[:, None, None, None].expand(3, 4, 4, 4))
    stream = (small, ["a *", "the *"], 1000, 2, 5)
    plain, other = Draws(*stream)(7), OtherReferences(large, *stream)(7)
    for name in ("x0", "noise", "t"):
        assert torch.equal(getattr(plain, name), getattr(other, name))
    assert plain.captions == other.captions
    assert other.reference.shape == (2, 4, 4, 4)
    assert torch.equal(other.reference[:, :, :2, :2], plain.reference)
