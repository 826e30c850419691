"""Prompts as token numbers, by the vocabularies that the models were trained with. Needs `tokenizers` alone.

transformers 4 and 5 build these tokenizers by different classes; both hand them to this library, so this is the same.
ComfyUI's own text path reads (x:1.2) as a weight and would change the prompt, so it is not used here.
"""

import html
from collections.abc import Sequence
from pathlib import Path

from ..intake import LIMITS, BadFile, decode_text, read_bytes, read_json

CLIP_LENGTH = 77
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
BERT_LENGTH = 35


def clip_tokenizer(folder: Path, scorer: str):
    """CLIP's byte-pair tokenizer out of a folder with vocab.json and merges.txt; truncates and pads to 77."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise ValueError(
            "Put CLIP's vocab.json and merges.txt beside the weights.\n"
            f'{scorer} needs them, and "{folder}" has none. ComfyUI has them in comfy/sd1_tokenizer.'
        )
    start, end = "<|startoftext|>", "<|endoftext|>"
    numbers = read_json(vocabulary)
    lines = decode_text(read_bytes(merges, LIMITS.json_bytes), merges.name).split("\n")
    rules = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    check_vocabulary(numbers, rules, (start, end), folder)
    tokenizer = Tokenizer(models.BPE(numbers, rules, end_of_word_suffix="</w>", unk_token=end))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    start_id, end_id = numbers[start], numbers[end]
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, end_id), (start, start_id), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.enable_truncation(CLIP_LENGTH)
    tokenizer.enable_padding(length=CLIP_LENGTH, pad_id=end_id, pad_token=end)
    return tokenizer


def check_vocabulary(numbers, rules: list[tuple[str, ...]], marks: Sequence[str], folder: Path) -> None:
    """Raises: BadFile where the two files are no vocabulary of byte pairs, or do not belong together."""
    whole = isinstance(numbers, dict) and all(type(n) is int and 0 <= n < 2**32 for n in numbers.values())
    if not whole or not all(mark in numbers for mark in marks):
        raise BadFile(f'Download the vocabulary again.\n"{folder / "vocab.json"}" is none of CLIP.')
    if any(len(rule) != 2 or not {*rule, "".join(rule)} <= numbers.keys() for rule in rules):
        raise BadFile(
            f'Download the vocabulary again.\n"{folder / "merges.txt"}" does not belong to the vocab.json beside it.'
        )


def bert_tokenizer(folder: Path, scorer: str):
    """bert-base-uncased's word pieces out of a folder with vocab.txt; truncates and pads to 35, as ImageReward does."""
    from tokenizers import BertWordPieceTokenizer

    if not (folder / "vocab.txt").is_file():
        raise ValueError(
            "Put vocab.txt of bert-base-uncased beside the weights.\n"
            f'{scorer} needs BERT\'s vocabulary, and "{folder}" has none.'
        )
    lines = decode_text(read_bytes(folder / "vocab.txt", LIMITS.json_bytes), "vocab.txt").removesuffix("\n").split("\n")
    words = {line.rstrip(): number for number, line in enumerate(lines)}
    if not {"[UNK]", "[CLS]", "[SEP]", "[PAD]"} <= words.keys():
        raise BadFile(f'Download the vocabulary again.\n"{folder / "vocab.txt"}" is none of BERT.')
    tokenizer = BertWordPieceTokenizer(words, lowercase=True)
    tokenizer.enable_truncation(BERT_LENGTH)
    tokenizer.enable_padding(length=BERT_LENGTH, pad_id=tokenizer.token_to_id("[PAD]"))
    return tokenizer


def token_ids(tokenizer, prompts: Sequence[str]):
    """Token numbers and attention masks of the prompts, HTML entities resolved as open_clip does. Each [B, length]."""
    import torch

    encoded = tokenizer.encode_batch([html.unescape(html.unescape(prompt)).strip() for prompt in prompts])
    return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])
