"""A folder with one of everything: every room reads the same of it, and says in the same words what it left out."""

import io
import json
import logging
import os
import re

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from vico_spin.scores.cli import main as scores
from vico_spin.scores.run import Run
from vico_spin.scripts import models
from vico_spin.scripts import tiny_scorers as tiny_models
from vico_spin.scripts.tiny_pipeline import write_pipeline
from vico_spin.spin_core.cli import main as spin

GRAPH = {
    "1": {"inputs": {"text": "(of a graph:1.2)"}},
    "2": {"inputs": {"positive": ["1", 0], "model": ["3", 0]}},
    "3": {"inputs": {}},
}
READ = {
    "alpha.png": "of a text",
    "depth.png": "of UTF-16",
    "turned.jpg": "of .caption",
    "photo.jfif": "of .json",
    "sub/one.webp": "of a list",
    "scan.tif": "of cp1252: café",
    "moving.gif": "of a mark",
    "palette.PNG": "of an upper case ending",
    "drawn.png": "of a graph",
    "2_sks dog/dog.bmp": "sks dog",
} | ({"new.avif": "of avif"} if features.check("avif") else {})
LEFT_OUT = {
    "left out, no caption (a .txt of the same name): 1 (alone.png)",
    "left out, a link that leads out of the folder: 2 (loop.png, out.png)",
    "left out, its caption is no text: 1 (binary.png)",
    "left out, its caption cannot be read: it nests too deep: 1 (deep.png)",
    "left out, does not decode (it is none of PNG, JPEG, MPO, WEBP, BMP, TIFF, GIF, AVIF): 2 (empty.png, script.png)",
    "left out, has 8000 x 8000 pixels; at most 50,000,000 are read. Make it smaller: 1 (bomb.png)",
    "left out, has values that are no brightness (nan to nan): 1 (nan.tif)",
    "left out, is no ordinary file: 1 (pipe.png)",
    "other files, left alone: 1 .mp4, 1 no ending",
    '"20240115_day" is read once: 20240115 is no number of repeats (1 to 1000)',
}
READ |= {"20240115_day/day.png": "of a day"}


def saved(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def zoo_in(folder):
    """One of everything that people have, and of what they did not mean to have."""
    plain, exif, graph = Image.new("RGB", (64, 64), "teal"), Image.Exif(), PngInfo()
    exif[0x0112] = 6
    graph.add_text("prompt", json.dumps(GRAPH))
    grey16 = Image.fromarray(np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64))
    nan = Image.fromarray(np.full((64, 64), np.nan, np.float32))
    files = {
        "alpha.png": saved(Image.new("RGBA", (64, 64), (255, 0, 0, 90))),
        "alpha.txt": b"of a text",
        "depth.png": saved(grey16),
        "depth.txt": "of UTF-16".encode("utf-16"),
        "turned.jpg": saved(Image.new("RGB", (64, 48), "red"), "JPEG", exif=exif),
        "turned.caption": b"of .caption\n",
        "photo.jfif": saved(plain, "JPEG"),
        "photo.json": b'{"url": "x", "caption": "of .json"}',
        "sub/one.webp": saved(plain, "WEBP"),
        "sub/one.json": b'["of a list"]',
        "scan.tif": saved(plain, "TIFF"),
        "scan.txt": "of cp1252: café".encode("cp1252"),
        "moving.gif": saved(plain, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")]),
        "moving.txt": "of a mark".encode("utf-8-sig"),
        "palette.PNG": saved(plain.convert("P")),
        "palette.txt": b"of an upper case ending",
        "drawn.png": saved(plain, pnginfo=graph),
        "2_sks dog/dog.bmp": saved(plain, "BMP"),
        "20240115_day/day.png": saved(plain),
        "20240115_day/day.txt": b"of a day",
        ".cache/hidden.png": saved(plain),
        "alone.png": saved(plain),
        "binary.png": saved(plain),
        "binary.txt": saved(plain),
        "deep.png": saved(plain),
        "deep.json": b"[" * 100_000,
        "empty.png": b"",
        "empty.txt": b"empty",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "script.txt": b"script",
        "bomb.png": saved(Image.new("1", (8_000, 8_000))),
        "bomb.txt": b"bomb",
        "nan.tif": saved(nan, "TIFF"),
        "nan.txt": b"nan",
        "pipe.txt": b"pipe",
        "out.txt": b"out",
        "loop.txt": b"loop",
        "clip.mp4": b"",
        "LICENSE": b"",
    }
    if features.check("avif"):
        files |= {"new.avif": saved(plain, "AVIF"), "new.txt": b"of avif"}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "out.png").symlink_to("/etc/passwd")
    (folder / "loop.png").symlink_to("loop.png")
    return folder


