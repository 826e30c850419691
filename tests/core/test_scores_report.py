"""The report: what it says of the numbers, that it needs nothing beside it, and that nothing in it is hidden."""

import csv
import json
import re

import pytest
from PIL import Image

from vico_spin.scores.cli import main
from vico_spin.scores.comparison import Duel
from vico_spin.scores.page import Contents, headline, page
from vico_spin.scores.report import as_json, contents_of, published, write_report
from vico_spin.scores.run import Run
from vico_spin.scores.statistics import Interval
from vico_spin.scripts import tiny_scorers as tiny

PROMPT = 'a <script>alert("cat")</script> & co'


def make_run(folder, models, prompts=12, seeds=2, lead=1.0, **facts):
    """A run in which every later model scores `lead` more than the one before, but for the last prompt: 5 less."""
    run = Run(folder / "run")
    run.describe(models=models, scorers={"abc": {"name": "Made up", "formula": "by hand"}}, **facts)
    rows = []
    for m, model in enumerate(models):
        for p in range(prompts):
            for s in range(seeds):
                path = folder / f"{model}-{p}-{s}.png"
                tiny.picture(40, 30, p).save(path)
                score = p + 0.1 * s + lead * m * (-5 if p == prompts - 1 else 1)
                key = {"model": model, "prompt": f"{PROMPT} {p}", "seed": str(s), "concept": "", "references": ""}
                rows.append(
                    {**key, "picture": str(path), "sha256": f"{p}{s}", "scorer": "Made up", "by": "abc", "score": score}
                )
    run.add(rows)
    return folder / "run"


def page_of(folder, **options):
    """The page alone: drawing the PNG takes longer than the rest."""
    return page(
        contents_of(Run(folder), **{"baseline": None, "how": "mean", "k": None, "rounds": (), "title": "t"} | options)
    )


def numbers_of(folder, **options):
    """The report's JSON, read."""
    run, asked = Run(folder), {"baseline": None, "how": "mean", "k": None, "rounds": (), "title": "t"} | options
    return json.loads(as_json(contents_of(run, **asked), run.rows))


