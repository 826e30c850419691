"""Prompt lists, which picture belongs to which prompt, runs that go on after a stop, ViCo's protocol, the command."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from vico_spin.scores import samples, vico_protocol
from vico_spin.scores.cli import main, prompted_samples
from vico_spin.scores.comparison import tables
from vico_spin.scores.evaluate import evaluate
from vico_spin.scores.prompts import read_prompts
from vico_spin.scores.report import published
from vico_spin.scores.run import Run, row_of
from vico_spin.scores.scorer import Scorer
from vico_spin.scripts import tiny_scorers as tiny

LISTS = {
    "list.txt": "a cat\n\n  a dog \n",
    "PartiPrompts.tsv": 'Prompt\tCategory\na "cat\tAnimals\na dog\tAnimals\n',
    "table.csv": 'id,Caption\n0,"a cat, black"\n1,a dog\n',
    "anime.json": '["a cat", "a dog"]',
    "test.json": '[{"prompt": "a cat", "rank": [0, 1]}, {"prompt": "a dog"}]',
}
FIRST = {"PartiPrompts.tsv": 'a "cat', "table.csv": "a cat, black"}


@pytest.mark.parametrize("name", LISTS)
def test_prompt_lists(tmp_path, name):
    """PartiPrompts' quotes are letters, CSV's are not."""
    (tmp_path / name).write_text(LISTS[name])
    assert read_prompts(tmp_path / name) == [FIRST.get(name, "a cat"), "a dog"]


def test_pick_a_pics_captions_come_once_each(tmp_path):
    """Pick-a-Pic holds a row for each pair, so a caption stands in many rows; the pictures' bytes are not read."""
    from pyarrow import parquet, table

    captions = ["a cat", "a dog", "a cat"]
    columns = {"jpg_0": [b"0"] * 3, "jpg_1": [b"1"] * 3, "caption": captions, "label_0": [1.0, 0.5, 0.0]}
    parquet.write_table(table(columns), tmp_path / "test.parquet")
    assert read_prompts(tmp_path / "test.parquet") == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("list.txt", "\n", "no prompts"),
        ("table.csv", "a,b\n1,2\n", "Name a column text or prompt or caption"),
        ("table.csv", "prompt,b\n,2\n", "no prompt at 0"),
        ("broken.json", "[", "Write the file as JSON"),
        ("numbers.json", "[[1]]", "no prompt at 0"),
        ("list.docx", "", "Choose a prompt list"),
    ],
)
def test_lists_that_are_none_are_said(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_prompts(tmp_path / name)


def pictures(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tiny.picture(48, 32, seed).save(folder / name)
    return folder


@pytest.mark.parametrize("names", [("00000_0.png", "00001_0.jpg"), ("0/0.png", "1/0.png"), ("0-0.webp", "1-0.png")])
def test_pictures_find_their_prompt_by_number(tmp_path, names):
    found = samples.samples_of("m", pictures(tmp_path, *names), ["a cat", "a dog"], None)
    assert [(sample.prompt, sample.seed) for sample in found] == [("a cat", "0"), ("a dog", "0")]


def test_numbers_from_1_never_slip_to_the_next_prompt(tmp_path):
    folder = pictures(tmp_path, "1_0.png", "2_0.png")
    with pytest.raises(ValueError, match="numbered from 1"):
        samples.samples_of("m", folder, ["a", "b", "c"], None)
    assert [s.prompt for s in samples.samples_of("m", folder, ["a", "b", "c"], None, first=1)] == ["a", "b"]
    assert [s.prompt for s in samples.samples_of("m", folder, ["a", "b", "c"], None, first=0)] == ["b", "c"]


def test_a_metadata_table_gives_prompt_and_seed(tmp_path):
    pictures(tmp_path, "b.png", "a.png")
    rows = [{"file_name": "b.png", "text": "a cat", "seed": 0}, {"file_name": "a.png", "text": "a cat"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = samples.samples_of("m", tmp_path, None, None)
    assert [(sample.picture.name, sample.seed) for sample in found] == [("b.png", "0"), ("a.png", "1")]


def test_pictures_of_one_prompt_and_seed_are_told_apart(tmp_path):
    """A batch has one seed for all its pictures; two models' batches line up whatever their tables' order."""
    names = [f"{i}.png" for i in range(4)]
    rows = [
        {"file_name": name, "text": "a cat", "seed": seed} for name, seed in zip(names, (42, 42, 7, 42), strict=True)
    ]
    folders = [pictures(tmp_path / model, *names) for model in "mn"]
    (folders[0] / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cells = [f"{row['file_name']},{row['text']}, {row['seed']}" for row in (rows[2], rows[0], rows[1], rows[3])]
    (folders[1] / "metadata.csv").write_text("\n".join(["file_name,text,seed", *cells]))
    found = [samples.samples_of(folder.name, folder, None, None) for folder in folders]
    assert [sample.seed for sample in found[0]] == ["42", "42-1", "7", "42-2"]
    made = [row_of(one, "s", "by", "") | {"score": int(one.picture.stem)} for model in found for one in model]
    (table,) = tables(made, ["m", "n"])
    assert table.seeds == [["7", "42", "42-1", "42-2"]]
    assert table.scores["m"].tolist() == table.scores["n"].tolist() == [[2, 0, 1, 3]] and not table.left_out


@pytest.mark.parametrize("blank", ["", " ", None])
def test_pictures_without_a_seed_are_numbered(tmp_path, blank):
    names = [f"{i}.png" for i in range(4)]
    seeds = [blank, 1, blank, blank]
    rows = [{"file_name": name, "text": "a cat", "seed": seed} for name, seed in zip(names, seeds, strict=True)]
    (pictures(tmp_path, *names) / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [sample.seed for sample in samples.samples_of("m", tmp_path, None, None)] == ["0", "1", "2", "3"]


def test_captions_beside_the_pictures(tmp_path):
    pictures(tmp_path, "x.png", "y.png")
    for name in "xy":
        (tmp_path / f"{name}.txt").write_text("a cat\n")
    found = samples.samples_of("m", tmp_path, None, None)
    assert [(sample.prompt, sample.seed) for sample in found] == [("a cat", "0"), ("a cat", "1")]


@pytest.mark.parametrize(
    "names, prompts, layout, sentence",
    [
        (("7_0.png",), ["a cat"], None, "belongs to prompt 7"),
        (("x.png",), ["a cat"], None, "no pictures named as"),
        (("x.png",), None, None, r"no caption .a .txt of the same name.: 1 .x.png"),
        (("0_0.png",), ["a cat"], "{seed}", "must hold {prompt}"),
        (("0_0.png",), ["a cat"], "{prompt}_{prompt}", "each once"),
        ((), None, None, "no folder|no pictures"),
    ],
)
def test_pictures_without_a_prompt_are_said(tmp_path, names, prompts, layout, sentence):
    with pytest.raises(ValueError, match=sentence):
        samples.samples_of("m", pictures(tmp_path / "folder", *names), prompts, layout)


def test_a_table_cannot_point_outside_its_folder(tmp_path):
    folder = pictures(tmp_path / "folder", "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "../secret.png", "text": "a cat"}))
    with pytest.raises(ValueError, match="file_name leads out of the folder: 1"):
        samples.samples_of("m", folder, None, None)


class Width(Scorer):
    """A picture's width: a scorer whose answers can be seen with the eye, and counted."""

    name, formula, needs_prompt = "width", "pixels", True

    def __init__(self, stops_after: int | None = None):
        self.asked, self.stops_after = [], stops_after

    def score(self, pictures, prompts=None, references=None):
        self.check(pictures, prompts, references)
        if self.stops_after is not None and len(self.asked) >= self.stops_after:
            raise KeyboardInterrupt
        self.asked += prompts
        return [float(picture.width) for picture in pictures]


def folder_of(path, count, model):
    prompts = [f"prompt {i}" for i in range(count)]
    return samples.samples_of(model, pictures(path, *(f"{i}_0.png" for i in range(count))), prompts, None)


def quiet(line):
    pass


def test_a_run_that_was_stopped_goes_on_and_asks_nothing_twice(tmp_path):
    """40 pictures are two chunks of 32 and 8; the stop comes at the second."""
    asked, first, second = folder_of(tmp_path / "p", 40, "m"), Width(stops_after=32), Width()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Run(tmp_path / "run"), asked, [lambda: first], quiet)
    evaluate(Run(tmp_path / "run"), asked, [lambda: second], quiet)
    assert len(second.asked) == 8 and set(first.asked + second.asked) == {sample.prompt for sample in asked}
    whole = Run(tmp_path / "run")
    assert len(whole.rows) == 40 and {row["score"] for row in whole.rows} == {48.0}


def test_a_cut_last_line_is_scored_again(tmp_path):
    asked, again = folder_of(tmp_path / "p", 3, "m"), Width()
    evaluate(Run(tmp_path / "run"), asked, [Width], quiet)
    file = tmp_path / "run" / "scores.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    evaluate(Run(tmp_path / "run"), asked, [lambda: again], quiet)
    assert len(again.asked) == 1 and len(Run(tmp_path / "run").rows) == 3


def test_a_changed_picture_or_scorer_is_asked_again(tmp_path):
    asked, same, other = folder_of(tmp_path / "p", 2, "m"), Width(), Width()
    evaluate(Run(tmp_path / "run"), asked, [Width], quiet)
    tiny.picture(60, 32).save(asked[0].picture)
    other.formula = "another"
    evaluate(Run(tmp_path / "run"), asked, [lambda: same, lambda: other], quiet)
    assert same.asked == ["prompt 0"] and len(other.asked) == 2


def test_one_undecodable_picture_is_named_and_the_others_are_scored(tmp_path):
    asked = folder_of(tmp_path / "p", 40, "m")
    asked[17].picture.write_bytes(b"broken")
    evaluate(Run(tmp_path / "run"), asked, [Width], quiet)
    rows = Run(tmp_path / "run").rows
    assert sum("score" in row for row in rows) == 39
    (broken,) = [row for row in rows if "error" in row]
    assert broken["picture"] == str(asked[17].picture) and broken["error"].startswith("does not decode")


def test_the_table_keeps_prompts_that_all_models_have(tmp_path):
    """Model b lacks prompt 2, so two of three prompts remain, and the page says so."""
    asked = folder_of(tmp_path / "a", 3, "a") + folder_of(tmp_path / "b", 2, "b")
    run = Run(tmp_path / "run")
    evaluate(run, asked, [Width], quiet)
    (table,) = tables(run.rows, run.about["models"])
    assert table.prompts == ["prompt 0", "prompt 1"] and table.scores["a"].shape == (2, 1)
    assert table.left_out[0].startswith("1 of 3 prompts")


DREAMBOOTH = """Classes

subject_name,class
backpack,backpack
dog6,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


def test_dreambooths_prompts_and_classes(tmp_path):
    (tmp_path / "prompts_and_classes.txt").write_text(DREAMBOOTH)
    data = vico_protocol.read_data(tmp_path)
    assert data.templates("backpack") == ["a {} in the jungle", "a red {}"]
    assert data.templates("dog6") == ["a {} wearing a red hat"]


def vico_data(folder):
    pictures(folder, "cat-toy/0.jpg", "cat-toy/1.jpg", "brown_dog/0.jpg")
    (folder / "prompts_live_objects.txt").write_text("a {} in the snow\na wet {}\n")
    (folder / "prompts_nonlive_objects.txt").write_text("a {} in the jungle\na red {}\n")
    return folder


def test_vicos_results_meet_their_photos_and_prompts(tmp_path):
    """cat_statue's photos lie in cat-toy; the dog takes the live list; the placeholder is left out of the text."""
    data = vico_protocol.read_data(vico_data(tmp_path / "data"))
    results = pictures(tmp_path / "r", "cat_statue/prompt_0/samples/0.png", "brown_dog/prompt_1/3.png")
    dog, cat = vico_protocol.samples_of("ViCo", results, data, "standard")
    assert (dog.prompt, dog.seed, len(dog.references)) == ("a wet", "3", 1)
    assert (cat.prompt, cat.seed, len(cat.references)) == ("a in the jungle", "0", 2)
    theirs = vico_protocol.samples_of("ViCo", results, data, "dreammatcher")
    assert theirs[0].prompt == "a wet {}"


def test_vicos_mean_is_over_prompts_then_concepts():
    """x: prompt means 0 and 1, so ½; y: 0.2. Their mean 0.35; over all four numbers it would be 0.3."""
    numbers = [("x", "p", 0.0), ("x", "q", 1.0), ("y", "p", 0.2), ("y", "p", 0.2)]
    key = {"scorer": "DINO", "by": "abc", "model": "m"}
    rows = [
        {**key, "picture": f"{i}.png", "concept": c, "prompt": p, "score": s} for i, (c, p, s) in enumerate(numbers)
    ]
    assert vico_protocol.summary(rows) == {"DINO": {"m": pytest.approx(0.35)}}


def test_vicos_mean_takes_a_picture_as_it_is_now():
    """The picture scored 0.2, was drawn again and scored 0.8; the other one's 0.4 stays: 0.6. All three would be 0.47."""
    key = {"scorer": "DINO", "by": "abc", "model": "m", "concept": "x", "prompt": "p"}
    rows = [{**key, "picture": name, "score": score} for name, score in (("0", 0.2), ("1", 0.4), ("0", 0.8))]
    assert vico_protocol.summary(rows) == {"DINO": {"m": pytest.approx(0.6)}}


@pytest.mark.parametrize("layout, part", [("{prompt}_{seed}", "{concept}"), ("{concept}/{prompt}", "{seed}")])
def test_a_layout_of_vicos_results_names_every_part(tmp_path, layout, part):
    data = vico_protocol.read_data(vico_data(tmp_path / "data"))
    results = pictures(tmp_path / "r", "0_0.png", "cat_statue/0.png")
    with pytest.raises(ValueError, match=f'^Write {part} into the layout.\n"{layout}" has no such part'):
        vico_protocol.samples_of("ViCo", results, data, "standard", layout)


def test_what_a_full_evaluation_lacks_is_said(tmp_path):
    data = vico_protocol.read_data(vico_data(tmp_path / "data"))
    results = pictures(tmp_path / "r", "cat_statue/prompt_0/0.png")
    found = vico_protocol.samples_of("ViCo", results, data, "standard")
    (sentence,) = vico_protocol.gaps(found)
    assert sentence == "cat_statue: 1 of 31 prompts, 1 of them with fewer than 8 samples"


@pytest.fixture(scope="module")
def scorers_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scorers")
    tiny.write_clip_folder(root / "clip-vit-base-patch32", activation="quick_gelu")
    tiny.write_dino_folder(root / "dino-vits16")
    return root


def test_the_command_scores_a_folder_and_keeps_how(tmp_path, scorers_folder, capsys):
    prompts = tmp_path / "list.txt"
    prompts.write_text("a cat\na dog\n")
    folders = {name: pictures(tmp_path / name, "0_0.png", "1_0.png") for name in "ab"}
    given = [f"--pictures={name}={folder}" for name, folder in folders.items()]
    command = ["evaluate", *given, "--prompts", str(prompts), "--scorer", "clip-score", "--device", "cpu"]
    command += ["--scorers-folder", str(scorers_folder), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    run = Run(tmp_path / "run")
    assert len(run.rows) == 4 and run.about["models"] == ["a", "b"] and run.about["versions"]["torch"]
    (record,) = run.about["scorers"].values()
    assert record["checkpoints"][0]["file"] == "model.safetensors" and "4 scores" in capsys.readouterr().out


def test_two_files_of_one_kind_score_both(tmp_path, scorers_folder):
    """The last one stood for both."""
    (tmp_path / "list.txt").write_text("a cat\n")
    folder = pictures(tmp_path / "m", "0_0.png")
    files = (scorers_folder / "clip-vit-base-patch32", tmp_path / "other")
    shutil.copytree(*files)
    weights = {name: 2 * tensor for name, tensor in load_file(files[1] / "model.safetensors").items()}
    save_file(weights, files[1] / "model.safetensors")
    command = ["evaluate", f"--pictures=m={folder}", "--prompts", str(tmp_path / "list.txt"), "--device", "cpu"]
    command += [f"--scorer=clip-score={file}" for file in files]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert len({row["by"] for row in Run(tmp_path / "run").rows}) == 2


def test_a_folder_of_lists_is_one_style_each(tmp_path):
    """HPDv2's benchmark: anime.json and photo.json, and pictures in anime/ and photo/."""
    (tmp_path / "lists").mkdir()
    for style in ("anime", "photo"):
        (tmp_path / "lists" / f"{style}.json").write_text(f'["{style} cat", "{style} dog"]')
        pictures(tmp_path / "m" / style, "00000.jpg", "00001.jpg")
    found = prompted_samples("m", tmp_path / "m", tmp_path / "lists", None)
    assert [sample.prompt for sample in found] == ["anime cat", "anime dog", "photo cat", "photo dog"]


@pytest.mark.parametrize(
    "protocol, dino", [("standard", "DINO ViT-S/16"), ("dreammatcher", "DINO ViT-S/16 (DreamMatcher)")]
)
def test_the_command_runs_vicos_protocol(tmp_path, scorers_folder, protocol, dino):
    data = vico_data(tmp_path / "data")
    results = pictures(tmp_path / "r", "cat_statue/prompt_0/0.png", "brown_dog/prompt_1/0.png")
    command = ["evaluate", "--vico", str(data), f"--pictures=ViCo={results}", "--protocol", protocol]
    assert main([*command, "--scorers-folder", str(scorers_folder), "--out", str(tmp_path / "run")]) == 0
    run = Run(tmp_path / "run")
    table = vico_protocol.summary(run.rows)
    assert list(table) == [dino, "CLIP-I (ViT-64/28)", "CLIP score (ViT-64/28)"] and len(run.rows) == 6


def test_two_protocols_share_a_run_and_its_table_is_the_latters(tmp_path, scorers_folder):
    """One picture. DreamMatcher's prompts keep their braces, which tells its rows; CLIP-I has one name in both."""
    results = pictures(tmp_path / "r", "cat_statue/prompt_0/0.png")
    command = ["evaluate", "--vico", str(vico_data(tmp_path / "data")), f"--pictures=ViCo={results}"]
    command += ["--scorers-folder", str(scorers_folder), "--out", str(tmp_path / "run")]
    for protocol in ("standard", "dreammatcher", "standard"):
        assert main([*command, "--protocol", protocol]) == 0
        run = Run(tmp_path / "run")
        asked = [row for row in run.rows if ("{}" in row["prompt"]) == (protocol == "dreammatcher")]
        assert published(run)["ViCo"] == {row["scorer"]: row["score"] for row in asked}
    assert len(run.rows) == 6


def test_a_run_that_cannot_be_written_is_said(tmp_path, scorers_folder, capsys):
    (tmp_path / "file").write_text("")
    pictures(tmp_path / "m", "0_0.png")
    (tmp_path / "list.txt").write_text("a cat\n")
    command = ["evaluate", f"--pictures=m={tmp_path / 'm'}", "--prompts", str(tmp_path / "list.txt")]
    command += ["--scorer", "clip-score", "--scorers-folder", str(scorers_folder)]
    assert main([*command, "--out", str(tmp_path / "file" / "run")]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("scores: Look whether the folder is writable") and "run.json" in second


def test_scores_that_cannot_be_added_are_said(tmp_path):
    (tmp_path / "scores.jsonl").mkdir()
    with pytest.raises(OSError, match=r'^Look whether the file is writable.*\n".*scores.jsonl" could not be written'):
        Run(tmp_path).add([])


UNREAD = {
    "--layout, or give --prompts too": ["--layout", "{prompt}_{seed}", "--scorer", "dino"],
    "--first-number, or give --prompts too": ["--first-number", "0", "--scorer", "dino"],
    "--scorer pickscore, or --vico": ["--vico", "data", "--scorer", "clip-i", "--scorer", "pickscore"],
    "--prompts, or --vico": ["--vico", "data", "--prompts", "list.txt"],
    "--first-number, or --vico": ["--vico", "data", "--first-number", "1"],
    "--references, or --vico": ["--vico", "data", "--references", "photos"],
}


@pytest.mark.parametrize("flags", UNREAD)
def test_a_flag_that_nothing_would_read_is_refused(tmp_path, capsys, flags):
    folder = pictures(tmp_path / "m", "0_0.png")
    (tmp_path / "m" / "0_0.txt").write_text("a cat\n")
    assert main(["evaluate", f"--pictures=m={folder}", "--out", str(tmp_path / "run"), *UNREAD[flags]]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"scores: Leave out {flags}." and second.endswith(".")
    assert len(first.removeprefix("scores: ")) <= 60


@pytest.mark.parametrize(
    "command, sentence",
    [
        (["--pictures", "x", "--scorer", "dino"], "must be NAME=FOLDER"),
        (["--pictures", "m=a", "--batch-size", "0"], "0 is no whole number from 1 on"),
        (["--pictures", "m=a", "--first-number", "-1"], "-1 is no whole number from 0 on"),
        (["--pictures", "m=nowhere"], "at least one --scorer"),
        (["--pictures", "m=nowhere", "--scorer", "fid"], 'no scorer "fid"'),
        (["--pictures", "m=nowhere", "--scorer", "dino=nothing"], 'no folder "nowhere"'),
        (["--pictures", "m=a", "--pictures", "m=b", "--scorer", "dino"], "the same NAME"),
    ],
)
def test_a_command_that_cannot_run_says_why(tmp_path, capsys, command, sentence):
    try:
        code = main(["evaluate", *command, "--out", str(tmp_path / "run")])
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code in (1, 2) and sentence in capsys.readouterr().err
