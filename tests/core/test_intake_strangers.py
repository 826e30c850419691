"""Files from strangers: what they claim is held against what they hold, before anything is run, fetched or allocated."""

import io
import json
import pickle
import zipfile

import pytest
import torch

from vico_spin.intake import BadFile, check_pickle
from vico_spin.scores.load import load_scorer
from vico_spin.scores.report import as_csv
from vico_spin.scores.weights import read_weights
from vico_spin.scripts import tiny_scorers as tiny


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.ones(3, 4).T, "b": torch.ones(9)[2:8:2], "none": torch.empty(0), "one": torch.tensor(3.0)},
        {"epoch": 3, "name": "x", "state_dict": torch.nn.Linear(3, 3).state_dict(), "more": [1.5, None, True, {1}]},
        {"half": torch.ones(3).half(), "long": torch.ones(3).long(), "parameter": torch.nn.Parameter(torch.ones(2))},
        {"bool": torch.ones(3).bool(), "bfloat": torch.ones(3).bfloat16(), "complex": torch.ones(2) + 1j},
    ],
    ids=["views", "a training's", "dtypes", "more dtypes"],
)
def test_what_torch_writes_passes(tmp_path, value, zipped):
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    check_pickle(tmp_path / "a.pt")


class Claims:
    """A tensor of that size and stride over a storage of so many items, as a pickle calls it."""

    def __init__(self, size, stride=(1,), offset=0, items=4):
        self.size, self.stride, self.offset, self.items = size, stride, offset, items

    def __reduce__(self):
        storage = Storage(self.items)
        return torch._utils._rebuild_tensor_v2, (storage, self.offset, self.size, self.stride, False, {})


class Storage:
    def __init__(self, items):
        self.items = items


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", torch.FloatStorage, "0", "cpu", value.items) if isinstance(value, Storage) else None


def pickled(value) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def archive(path, heading: bytes, compression=zipfile.ZIP_STORED, numbers=bytes(16)):
    """torch's form, with four float32 in its storage."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", heading)
        file.writestr("a/version", "3\n")
        file.writestr("a/data/0", numbers)
    return path


TOO_LARGE = "a tensor is larger than what the file holds of it"
HOSTILE = {
    "size": ({"heading": pickled(Claims((10**12,)))}, TOO_LARGE),
    "stride": ({"heading": pickled(Claims((2,), (10**12,)))}, TOO_LARGE),
    "offset": ({"heading": pickled(Claims((2,), (1,), 3))}, TOO_LARGE),
    "stretched": ({"heading": pickled(Claims((10**6, 10**6), (0, 0)))}, TOO_LARGE),
    "negative": ({"heading": pickled(Claims((-1,)))}, "a tensor that is none"),
    "storage": ({"heading": pickled(Claims((10**6,), items=10**6))}, TOO_LARGE),
    "packed": ({"heading": pickled([]), "compression": zipfile.ZIP_DEFLATED}, "packed"),
    "unknown": ({"heading": b"cos\nsystem\n(X\x04\x00\x00\x00exittR."}, "it names os.system, which no weights need"),
    "opcodes": ({"heading": b"\x80\x02" + b"N0" * 3_000_000 + b"N."}, "too many parts"),
    "bytes that are not there": (
        {"heading": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"."},
        "could not be read",
    ),
    "memo": ({"heading": b"\x80\x02Nr\xff\xff\xff\x7f."}, None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_pickles_that_claim_more_than_they_hold_are_refused_before_torch_reads_them(tmp_path, monkeypatch, case):
    made, sentence = HOSTILE[case]
    path = archive(tmp_path / "a.pt", **made)
    monkeypatch.setattr(torch, "load", lambda *args, **named: pytest.fail("torch read it"))
    if sentence is None:
        return check_pickle(path)
    with pytest.raises(BadFile, match=sentence):
        read_weights(path, "", "PickScore")


def test_a_storage_of_the_old_form_is_held_against_the_file(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content.replace((1000).to_bytes(2, "little"), (60_000).to_bytes(2, "little")))
    with pytest.raises(BadFile, match=TOO_LARGE):
        check_pickle(tmp_path / "a.pt")


# Configurations


@pytest.fixture
def clip(tmp_path):
    tiny.write_clip_folder(tmp_path / "clip", activation="quick_gelu")
    return tmp_path / "clip"


def changed(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for place, value in changes.items():
        part, _, name = place.partition("/")
        (config[part] if name else config)[name or part] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, value, sentence",
    [
        ("text_config/num_hidden_layers", 1_000_000, "has 1,000,000 layers, and its weights are"),
        ("vision_config/intermediate_size", 8_000_000, "describes .* weights, and the file holds"),
        ("vision_config/image_size", 16_000_000, "describes .* weights, and the file holds"),
        ("text_config/vocab_size", 2**40, "describes no model: its vocab_size is"),
        ("text_config/hidden_size", "wide", "describes no model: its hidden_size is 'wide'"),
        ("vision_config/num_attention_heads", 7, "describes no model"),
        ("vision_config/hidden_act", "rm -rf", "describes no model"),
        ("vision_config", [1], "describes no model"),
    ],
)
def test_a_configuration_is_held_against_the_weights_before_a_model_is_made(clip, change, value, sentence):
    changed(clip, **{change: value})
    with pytest.raises(ValueError, match=sentence):
        load_scorer("clip-i", clip)


def test_kernels_code_and_quantisation_that_a_configuration_names_are_left_out(clip, monkeypatch):
    """transformers would fetch a kernel from the hub and run it."""
    plain = load_scorer("clip-i", clip).score([tiny.picture(48, 48)], None, [tiny.picture(32, 48)])
    named = {"attn_implementation": "nobody/kernel", "_attn_implementation": "nobody/kernel"}
    named |= {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}, "dtype": "float16"}
    changed(clip, **named, auto_map={"AutoModel": "nobody/code--model.Model"})
    changed(
        clip, **{f"{part}/{name}": value for part in ("text_config", "vision_config") for name, value in named.items()}
    )
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    assert load_scorer("clip-i", clip).score([tiny.picture(48, 48)], None, [tiny.picture(32, 48)]) == plain


@pytest.mark.parametrize(
    "file, content, sentence",
    [
        ("vocab.json", "[1]", "is none of CLIP"),
        ("vocab.json", '{"a": "b"}', "is none of CLIP"),
        ("vocab.json", "{", "Write the file as JSON"),
        ("merges.txt", "a b c\n", "does not belong to the vocab.json"),
        ("merges.txt", "zzz yyy\n", "does not belong to the vocab.json"),
    ],
)
def test_vocabularies_that_are_none_are_said(clip, file, content, sentence):
    (clip / file).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_scorer("clip-score", clip)


def test_cells_that_a_spreadsheet_would_run_are_quoted():
    rows = [{"prompt": text, "score": -0.5} for text in ("=1+1", "+1", "-1", "@a", "\tx", "a=b")]
    cells = [line.split(",")[3] for line in as_csv(rows).splitlines()[1:]]
    assert cells == ["'=1+1", "'+1", "'-1", "'@a", "'\tx", "a=b"]
    assert all(line.split(",")[5] == "-0.5" for line in as_csv(rows).splitlines()[1:])
