"""Formats that people have: archives of webdataset, prompts in ComfyUI's own pictures."""

import io
import json
import tarfile

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vico_spin.intake import LIMITS, BadFile, Report, prompt_of_picture
from vico_spin.intake.workflows import plain_words
from vico_spin.scores.samples import samples_of
from vico_spin.spin_core.data import Dataset


def picture(kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, kind, **options)
    return buffer.getvalue()


def tar_of(path, *members):
    """members: (name, content), or (name, tarfile type, link name)."""
    with tarfile.open(path, "w") as archive:
        for name, *what in members:
            member = tarfile.TarInfo(name)
            if len(what) == 2:
                member.type, member.linkname = what
                archive.addfile(member)
            else:
                member.size = len(what[0])
                archive.addfile(member, io.BytesIO(what[0]))
    return path


def read(path):
    report = Report()
    return list(Dataset(path).samples(report)), report


# Archives


def test_a_webdataset_is_read_as_img2dataset_writes_it(tmp_path):
    """Its tables beside the archives hold no pictures, and are left alone."""
    for shard in range(2):
        members = []
        for number in range(2):
            key = f"{shard:05}{number:04}"
            members += [(f"{key}.jpg", picture("JPEG")), (f"{key}.json", b'{"caption": "of json", "url": "x"}')]
            members += [(f"{key}.txt", f"caption {key}".encode())]
        tar_of(tmp_path / f"{shard:05}.tar", *members)
        (tmp_path / f"{shard:05}.parquet").write_bytes(b"url and status")
        (tmp_path / f"{shard:05}_stats.json").write_text("{}")
    samples, report = read(tmp_path)
    keys = ["000000000", "000000001", "000010000", "000010001"]
    assert [s.prompt for s in samples] == [f"caption {key}" for key in keys] and not report.counts
    assert samples[0].image.name == "00000.tar/000000000.jpg" and samples[0].image.open().size == (9, 9)


def test_nothing_is_unpacked_and_the_first_sample_comes_before_the_rest_is_read(tmp_path):
    path = tar_of(
        tmp_path / "t.tar", *((f"a/{n}.{e}", c) for n in range(3) for e, c in (("png", picture()), ("txt", b"a")))
    )
    path.write_bytes(path.read_bytes()[:3000])
    stream = Dataset(path).samples(report := Report())
    assert next(stream).prompt == "a"
    list(stream)
    assert any(reason.startswith("damaged from some place on") for reason in report.counts)
    assert [p.name for p in tmp_path.iterdir()] == ["t.tar"]


def test_members_that_are_no_ordinary_files_or_lead_out_are_left_out_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(LIMITS, "picture_bytes", 5000)
    path = tar_of(
        tmp_path / "t.tar",
        ("../out.png", picture()),
        ("/abs.png", picture()),
        ("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        ("hard.png", tarfile.LNKTYPE, "good.png"),
        ("device.png", tarfile.CHRTYPE, ""),
        ("pipe.png", tarfile.FIFOTYPE, ""),
        ("large.png", picture() + bytes(5000)),
        ("none.png", picture()),
        ("folder.png", tarfile.DIRTYPE, ""),
        ("good.png", picture()),
        ("good.txt", b"good"),
    )
    samples, report = read(path)
    assert [s.prompt for s in samples] == ["good"]
    assert report.left_out == {
        "its name leads out of the archive": ["t.tar/../out.png", "t.tar//abs.png"],
        "no ordinary file (a link, a device)": [f"t.tar/{n}.png" for n in ("link", "hard", "device", "pipe")],
        "more than 0 MB": ["t.tar/large.png"],
        "no caption (a .txt of the same name)": ["t.tar/none.png"],
    }


def test_a_picture_with_a_point_in_its_name_is_left_out_by_name(tmp_path):
    """webdataset's names end at the first point."""
    members = [(name, picture()) for name in ("photo.v2.png", "a/._photo.png", "good.png")]
    samples, report = read(tar_of(tmp_path / "t.tar", *members, ("good.txt", b"good")))
    assert [s.prompt for s in samples] == ["good"]
    assert report.left_out == {"a point in its name before the ending": ["t.tar/photo.v2.png"]}


def test_what_is_no_archive_says_so(tmp_path):
    (tmp_path / "t.tar").write_bytes(picture())
    with pytest.raises(BadFile, match=r'"t\.tar" is no \.tar '):
        read(tmp_path / "t.tar")


# Prompts in ComfyUI's own pictures

ENCODE = {"class_type": "CLIPTextEncode", "inputs": {"text": "a (red:1.2) cat", "clip": ["1", 1]}}
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
    "2": ENCODE,
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["1", 1]}},
    "4": {
        "class_type": "KSampler",
        "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["9", 0], "seed": 3},
    },
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "connected to nothing", "clip": ["1", 1]}},
    "9": {"class_type": "EmptyLatentImage", "inputs": {"width": 64}},
}


def link(name, slot=0):
    return [name, slot]


