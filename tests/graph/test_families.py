"""The table of model families against tiny models of the host's own classes."""

import pytest
import torch

from vico_spin.nodes.host.families import transformer_family
from vico_spin.scripts import transformers


@pytest.mark.parametrize("name", transformers.TRANSFORMERS)
def test_blocks_and_their_linears_are_found(host, name):
    network = transformers.transformer(name).model.diffusion_model
    family = transformer_family(network)
    blocks = [network.get_submodule(path) for path in family.block_paths(network)]
    attention = family.linears(network, family.attention)
    feed_forward = family.linears(network, family.feed_forward)
    assert len(blocks) >= 4
    held = {id(module) for block in blocks for module in block.modules() if isinstance(module, torch.nn.Linear)}
    found = {id(network.get_submodule(path)) for path in attention + feed_forward}
    assert len(found) == len(attention) + len(feed_forward) and found <= held
    modulation = {path for path, module in network.named_modules() if id(module) in held - found}
    assert all("mod" in path for path in modulation), "what a LoRA leaves out is the modulation alone"
