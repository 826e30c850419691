"""Files as people have them: read rightly, or named in a sentence; every case here went wrong in silence or without a name."""

import io
import json
import os
import struct

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vico_spin.intake import (
    LIMITS,
    BadFile,
    Problem,
    Report,
    inside,
    open_picture,
    pictures_below,
    read_prompts,
    read_rows,
)
from vico_spin.intake.texts import decode_text
from vico_spin.scores.run import KEYS
from vico_spin.scores.run import read_rows as read_scores
from vico_spin.scores.samples import samples_of
from vico_spin.spin_core.data import Dataset
from vico_spin.spin_core.samples import Sample


def saved(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def values_of(content: bytes) -> list[int]:
    return np.asarray(open_picture(content, "x"))[..., 0].flatten().tolist()


# Pictures


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))),
        saved(Image.fromarray(np.array([[0, 257 * 100, 65535]], np.int32)), "TIFF"),
        saved(Image.fromarray(np.array([[0, 100 / 255, 1]], np.float32)), "TIFF"),
        saved(Image.fromarray(np.array([[0, 100, 255]], np.float32)), "TIFF"),
    ],
    ids=["16-bit PNG", "32-bit TIFF", "float of shares", "float of bytes"],
)
def test_deep_pictures_are_scaled_to_8_bit(content):
    """Pillow's own convert("RGB") cuts them off: 99.6% of a 16-bit picture's values became 255."""
    assert values_of(content) == [0, 100, 255]


@pytest.mark.parametrize("value", [float("nan"), -1.0, 1e9])
def test_values_that_are_no_brightness_are_named(value):
    content = saved(Image.fromarray(np.full((2, 2), value, np.float32)), "TIFF")
    with pytest.raises(BadFile, match='"x" has values that are no brightness'):
        open_picture(content, "x")


def test_orientation_is_applied_and_a_tag_of_wrong_type_is_not():
    image, exif = Image.new("RGB", (2, 1), "red"), Image.Exif()
    exif[0x0112] = 6
    assert open_picture(saved(image, "JPEG", exif=exif), "x").size == (1, 2)
    wrong = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHI4s", 0x0112, 2, 4, b"six\0") + b"\0" * 4
    assert open_picture(saved(image, "JPEG", exif=wrong), "x").size == (2, 1)


@pytest.mark.parametrize("turn, size", [(3, (2, 1)), (6, (1, 2)), (8, (1, 2))])
def test_a_tiff_is_turned_once(turn, size):
    """Pillow turns it by itself when it is read, and it was turned again."""
    image, exif = Image.fromarray(np.array([[0, 200]], np.uint8)), Image.Exif()
    exif[0x0112] = turn
    expected = {3: [200, 0], 6: [0, 200], 8: [200, 0]}[turn]
    for kind in ("TIFF", "PNG"):
        content = saved(image, kind, exif=exif)
        assert open_picture(content, "x").size == size and values_of(content) == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0)).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert open_picture(saved(image, **options), "x").getpixel((0, 0)) == (255, 255, 255)


def test_only_the_named_formats_are_opened():
    """A PostScript file called .png started Ghostscript."""
    with pytest.raises(BadFile, match=r'"a\.png" does not decode .it is none of PNG'):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "a.png")


def test_a_picture_bomb_is_refused_before_it_is_decoded(monkeypatch):
    content = saved(Image.new("1", (3000, 3000)))
    monkeypatch.setattr(LIMITS, "picture_pixels", 1_000_000)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(BadFile, match="3000 x 3000 pixels; at most 1,000,000"):
        open_picture(content, "x")


def test_pipes_folders_and_large_files_are_no_pictures(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "large.png").write_bytes(b"x" * 100)
    monkeypatch.setattr(LIMITS, "picture_bytes", 99)
    for name, sentence in (("pipe", "no ordinary file"), ("folder", "no ordinary file"), ("large", "at most")):
        with pytest.raises(BadFile, match=sentence):
            open_picture(tmp_path / f"{name}.png", name)


# Texts and tables


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"])
def test_texts_of_every_common_encoding_are_read(encoding):
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    assert decode_text(mark + "a red café".encode(encoding), "x") == "a red café"


def test_binary_data_is_no_text():
    with pytest.raises(BadFile, match=r'"x\.txt" is no text'):
        decode_text(saved(Image.new("RGB", (2, 2))), "x.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "tsv"])
def test_tables_of_every_common_encoding_are_read(tmp_path, encoding, ending):
    """A byte-order mark lost the first row, or all of them."""
    rows = [{"file_name": "a.png", "text": "a café"}, {"file_name": "b.png", "text": "two"}]
    comma = "\t" if ending == "tsv" else ","
    table = [comma.join(rows[0])] + [comma.join(row.values()) for row in rows]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows] if ending == "jsonl" else table
    path = tmp_path / f"metadata.{ending}"
    path.write_bytes("\r\n".join(lines).encode(encoding))
    assert [row.values for row in read_rows(path)] == rows


