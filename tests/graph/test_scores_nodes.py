"""The scores' nodes in the real host: load, score and pick, compare models, report, and what they say of bad input."""

import json
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vico_spin.scores.tokens import clip_tokenizer, token_ids
from vico_spin.scripts import tiny_scorers as tiny
from vico_spin.scripts.make_scores_golden import PROMPTS


@pytest.fixture(scope="module")
def scorers(host, tmp_path_factory):
    """A models/scorers folder with tiny models, beside the host's own."""
    root = tmp_path_factory.mktemp("scorers")
    tiny.write_clip_folder(root / "PickScore_v1")
    tiny.write_clip_folder(root / "clip-vit-base-patch32", activation="quick_gelu")
    tiny.write_dino_folder(root / "dino-vits16")
    folder_paths.folder_names_and_paths["scorers"][0].insert(0, str(root))
    yield root
    folder_paths.folder_names_and_paths["scorers"][0].remove(str(root))  # from the list that stands there now


@pytest.fixture(scope="module")
def output(host, tmp_path_factory):
    """The host's output folder, for this file a scratch one."""
    before, scratch = folder_paths.get_output_directory(), tmp_path_factory.mktemp("output")
    folder_paths.set_output_directory(str(scratch))
    yield scratch
    folder_paths.set_output_directory(before)


def batch(count, width=96, height=64):
    pictures = [np.asarray(tiny.picture(width, height, seed)) for seed in range(count)]
    return torch.from_numpy(np.stack(pictures).astype(np.float32) / 255)


def test_the_loader_lists_files_and_model_folders(host, scorers):
    options = host.node_classes["ScoreLoadScorer"].INPUT_TYPES()["required"]["file"][1]["options"]
    assert options[0] == "automatic" and {"PickScore_v1", "dino-vits16"} <= set(options)


def test_a_loaded_scorer_says_what_it_is(call, scorers):
    scorer, about = call("ScoreLoadScorer", scorer="PickScore v1", file="automatic")
    record = json.loads(about)
    assert record["checkpoints"][0]["file"] == "model.safetensors" and record["name"] == scorer.name == "PickScore v1"


def test_the_numbers_are_those_of_the_saved_pictures(call, scorers, tmp_path):
    """What the node scores is what Save Image writes: scoring the PNG gives the same number to the last bit."""
    from vico_spin.scores.load import load_scorer

    scorer, _ = call("ScoreLoadScorer", scorer="PickScore v1", file="PickScore_v1")
    image = torch.rand(2, 70, 90, 3, generator=torch.Generator().manual_seed(0))
    _, _, numbers = call("ScorePictures", scorer=scorer, pictures=image, prompts="a cat", best=1)
    written = (255.0 * image.numpy()).clip(0, 255).astype(np.uint8)  # as the host's SaveImage does
    alone = load_scorer("pickscore", scorers / "PickScore_v1")
    assert json.loads(numbers)["scores"] == alone.score([Image.fromarray(one) for one in written], ["a cat"] * 2)


def test_the_best_pictures_come_first(call, scorers):
    scorer, _ = call("ScoreLoadScorer", scorer="PickScore v1", file="automatic")
    pictures = batch(5)
    best, top, numbers = call("ScorePictures", scorer=scorer, pictures=pictures, prompts="a cat", best=2)
    scores = json.loads(numbers)["scores"]
    order = np.argsort(scores)[::-1]
    assert torch.equal(best, pictures[order[:2].copy()]) and top == max(scores)


def test_references_reach_dino(call, scorers):
    scorer, _ = call("ScoreLoadScorer", scorer="DINO ViT-S/16", file="automatic")
    pictures = batch(3)
    call_with = {"scorer": scorer, "pictures": pictures, "prompts": "", "best": 1}
    best, top, _ = call("ScorePictures", **call_with, references=pictures[1:2])
    assert torch.equal(best, pictures[1:2]) and top == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="Connect a reference"):
        call("ScorePictures", **call_with)


