"""Runs a workflow on the real ComfyUI without a server or a browser, and prints where its pictures are.

    python -m vico_spin.scripts.run_workflow workflows/NAME.json --set KSampler.seed=7 --output output

For node developers: the same JSON that people open, in the same host, in this process.
"""

import argparse
import json
from pathlib import Path

from ..intake import PICTURE_ENDINGS
from .get_host import ROOT
from .host import Host
from .workflow import set_input, to_api

THUMBNAIL = 512  # pixels


def saved_files(outputs: dict, folder: Path) -> list[Path]:
    """The files that a run's nodes reported, of those that they keep."""
    items = [item for ui in outputs.values() for part in ui.values() if isinstance(part, list) for item in part]
    kept = [item for item in items if isinstance(item, dict) and item.get("type") == "output"]
    return [folder / item["subfolder"] / item["filename"] for item in kept]


def write_thumbnail(picture: Path, path: Path) -> None:
    """The picture as ComfyUI's template browser shows it beside a workflow's name: a small JPEG."""
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    larger = THUMBNAIL // max(image.size)  # whole pixels, where a browser would blur a small world's picture
    image = image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST)
    image.save(path, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow", type=Path, help="a JSON of workflows/, as the browser or the API has it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="NODE: title, type or id"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder of the pictures")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--thumbnail", action="store_true", help="its last picture becomes the JPEG beside the JSON")
    options = parser.parse_args()

    prompt = to_api(json.loads(options.workflow.read_text(encoding="utf-8")))
    try:
        for assignment in options.set:
            set_input(prompt, assignment)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    host = Host(device=options.device)
    import folder_paths

    options.output.mkdir(parents=True, exist_ok=True)
    folder_paths.set_output_directory(str(options.output.resolve()))
    try:
        files = saved_files(host.run(prompt), options.output)
    except RuntimeError as error:
        raise SystemExit(f"{options.workflow} did not run to its end.\n{error}") from error
    for path in files:
        print(path)
    pictures = [path for path in files if path.suffix.lower() in PICTURE_ENDINGS]
    if options.thumbnail and not pictures:
        raise SystemExit(f"{options.workflow} saved no picture: there is nothing to make a thumbnail of.")
    if options.thumbnail:
        write_thumbnail(pictures[-1], options.workflow.with_suffix(".jpg"))


if __name__ == "__main__":
    main()