def test_a_damaged_utf_16_table_loses_the_damaged_lines_alone(tmp_path):
    """One that was cut off ended the whole reading with a codec's error."""
    whole = "caption\na\nb\nc\n".encode("utf-16")
    (tmp_path / "cut.csv").write_bytes(whole[:-1])
    (tmp_path / "surrogate.csv").write_bytes(whole.replace("b".encode("utf-16")[2:], b"\x00\xd8"))
    cut, surrogate = (list(read_rows(tmp_path / name)) for name in ("cut.csv", "surrogate.csv"))
    assert [r.values["caption"] for r in cut[:2]] == ["a", "b"] and isinstance(cut[2], Problem)
    assert surrogate[1] == Problem(2, "no text") and surrogate[2].values["caption"] == "c"


def test_the_length_of_a_line_is_bounded_in_every_encoding(tmp_path, monkeypatch):
    monkeypatch.setattr(LIMITS, "json_bytes", 100)
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "t.csv").write_bytes(("caption\n" + "a" * 200).encode(encoding))
        with pytest.raises(BadFile, match="has a line of more than"):
            list(read_rows(tmp_path / "t.csv"))


def test_an_empty_cell_of_pandas_is_no_caption(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", (9, 9))))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": NaN, "caption": "a cat"}')
    assert [s.prompt for s in read(tmp_path)[0]] == ["a cat"]


