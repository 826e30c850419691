"""The concept file: it comes back whole, and every broken file gets a sentence."""

import os
import pickle
import resource
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vico_spin.vico_core import ImageAttention, ViCoConcept


def make_concept(**words):
    torch.manual_seed(0)
    modules = {
        "output_blocks.8.1": ImageAttention(16, 2, 8).state_dict(),
        "output_blocks.10.1": ImageAttention(8, 2, 4).state_dict(),
    }
    return ViCoConcept(modules, {"l": torch.randn(1, 24)}, **words)


def assert_equal(a, b):
    assert list(a.modules) == list(b.modules)
    for place, weights in a.modules.items():
        assert all(torch.equal(weights[k], b.modules[place][k]) for k in weights)
    assert torch.equal(a.embeddings["l"], b.embeddings["l"])


def test_a_saved_concept_comes_back(tmp_path):
    concept = make_concept(
        placeholder="<toy>", initialiser="toy", base_hash="ab12", step=400, settings={"lr": 1e-5}, thumbnail=b"\x89PNG"
    )
    concept.save(tmp_path / "toy.safetensors")
    loaded = ViCoConcept.load(tmp_path / "toy.safetensors")
    assert_equal(concept, loaded)
    for name in ("placeholder", "initialiser", "base_hash", "step", "settings", "thumbnail"):
        assert getattr(loaded, name) == getattr(concept, name)
    assert os.listdir(tmp_path) == ["toy.safetensors"], "no temporary file stays"


def test_the_original_pair_goes_out_and_in(tmp_path):
    concept = make_concept(placeholder="*")
    concept.save_original(tmp_path / "cross_attention-300.pt", tmp_path / "embeddings_gs-300.pt")
    loaded = ViCoConcept.load(tmp_path / "cross_attention-300.pt")
    assert_equal(concept, loaded)
    assert loaded.step == 300


def test_no_pair_is_begun_that_the_authors_code_cannot_load(tmp_path):
    """Their places are fixed in code."""
    concept = make_concept()
    concept.modules["output_blocks.9.1"] = concept.modules["output_blocks.10.1"]
    with pytest.raises(ValueError, match=r"Choose another format.\n.* this concept also has output_blocks.9.1"):
        concept.save_original(tmp_path / "pair" / "cross_attention-1.pt", tmp_path / "pair" / "embeddings_gs-1.pt")
    assert not list(tmp_path.iterdir())


def test_a_torch_1_10_parameter_dict_is_read(tmp_path):
    """Those files hold a ParameterDict without `_keys`."""
    make_concept().save_original(tmp_path / "cross_attention-1.pt", tmp_path / "embeddings_gs-1.pt")
    old = torch.nn.ParameterDict()
    old._parameters["*"] = torch.nn.Parameter(torch.ones(1, 24))
    del old._keys
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": old}, tmp_path / "embeddings_gs-1.pt")
    assert torch.equal(ViCoConcept.load(tmp_path / "cross_attention-1.pt").embeddings["l"], torch.ones(1, 24))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_never_executed(tmp_path, zipped):
    make_concept().save_original(tmp_path / "cross_attention-1.pt", tmp_path / "embeddings_gs-1.pt")
    bad = tmp_path / "cross_attention-1.pt"
    if zipped:
        torch.save({"x": Payload(tmp_path / "owned")}, bad)
    else:
        bad.write_bytes(pickle.dumps({"x": Payload(tmp_path / "owned")}))
    with pytest.raises(ValueError, match="Nothing in it was run"):
        ViCoConcept.load(bad)
    assert not (tmp_path / "owned").exists()


def truncated(path):
    make_concept().save(path)
    path.write_bytes(path.read_bytes()[:2000])


def empty(path):
    path.write_bytes(b"")


def a_picture(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))


def of_another_kind(path):
    save_file({"model.weight": torch.zeros(2)}, path)


def with_nan(path):
    concept = make_concept()
    concept.modules["output_blocks.8.1"]["attn2.to_k.weight"][3, 4] = torch.nan
    concept.save(path)


def with_a_part_missing(path):
    concept = make_concept()
    del concept.modules["output_blocks.8.1"]["norm2.bias"]
    concept.save(path)


def with_a_place_missing(path):
    make_concept().save(path)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if "output_blocks.8.1" not in key}  # noqa: SIM118
        save_file(tensors, path, file.metadata())


def with_a_wrong_shape(path):
    concept = make_concept()
    concept.modules["output_blocks.8.1"]["ff.net.2.weight"] = torch.zeros(3, 3)
    concept.save(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (truncated, "not a whole safetensors file"),
        (empty, "not a whole safetensors file"),
        (a_picture, "not a whole safetensors file"),
        (of_another_kind, "Choose a ViCo concept"),
        (with_nan, "holds NaN or infinity in output_blocks.8.1.attn2.to_k.weight"),
        (with_a_part_missing, "lacks norm2.bias"),
        (
            with_a_place_missing,
            r"(?s)^Download or save the concept again.\n[^\n]* lacks the weights of the place[^\n]*$",
        ),
        (with_a_wrong_shape, 'ff.net.2.weight of "bad.safetensors" has shape'),
    ],
)
def test_a_broken_file_gets_a_sentence(tmp_path, make, sentence):
    make(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=sentence) as error:
        ViCoConcept.load(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"no pickle at all"])
def test_a_broken_pickle_gets_a_sentence(tmp_path, content):
    make_concept().save_original(tmp_path / "cross_attention-1.pt", tmp_path / "embeddings_gs-1.pt")
    (tmp_path / "cross_attention-1.pt").write_bytes(content)
    with pytest.raises(ValueError, match="could not be read as weights"):
        ViCoConcept.load(tmp_path / "cross_attention-1.pt")


def test_half_a_pair_says_what_is_missing(tmp_path):
    make_concept().save_original(tmp_path / "cross_attention-1.pt", tmp_path / "embeddings_gs-1.pt")
    (tmp_path / "embeddings_gs-1.pt").unlink()
    with pytest.raises(ValueError, match=r"Put its embeddings_gs-N\.pt beside it"):
        ViCoConcept.load(tmp_path / "cross_attention-1.pt")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    concept = make_concept()
    path = tmp_path / "toy.safetensors"
    concept.save(path)
    before = path.read_bytes()

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        make_concept(step=7).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["toy.safetensors"]


@pytest.mark.parametrize("room", [400, 20_000])
def test_a_disk_that_fills_up_leaves_no_half_pair(tmp_path, room):
    """torch's own writer says \"unexpected pos\", and the first file stayed without its word."""
    concept = make_concept()
    concept.embeddings["l"] = torch.randn(1, 20_000)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(OSError, match=r"Look whether the folder is writable and the disk has room\.\n"):
            concept.save_original(tmp_path / "cross_attention-1.pt", tmp_path / "embeddings_gs-1.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
