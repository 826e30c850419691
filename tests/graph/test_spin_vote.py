"""SPIN Vote in the real host: pictures in, votes in a widget, pairs and a win rate out."""

import json
from pathlib import Path

import folder_paths
import pytest
import torch

from vico_spin.intake import Report
from vico_spin.spin_core.votes import Vote, parse_votes

PROMPTS = "a\nb\nc\nd"


pytestmark = pytest.mark.usefixtures("output")


def pictures(seed, count=4):
    return torch.rand(count, 16, 16, 3, generator=torch.Generator().manual_seed(seed))


def many_pictures(count):
    return {"first": pictures(0, count), "second": pictures(1, count)}


@pytest.fixture
def vote(host):
    """vote(*lines): the node with votes such as "0 first anna", the number being the pair's place → (results, pairs).

    (12, "first") is a line too.
    """

    def run(*lines, **changes):
        node = host.node_classes["SPINVote"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        asked = {"first": pictures(0), "second": pictures(1), "prompts": PROMPTS, "names": "base, tuned"}
        asked |= {"voter": "me", "folder": "votes", **changes}
        with torch.inference_mode():
            pairs = node.execute(**asked, votes="").ui["pairs"]
            parts = [line.split(maxsplit=1) if isinstance(line, str) else line for line in lines]
            written = [f"{pairs[int(place)]['id']} {rest}" for place, rest in parts]
            done = node.execute(**asked, votes="\n".join(written))
        return done.result, pairs

    return run


def samples(dataset):
    return list(dataset.samples(Report()))


def test_without_votes_nothing_comes_out_and_the_pairs_are_shown(vote):
    results, pairs = vote()
    assert all(type(result).__name__ == "ExecutionBlocker" and result.message is None for result in results)
    assert [pair["prompt"] for pair in pairs] == ["a", "b", "c", "d"]
    assert all((Path(folder_paths.get_output_directory()) / p["first"]["subfolder"]).is_dir() for p in pairs)


def test_votes_become_pairs_winner_first_and_ties_are_left_out(vote):
    (dataset, run, told), _ = vote("0 first me", "1 second me", "2 tie me")
    found = samples(dataset)
    assert [sample.prompt for sample in found] == ["a", "b"]
    winners = [Path(sample.image.source).relative_to(run).parts[0] for sample in found]
    losers = [Path(sample.image_b.source).relative_to(run).parts[0] for sample in found]
    assert winners == ["first", "second"] and losers == ["second", "first"]
    assert told.startswith("tuned wins 50% of 3 pairs") and told.endswith("Different prompts: 3.")
    rows = [json.loads(line) for line in (Path(run) / "metadata.jsonl").read_text().splitlines()]
    assert [(row["label_0"], row["label_1"]) for row in rows] == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]


def test_several_people_are_merged_and_ones_last_vote_counts(vote):
    """Pair 0: two against one. Pair 1: one each, a tie. Pair 2: the second vote of the same person."""
    lines = (
        "0 first anna",
        "0 first bo",
        "0 second carl",
        "1 first anna",
        "1 second bo",
        "2 first anna",
        "2 second anna",
    )
    (dataset, _, told), _ = vote(*lines)
    assert [sample.prompt for sample in samples(dataset)] == ["a", "c"]
    assert told.startswith("tuned wins 50% of 3 pairs")  # 1/3 loses, 1/2 a tie, 1 wins


def test_the_same_pictures_have_the_same_folder_and_others_another(vote):
    (_, run, _), _ = vote("0 first me")
    assert vote("1 second me")[0][1] == run
    assert vote("1 second me", first=pictures(2))[0][1] != run


def test_score_report_makes_a_page_of_the_votes(vote, call):
    (_, run, _), _ = vote("0 second me", "1 second me", "2 second me", "3 first me")
    _, page = call("ScoreReport", run=run, title="Votes", baseline="", aggregation="mean", rounds=False)
    text = Path(page).read_text(encoding="utf-8")
    assert "people" in text and "tuned" in text and "75" in text


@pytest.mark.parametrize(
    ("prompts", "winners", "rate"),
    [("A" * 20, "2" * 11 + "1" * 9, 11 / 20), ("AAAABBBBCDE", "22222222111", 8 / 11), ("AAAB", "2201", 2.5 / 4)],
)
def test_every_pair_counts_once_however_many_its_prompt_has(vote, call, prompts, winners, rate):
    """11/20, 8/11 and (1 + 1 + ½ + 0)/4, on the node and on Score Report's page."""
    choices = {"0": "tie", "1": "first", "2": "second"}
    votes = [(place, choices[winner]) for place, winner in enumerate(winners)]
    (_, run, found), _ = vote(*votes, prompts="\n".join(prompts), **many_pictures(len(prompts)))
    assert found.startswith(f"tuned wins {100 * rate:.0f}% of {len(prompts)} pairs")
    assert found.endswith(f"Different prompts: {len(set(prompts))}.")
    _, page = call("ScoreReport", run=run, title="Votes", baseline="", aggregation="single", rounds=False)
    text = Path(page).read_text(encoding="utf-8")
    assert f"It wins {100 * rate:.0f}% of the pairs" in text and f"<dt>pairs</dt><dd>{len(prompts)}</dd>" in text
    whole = json.loads(Path(page).with_suffix(".json").read_text(encoding="utf-8"))
    (duel,) = whole["duels"]
    assert duel["win_rate"] == pytest.approx(rate) and duel["prompts"] == len(set(prompts))
    assert whole["left_out"] == {"people's votes": []}


def test_votes_on_other_pictures_are_kept_and_do_nothing(vote):
    results, _ = vote("0 first me", first=pictures(3))
    with_others, _ = vote("1 first me")
    assert len(samples(with_others[0])) == 1 and len(samples(results[0])) == 1


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"votes": "abc sideways me"}, "Take line 1 out of the votes"),
        ({"names": "one"}, "Write two different names"),
    ],
)
def test_bad_input_is_said_before_a_run(host, changed, sentence):
    inputs = {"prompts": "a", "names": "base, tuned", "voter": "me", "folder": "votes", "votes": "", **changed}
    with pytest.raises(RuntimeError, match=sentence):
        host.run({"1": {"class_type": "SPINVote", "inputs": inputs}})


def test_two_batches_that_do_not_fit_are_said(vote):
    with pytest.raises(ValueError, match="There are 2 and 4"):
        vote(first=pictures(0)[:2])


def test_blanks_around_a_voters_name_make_no_other_voter():
    """Lines that came by mail or chat counted as another person's votes."""
    assert parse_votes("ab first me \n  ab second me\n") == [Vote("ab", "second", "me")]