@pytest.mark.parametrize(
    "prompts, sentence", [("a\nb", "3 pictures have 2 prompts"), ("", "3 pictures have 0 prompts")]
)
def test_prompts_that_do_not_fit_are_said(call, scorers, prompts, sentence):
    scorer, _ = call("ScoreLoadScorer", scorer="PickScore v1", file="automatic")
    with pytest.raises(ValueError, match=sentence):
        call("ScorePictures", scorer=scorer, pictures=batch(3), prompts=prompts, best=1)


def graph_of(pictures, **nodes):
    """Score Pictures as node 9, its pictures from that link, behind a KSampler whose prompt is "a (red:1.2) cat"."""
    graph = {
        "1": ("CheckpointLoaderSimple", {}),
        "2": ("CLIPTextEncode", {"text": "a (red:1.2) cat"}),
        "3": ("CLIPTextEncode", {"text": "ugly"}),
        "4": ("KSampler", {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}),
        "5": ("VAEDecode", {"samples": ["4", 0]}),
        "9": ("ScorePictures", {"pictures": pictures}),
        **nodes,
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}


def test_without_prompts_the_samplers_own_counts(scorers, call, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    from vico_spin.nodes.scores.made_from import prompt_behind

    assert prompt_behind(graph_of(["5", 0]), "9", "pictures") == "a red cat"
    assert prompt_behind(graph_of(["3", 0]), "9", "pictures") is None and prompt_behind(None, None, "pictures") is None
    (info := PngInfo()).add_text("prompt", json.dumps(graph_of(["5", 0])))
    before, name = folder_paths.get_input_directory(), "drawn.png"
    tiny.picture(64, 64).save(tmp_path / name, pnginfo=info)
    folder_paths.set_input_directory(str(tmp_path))
    try:
        loaded = graph_of(["6", 0], **{"6": ("LoadImage", {"image": name})})
        assert prompt_behind(loaded, "9", "pictures") == "a red cat"
    finally:
        folder_paths.set_input_directory(before)


def test_a_data_set_is_scored_by_its_own_captions(call, scorers, tmp_path):
    """What does not decode is left out by name; a caption's number is that of the picture alone."""
    from vico_spin.spin_core.data import Dataset

    for i, name in enumerate("ab"):
        tiny.picture(48 + 16 * i, 64, i).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"caption {name}")
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "c.txt").write_text("c")
    scorer, _ = call("ScoreLoadScorer", scorer="PickScore v1", file="automatic")
    best, _, told = call("ScorePictures", scorer=scorer, prompts="", best=2, dataset=Dataset(tmp_path))
    told = json.loads(told)
    assert told["pictures"] == ["a.png", "b.png"] and told["prompts"] == ["caption a", "caption b"] and len(best) == 2
    alone = [scorer.score([Image.open(tmp_path / f"{n}.png")], [f"caption {n}"])[0] for n in "ab"]
    assert told["scores"] == pytest.approx(alone, abs=1e-5)
    with pytest.raises(ValueError, match="either pictures or a dataset"):
        call("ScorePictures", scorer=scorer, prompts="", best=2)


@pytest.fixture
def many(tmp_path):
    """A data set of 40 pictures with 7 captions."""
    from vico_spin.spin_core.data import Dataset

    for i in range(40):
        tiny.picture(48, 64, i).save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text(f"caption {i % 7}")
    return Dataset(tmp_path)


