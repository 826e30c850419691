"""The prompt that a picture of ComfyUI was made from: followed from its sampler through the graph that is in the file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .files import Unusable, open_regular
from .limits import LIMITS
from .pictures import UNREADABLE

# Inputs of text encoders (SDXL's and Flux' have two), and of the nodes that pass a text on to them.
TEXT_INPUTS = ("text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl", "prompt")
PASSED_ON = ("value", "string", "text", "prompt")
DEEPEST = 200  # nodes from a sampler to its text


def prompt_of_picture(path: Path) -> str | None:
    """The positive prompt of a PNG that ComfyUI saved; None where it carries no graph.

    Raises: Unusable where there are several prompts, or none is written in the graph.
    """
    if path.suffix.lower() != ".png":
        return None
    try:
        with open_regular(path, LIMITS.picture_bytes) as file, Image.open(file, formats=["PNG"]) as image:
            chunk = image.info.get("prompt")
        graph = json.loads(chunk) if isinstance(chunk, str) else None
    except (*UNREADABLE, Image.DecompressionBombError, RecursionError):  # no picture: whoever opens it says so
        return None
    if not isinstance(graph, dict):
        return None
    nodes = {str(name): node for name, node in graph.items() if is_node(node)}
    texts = positive_prompts(nodes, [[name, 0] for name in ends_of(nodes)])
    if texts is None or len(texts) == 1:
        return texts and texts[0]
    what = f"{len(texts)} prompts" if texts else "a prompt that its graph does not hold"
    raise Unusable(path.name, f"was made from {what}", "Write the prompt that counts into a .txt of the same name.")


def positive_prompts(nodes: dict[str, dict], starts: list[list]) -> list[str] | None:
    """The different positive prompts of the samplers next to where one starts, without weights; None where there is no sampler.

    nodes: a graph in API format. starts: links, from where one looks back.
    """
    found = [link for start in starts for link in conditionings(nodes, start)]
    return list(dict.fromkeys(text for link in found for text in texts_behind(nodes, link))) if found else None


def is_node(node) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def links_of(node: dict) -> list[list]:
    return [value for value in node["inputs"].values() if is_link(value)]


def ends_of(nodes: dict[str, dict]) -> list[str]:
    """Nodes whose results no other takes: what saves or shows."""
    taken = {link[0] for node in nodes.values() for link in links_of(node)}
    return [name for name in nodes if name not in taken]


def conditionings(nodes: dict[str, dict], start: list) -> Iterator[list]:
    """The positive links of the nearest samplers behind a link: what is told what to draw, beside a model."""
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()[0]
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        inputs = nodes[name]["inputs"]
        told = next((inputs[key] for key in ("positive", "conditioning") if is_link(inputs.get(key))), None)
        if told and is_link(inputs.get("model")):
            yield told
        else:
            waiting += links_of(nodes[name])


def texts_behind(nodes: dict[str, dict], link: list, depth: int = 0) -> Iterator[str]:
    """The texts that a conditioning was made of."""
    name, slot = link
    if name not in nodes or depth > DEEPEST:
        return
    inputs = nodes[name]["inputs"]
    written = [inputs[key] for key in TEXT_INPUTS if isinstance(inputs.get(key), str) or is_link(inputs.get(key))]
    if written:
        for text in written:
            yield from filter(None, [plain_words(text if isinstance(text, str) else passed_on(nodes, text))])
    elif is_link(inputs.get("positive")) and is_link(
        inputs.get("negative")
    ):  # one that passes both on, as ControlNet's
        yield from texts_behind(nodes, inputs["negative" if slot == 1 else "positive"], depth + 1)
    else:
        for key, value in inputs.items():
            if is_link(value) and ("conditioning" in key or key in ("positive", "negative")):
                yield from texts_behind(nodes, value, depth + 1)


def passed_on(nodes: dict[str, dict], link: list) -> str:
    """The text behind a link, through nodes that do nothing but hold one; "" where a node may have changed it."""
    for _ in range(DEEPEST):
        inputs = nodes.get(link[0], {}).get("inputs", {})
        value = next((inputs[key] for key in PASSED_ON if key in inputs), None) if len(inputs) == 1 else None
        if not is_link(value):
            return value if isinstance(value, str) else ""
        link = value
    return ""


def plain_words(text: str) -> str:
    """A prompt without ComfyUI's weights: "(a cat:1.2) \\(toy\\)" is "a cat (toy)"."""
    text = re.sub(r":\s*-?\d*\.?\d+\s*(?=(?<!\\)\))", "", text)
    return re.sub(r"\\([()])", r"\1", re.sub(r"(?<!\\)[()]", "", text)).strip()
