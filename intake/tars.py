"""Archives of webdataset and img2dataset (.tar), as a stream: nothing is unpacked to disk, and no name in them is followed."""

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

from .captioned import NO_CAPTION, Captioned
from .captions import CAPTION_ENDINGS, captions_in
from .files import BadFile, Unusable, open_regular
from .limits import LIMITS
from .pictures import PICTURE_ENDINGS
from .report import Report

Member = tuple[str, str, bytes]  # key, ending, content


def captioned_tar(path: Path, report: Report) -> Iterator[Captioned]:
    """Pictures with the .txt, .caption or .json of the same name next to them. Raises: BadFile where it is no tar."""
    for key, members in groupby(members_of(path, report), lambda member: member[0]):
        parts = {ending: content for _, ending, content in members}
        picture = next((ending for ending in parts if ending in PICTURE_ENDINGS), None)
        if picture is None:
            continue
        name = f"{path.name}/{key}{picture}"
        beside = next((ending for ending in CAPTION_ENDINGS if ending in parts), None)
        try:
            captions = captions_in(parts[beside], f"{path.name}/{key}{beside}") if beside else ()
        except Unusable as error:
            report.leave_out(name, f"its caption {error.reason}")
            continue
        if captions:
            yield Captioned(name, parts[picture], captions)
        else:
            report.leave_out(name, NO_CAPTION)


def members_of(path: Path, report: Report) -> Iterator[Member]:
    """Every picture and caption in its order. What is no ordinary file, leads out, is too large or damaged is left out."""
    with open_regular(path, LIMITS.archive_bytes) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                yield from read_members(archive, path, report)
        except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
            if file.tell() < 2 * tarfile.BLOCKSIZE:
                raise BadFile(f'Download the archive again.\n"{path.name}" is no .tar ({error}).') from error
            report.leave_out(path.name, f"damaged from some place on ({error})")


def read_members(archive: tarfile.TarFile, path: Path, report: Report) -> Iterator[Member]:
    place = -1
    for member in archive:
        archive.members = []  # or it keeps every heading
        if member.offset <= place:
            raise tarfile.ReadError("its headings go round in a circle")
        place = member.offset
        key, ending = key_and_ending(member.name)
        most = LIMITS.picture_bytes if ending in PICTURE_ENDINGS else LIMITS.text_bytes
        if member.isdir():
            continue
        if ending not in PICTURE_ENDINGS and ending not in CAPTION_ENDINGS:
            if PurePosixPath(ending).suffix in PICTURE_ENDINGS and not is_hidden(member.name):
                report.leave_out(f"{path.name}/{member.name}", "a point in its name before the ending")
            continue
        if reason := refusal(member, most):
            report.leave_out(f"{path.name}/{member.name}", reason)
            continue
        content = archive.extractfile(member).read(most)
        if len(content) < member.size:
            raise tarfile.ReadError(f"{member.name} is cut off")
        yield key, ending, content


def key_and_ending(name: str) -> tuple[str, str]:
    """webdataset's: the name up to the first point of its last part, and what follows."""
    path = PurePosixPath(name)
    stem, point, ending = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, (point + ending).lower()


def is_hidden(name: str) -> bool:
    """Such as the ._name that macOS puts beside a file."""
    return PurePosixPath(name).name.startswith(".")


def refusal(member: tarfile.TarInfo, most: int) -> str | None:
    """Why a member is not read."""
    if not member.isreg() or member.issparse():
        return "no ordinary file (a link, a device)"
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name).parts:
        return "its name leads out of the archive"
    if not 0 <= member.size <= most:
        return f"more than {most / 2**20:.0f} MB"
    return None
