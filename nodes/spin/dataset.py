"""SPIN Dataset."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from PIL import Image

from ...intake import Report
from ...scores.sheet import Cell, sheet
from ...spin_core.data import Dataset, Listed
from ...spin_core.samples import Picture, Sample, png_of
from ..host.errors import NOT_CONNECTED, check_choice
from ..host.folders import marks
from ..host.pictures import SHEET_PICTURES, to_image, to_pictures
from ..host.progress import say
from ..host.sockets import DatasetSocket
from ..host.texts import one_each

DATA_FILES = {".jsonl", ".csv", ".parquet", ".tar", ".txt", ".tsv", ".json"}
FROM_GRAPH = "pictures from the graph"
SHEET_COLUMNS, SHEET_SIDE = 6, 128  # the contact sheet's; side in pixels
BROKEN = Image.new("RGB", (SHEET_SIDE, SHEET_SIDE), "grey")


def data_places() -> list[str]:
    """Folders of the input directory, and the lists and tables in it."""
    root = Path(folder_paths.get_input_directory())
    files = [file.relative_to(root).as_posix() for file in sorted(root.glob("*")) if file.suffix.lower() in DATA_FILES]
    return [FROM_GRAPH, *folder_paths.get_input_subfolders(), *files]


def in_input(source: str) -> Path:
    return Path(folder_paths.get_input_directory()) / source


class SPINDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINDataset",
            display_name="SPIN Dataset",
            category="ViCo + SPIN/SPIN",
            description="Pictures with captions for self-play: a folder, a metadata file, Pick-a-Pic, or pictures of "
            "the graph. Says what it left out.",
            search_aliases=["dataset", "captions", "pick-a-pic", "kohya", "finetune"],
            has_intermediate_output=True,
            inputs=[
                io.Combo.Input("source", options=data_places(),
                    tooltip="A folder or file of ComfyUI's input directory: pictures with .txt captions beside them "
                    "(a subfolder 10_name is read ten times), a folder with metadata.jsonl or metadata.csv, .tar "
                    "archives of webdataset, .parquet of Pick-a-Pic, or a list of prompts. Thumbs for KTO: a column label of "
                    "true and false, or two folders called liked and disliked."),
                io.Image.Input("images", optional=True, tooltip="Pictures of the graph, where the source says so."),
                io.String.Input("captions", multiline=True, optional=True,
                    tooltip="For pictures of the graph: one line a picture, or a single line for all."),
                io.Image.Input("rejected", optional=True,
                    tooltip="A worse picture for each of the graph's, in the same order: the pairs that DPO needs."),
            ],
            outputs=[
                DatasetSocket.Output("dataset", tooltip="For Train SPIN and Train Baseline."),
                io.String.Output("report", display_name="report",
                    tooltip="What was found, and what was left out and why."),
                io.Image.Output("contact_sheet", display_name="contact sheet",
                    tooltip="The first pictures that were found."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, source, images=None, captions="", rejected=None):
        """Reads again when a file of the folder has changed."""
        if source == FROM_GRAPH:
            return source
        return marks(in_input(source))

    @classmethod
    def validate_inputs(cls, source, images=NOT_CONNECTED):
        check_choice("source", source, data_places())
        if source == FROM_GRAPH and images is NOT_CONNECTED:
            listed(None, "")
        if source != FROM_GRAPH and next(Dataset(in_input(source)).samples(report := Report()), None) is None:
            raise ValueError(f"Put captioned pictures into input/{source}.\n{report.in_a_line()}")
        return True

    @classmethod
    def execute(cls, source, images=None, captions="", rejected=None) -> io.NodeOutput:
        dataset = listed(images, captions, rejected) if source == FROM_GRAPH else Dataset(in_input(source))
        report, first = Report(), []
        for sample in dataset.samples(report):
            if sample.image is not None and len(first) < SHEET_PICTURES:
                first.append(sample)
        say(report.text())
        shown = to_image(contact_sheet(first))
        return io.NodeOutput(dataset, report.text(), shown, ui=ui.PreviewImage(shown, cls=cls))


def listed(images, captions: str, rejected=None) -> Listed:
    """Pictures [B, H, W, 3] of the graph with their captions, and the worse ones of preference pairs."""
    if images is None:
        raise ValueError(f'Connect images, or choose a folder.\nThe source is "{FROM_GRAPH}".')
    texts = one_each(captions, len(images), "captions")
    if rejected is not None and len(rejected) != len(images):
        raise ValueError(
            f"Connect a rejected picture for each of the images.\n{len(images)} pictures have {len(rejected)} rejected ones."
        )
    better = graph_pictures(images, "picture")
    worse = [None] * len(better) if rejected is None else graph_pictures(rejected, "rejected picture")
    label = None if rejected is None else 1.0
    return Listed(tuple(Sample(*sample, label) for sample in zip(texts, better, worse, strict=True)))


def graph_pictures(images, name: str) -> list[Picture]:
    """IMAGE [B, H, W, 3] as pictures of the data set."""
    return [Picture(f"{name} {number}", png_of(p)) for number, p in enumerate(to_pictures(images), start=1)]


def contact_sheet(samples: list[Sample]) -> Image.Image:
    """The pictures in rows with their captions; one that does not decode stays grey."""
    cells = [Cell(opened(sample.image), sample.prompt) for sample in samples] or [Cell(BROKEN, "no pictures")]
    rows = [cells[i : i + SHEET_COLUMNS] for i in range(0, len(cells), SHEET_COLUMNS)]
    return sheet(rows, (), (), SHEET_SIDE)


def opened(picture: Picture) -> Image.Image:
    try:
        return picture.open()
    except ValueError:  # it is named by the run that would train on it
        return BROKEN
