import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from vico_spin.intake import Report
from vico_spin.spin_core.data import Dataset, Listed, bucket, fit
from vico_spin.spin_core.encoding import Encoder, encode_dataset, taken_by
from vico_spin.spin_core.samples import Picture, Sample
from vico_spin.spin_core.store import TensorStore


def picture_bytes(colour="red", size=(40, 30), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG", **options)
    return buffer.getvalue()


def write(folder, **files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(path):
    report = Report()
    return list(Dataset(path).samples(report)), report


def test_folder_of_pictures_with_captions(tmp_path):
    write(
        tmp_path,
        **{"a.png": picture_bytes(), "a.txt": " a red thing \n", "b.png": picture_bytes(), "c.jpg": b"x", "c.txt": ""},
    )
    samples, report = read(tmp_path)
    assert [(s.prompt, s.image.name) for s in samples] == [("a red thing", "a.png")]
    assert report.kept == 1 and report.left_out == {"no caption (a .txt of the same name)": ["b.png", "c.jpg"]}


def test_kohya_folders_repeat(tmp_path):
    write(
        tmp_path,
        **{"3_cat/a.png": picture_bytes(), "3_cat/a.txt": "a cat", "dog/b.png": picture_bytes(), "dog/b.txt": "a dog"},
    )
    assert [s.prompt for s in read(tmp_path)[0]] == ["a cat"] * 3 + ["a dog"]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_imagefolder_metadata(tmp_path, ending):
    rows = [
        {"file_name": "in/a.png", "text": "a, b", "score": "3"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "in/a.png", "text": ""},
        {"file_name": "../out.png", "text": "y"},
        {"file_name": "", "text": "z"},
    ]
    write(tmp_path / "set", **{"in/a.png": picture_bytes()})
    write(tmp_path, **{"out.png": picture_bytes()})
    with open(tmp_path / "set" / f"metadata.{ending}", "w", newline="") as file:
        if ending == "csv":
            writer = csv.DictWriter(file, ["file_name", "text", "score"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write("\n".join(json.dumps(row) for row in rows) + "\nno json\n")
    samples, report = read(tmp_path / "set")
    assert [(s.prompt, s.meta) for s in samples] == [("a, b", {"score": "3"})]
    reasons = {"its picture is missing", "no text", "file_name leads out of the folder", "no file_name"}
    assert set(report.counts) == reasons | ({"no JSON object"} if ending == "jsonl" else set())


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_pairs_as_spin_vote_writes_them(tmp_path, ending):
    """In a .csv labels are text: such pairs were left out, as of no label."""
    columns = ["jpg_0", "jpg_1", "caption", "label_0", "label_1"]
    rows = [
        dict(zip(columns, ["a.png", "b.png", "a cat", *labels], strict=True)) for labels in [(0.25, 0.75), (0.5, 0.5)]
    ]
    write(tmp_path, **{"a.png": picture_bytes(), "b.png": picture_bytes()})
    lines = [",".join(map(str, row)) for row in [columns, *(row.values() for row in rows)]]
    text = "\n".join(map(json.dumps, rows) if ending == "jsonl" else lines)
    (tmp_path / f"metadata.{ending}").write_text(text)
    samples, report = read(tmp_path)
    assert [(s.image.source.name, s.image_b.source.name) for s in samples] == [("b.png", "a.png")]
    assert report.counts == {"tie": 1}


@pytest.mark.parametrize(
    "name, content, prompts, left_out",
    [
        ("list.txt", "a cat\n\n  a dog \n", ["a cat", "a dog"], 0),
        ("PartiPrompts.tsv", 'Prompt\tCategory\na "quoted cat\tAnimals\n\tWorld\n', ['a "quoted cat'], 1),
        ("hpd.json", '["a cat", "", 3]', ["a cat"], 2),
        ("test.json", '[{"prompt": "a dog", "image_path": ["x.jpg"]}, {}]', ["a dog"], 1),
    ],
)
def test_prompt_lists(tmp_path, name, content, prompts, left_out):
    write(tmp_path, **{name: content})
    samples, report = read(tmp_path / name)
    assert [s.prompt for s in samples] == prompts and all(s.image is None for s in samples)
    assert sum(report.counts.values()) == left_out


def pick_a_pic(path, rows, **renamed):
    import pyarrow
    import pyarrow.parquet

    names = ["jpg_0", "jpg_1", "caption", "label_0", "label_1"]
    columns = {renamed.get(n, n): [row[i] for row in rows] for i, n in enumerate(names)}
    pyarrow.parquet.write_table(pyarrow.table(columns | {"extra": [1] * len(rows)}), path, row_group_size=2)
    return path


def test_pick_a_pic_drops_ties_and_puts_the_winner_first(tmp_path):
    red, blue = picture_bytes("red"), picture_bytes("blue")
    rows = [
        (red, blue, "first wins", 1.0, 0.0),
        (red, blue, "second wins", 0.0, 1.0),
        (red, blue, "tie", 0.5, 0.5),
        (red, blue, "", 1.0, 0.0),
        (None, blue, "half a pair", 0.0, 1.0),
    ]
    samples, report = read(pick_a_pic(tmp_path / "a.parquet", rows))
    assert [(s.prompt, s.image.source == red, s.image_b.source == blue, s.label) for s in samples] == [
        ("first wins", True, True, 1.0),
        ("second wins", False, False, 1.0),
    ]
    assert report.counts == {"tie": 1, "no caption": 1, "a picture of the pair is missing": 1}


def test_parquet_is_read_as_a_stream(tmp_path):
    """The first sample is there before the second file, which is broken, has been opened."""
    row = (picture_bytes(), picture_bytes("blue"), "a", 1.0, 0.0)
    pick_a_pic(tmp_path / "a.parquet", [row] * 3)
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    stream = Dataset(tmp_path).samples()
    assert next(stream).prompt == "a"
    with pytest.raises(ValueError, match=r'"b.parquet" is no parquet file'):
        list(stream)


def test_parquet_without_its_columns_is_named(tmp_path):
    path = pick_a_pic(tmp_path / "a.parquet", [(b"", b"", "a", 1.0, 0.0)], caption="text", label_1="other")
    with pytest.raises(ValueError, match="it needs jpg_0, jpg_1, caption, label_0, label_1"):
        read(path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.zip", b"", "Choose a folder, or a file of a data set"),
        ("x.json", b"{", "Write the file as JSON"),
        ("y.json", b"{}", "Write a list of prompts"),
        ("x.tsv", b"a\tb\n", "Name a column text or prompt or caption"),
    ],
)
def test_files_that_are_no_data_set(tmp_path, name, content, message):
    write(tmp_path, **{name: content})
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r'There is no ".*nowhere"'):
        read(tmp_path / "nowhere")


def test_transparency_lies_on_white_and_other_modes_become_rgb(tmp_path):
    clear = Picture("a", picture_bytes((255, 0, 0, 0), mode="RGBA")).open()
    assert clear.mode == "RGB" and clear.getpixel((0, 0)) == (255, 255, 255)
    assert Picture("b", picture_bytes(7, mode="L")).open().getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("content", [b"no picture", picture_bytes()[:60], b""], ids=["text", "cut off", "empty"])
def test_a_picture_that_does_not_decode_is_named(content):
    with pytest.raises(ValueError, match=r'Choose another picture.\n"a.png" does not decode'):
        Picture("a.png", content).open()


@pytest.mark.parametrize(
    "size, expected",
    [
        ((800, 800), (512, 512)),
        ((1600, 900), (640, 384)),
        ((900, 1600), (384, 640)),
        ((5000, 100), (704, 320)),
        ((30, 30), (512, 512)),
    ],
    ids=str,
)
def test_buckets_keep_the_aspect_ratio(size, expected):
    """The area stays within 512², both sides are multiples of 64, and ratios end at 1:2."""
    found = bucket(size, 512, 64)
    assert found == expected or abs(found[0] / found[1] - expected[0] / expected[1]) < 0.15
    assert found[0] * found[1] <= 512 * 512 and found[0] % 64 == found[1] % 64 == 0


def test_fit_covers_and_crops_the_middle():
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (90, 0, 210, 100))  # wider than what is kept: the edge of the crop blends
    assert fit(image, (64, 64)).getcolors() == [(64 * 64, (255, 0, 0))]


def encoder(folder, calls):
    def encode(image):
        calls.append(image.size)
        return torch.full((4, image.height // 8, image.width // 8), float(len(calls)))

    return Encoder(encode, "vae", TensorStore(folder), resolution=64, multiple=16)


def samples():
    return (
        Sample(
            "a",
            Picture("a.png", picture_bytes("red", (40, 40))),
            Picture("a2.png", picture_bytes("blue", (50, 50))),
            1.0,
        ),
        Sample("b", Picture("b.png", picture_bytes("green", (80, 40)))),
        Sample("broken", Picture("c.png", b"no picture")),
        Sample("no picture"),
    )


def test_encoding_makes_buckets_and_names_what_it_leaves_out(tmp_path):
    report, calls = Report(), []
    corpus = encode_dataset(Listed(samples()), encoder(tmp_path, calls), None, report)
    assert corpus.prompts == ["a", "b"] and corpus.shapes[0] == (4, 8, 8) and corpus.shapes[1][2] > corpus.shapes[1][1]
    assert report.kept == 2 and "c.png" in report.text() and "a prompt without a picture" in report.text()


def test_latents_are_encoded_once(tmp_path):
    calls = []
    first = encode_dataset(Listed(samples()), encoder(tmp_path, calls), None, Report())
    again = encode_dataset(Listed(samples()), encoder(tmp_path, calls), None, Report())
    assert len(calls) == 2 and torch.equal(first.real(1), again.real(1))


def test_another_vae_encodes_anew(tmp_path):
    calls, one = [], encoder(tmp_path, [])
    encode_dataset(Listed(samples()), one, None, Report())
    other = Encoder(lambda image: calls.append(1) or torch.zeros(4, 8, 8), "other vae", TensorStore(tmp_path), 64, 16)
    encode_dataset(Listed(samples()), other, None, Report())
    assert len(calls) == 2


def test_pairs_keep_the_rejected_picture(tmp_path):
    corpus = encode_dataset(Listed(samples()), encoder(tmp_path, []), None, Report(), "pairs")
    assert corpus.prompts == ["a"] and corpus.rejected(0).shape == corpus.real(0).shape


def thumbs(folder):
    return [(sample.prompt, sample.label) for sample in Dataset(folder).samples()]


def test_thumbs_are_a_column_or_the_names_of_two_folders(tmp_path):
    """Numbers in a column of that name may be classes, and words another data set's: they are no thumbs."""
    values = ["true", '"down"', "1", '"cat"', "false"]
    lines = [f'{{"file_name": "{n}.png", "text": "{n}", "label": {value}}}' for n, value in enumerate(values)]
    pictures = {f"table/{n}.png": picture_bytes() for n in range(5)}
    write(tmp_path, **pictures, **{"table/metadata.jsonl": "\n".join(lines)})
    assert thumbs(tmp_path / "table") == [("0", 1.0), ("1", 0.0), ("2", None), ("3", None), ("4", 0.0)]
    names = ("liked/a", "Disliked/b", "c")
    files = {f"folders/{n}.png": picture_bytes() for n in names} | {f"folders/{n}.txt": n[-1] for n in names}
    write(tmp_path, **files)
    assert sorted(thumbs(tmp_path / "folders")) == [("a", 1.0), ("b", 0.0), ("c", None)]
    write(tmp_path, **{"t/metadata.csv": "file_name,text,Thumb\na.png,a,up\n", "t/a.png": picture_bytes()})
    assert thumbs(tmp_path / "t") == [("a", 1.0)]


def thumbed(*labels):
    return Listed(tuple(Sample(f"{n}", Picture(f"{n}", picture_bytes()), None, t) for n, t in enumerate(labels)))


def test_the_rarer_thumb_is_repeated_until_there_are_as_many(tmp_path):
    """Three liked, one disliked, one without a thumb, which is left out by name."""
    data, report = thumbed(1.0, 0.0, 1.0, None, 1.0), Report()
    assert [taken_by(method, data) for method in ("kto", "dpo", "sft")] == ["thumbs", "pairs", "pictures"]
    corpus = encode_dataset(data, encoder(tmp_path, []), None, report, "thumbs")
    assert corpus.prompts == ["0", "1", "2", "4", "1", "1"] and corpus.rejected is None
    assert [corpus.liked(i) for i in range(6)] == [True, False, True, True, False, False]
    assert "no thumb (label true or false" in report.text()
    others = encode_dataset(thumbed(0.0, 1.0, 1.0, None, 1.0), encoder(tmp_path, []), None, Report(), "thumbs")
    assert others.fingerprint != corpus.fingerprint
    with pytest.raises(ValueError, match=r"Add pictures of the other kind\.\n.* are liked"):
        encode_dataset(thumbed(1.0), encoder(tmp_path, []), None, Report(), "thumbs")


def test_what_is_not_liked_is_no_picture_to_learn_from(tmp_path):
    report = Report()
    corpus = encode_dataset(thumbed(1.0, 0.0, None), encoder(tmp_path, []), None, report)
    assert corpus.prompts == ["0", "2"] and corpus.liked is None and "not liked: for KTO alone" in report.text()


def test_nothing_usable_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"Take a data set with preference pairs(?s:.*)no second picture"):
        encode_dataset(Listed(samples()[1:2]), encoder(tmp_path, []), None, Report(), "pairs")


def test_of_the_hubs_splits_the_training_split_is_read(tmp_path):
    """The prompts that one is judged on were trained on as well."""
    picture = io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "PNG")
    names = ("train-00000-of-00002", "train-00001-of-00002", "test_unique-00000-of-00001", "validation-00000-of-00001")
    for name in names:
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = [{"image": picture.getvalue(), "text": name}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet")
    report = Report()
    assert [s.prompt for s in Dataset(tmp_path).samples(report)] == list(names[:2])
    assert "2 files of other splits than train, left alone: test, validation" in report.text()
    for name in names[:2]:
        (tmp_path / "data" / f"{name}.parquet").unlink()
    assert [s.prompt for s in Dataset(tmp_path).samples()] == list(names[2:]), "there is nothing else"
