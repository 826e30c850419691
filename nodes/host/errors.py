"""Errors where the person looks: on the node itself, before the host shows them elsewhere."""

import functools
import inspect
import os
from collections.abc import Callable, Sequence

import folder_paths
from comfy_api.latest import io

from .progress import say

MARK = "Error: "  # web/words.js takes what begins so off the nodes when the next run starts
LINES = 2
NOT_CONNECTED = object()  # what validate_inputs sees where nothing is connected; the host gives it None for a link


def errors_on_it(node: type) -> type:
    """The node, whose errors stand on it: those of its run, and those that are known before one."""
    for name in {"execute", "validate_inputs"} & vars(node).keys():
        setattr(node, name, classmethod(telling(vars(node)[name].__func__)))
    return node


def telling(method: Callable) -> Callable:
    """The method, which says its error on the node before the error goes on."""

    @functools.wraps(method)
    def told(*args, **inputs):
        try:
            return method(*args, **inputs)
        except Exception as error:
            say(MARK + on_a_node(error))
            raise

    told.__signature__ = inspect.signature(method)  # the host checks no more inputs by it than the node itself
    return told


def on_a_node(error: Exception) -> str:
    """What an error says, in two lines and without the folders above ComfyUI's own and those that it was told of."""
    text = str(error) or type(error).__name__
    for above in folders_above():
        text = text.replace(above, "")
    return "\n".join(text.splitlines()[:LINES])


def folders_above() -> list[str]:
    """What stands before the parts of a path that say something to a user: ComfyUI's folder first, of the others the longest."""
    told_of = [folder for folders, *_ in folder_paths.folder_names_and_paths.values() for folder in folders]
    told_of += [
        folder_paths.get_output_directory(),
        folder_paths.get_input_directory(),
        folder_paths.get_temp_directory(),
    ]
    parents = {os.path.dirname(os.path.normpath(folder)) for folder in told_of}
    above = [folder + os.sep for folder in sorted(parents, key=len, reverse=True) if folder.strip(os.sep)]
    return [folder_paths.base_path + os.sep, *above]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises: ValueError where a list has not what it was chosen from. The host leaves that to a node that checks the input."""
    if value is not None and value not in choices:
        raise ValueError(f'Choose {name} again.\n"{value}" is not in its list, or no longer.')


def check_bounds(inputs: Sequence, values: dict) -> None:
    """Raises: ValueError where a number is not between its input's bounds, as the host says it for other nodes.

    Those of a dynamic combo's chosen option count too.
    """
    for slot in inputs:
        low, high, value = getattr(slot, "min", None), getattr(slot, "max", None), values.get(slot.id)
        if None not in (low, high, value) and not low <= value <= high:
            raise ValueError(f"Set {slot.id} to {low} at least, and {high} at most.\nIt is {value}.")
        if isinstance(slot, io.DynamicCombo.Input) and value is not None:
            for option in slot.options:
                check_bounds(option.inputs if option.key == value[slot.id] else (), value)