def with_nodes(**nodes):
    """GRAPH with nodes changed: name=(class, inputs), the sampler's own inputs kept where they are not named."""
    graph = json.loads(json.dumps(GRAPH))
    for name, (kind, inputs) in nodes.items():
        name = name.removeprefix("n")
        kept = graph[name]["inputs"] if name in graph and kind == graph[name]["class_type"] else {}
        graph[name] = {"class_type": kind, "inputs": {**kept, **inputs}}
    return graph


CONTROLNET = {"positive": link("2"), "negative": link("3"), "control_net": link("20"), "image": link("21")}
GRAPHS = {
    "KSampler": GRAPH,
    "ControlNet, Flux guidance": with_nodes(
        n4=("KSampler", {"positive": link("11"), "negative": link("10", 1)}),
        n10=("ControlNetApplyAdvanced", CONTROLNET),
        n11=("FluxGuidance", {"conditioning": link("10"), "guidance": 3.5}),
    ),
    "a guider": with_nodes(
        n4=("SamplerCustomAdvanced", {"guider": link("12"), "positive": 0, "negative": 0, "model": 0}),
        n12=("BasicGuider", {"model": link("1"), "conditioning": link("2")}),
    ),
    "a text node": with_nodes(
        n2=("CLIPTextEncode", {"text": link("13")}), n13=("PrimitiveString", {"value": "a (red:1.2) cat"})
    ),
    "SDXL": with_nodes(n2=("CLIPTextEncodeSDXL", {"text_g": "a red cat", "text_l": "a red cat", "width": 1024})),
    "a second pass with a prompt of its own": with_nodes(
        n14=("KSampler", {"model": link("1"), "positive": link("7"), "negative": link("3")}),
        n4=("KSampler", {"latent_image": link("14")}),
    ),
}


def saved(path, graph):
    info = PngInfo()
    info.add_text("prompt", graph if isinstance(graph, str) else json.dumps(graph))
    path.write_bytes(picture(pnginfo=info))
    return path


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_the_positive_prompt_is_followed_from_the_sampler(tmp_path, graph):
    assert prompt_of_picture(saved(tmp_path / "a.png", graph)) == "a red cat"


@pytest.mark.parametrize(
    "graph, sentence",
    [
        (with_nodes(n2=("CLIPTextEncodeSDXL", {"text_g": "a", "text_l": "b"})), "was made from 2 prompts"),
        (with_nodes(n2=("CLIPTextEncode", {"text": link("99")})), "a prompt that its graph does not hold"),
        (
            with_nodes(
                n2=("CLIPTextEncode", {"text": link("13")}),
                n13=("StringReplace", {"string": "a {x}", "find": "{x}", "replace": "cat"}),
            ),
            "a prompt that its graph does not hold",
        ),
        (with_nodes(n2=("ConditioningCombine", {"conditioning": link("2"), "text": 0})), "does not hold"),
    ],
    ids=["two texts", "text from elsewhere", "a text that a node changes", "a circle"],
)
def test_a_prompt_that_cannot_be_told_is_said(tmp_path, graph, sentence):
    with pytest.raises(BadFile, match=sentence):
        prompt_of_picture(saved(tmp_path / "a.png", graph))


@pytest.mark.parametrize("chunk", ["no json", "[1]", '{"1": 3}', "[" * 9000, '{"1": {"inputs": {"a": ["1", 0]}}}'])
def test_chunks_that_are_no_graph_are_no_prompt(tmp_path, chunk):
    assert prompt_of_picture(saved(tmp_path / "a.png", chunk)) is None


def test_weights_are_taken_out_and_brackets_that_are_meant_stay():
    assert plain_words(r"((a cat:1.2), (red)) \(toy\), at 10:30") == "a cat, red (toy), at 10:30"


def test_comfyuis_pictures_need_no_list_to_be_scored(tmp_path):
    """A caption beside a picture counts before its graph."""
    for name in "ab":
        saved(tmp_path / f"{name}.png", GRAPH)
    (tmp_path / "b.txt").write_text("mine")
    (tmp_path / "c.png").write_bytes(picture())
    found = samples_of("m", tmp_path, None, None, report=(report := Report()))
    assert [(s.prompt, s.seed) for s in found] == [("a red cat", "0"), ("mine", "0")]
    assert report.text() == "2 samples\nleft out, no caption (a .txt of the same name): 1 (c.png)"


def test_pictures_of_two_prompts_are_one_line_of_the_report(tmp_path):
    for number in range(30):
        saved(tmp_path / f"{number:02}.png", with_nodes(n2=("CLIPTextEncodeSDXL", {"text_g": "a", "text_l": "b"})))
    _, report = read(tmp_path)
    assert report.counts == {"was made from 2 prompts (write the one that counts into a .txt of the same name)": 30}


def test_pictures_that_fit_no_name_are_counted(tmp_path):
    for name in ("0_0", "0_1", "cover", "grid/all"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(picture())
    found = samples_of("m", tmp_path, ["a"], None, report=(report := Report()))
    assert len(found) == 2 and report.counts == {
        "not named as {prompt}_{seed} or {prompt}-{seed} or {prompt}/{seed} or {prompt}": 2
    }
