"""What the pictures that come in were made from, where nobody wrote it down: followed through the graph that runs."""

from pathlib import Path

import folder_paths

from ...intake import is_node, positive_prompts, prompt_of_picture


def prompt_behind(graph: dict | None, node: str | None, slot: str) -> str | None:
    """The positive prompt of the sampler behind a node's input, or of the picture of ComfyUI that is loaded there.

    graph: the prompt that runs, in API format. None where nothing tells. Raises: ValueError where there are several.
    """
    nodes = {name: found for name, found in (graph or {}).items() if is_node(found)}
    if node not in nodes or not isinstance(nodes[node]["inputs"].get(slot), list):
        return None
    start = nodes[node]["inputs"][slot]
    texts = positive_prompts(nodes, [start])
    if texts is None:
        return loaded_prompt(nodes.get(start[0]))
    if len(texts) > 1:
        raise ValueError(f"Write the prompt that counts.\nThe pictures were made from {len(texts)}.")
    return texts[0] if texts else None


def loaded_prompt(node: dict | None) -> str | None:
    """Out of the file of a Load Image node."""
    if node is None or node.get("class_type") != "LoadImage":
        return None
    return prompt_of_picture(Path(folder_paths.get_annotated_filepath(node["inputs"]["image"])))
