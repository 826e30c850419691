"""Errors stand on the node that they are about, in two lines that say first what to do."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
ROOMS = ("nodes", "intake", "scores", "spin_core", "train_core", "vico_core")
OF_THE_COMMAND_LINE = {  # their words stand in a terminal, and name its flags
    "nodes/spin/command_line.py",
    *(f"scores/{name}.py" for name in ("cli", "prompts", "samples", "statistics", "vico_protocol")),
    *(f"spin_core/{name}.py" for name in ("cli", "pipelines", "settings")),
}
TOLD = {"ValueError", "RuntimeError", "OSError", "BadFile", "TrainingDiverged"}
ACTION = re.compile(
    "(Choose|Connect|Download|Draw|Encode|Install|Leave|Let|Load|Look|Lower|Make|Name|Paint|Put|Reinstall|Run|Save|Set|Take|Train|"
    r"Update|Use|Write)\b"
)

PLAY = {"play": "several rounds", "play.rounds": 2, "play.steps": "4", "play.learning_rate": "abc", "play.beta": "1"}
ONE = {"play": "one round", "play.steps": 1, "play.learning_rate": 1e-4, "play.beta": 1.0}
TRAIN = {"train": "LoRA", "train.rank": 4, "batch_size": 1, "resolution": 128, "seed": 0, "run_name": "spin"}
VICO = {"initialiser": "toy", "placeholder": "*", "steps": 1, "seed": 0, "run_name": "toy", "size": 64}
PICTURES = {"creature": "any", "colour": "any", "scene": "any", "size": "any", "taste_from": 1.0, "taste_to": 1.0}
MODELS = {"models.model0": ["0", 0], "models.model1": ["0", 0]}
BEFORE_A_RUN = [
    ("SPINTrain", {**PLAY, **TRAIN}, 'Write learning_rate as numbers, as in "2e-5, 1e-5".'),
    ("SPINTrain", {"play": "one round", **TRAIN, "resolution": 0}, "Set resolution to 64 at least, and 2048 at most."),
    (
        "SPINTrain",
        {**PLAY, **TRAIN, "play.learning_rate": "1", "play.rounds": 0},
        "Set rounds to 2 at least, and 20 at most.",
    ),
    ("SPINTrain", {**ONE, **TRAIN, "play.steps": 0}, "Set steps to 1 at least, and 1000000 at most."),
    ("SPINTrain", {**ONE, **TRAIN, "train.rank": 0}, "Set rank to 1 at least, and 256 at most."),
    ("SPINDataset", {"source": "pictures from the graph", "captions": ""}, "Connect images, or choose a folder."),
    ("SPINDataset", {"source": "gone"}, "Choose source again."),
    ("SPINDataset", {"source": "of_nothing"}, "Put captioned pictures into input/of_nothing."),
    ("SPINSave", {"filename_prefix": "x", "format": "native U-Net"}, "Connect the trained model."),
    (
        "SPINSave",
        {"filename_prefix": "x", "format": "ComfyUI LoRA"},
        "Connect the trainer's lora, or choose another format.",
    ),
    ("ScoreLoadScorer", {"scorer": "HPS v2.1", "file": "automatic"}, "Put HPS_v2.1_compressed.pt into models/scorers."),
    ("ScoreLoadScorer", {"scorer": "HPS v9", "file": "automatic"}, "Choose scorer again."),
    ("ScoreCompareModels", {"names": "a, b", "prompts": " ", **MODELS}, "Write prompts, one a line."),
    ("ScoreCompareModels", {"names": "a, a", "prompts": "x", **MODELS}, "Write 2 different names between commas."),
    ("ViCoTrain", {**VICO, "captions": "a red toy"}, 'Write "*" where the object should appear.'),
    ("ViCoCheckpointGrid", {"run": "nothing"}, "Connect the run of Train ViCo."),
]


@pytest.fixture
def words_of(host, tmp_path, monkeypatch):
    """words_of(node id, **inputs) runs the node, feeding an output, and returns what stands on it afterwards."""
    import folder_paths

    (tmp_path / "of_nothing").mkdir()
    (tmp_path / "of_nothing" / "no_caption.png").write_bytes(b"")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))

    def run(node_id: str, **inputs) -> list[str]:
        host.server.messages.clear()
        prompt = {"0": {"class_type": "SpriteWorldLoad", "inputs": {}}, "1": {"class_type": node_id, "inputs": inputs}}
        if not host.node_classes[node_id].OUTPUT_NODE:
            prompt["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
        with pytest.raises(RuntimeError):
            host.run(prompt)
        return [
            told["text"] for event, told in host.server.messages if event == "progress_text" and told["node"] == "1"
        ]

    return run


@pytest.mark.parametrize(("node_id", "inputs", "first_line"), BEFORE_A_RUN)
def test_what_can_be_known_is_said_before_a_run(words_of, node_id, inputs, first_line):
    words = words_of(node_id, **inputs)[-1]
    assert words.splitlines()[0] == "Error: " + first_line
    assert len(words.splitlines()) == 2 and len(first_line) <= 60


def test_what_a_run_finds_is_said_on_the_node(host, words_of):
    world = {"class_type": "SpriteWorldPictures", "inputs": {"number": 1, "identity": -1, "seed": 0, **PICTURES}}
    grown = {
        "class_type": "ImageScale",
        "inputs": {"image": ["0", 0], "upscale_method": "area", "width": 16, "height": 16},
    }
    host.server.messages.clear()
    prompt = {"0": world, "1": {**grown, "inputs": {**grown["inputs"], "crop": "disabled"}}}
    prompt["2"] = {"class_type": "SpriteWorldLoad", "inputs": {}}
    prompt["3"] = {"class_type": "ViCoReference", "inputs": {"vae": ["2", 2], "image": ["1", 0], "size": 64}}
    prompt["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    with pytest.raises(RuntimeError):
        host.run(prompt)
    (words,) = [told for event, told in host.server.messages if event == "progress_text"]
    assert words["node"] == "3" and words["text"].startswith("Error: Use a picture of ")


def test_a_link_counts_as_connected(host):
    """What is linked is not known before the run: it is neither missing nor empty."""
    drawn = {"class_type": "SpriteWorldPictures", "inputs": {"number": 1, "identity": -1, "seed": 0, **PICTURES}}
    data = {"source": "pictures from the graph", "images": ["1", 0], "captions": ["1", 2]}
    prompt = {"1": drawn, "2": {"class_type": "SPINDataset", "inputs": data}}
    host.run({**prompt, "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}}})


def test_no_folder_above_comfyui_is_named(host, tmp_path, monkeypatch):
    """Nor one above the folders that extra_model_paths.yaml and --output-directory name."""
    import folder_paths

    from vico_spin.nodes.host.errors import on_a_node

    folders, endings = folder_paths.folder_names_and_paths["scorers"]
    elsewhere = [str(tmp_path / "home" / "scorers"), "/scorers"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "scorers", ([*elsewhere, *folders], endings))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "pictures"))
    for path, told in {
        f"{folder_paths.models_dir}/vico/toy.safetensors": "models/vico/toy.safetensors",
        f"{tmp_path}/home/scorers/x.pt": "scorers/x.pt",
        f"{tmp_path}/pictures/spin/runs": "pictures/spin/runs",
        "/nowhere/x.pt": "/nowhere/x.pt",
    }.items():
        assert on_a_node(OSError(f'"{path}" is not there\nsecond\nthird')) == f'"{told}" is not there\nsecond'


def raised_texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every error that is raised with words of its own; "12345678" for what is filled in."""
    for raised in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call = raised.exc if isinstance(raised, ast.Raise) else None
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in TOLD and call.args:
            parts = [call.args[0], *getattr(call.args[0], "values", [])]
            if text := "".join(told(part) for part in parts):
                yield raised.lineno, text


def told(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return part.value
    return "12345678" if isinstance(part, ast.FormattedValue) else ""


def test_every_error_says_first_what_to_do():
    """In the nodes and in what they call, wherever an error is raised: the action, in 60 letters, and then the fact."""
    files = [path for room in ROOMS for path in sorted((HERE / room).rglob("*.py"))]
    sites = [
        (path.relative_to(HERE).as_posix(), line, text)
        for path in files
        if path.relative_to(HERE).as_posix() not in OF_THE_COMMAND_LINE
        for line, text in raised_texts(path)
    ]
    assert len(sites) > 100
    wrong = [
        f"{path}:{line}: {text}"
        for path, line, text in sites
        if text.count("\n") != 1 or len(text.splitlines()[0]) > 60 or not ACTION.match(text)
    ]
    assert not wrong, "\n".join(wrong)
