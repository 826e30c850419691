"""What people type into text widgets, line by line."""


def lines(text: str) -> tuple[str, ...]:
    """The lines that are not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def one_each(text: str, pictures: int, name: str) -> list[str]:
    """A line for every picture, in their order, or one line for all. ValueError, with `name` for the lines, otherwise."""
    found = list(lines(text))
    if len(found) == 1:
        return found * pictures
    if len(found) != pictures:
        raise ValueError(
            f"Write a line for each picture, or one for all.\n{pictures} pictures have {len(found)} {name}."
        )
    return found
