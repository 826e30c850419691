"""The creatures and colours that the Sprite World's nodes let one choose."""

from comfy_api.latest import io

from ...sprite_world.vocabulary import CLASSES, COLOURS

ANY = "any"


def given(choice: str) -> str | None:
    """A combo's choice, None for "any"."""
    return None if choice == ANY else choice


def class_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("creature", options=[ANY, *CLASSES], default=ANY, tooltip=tooltip)


def colour_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("colour", options=[ANY, *COLOURS], default=ANY, tooltip=tooltip)


def identity_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("identity", default=-1, min=-1, max=2**31 - 1, tooltip=tooltip)
