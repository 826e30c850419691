"""Each scorer on a tiny random model of its true architecture: the originals' numbers, batching, files told apart."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from vico_spin.scores.clip import picture_embeddings, text_embeddings
from vico_spin.scores.load import KINDS, find, load_scorer
from vico_spin.scores.tokens import clip_tokenizer, token_ids
from vico_spin.scripts import tiny_scorers as tiny


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """models/scorers as a user has it, with tiny models."""
    root = tmp_path_factory.mktemp("scorers")
    for name in KINDS["hps-v2"].files + KINDS["hps-v2.1"].files:
        tiny.write_hps(root / name)
    tiny.write_clip_folder(root / "PickScore_v1")
    for name in ("clip-vit-base-patch32", "clip-vit-large-patch14"):
        tiny.write_clip_folder(root / name, activation="quick_gelu")
    tiny.write_image_reward(root / "ImageReward")
    tiny.write_aesthetic(root)
    tiny.write_dino_folder(root / "dino-vits16")
    return root


@pytest.fixture(scope="session")
def scorers(files):
    return {kind: load_scorer(kind, find(kind, [files])) for kind in KINDS}


PICTURES = [tiny.picture(300, 200, 1), tiny.picture(224, 225, 2), tiny.picture(150, 401, 3), tiny.picture(64, 64, 4)]
PROMPTS = ["a cat", "a dog", "a cat", "dog a cat"]


def asked(scorer, pictures=PICTURES, prompts=PROMPTS):
    """What the scorer wants, and no more."""
    references = PICTURES[1:3] if scorer.needs_references else None
    return scorer.score(pictures, prompts if scorer.needs_prompt else None, references)


def close(ours, theirs):
    torch.testing.assert_close(torch.as_tensor(ours).float(), theirs.float(), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_hps_equals_open_clip_golden(scorers, golden):
    """The mapping of open_clip's keys: embeddings and scores of open_clip's own forward."""
    numbers, scorer = load_file(golden / "scores" / "open_clip.safetensors"), scorers["hps-v2.1"]
    prompts = text_embeddings(scorer.module, numbers["ids"], torch.ones_like(numbers["ids"]))
    close(picture_embeddings(scorer.module, tiny.pixels(3)), numbers["pictures"])
    close(prompts, numbers["prompts"])
    close(scorer.score_pixels(tiny.pixels(3), prompts), numbers["scores"])


@torch.inference_mode()
def test_pickscore_equals_the_original_golden(scorers, golden):
    """gelu CLIP written out in plain torch, times exp(logit_scale)."""
    numbers, scorer = load_file(golden / "scores" / "clip.safetensors"), scorers["pickscore"]
    prompts = text_embeddings(scorer.module, numbers["ids"], torch.ones_like(numbers["ids"]))
    close(prompts, numbers["gelu.prompts"])
    scores = scorer.score_pixels(tiny.pixels(3), prompts)
    torch.testing.assert_close(scores, numbers["pickscore"], atol=1e-5 * scorer.scale, rtol=1e-5)


@torch.inference_mode()
def test_clip_score_takes_quick_gelu_from_the_config_golden(scorers, golden):
    numbers, scorer = load_file(golden / "scores" / "clip.safetensors"), scorers["clip-score"]
    close(picture_embeddings(scorer.module, tiny.pixels(3)), numbers["quick_gelu.pictures"])
    close(
        text_embeddings(scorer.module, numbers["ids"], torch.ones_like(numbers["ids"])), numbers["quick_gelu.prompts"]
    )


@torch.inference_mode()
def test_aesthetic_equals_the_original_golden(scorers, golden):
    numbers = load_file(golden / "scores" / "clip.safetensors")
    close(scorers["aesthetic"].score_pixels(tiny.pixels(3), None), numbers["aesthetic"])


@torch.inference_mode()
def test_image_reward_equals_its_own_package_golden(scorers, golden):
    numbers = load_file(golden / "scores" / "image_reward.safetensors")
    context = torch.stack([numbers["ids"], numbers["mask"]], dim=1)
    close(scorers["imagereward"].score_pixels(tiny.pixels(3), context), numbers["rewards"])


@torch.inference_mode()
def test_dino_equals_the_original_at_both_sizes_golden(files, golden):
    """224² as DINO was trained, 256² as DreamMatcher feeds it: with DINO's own rule for stretching positions."""
    from vico_spin.scores.dino import load

    numbers = load_file(golden / "scores" / "dino.safetensors")
    for protocol, size in (("standard", 224), ("dreammatcher", 256)):
        cls = load(files / "dino-vits16", protocol).module(pixel_values=tiny.pixels(3, size)).last_hidden_state[:, 0]
        close(cls, numbers[f"cls{size}"])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_neighbours_do_not_change_a_score(scorers, kind):
    """One by one, in twos and all at once: the same numbers, whatever the pictures' sizes."""
    scorer = scorers[kind]
    whole = asked(scorer)
    assert len(whole) == 4 and all(torch.isfinite(torch.tensor(whole)))
    try:
        scorer.batch_size = 2
        in_twos = asked(scorer)
    finally:
        del scorer.batch_size
    alone = [asked(scorer, [PICTURES[i]], [PROMPTS[i]])[0] for i in range(4)]
    assert in_twos == pytest.approx(whole, abs=1e-5) and alone == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("aesthetic", "clip-i", "dino")])