def test_the_page_says_who_wins_and_holds_everything(tmp_path):
    """b wins 11 of 12 prompts and loses the last by five: 11/12 = 92%, mean difference (11 − 5) / 12 = 0.5."""
    written = write_report(make_run(tmp_path, ["a", "b"]), tmp_path / "out" / "page.html")
    text = written[0].read_text("utf-8")
    assert "<h1>b is better than a</h1>" in text and "92%" in text and "+0.500" in text
    assert text.count("data:image/webp;base64,") == 2 * 12 * 2
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|url\(', text)
    assert [path.suffix for path in written] == [".html", ".png", ".json", ".csv"]
    assert Image.open(written[1]).size[0] == 1200


def test_prompts_are_text_not_markup(tmp_path):
    text = page_of(make_run(tmp_path, ["a", "b"]))
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_json_and_csv_hold_every_raw_score_and_how_it_was_made(tmp_path):
    _, _, numbers, table = write_report(make_run(tmp_path, ["a", "b"]), tmp_path / "page.html")
    whole = json.loads(numbers.read_text("utf-8"), parse_constant=pytest.fail)
    (duel,) = whole["duels"]
    assert duel["win_rate"] == pytest.approx(11 / 12) and duel["difference"] == pytest.approx(0.5)
    assert len(whole["scores"]) == 48 and whole["run"]["scorers"]["abc"]["formula"] == "by hand"
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    assert len(rows) == 48 and rows[0]["score"] == "0.0" and rows[0]["picture"].endswith(".png")


def test_json_and_csv_name_no_folder_above_the_runs(tmp_path):
    """A picture in the run is told from there on, one elsewhere by its name."""
    folder = make_run(tmp_path, ["a", "b"])
    (folder / "a").mkdir()
    tiny.picture(40, 30, 0).save(folder / "a" / "more.png")
    key = {"model": "a", "prompt": "more", "seed": "0", "concept": "", "references": "", "sha256": "", "by": "abc"}
    Run(folder).add([{**key, "picture": str(folder / "a" / "more.png"), "scorer": "Made up", "score": 1.0}])
    _, _, numbers, table = write_report(folder, tmp_path / "page.html")
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    for found in (rows, json.loads(numbers.read_text("utf-8"))["scores"]):
        assert [row["picture"] for row in found][:: len(found) - 1] == ["a-0-0.png", "a/more.png"]
    assert str(tmp_path) not in numbers.read_text("utf-8") + table.read_text("utf-8")


def test_every_model_is_held_against_the_named_baseline(tmp_path):
    duels = numbers_of(make_run(tmp_path, ["a", "b", "c"]), baseline="b")["duels"]
    found = {duel["model"]: duel["win_rate"] for duel in duels}
    assert found == {"a": pytest.approx(1 / 12), "c": pytest.approx(11 / 12)}


def test_equal_models_are_not_told_apart(tmp_path):
    text = page_of(make_run(tmp_path, ["a", "b"], lead=0.0))
    assert "b and a cannot be told apart" in text and "exact (every prompt came out alike)" in text


@pytest.mark.parametrize(
    "verdicts, said",
    [
        ("wins wins", "b is better than a"),
        ("loses even", "b is worse than a by 1 of 2 scorers"),
        ("wins loses", "b against a: the scorers disagree"),
        ("even even", "b and a cannot be told apart"),
    ],
)
def test_the_headline_follows_the_intervals(verdicts, said):
    """A verdict is where the interval lies: above ½, below it, or around it."""
    ends = {"wins": (0.6, 0.8), "loses": (0.1, 0.3), "even": (0.4, 0.6)}
    intervals = [Interval(*ends[verdict]) for verdict in verdicts.split()]
    found = [Duel(f"s{i}", f"by{i}", "b", "a", 9, 0.5, ends, "", 0.0, ends, 9) for i, ends in enumerate(intervals)]
    assert headline(Contents("t", "a", ["a", "b"], [], found, [], [], {}, {}, "")) == said


def test_best_of_k_takes_the_first_k_pictures(tmp_path):
    """Seed 1 adds 0.1 to every prompt: best of 1 is the first picture's mean 5.5 (prompts 0 … 11), best of 2 is 5.6."""
    run = make_run(tmp_path, ["a"])
    means = {k: numbers_of(run, how="best", k=k)["means"][0]["mean"] for k in (1, 2)}
    assert means == {1: pytest.approx(5.5), 2: pytest.approx(5.6)}


def test_rounds_draw_a_curve(tmp_path):
    run = make_run(tmp_path, ["a", "b", "c"])
    text = page_of(run, rounds=["a", "b", "c"])
    assert "Round by round" in text and text.count("<circle") == 3


def test_a_scorer_that_saw_no_round_has_no_curve(tmp_path):
    folder = make_run(tmp_path, ["base", "a", "b"])
    key = {"model": "base", "seed": "0", "concept": "", "references": "", "picture": "x.png", "sha256": ""}
    Run(folder).add([{**key, "prompt": "x", "scorer": "Of the base alone", "by": "def", "score": 1.0}])
    text = page_of(folder, rounds=["a", "b"])
    assert text.count("<circle") == 2 and "<figcaption>Of the base alone</figcaption>" not in text


HPS = "longest side 224 bicubic (float, antialias {}), black padding, mean (0.48, 0.45), std (0.26, 0.26)"
NAMESAKES = {
    "HPS v2": ([{"preprocessing": HPS.format(word)} for word in ("on", "off")], ["antialias on", "antialias off"]),
    "PickScore v1": (
        [{"checkpoints": [{"file": "model.safetensors", "sha256": digit * 64}]} for digit in "12"],
        ["sha256 11111111", "sha256 22222222"],
    ),
    "no record": ([{}, {}], ["by0", "by1"]),
}


@pytest.mark.parametrize("name", NAMESAKES)
def test_two_scorers_of_one_name_are_told_apart(tmp_path, name):
    """The first scores a with 1 and b with 2, the second with 5 and 6: four means, and a win rate under each heading."""
    records, marks = NAMESAKES[name]
    run = Run(tmp_path)
    scorers = {
        f"by{i}": {"name": name, "formula": "cosine(picture, prompt)"} | record for i, record in enumerate(records)
    }
    run.describe(models=["a", "b"], scorers=scorers)
    key = {"seed": "0", "concept": "", "references": "", "picture": "x.png", "sha256": "", "scorer": name}
    cells = [(model, f"by{i}", 1.0 + m + 4 * i) for i in (0, 1) for m, model in enumerate("ab")]
    run.add({**key, "prompt": f"p{p}", "model": m, "by": by, "score": s} for p in (0, 1) for m, by, s in cells)
    text = page_of(tmp_path)
    assert re.findall(r"<td>([^<]*)<", text) == ["1.00", "5.00", "2.00", "6.00"]
    shape = re.findall(r'<h3 class="axis"><span>(.*?)</span>|<span class="who">(.*?)</span>', text)
    assert ["".join(found) for found in shape] == [f"{name} ({marks[0]})", "b", f"{name} ({marks[1]})", "b"]
    whole = numbers_of(tmp_path)
    assert [duel["by"] for duel in whole["duels"]] == ["by0", "by1"] and len(whole["left_out"]) == 2
    assert [(mean["by"], mean["mean"]) for mean in whole["means"]] == [(by, score) for _, by, score in cells]


def test_a_name_that_one_scorer_has_stands_alone(tmp_path):
    assert "<span>Made up</span>" in page_of(make_run(tmp_path, ["a", "b"]))


def test_a_single_model_has_a_page_without_a_duel(tmp_path):
    text = page_of(make_run(tmp_path, ["a"]))
    assert "<h1>Scores of a</h1>" in text and 'id="wins"' not in text


def test_what_is_missing_is_on_the_page(tmp_path):
    """A picture that has gone since, one that never decoded, and a prompt that only one model has."""
    folder = make_run(tmp_path, ["a", "b"])
    (tmp_path / "a-3-0.png").unlink()
    key = {"model": "a", "seed": "0", "concept": "", "references": "", "sha256": "", "scorer": "Made up", "by": "abc"}
    error = {"prompt": "x", "picture": "x.png", "error": '"x.png" does not decode as a picture'}
    Run(folder).add([{**key, **error}, {**key, "prompt": "only a", "picture": "y.png", "score": 1.0}])
    text = page_of(folder)
    assert "a-3-0.png is no longer there" in text and "does not decode" in text and "1 of 13 prompts" in text


def test_vicos_table_stands_beside_the_papers(tmp_path):
    folder = make_run(tmp_path, ["mine"], protocol="ViCo, standard", protocol_scorers=["abc"])
    text = page_of(folder)
    assert "ViCo (paper)" in text and "0.643" in text and "<th>mine</th>" in text


@pytest.mark.parametrize("by, kept", [("old", 0.2), ("new", 0.8)])
def test_vicos_table_is_of_the_runs_protocol_alone(tmp_path, by, kept):
    """One picture under two preprocessings of one name: 0.2 and 0.8, and never their mean 0.5."""
    run = Run(tmp_path)
    scorers = {by: {"name": "CLIP-I"} for by in ("old", "new")}
    run.describe(models=["m"], scorers=scorers, protocol="ViCo, dreammatcher", protocol_scorers=[by])
    key = {"model": "m", "prompt": "p", "seed": "0", "concept": "c", "references": "", "picture": "x.png", "sha256": ""}
    run.add({**key, "scorer": "CLIP-I", "by": by, "score": score} for by, score in (("old", 0.2), ("new", 0.8)))
    assert published(run) == {"m": {"CLIP-I": kept}}


def test_the_command_writes_the_page_into_the_run(tmp_path, capsys):
    folder = make_run(tmp_path, ["a", "b"])
    assert main(["report", str(folder), "--title", "Cats"]) == 0
    assert (folder / "report.html").is_file() and "report.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--baseline", "c"], 'no "c"; it has a, b'),
        (["--rounds", "a,x"], 'no "x"'),
        (["--best-of", "9"], "Best of 9"),
    ],
)
def test_a_report_that_cannot_be_says_why(tmp_path, capsys, options, sentence):
    folder = make_run(tmp_path, ["a", "b"], prompts=2)
    assert main(["report", str(folder), "--aggregation", "best", *options]) == 1
    assert sentence in capsys.readouterr().err