def test_csv_dialects_and_captions_that_cut_themselves(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file_name;text\na.png;red, large\n")
    assert [row.values["text"] for row in read_rows(path)] == ["red, large"]
    path.write_text("file_name,text\na.png,red, large, round\n")
    assert [row.values["text"] for row in read_rows(path)] == ["red, large, round"]
    path.write_text("text,file_name\nred, large,a.png\nb,b.png\n")
    cut, whole = read_rows(path)
    assert isinstance(cut, Problem) and "put quotes" in cut.reason and whole.values["file_name"] == "b.png"


def test_long_fields_are_read_and_endless_ones_are_left_out(tmp_path, monkeypatch):
    """csv's own bound of 128 KB ended the run."""
    path = tmp_path / "t.csv"
    path.write_text("file_name,text\na.png," + "x" * 200_000 + "\n")
    assert len(next(read_rows(path)).values["text"]) == 200_000
    monkeypatch.setattr(LIMITS, "field_characters", 1000)
    assert "larger than field limit" in next(read_rows(path)).reason


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    """U+2028 and U+0085 in a prompt made a run of scores unopenable, and a list too long by one."""
    prompt = "a\u2028b\u0085c"
    (tmp_path / "list.txt").write_text(f"{prompt}\nsecond\n", encoding="utf-8")
    assert [row.values["prompt"] for row in read_prompts(tmp_path / "list.txt")] == [prompt, "second"]
    row = dict.fromkeys(KEYS, "x") | {"prompt": prompt}
    (tmp_path / "scores.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n{}\n", encoding="utf-8")
    assert read_scores(tmp_path / "scores.jsonl") == [row]


def test_what_nests_too_deep_is_a_problem_and_no_crash(tmp_path):
    (tmp_path / "t.jsonl").write_text("[" * 100_000 + '\n{"text": "a"}\n')
    bad, good = read_rows(tmp_path / "t.jsonl")
    assert bad.reason == "no JSON object" and good.values == {"text": "a"}


# Folders


def test_links_lead_nowhere_else_but_into_a_hubs_cache(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    hub = tmp_path / "hub" / "datasets--a--b"
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs" / "ab12").write_bytes(b"x")
    snapshot = hub / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    for name, target in (
        ("a.png", "../../blobs/ab12"),
        ("out.png", "../../../../secret.png"),
        ("loop.png", "loop.png"),
    ):
        (snapshot / name).symlink_to(target)
    assert inside(snapshot, "a.png") == (hub / "blobs" / "ab12").resolve()
    assert [inside(snapshot, name) for name in ("out.png", "../x.png", "/etc/passwd", "\0")] == [None] * 4


def test_a_link_out_of_a_folder_of_pictures_is_left_out_by_name(tmp_path):
    (tmp_path / "secret.png").write_bytes(saved(Image.new("RGB", (9, 9))))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "own.png").write_bytes(saved(Image.new("RGB", (9, 9))))
    for name, target in (("out.png", "../secret.png"), ("again.png", "own.png")):
        (folder / name).symlink_to(target)
    for name in ("own", "out", "again"):
        (folder / f"{name}.txt").write_text(name)
    samples, report = read(folder)
    assert [s.prompt for s in samples] == ["again", "own"]
    assert report.left_out == {"a link that leads out of the folder": ["out.png"]}
    with pytest.raises(BadFile, match=r"out\.png.* leads out"):
        pictures_below(folder, {".png"})


def test_hidden_folders_are_skipped(tmp_path):
    for name in ("a.png", ".cache/b.png", "sub/.c.png", "sub/d.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in pictures_below(tmp_path, {".png"})] == ["a.png", "d.PNG"]


# What the rooms make of it


def read(path):
    report = Report()
    return list(Dataset(path).samples(report)), report


@pytest.mark.parametrize("name", ["20240115_holiday", "0_holiday"])
def test_a_date_or_nothing_is_no_number_of_repeats(tmp_path, name):
    """20240115_holiday was read 20,240,115 times, and 0_holiday never."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.png").write_bytes(saved(Image.new("RGB", (9, 9))))
    (folder / "a.txt").write_text("a")
    samples, report = read(tmp_path)
    assert len(samples) == 1 and f'"{name}" is read once' in report.text()


def test_captions_of_other_endings_and_nested_metadata(tmp_path):
    picture = saved(Image.new("RGB", (9, 9)))
    for folder in ("a", "b/train"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.jfif").write_bytes(picture)
    (tmp_path / "a" / "x.caption").write_text("one")
    (tmp_path / "b" / "train" / "metadata.jsonl").write_text('{"file_name": "x.jfif", "prompt": "two"}')
    assert [s.prompt for name in "ab" for s in read(tmp_path / name)[0]] == ["one", "two"]
    assert [s.prompt for s in samples_of("m", tmp_path / "a", None, None)] == ["one"]


def test_labels_and_pictures_of_a_table_as_the_hub_keeps_them(tmp_path):
    """A missing, NaN or text label was a winner; a picture as {bytes, path} ended the run."""
    picture = {"bytes": saved(Image.new("RGB", (9, 9))), "path": None}
    labels = [(1.0, 0.0), (0.5, 0.5), (None, 0.0), (1.0, None), (float("nan"), 0.0), (0.0, float("nan"))]
    rows = [
        {"jpg_0": picture, "jpg_1": picture, "caption": "a", "label_0": first, "label_1": second}
        for first, second in labels
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    samples, report = read(tmp_path / "t.parquet")
    assert len(samples) == 1 and samples[0].image.open().size == (9, 9)
    assert report.counts == {"tie": 1, "no label": 4}


def test_tables_of_the_hub_with_other_columns(tmp_path):
    picture = {"bytes": saved(Image.new("RGB", (9, 9))), "path": "a.png"}
    tables = {
        "single": [{"image": picture, "Text": "a"}, {"image": None, "Text": "b"}, {"image": picture, "Text": None}],
        "pairs": [{"chosen": picture, "rejected": picture, "prompt": ["a", "b"]}],
    }
    for name, rows in tables.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    samples, report = read(tmp_path / "single.parquet")
    assert [s.prompt for s in samples] == ["a"] and report.counts == {"no picture": 1, "no caption": 1}
    ((pair,), _) = read(tmp_path / "pairs.parquet")
    assert pair.label == 1.0 and pair.image_b is not None and pair.captions == ("a", "b")


def test_one_of_several_captions_is_drawn_by_the_runs_seed(tmp_path):
    sample = Sample("a", captions=("a", "b", "c"))
    drawn = [[sample.caption(seed, number) for number in range(50)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0]) == {"a", "b", "c"}
    assert Sample("a").caption(3, 4) == "a"


def test_json_beside_a_picture_and_the_word_of_a_folder(tmp_path):
    picture = saved(Image.new("RGB", (9, 9)))
    for name, content in {
        "a.png": picture,
        "a.json": b'{"caption": ["one", "two"]}',
        "2_sks dog/b.png": picture,
        "clip.mp4": b"",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    samples, report = read(tmp_path)
    assert [s.captions for s in samples] == [("sks dog",)] * 2 + [("one", "two")]
    assert "other files, left alone: 1 .mp4" in report.text()


def test_captions_that_cannot_be_read_are_one_line_of_the_report(tmp_path):
    """Each was a line of its own, with the sentence of an error in it, and the folder's path."""
    for number in range(30):
        (tmp_path / f"{number:02}.png").write_bytes(saved(Image.new("RGB", (9, 9))))
        (tmp_path / f"{number:02}.txt").write_bytes(b"\0\1\2")
    _, report = read(tmp_path)
    assert report.counts == {"its caption is no text": 30}