def test_the_prompt_counts(scorers, kind):
    scorer = scorers[kind]
    first, second = scorer.score([PICTURES[0]] * 2, ["a cat", "a dog"])
    assert first != second


@pytest.mark.parametrize("kind", ["clip-i", "dino"])
def test_a_picture_is_most_like_itself(scorers, kind):
    """Cosine with itself is 1; with two references it is the mean of both cosines."""
    scorer, (one, other) = scorers[kind], PICTURES[:2]
    assert scorer.score([one], references=[one])[0] == pytest.approx(1, abs=1e-5)
    apart = scorer.score([one], references=[other])[0]
    assert scorer.score([one], references=[one, other])[0] == pytest.approx((1 + apart) / 2, abs=1e-5)


def test_preference_of_a_pair_is_the_softmax():
    from vico_spin.scores.pickscore import preference

    assert preference(21.0, 20.0) == pytest.approx(torch.tensor([21.0, 20.0]).softmax(0)[0].item())


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_names_file_hash_and_preprocessing(scorers, kind):
    record = scorers[kind].record()
    assert record["name"] and record["formula"] and "224" in record["preprocessing"]
    assert all(len(checkpoint["sha256"]) == 64 for checkpoint in record["checkpoints"])


def test_the_prompts_tokens_are_those_of_transformers(files):
    """transformers' own CLIP tokenizer over the same vocabulary; beyond the end mark both pad, which nothing reads."""
    from transformers import CLIPTokenizerFast

    prompts = ["A  photo of CATS!", "it's (x:1.2)", "é 東京", "long " * 40, "semi;colon-dash_3.14 #tag"]
    theirs = CLIPTokenizerFast.from_pretrained(files / "PickScore_v1", local_files_only=True)
    expected = theirs(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    assert torch.equal(token_ids(clip_tokenizer(files / "PickScore_v1", "CLIP"), prompts)[0], expected)


def test_bert_pieces_are_lowercased_and_end_at_35(scorers):
    ids, mask = token_ids(scorers["imagereward"].tokenizer, ["A CAT", "cat " * 50])
    assert ids.shape == (2, 35) and mask.sum(1).tolist() == [4, 35]  # [CLS] a cat [SEP]
    assert ids[0, 0] == 2 and ids[0, 3] == 3 and ids[1, 34] == 3


WRONG = {
    "hps-v2.1": (
        "HPS_v2.1_compressed.pt",
        lambda path: torch.save(tiny.image_reward_weights(), path),
        "an ImageReward model",
    ),
    "imagereward": (
        "ImageReward.pt",
        lambda path: torch.save({"state_dict": tiny.open_clip_weights()}, path),
        "open_clip",
    ),
    "aesthetic": ("head.pth", lambda path: torch.save({"w": torch.ones(1)}, path), "an unknown set of weights"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_another_kind_is_named(kind, tmp_path):
    name, write, found = WRONG[kind]
    tiny.write_bert_vocabulary(tmp_path)
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}.*is .*{found}.*needs"):
        load_scorer(kind, tmp_path / name, tokenizer=tmp_path)


def test_a_stable_diffusion_checkpoint_is_named(tmp_path):
    folder = tiny.write_clip_folder(tmp_path / "PickScore_v1")
    save_file({"model.diffusion_model.time_embed.0.weight": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="is a Stable Diffusion checkpoint; PickScore v1 needs"):
        load_scorer("pickscore", folder)


class Payload:
    """Writes a file when unpickled by a reader that runs what it reads."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_malicious_pickle_is_not_run(tmp_path):
    path = tmp_path / "HPS_v2.1_compressed.pt"
    path.write_bytes(pickle.dumps({"state_dict": Payload(tmp_path / "ran")}, protocol=2))
    with pytest.raises(ValueError, match="Nothing in it was run"):
        load_scorer("hps-v2.1", path, tokenizer=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 1000, 0.5])
@pytest.mark.parametrize("kind", ["hps-v2.1", "pickscore"])
def test_an_empty_or_cut_file_is_said(files, tmp_path, kind, kept):
    """The first bytes of a true file, as a download that broke leaves them."""
    source = files / "HPS_v2.1_compressed.pt" if kind == "hps-v2.1" else files / "PickScore_v1" / "model.safetensors"
    whole = source.read_bytes()
    folder = tiny.write_clip_folder(tmp_path / "folder")
    path = folder / source.name
    path.write_bytes(whole[: int(len(whole) * kept) if kept < 1 else kept])
    with pytest.raises(ValueError, match=f'Download the file again.*\n"{source.name}"'):
        load_scorer(kind, path if kind == "hps-v2.1" else folder)


def test_a_missing_weight_is_not_filled_with_noise(tmp_path):
    folder = tiny.write_clip_folder(tmp_path / "PickScore_v1")
    weights = tiny.hf_clip_weights()
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not fill the model"):
        load_scorer("pickscore", folder)


def test_versions_of_hps_are_never_mixed(files):
    with pytest.raises(ValueError, match=r"Choose HPS_v2_compressed.pt.\n.*is named as HPS v2.1"):
        load_scorer("hps-v2", files / "HPS_v2.1_compressed.pt")


@pytest.mark.parametrize(
    "kind, name, lost", [("imagereward", "ImageReward", "vocab.txt"), ("pickscore", "P", "merges.txt")]
)
def test_a_missing_vocabulary_says_what_to_put_where(tmp_path, kind, name, lost):
    folder = tmp_path / name
    tiny.write_image_reward(folder) if kind == "imagereward" else tiny.write_clip_folder(folder)
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=f"{lost}"):
        load_scorer(kind, folder)


def test_an_aesthetic_head_of_another_backbone_is_said(tmp_path):
    path = tiny.write_aesthetic(tmp_path, width=32)
    tiny.write_clip_folder(tmp_path / "clip-vit-large-patch14")
    with pytest.raises(ValueError, match="reads embeddings of 32 numbers"):
        load_scorer("aesthetic", path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_said_with_the_file_and_the_folder(kind, tmp_path):
    with pytest.raises(ValueError, match=r"^Put .*\n.*is not here: it is (the f|a CLIP folder)") as caught:
        find(kind, [tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_bad_questions_are_said(scorers):
    with pytest.raises(ValueError, match=r"HPS v2\.1 has an empty one for picture 1"):
        scorers["hps-v2.1"].score(PICTURES[:2], ["a cat", "  "])
    with pytest.raises(ValueError, match=r"Write a prompt for each picture(?s:.*)2 pictures, 1 prompts"):
        scorers["pickscore"].score(PICTURES[:2], ["a cat"])
    with pytest.raises(ValueError, match="Connect a reference"):
        scorers["dino"].score(PICTURES[:2])