def test_a_large_data_set_is_scored_batch_by_batch_and_its_sheet_ends(host, call, scorers, many):
    """The numbers are those of all pictures at once, to the bit; 24 of 40 are six rows of 256 + 26 + 12 pixels."""
    import comfy.utils

    scorer, _ = call("ScoreLoadScorer", scorer="PickScore v1", file="automatic")
    seen, before = [], comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: seen.append((value, total)))
    try:
        with torch.inference_mode():
            node = host.node_classes["ScorePictures"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
            made = node.execute(scorer=scorer, prompts="", best=30, dataset=many)
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
    samples = list(many.samples())
    whole = scorer.score([one.image.open() for one in samples], [one.prompt for one in samples])
    assert json.loads(made.result[2])["scores"] == whole and len(made.result[0]) == 30
    assert seen[0][1] == 40 and seen[-1] == (40, 40)
    (shown,) = made.ui.as_dict()["images"]
    sheet = Image.open(Path(folder_paths.get_temp_directory()) / shown["subfolder"] / shown["filename"])
    assert sheet.height == 6 * (256 + 26 + 12) - 12 + 2 * 20


def test_a_pairs_rejected_pictures_are_not_held_while_the_others_are_scored(host):
    import gc
    import weakref

    from vico_spin.nodes.scores.score_pictures import score_data_set
    from vico_spin.scores.scorer import Scorer
    from vico_spin.spin_core.samples import Picture, Sample, png_of

    rejected = []

    class Pairs:
        def samples(self, report):
            for i in range(3):
                loser = Picture(f"{i}, rejected", b"")
                rejected.append(weakref.ref(loser))
                yield Sample("a cat", Picture(f"{i}", png_of(tiny.picture(8, 8, i))), loser, 1.0)

    class Held(Scorer):
        def score(self, pictures, prompts=None, references=None):
            gc.collect()
            return [float(sum(loser() is not None for loser in rejected))] * len(pictures)

    assert score_data_set(Held(), Pairs(), None)[3] == [0.0, 0.0, 0.0]


def test_scoring_a_data_set_can_be_cancelled(call, scorers, many):
    from comfy import model_management

    scorer, _ = call("ScoreLoadScorer", scorer="PickScore v1", file="automatic")
    model_management.interrupt_current_processing()
    try:
        with pytest.raises(model_management.InterruptProcessingException):
            call("ScorePictures", scorer=scorer, prompts="", best=1, dataset=many)
    finally:
        model_management.interrupt_current_processing(False)


def test_a_missing_scorer_says_what_to_put_where(call, scorers):
    with pytest.raises(ValueError, match=r"Put HPS_v2.1_compressed.pt into .*scorers\d*.\nHPS v2.1 is not here"):
        call("ScoreLoadScorer", scorer="HPS v2.1", file="automatic")


def test_a_file_outside_the_folder_is_not_opened(call, scorers):
    with pytest.raises(ValueError, match="There is no"):
        call("ScoreLoadScorer", scorer="PickScore v1", file="../../etc/passwd")


def test_prompts_are_cut_as_by_open_clip_golden(host, golden):
    """The host's vocabulary; ftfy's repairs and the padding after the end mark are open_clip's own and not compared."""
    import comfy.sd1_clip

    tokenizer = clip_tokenizer(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer", "CLIP")
    ids, mask = token_ids(tokenizer, PROMPTS)
    theirs = load_file(golden / "scores" / "tokens.safetensors")["ids"]
    assert torch.equal(ids * mask, theirs.long() * mask) and torch.equal(mask.sum(1), (theirs > 0).sum(1))


def compare(call, make_sd1, make_clip, make_vae, scorers, **changed):
    loaded = [call("ScoreLoadScorer", scorer=name, file="automatic")[0] for name in scorers]
    settings = {
        "seed": 5,
        "steps": 2,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "width": 64,
        "height": 64,
    }
    inputs = {
        "models": {"model0": make_sd1(seed=1), "model1": make_sd1(seed=9)},
        "scorers": {f"scorer{i}": scorer for i, scorer in enumerate(loaded)},
        "clip": make_clip(),
        "vae": make_vae(),
        "names": "base, tuned",
        "prompts": "a cat\na dog\n\na cat",
        "negative": "",
        "pictures": 2,
        "name": "../test",
        **settings,
    }
    return call("ScoreCompareModels", **{**inputs, **changed})


@pytest.fixture(scope="module")
def compared(call, make_sd1, make_clip, make_vae, scorers, output):
    return compare(call, make_sd1, make_clip, make_vae, ["PickScore v1", "CLIP score"])


def test_models_are_compared_and_everything_is_kept(compared, output):
    """2 models × 2 prompts × 2 seeds × 2 scorers = 16 numbers; 8 pictures with their prompts."""
    grid, run, win_rates = compared
    folder = Path(run)
    assert folder.parent == output / "scores" and folder.name == "___test_00001"
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and len(list(folder.glob("*/*.png"))) == 8
    assert {row["seed"] for row in rows} == {"5", "6"} and {row["prompt"] for row in rows} == {"a cat", "a dog"}
    assert len((folder / "base" / "metadata.jsonl").read_text().splitlines()) == 4
    fights = json.loads(win_rates)
    assert [fight["model"] for fight in fights] == ["tuned", "tuned"] and grid.shape[0] == 1


def test_a_picture_is_the_one_that_ksampler_makes(compared, call, make_sd1, make_clip, make_vae):
    """Seed 6 is the second of the batch here; KSampler makes it alone. The PNGs differ by rounding at most."""
    clip, vae = make_clip(), make_vae()
    (positive,) = call("CLIPTextEncode", clip=clip, text="a dog")
    (negative,) = call("CLIPTextEncode", clip=clip, text="")
    (latent,) = call("EmptyLatentImage", width=64, height=64, batch_size=1)
    settings = {"seed": 6, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    (sampled,) = call(
        "KSampler", model=make_sd1(seed=9), positive=positive, negative=negative, latent_image=latent, **settings
    )
    (image,) = call("VAEDecode", samples=sampled, vae=vae)
    ours = np.asarray(Image.open(Path(compared[1]) / "tuned" / "00001_6.png")).astype(int)
    theirs = (255.0 * image[0].numpy()).clip(0, 255).astype(np.uint8).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_the_report_is_a_page_in_the_runs_folder(compared, call):
    picture, page = call("ScoreReport", run=compared[1], title="Which?", baseline="", aggregation="mean", rounds=True)
    text = Path(page).read_text("utf-8")
    assert Path(page).parent == Path(compared[1]) and "Which?" in text and "Round by round" in text
    assert text.count("data:image/webp") == 8 and picture.shape[-1] == 3


def test_a_report_outside_the_output_folder_is_refused(call, output, tmp_path):
    with pytest.raises(ValueError, match="not in the output folder"):
        call("ScoreReport", run=str(tmp_path), title="", baseline="", aggregation="mean", rounds=False)


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"names": "base"}, "Write 2 different names"),
        ({"names": "a, a"}, "Write 2 different names"),
        ({"names": "r1.0, r1_0"}, "Write names that make different folders"),
        ({"names": "SPIN, spin"}, "Write names that make different folders"),
        ({"names": "base, References"}, "Write names that make different folders"),
        ({"prompts": " \n"}, "no prompts"),
    ],
)
def test_a_comparison_that_cannot_be_says_why(call, make_sd1, make_clip, make_vae, scorers, output, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        compare(call, make_sd1, make_clip, make_vae, ["CLIP score"], **changed)


def test_the_grid_of_many_prompts_is_no_sliver(host, tmp_path):
    """40 prompts by two models with a picture each: the first rows alone, so that it can be read on the node."""
    from vico_spin.nodes.scores.model_pictures import grid_of
    from vico_spin.scores.comparison import Table

    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    prompts, one = [str(i) for i in range(40)], {name: np.ones((40, 1)) for name in ("a", "b")}
    files = {name: [[str(tmp_path / "one.png")]] * 40 for name in ("a", "b")}
    grid = grid_of(Table("s", "s", ["a", "b"], prompts, [["0"]] * 40, one, files, []))
    assert grid.height < 2 * grid.width
