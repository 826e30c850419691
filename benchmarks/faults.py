"""What broken and hostile files do to every reader: python -m vico_spin.benchmarks.faults [--short] [--json]

Each case is a small valid file, changed: cut off at every fiftieth part, bits flipped, parts doubled, other encodings, deep
nesting, picture bombs, pickles that would run programs, links and pipes. It is read in a child process whose time, memory and
files are watched. right: it was read, or what was bad in it was left out by name; clear: an error whose sentence names the
file. Everything else is a fault. --short takes every fourteenth case and is part of the tests.
"""

import atexit
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file

from ..intake import Report, open_picture
from ..scores.load import load_scorer
from ..scores.prompts import read_prompts
from ..scores.run import Run
from ..scripts import tiny_scorers
from ..spin_core.data import Dataset
from ..spin_core.store import TensorStore
from ..train_core import CheckpointFolder, save_tensors
from ..vico_core import ImageAttention, ViCoConcept
from .harness import finish, flags

CPU_SECONDS = 5
MEMORY = 500 * 2**20  # bytes above the file's own size
FOLDER = "faulty-folder"  # a word that no sentence holds by chance
SHORT_FORM = 14  # every so many cases
CLEAR = (ValueError, OSError)  # with a sentence; BadFile is a ValueError
FAULTS = ("unclear", "hang", "memory", "executed", "outside")


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, a valid content, its reader, and contents of its own that are bad in a way of their own."""

    file: str
    content: bytes
    read: Callable[[Path], object]
    hostile: dict[str, bytes]


def picture(kind: str, mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 4 if mode == "RGBA" else 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in some kilobytes."""
    part = lambda name, data: (  # noqa: E731
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    )
    side = (30_000).to_bytes(4, "big")
    header = part(b"IHDR", side * 2 + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(bytes(2**20))) + part(b"IEND", b"")


class Hostile:
    """A pickle that would make the file `executed` beside the one that is read."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def pickled(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def concept() -> ViCoConcept:
    torch.manual_seed(0)
    return ViCoConcept({"output_blocks.4.1": ImageAttention(16, 2, 8).state_dict()}, {"l": torch.randn(1, 24)})


def written(write: Callable[[Path], object]) -> bytes:
    """The content of a file that only a path can be given to."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file.safetensors")
        return (Path(folder) / "file.safetensors").read_bytes()


def state() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return CheckpointFolder(folder).save(1, {"weights": {"a": torch.ones(9)}}).read_bytes()


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = [{"image": {"bytes": picture("PNG"), "path": "a"}, "text": f"caption {i}"} for i in range(9)]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def read_dataset(path: Path) -> None:
    for sample in Dataset(path).samples(Report()):
        if sample.image is not None:
            try:
                sample.image.open()
            except ValueError:
                continue  # the run that would train on it leaves it out by name


