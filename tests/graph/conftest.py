"""The real host in this process, and small models of the true architecture in it.

`host.run(prompt)` runs an API-format prompt; `call("NodeId", **inputs)` runs one node as the executor does and returns its
results. `make_sd1(…)` builds a small SD1.x-shaped MODEL, `make_clip(…)` a small CLIP, `make_vae()` a small VAE, weights by seed.
"""

import os

import pytest

from vico_spin.scripts.host import BASE, Host, enter

# Where several processes share the tests, each has a host of its own.
BASE_HERE = BASE / os.environ.get("PYTEST_XDIST_WORKER", "")
enter(BASE_HERE)

import folder_paths  # noqa: E402
import torch  # noqa: E402

from vico_spin.scripts import models  # noqa: E402

torch.backends.cudnn.allow_tf32 = False  # with COMFYUI_DEVICE=cuda: the originals' numbers are float32's


@pytest.fixture(scope="session")
def host():
    return Host(BASE_HERE)


@pytest.fixture(scope="module")
def parts(make_sd1, make_clip, make_vae):
    return make_sd1(), make_clip(), make_vae()


@pytest.fixture
def cactus_recognised():
    """Of a saved picture: the share of other pink cactuses that it resembles less than the one of the example concepts."""
    import numpy as np
    from PIL import Image

    from vico_spin.scripts.make_examples import CACTUS
    from vico_spin.sprite_world.identity import identity
    from vico_spin.sprite_world.measure import recognition, to_art

    def recognised(path) -> float:
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None] / 255
        return float(recognition(to_art(image), identity(CACTUS.number))[0])

    return recognised


@pytest.fixture
def bench(call, parts):
    """A small model with a concept and a reference; several files try Apply ViCo on it."""
    from vico_spin.tests.graph.vico_bench import Bench

    bench = Bench(call, *parts)
    yield bench
    del bench.model.model.diffusion_model._forward


@pytest.fixture
def output(host, tmp_path):
    """The host's output folder, for this test alone."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    host.executor.reset()  # its Save Image would go on writing where an earlier test had it write
    yield tmp_path
    folder_paths.set_output_directory(before)


@pytest.fixture(autouse=True)
def model_folders():
    """What a test adds to the host's model folders goes with it."""
    before = {name: ([*paths], *rest) for name, (paths, *rest) in folder_paths.folder_names_and_paths.items()}
    yield
    folder_paths.folder_names_and_paths.clear()
    folder_paths.folder_names_and_paths.update(before)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="session")
def call(host):
    """call("ViCoApply", model=…) → the node's results, under inference_mode as in the executor."""
    return host.call


@pytest.fixture(scope="session")
def make_sd1(host):
    """scripts.models.sd1: a MODEL of SD1.x's kind; by default its own layout at 1/10 width."""
    return models.sd1


@pytest.fixture(scope="session")
def make_clip(host):
    """scripts.models.clip: a CLIP behind SD1's own tokenizer, its text model small."""
    return models.clip


@pytest.fixture(scope="session")
def make_vae(host):
    """scripts.models.vae: a VAE of TAESD's architecture."""
    return models.vae


@pytest.fixture
def move_as_a_gpu(monkeypatch):
    """move_as_a_gpu(): from now on .to() puts other data under a module's weights, as a change of device does."""
    plain_to = torch.nn.Module.to

    def to(module, *args, **kwargs):
        moved = plain_to(module, *args, **kwargs)
        for weight in moved.parameters():
            weight.data = torch.clone(weight.data)
        return moved

    return lambda: monkeypatch.setattr(torch.nn.Module, "to", to)