@pytest.fixture
def zoo(host, tmp_path):
    """input/zoo, the host's directories being this test's own."""
    before = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    folder_paths.set_input_directory(str(tmp_path / "input"))
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield zoo_in(tmp_path / "input" / "zoo")
    folder_paths.set_input_directory(before[0])
    folder_paths.set_output_directory(before[1])


def lines_of(text: str) -> set[str]:
    """What a report says beside the number of samples."""
    return {line for line in text.splitlines() if line.startswith(("left out", "other files", '"2'))}


@pytest.fixture
def said(caplog):
    """What nodes say, since the last look."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("PIL").setLevel(logging.INFO)

    def look() -> str:
        text = "\n".join(record.getMessage() for record in caplog.records)
        caplog.clear()
        return text

    return look


def test_one_of_everything_goes_through_every_room_alike(call, zoo, tmp_path, said, capsys):
    found = of_the_graph(call, said)
    found |= of_the_command_line(zoo, tmp_path, capsys)
    decoded = {
        line for line in LEFT_OUT if "decode" in line or "pixels" in line or "brightness" in line or "pipe" in line
    }
    assert lines_of(found.pop("SPIN Dataset")) == LEFT_OUT - decoded, "which opens no picture"
    assert {room: int(re.search(r"(\d+) samples", text)[1]) - len(READ) for room, text in found.items()} == {
        "Train SPIN": 1,  # the folder that is read twice
        "Score Pictures": 0,
        "vico-spin train": 1,
        "vico-spin evaluate": 0,
    }
    for room, text in found.items():
        assert lines_of(text) == LEFT_OUT, room


def of_the_graph(call, said) -> dict[str, str]:
    """What SPIN Dataset, Train SPIN and Score Pictures say."""
    said()
    dataset, told, _ = call("SPINDataset", source="zoo", captions="")
    found = {"SPIN Dataset": told}
    with torch.inference_mode():
        inputs = {"model": models.of_family("sd1"), "clip": models.clip(), "vae": models.vae(4), "dataset": dataset}
    said()
    game = {"play": "one round", "steps": 1, "learning_rate": 1e-3, "beta": 50.0}
    small = {"batch_size": 1, "resolution": 64, "seed": 0, "run_name": "zoo", "train": {"train": "LoRA", "rank": 1}}
    opponent = call("SPINOpponent", sampler_name="euler", scheduler="normal", steps=1, cfg=1.0)[0]
    call("SPINTrain", **inputs, **small, play=game, opponent=opponent)
    found["Train SPIN"] = said()
    scorer, _ = call("ScoreLoadScorer", scorer="Sprite World taste", file="automatic")
    scores = call("ScorePictures", scorer=scorer, prompts="", best=1, dataset=dataset)[2]
    told = json.loads(scores)
    assert dict(zip(told["pictures"], told["prompts"], strict=True)) == READ
    found["Score Pictures"] = said()
    return found


def of_the_command_line(zoo, tmp_path, capsys) -> dict[str, str]:
    """What vico-spin train and vico-spin evaluate say."""
    train = ["train", "--model", write_pipeline(tmp_path), "--data", str(zoo), "--output", str(tmp_path / "run")]
    small = ["--resolution", "64", "--sampling-steps", "1", "--cfg", "1", "--steps", "1", "--batch-size", "1"]
    capsys.readouterr()
    assert spin([*train, *small, "--train", "lora", "--rank", "1"]) == 0
    found = {"vico-spin train": capsys.readouterr().out}
    tiny_models.write_clip_folder(tmp_path / "scorers" / "clip-vit-base-patch32", activation="quick_gelu")
    command = ["evaluate", f"--pictures=zoo={zoo}", "--scorer", "clip-score", "--device", "cpu"]
    scored = [*command, "--scorers-folder", str(tmp_path / "scorers"), "--out", str(tmp_path / "scores")]
    assert scores(scored) == 0
    found["vico-spin evaluate"] = capsys.readouterr().out.replace("zoo: ", "")
    rows = [row for row in Run(tmp_path / "scores").rows if "score" in row]
    assert {os.path.relpath(row["picture"], zoo): row["prompt"] for row in rows} == READ
    return found