def read_folder(path: Path) -> None:
    (path.parent / "a.png").write_bytes(picture("PNG"))
    read_dataset(path.parent)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(4):
            for ending, content in (("png", picture("PNG")), ("json", b'{"caption": "a"}')):
                member = tarfile.TarInfo(f"{number:05}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def drawn() -> bytes:
    """A picture as ComfyUI saves it, with its graph."""
    graph = {"1": {"inputs": {"text": "a cat"}}, "2": {"inputs": {"positive": ["1", 0], "model": ["3", 0]}}}
    (info := PngInfo()).add_text("prompt", json.dumps(graph))
    return picture("PNG", pnginfo=info)


@cache
def scorer_folder(kind: str) -> Path:
    """A whole scorer, small; made once, before the first child."""
    folder = Path(tempfile.mkdtemp(prefix="vico-spin-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (tiny_scorers.write_clip_folder if kind == "clip" else tiny_scorers.write_dino_folder)(folder)
    load_scorer("clip-score" if kind == "clip" else "dino", folder)  # what it imports, children have
    return folder


def of_scorer(kind: str, file: str) -> Kind:
    """One file of a scorer's folder, the others being whole."""
    folder = scorer_folder(kind)

    def read_scorer(path: Path) -> None:
        for whole in folder.iterdir():
            if whole.name != file and not (whole.suffix == ".safetensors" and file.endswith(".bin")):
                shutil.copy(whole, path.parent)
        load_scorer("clip-score" if kind == "clip" else "dino", path.parent)

    if file.endswith(".bin"):
        content = pickled(load_file(folder / "model.safetensors"))
    else:
        content = (folder / file).read_bytes()
    return Kind(file, content, read_scorer, ODD_TEXTS | PICKLES | CONFIGURATIONS)


def kinds_of_the_host() -> list[Kind]:
    """What nodes feed to the host's own loaders."""
    from ..scripts.host import Host

    Host()
    from ..nodes.spin.checkpoints import load_onto
    from ..scripts import models
    from ..train_core import LoRA, find_layers

    with torch.inference_mode():
        model = models.of_family("sd1")
    network = model.model.diffusion_model
    lora = LoRA(network, find_layers(network, r"\.to_k$"), 2).lora_state_dict()

    def read_lora(path: Path) -> None:
        load_onto(str(path), model, 1.0)

    return [
        Kind("l.safetensors", written(lambda p: save_tensors(p, lora, {})), read_lora, ODD_TEXTS | PICKLES),
        Kind("l.pt", pickled(lora), read_lora, ODD_TEXTS | PICKLES),
        Kind("u.bin", pickled(network.state_dict()), read_lora, PICKLES),
    ]


def read_dataset_folder(path: Path) -> None:
    read_dataset(path.parent)


def read_state(path: Path) -> None:
    CheckpointFolder(path.parent).load()


def read_store(path: Path) -> None:
    key = "ab" * 32
    target = TensorStore(path.parent / "store").file(key)
    target.parent.mkdir(parents=True)
    path.rename(target)
    TensorStore(path.parent / "store").get(key)


def read_run(path: Path) -> None:
    (path.parent / "run.json").write_text('{"scorers": {}}')
    Run(path.parent)


TABLE = "file_name,text\n" + "".join(f'a.png,"caption {i}, one"\n' for i in range(9))
LINES = "".join(json.dumps({"file_name": "a.png", "text": f"caption {i} é"}) + "\n" for i in range(9))
SCORES = "".join(
    json.dumps(dict.fromkeys(("by", "model", "picture", "sha256", "prompt", "references"), "x") | {"score": i}) + "\n"
    for i in range(9)
)
ODD_TEXTS = {
    "utf-16": LINES.encode("utf-16"),
    "cp1252": "file_name,text\na.png,café\n".encode("cp1252"),
    "mark": b"\xef\xbb\xbf" + TABLE.encode(),
    "nul": b"file_name,text\na.png,a\0b\n",
    "deep": b"[" * 100_000 + b"\n",
    "deep object": b'{"a":' * 100_000 + b"\n",
    "long line": b"x" * 5_000_000,
    "long field": b"file_name,text\na.png," + b"y" * 3_000_000 + b"\n",
    "no heading": b"\n\n\n",
    "traversal": b"file_name,text\n../../etc/passwd,a\n/etc/passwd,b\n",
    "traversal in lines": b'{"file_name": "../../../etc/passwd", "text": "a"}\n{"file_name": "\\u0000", "text": "b"}\n',
    "huge number": b'{"file_name": "a.png", "text": "a", "seed": ' + b"9" * 5000 + b"}\n",
    "quotes": b'file_name,text\n"a.png,"""""\n"',
    "keys twice": b'{"file_name": "a.png", "file_name": "b.png", "text": "a", "text": 3}\n',
    "not a table": picture("PNG"),
}
PICKLES = {
    "program": pickled({"x": Hostile()}),
    "plain program": pickle.dumps(Hostile()),
    "one tensor": pickled(torch.ones(3)),
    "list": pickled([1, 2, 3]),
    "other dict": pickled({"a": torch.ones(2)}),
}


CONFIGURATIONS = {
    "layers": b'{"text_config": {"num_hidden_layers": 900000}, "vision_config": {"num_hidden_layers": 900000}}',
    "width": b'{"hidden_size": 16000000, "image_size": 16000000}',
    "kernel": b'{"attn_implementation": "nobody/kernel", "quantization_config": {"load_in_4bit": true}}',
    "code": b'{"auto_map": {"AutoModel": "nobody/code--model.Model"}, "hidden_act": "exec"}',
    "kinds": b'{"hidden_size": "9", "text_config": 3}',
}


def kinds() -> list[Kind]:
    pictures = {
        "bomb": bomb(),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "text": b"no picture",
    }
    opened = lambda path: open_picture(path, path.name)  # noqa: E731
    found = [
        Kind("a.png", picture("PNG"), opened, pictures),
        Kind("a.png", picture("PNG", "RGBA"), opened, {}),
        Kind("a.jpg", picture("JPEG"), opened, {}),
        Kind("a.webp", picture("WEBP"), opened, {}),
        Kind("a.tif", picture("TIFF", compression="tiff_lzw"), opened, {}),
        Kind("a.gif", picture("GIF", "P"), opened, {}),
        Kind("a.bmp", picture("BMP"), opened, {}),
    ]
    for name, content in (("t.csv", TABLE), ("t.jsonl", LINES), ("t.tsv", TABLE.replace(",", "\t")), ("t.txt", LINES)):
        found.append(Kind(name, content.encode(), read_dataset, ODD_TEXTS))
        found.append(Kind(name, content.encode(), read_prompts, ODD_TEXTS))
    found += [
        Kind("t.json", json.dumps(["a", "b", {"prompt": "c"}] * 9).encode(), read_dataset, ODD_TEXTS),
        Kind("a.txt", b"a caption", read_folder, ODD_TEXTS),
        Kind("metadata.jsonl", LINES.encode(), read_folder, ODD_TEXTS),
        Kind("metadata.csv", TABLE.encode(), read_folder, ODD_TEXTS),
        Kind("t.parquet", parquet(), read_dataset, ODD_TEXTS),
        Kind("scores.jsonl", SCORES.encode(), read_run, ODD_TEXTS),
        Kind("c.safetensors", written(concept().save), ViCoConcept.load, ODD_TEXTS | PICKLES),
        Kind("cross_attention-1.pt", pickled({"a": torch.ones(3)}), ViCoConcept.load, ODD_TEXTS | PICKLES),
        Kind("step-00000001.safetensors", state(), read_state, ODD_TEXTS | PICKLES),
        Kind("t.tar", tar(), read_dataset, PICKLES),
        Kind("b.png", drawn(), read_dataset_folder, {"deep": drawn().replace(b'{"1"', b"[" * 4)}),
        *(of_scorer("clip", name) for name in ("model.safetensors", "pytorch_model.bin", "config.json", "vocab.json")),
        *(of_scorer("clip", "merges.txt"), of_scorer("dino", "model.safetensors"), of_scorer("dino", "config.json")),
        Kind("s.safetensors", written(lambda p: save_tensors(p, {"latent": torch.ones(4)}, {})), read_store, PICKLES),
    ]
    return found


def changed(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """The content, broken in the ways that do not ask what it is."""
    for part in range(50):
        yield f"cut at {part}/50", content[: len(content) * part // 50]
    draw = random.Random(seed)
    for number in range(90):
        flipped = bytearray(content)
        for _ in range(1 if number < 60 else 20):
            flipped[draw.randrange(min(len(flipped), 200) if number % 2 else len(flipped))] ^= 1 << draw.randrange(8)
        yield f"bits flipped, {number}", bytes(flipped)
    middle = len(content) // 2
    yield "doubled", content * 2
    yield "zeros in the middle", content[:middle] + bytes(300) + content[middle:]
    yield "garbage first", draw.randbytes(64) + content
    yield "garbage last", content + draw.randbytes(64)
    yield "halves swapped", content[middle:] + content[:middle]
    for number in range(5):
        yield f"garbage alone, {number}", draw.randbytes(1 + 400 * number)


def cases(kinds: Sequence[Kind]) -> Iterator[tuple[Kind, str, bytes | str]]:
    """(kind, what was done, the content); a str is what stands in the file's place: a pipe, a folder, a link."""
    for seed, kind in enumerate(kinds):
        yield from ((kind, what, content) for what, content in changed(kind.content, seed))
        yield from ((kind, what, content) for what, content in kind.hostile.items())
        yield from (
            (kind, place, place) for place in ("pipe", "folder", "link to itself", "link to a device", "no file")
        )


def put(path: Path, content: bytes | str) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content.startswith("link"):
        path.symlink_to(path.name if content == "link to itself" else "/dev/zero")


def read_in_child(kind: Kind, content: bytes | str) -> tuple[str, str]:
    """(verdict, what was said) of one case."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / FOLDER
        folder.mkdir()
        put(folder / kind.file, content)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.chdir(folder)
            os._exit(watched(kind, folder / kind.file, len(content), writing))
        os.close(writing)
        with os.fdopen(reading) as told:
            said = told.read()
        _, status = os.waitpid(child, 0)
        if (folder / "executed").exists() or (Path(home) / "executed").exists():
            return "executed", said
        if os.listdir(home) != [FOLDER]:
            return "outside", said
        if os.WIFSIGNALED(status):
            stopped = os.WTERMSIG(status)
            return ("hang" if stopped in (signal.SIGXCPU, signal.SIGALRM) else "unclear"), f"signal {stopped}"
    verdict, _, sentence = said.partition("\n")
    return verdict or "unclear", sentence


def watched(kind: Kind, path: Path, size: int, writing: int) -> int:
    """The child: reads the file and tells how it went. A hang is ended by a signal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)  # the parent's threads did not come along
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    signal.alarm(4 * CPU_SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        kind.read(path)
        verdict, said = "right", ""
    except CLEAR as error:
        said = f"{type(error).__name__}: {error}"
        verdict = "clear" if path.name in said or FOLDER in said else "unclear"
    except BaseException as error:
        verdict, said = "unclear", f"{type(error).__name__}: {error}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY + size:
        verdict = "memory"
    with os.fdopen(writing, "w", errors="replace") as pipe:
        pipe.write(f"{verdict}\n{said[:300]}")
    return 0


def measure(short: bool, kinds: Sequence[Kind]) -> tuple[Counter, list[str]]:
    """How many cases came to each verdict, and the faults in words."""
    verdicts, faults = Counter(), []
    for number, (kind, what, content) in enumerate(cases(kinds)):
        if short and number % SHORT_FORM:
            continue
        verdict, said = read_in_child(kind, content)
        verdicts[verdict] += 1
        if verdict in FAULTS:
            faults.append(f"{verdict}: {kind.file} by {kind.read.__name__}, {what}: {said}")
    return verdicts, faults


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--short", action="store_true", help=f"every {SHORT_FORM}th case alone")
    parser.add_argument(
        "--host", action="store_true", help="what nodes feed to the host's loaders, instead of the cores' readers"
    )
    options = parser.parse_args()
    verdicts, faults = measure(options.short, kinds_of_the_host() if options.host else kinds())
    print("\n".join(faults))
    finish({"tried": verdicts.total(), **{name: verdicts[name] for name in ("right", "clear", *FAULTS)}}, options)


if __name__ == "__main__":
    main()