def test_best_of_is_for_the_best_alone(tmp_path, capsys):
    folder = make_run(tmp_path, ["a", "b"], prompts=2)
    assert main(["report", str(folder), "--best-of", "2"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "scores: Leave out --best-of, or add --aggregation best." and "--aggregation mean" in second


def test_a_page_that_cannot_be_written_is_said(tmp_path, capsys):
    folder = make_run(tmp_path, ["a"], prompts=1)
    (tmp_path / "file").write_text("")
    assert main(["report", str(folder), "--out", str(tmp_path / "file" / "page.html")]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("scores: Look whether the folder is writable") and "page.html" in second


def test_a_folder_that_is_no_run_is_said(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "Make a run with vico-spin evaluate first" in capsys.readouterr().err


def test_one_prompt_alone_claims_no_spread(tmp_path):
    """The mean difference of one prompt has no interval: null in JSON, which has no NaN, and words on the page."""
    folder = make_run(tmp_path, ["a", "b"], prompts=1)
    run = Run(folder)
    contents = contents_of(run, None, "mean", None, (), "t")
    (duel,) = json.loads(as_json(contents, run.rows), parse_constant=pytest.fail)["duels"]
    assert duel["difference_interval"] == [None, None] and duel["interval"] == pytest.approx([0.0, 0.975])
    assert "one prompt alone" in page(contents)
