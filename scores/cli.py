"""vico-spin evaluate | report"""

import argparse
import os
import sys
from pathlib import Path

from ..intake import Report
from . import evaluate as evaluation
from . import samples, vico_protocol
from .load import KINDS, existing, find, load_scorer
from .prompts import read_prompts
from .run import Run
from .statistics import AGGREGATIONS

EVALUATE = """Scores folders of pictures and keeps every raw number, with the checkpoint's sha256, the preprocessing and
the versions, in RUN/scores.jsonl and RUN/run.json. Run it again to go on after a stop, or to add pictures, models or
scorers: what is known is not scored twice.

where the prompts come from
  --prompts LIST             the picture's name holds the prompt's number: 00012.png, 00012_3.png (seed 3), 00012/3.png
                             LIST: .txt, .csv, PartiPrompts.tsv, HPD .json (or a folder with a .json for each style, and
                             pictures in FOLDER/<style>/), Pick-a-Pic .parquet (each caption once)
  FOLDER/metadata.jsonl      (or .csv) with file_name, text and, where there is one, seed
  FOLDER/name.txt            (or .caption, .json) beside a picture, or the graph in a PNG that ComfyUI saved

examples
  vico-spin evaluate --scorer pickscore --scorer hps-v2.1 --prompts PartiPrompts.tsv \\
      --pictures base=out/base --pictures round1=out/round1 --out runs/parti
  vico-spin evaluate --vico data/vico --pictures ViCo=results/vico --protocol dreammatcher --out runs/vico
"""
REPORT = """Makes one self-contained HTML page of a run (and a PNG, and the numbers as JSON and CSV beside it): win
rates against a baseline with 95% intervals over prompts, mean differences, curves over rounds, and the pictures side
by side.

example
  vico-spin report runs/parti --baseline base --rounds base,round1,round2 --out parti.html
"""


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        arguments.run_command(arguments)
    except (ValueError, OSError) as error:
        print(f"scores: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="vico-spin", description="Scores pictures and reports who wins.")
    commands = whole.add_subparsers(required=True, metavar="evaluate | report")
    add_evaluate(commands)
    add_report(commands)
    return whole


def add_command(commands, name: str, summary: str, description: str, run_command) -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=summary, description=description, formatter_class=style)
    command.set_defaults(run_command=run_command)
    return command


def at_least(low: int):
    """A whole number from `low` on, for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {low} on")
        return int(text)

    return number


def add_evaluate(commands) -> None:
    command = add_command(commands, "evaluate", "score folders of pictures", EVALUATE, evaluate)
    add = command.add_argument
    add("--pictures", metavar="NAME=FOLDER", action="append", required=True, help="a model's pictures; once a model")
    add("--out", metavar="RUN", type=Path, required=True, help="the run's folder, made where it is not there")
    kinds = ", ".join(KINDS)
    add(
        "--scorer", metavar="KIND[=PATH]", action="append", default=[], help=f"one of {kinds}; PATH: its file or folder"
    )
    add(
        "--scorers-folder",
        metavar="DIR",
        type=Path,
        default=Path("models/scorers"),
        help="where files without PATH are",
    )
    add("--tokenizer", metavar="DIR", type=Path, help="CLIP's vocabulary, for HPS and other files that come without it")
    add("--prompts", metavar="LIST", type=Path, help="the prompts by number (see above)")
    add(
        "--layout",
        metavar="PATTERN",
        help="with --prompts or --vico: how files are named below FOLDER, such as {prompt}_{seed} (without suffix)",
    )
    add(
        "--first-number",
        type=at_least(0),
        metavar="N",
        help="with --prompts: the number of the first prompt in the pictures' names (default 0)",
    )
    add("--references", metavar="DIR", type=Path, help="photos of the real thing, for dino and clip-i")
    add(
        "--vico",
        metavar="DATA",
        type=Path,
        help="ViCo's evaluation: a folder with its photos and prompts (or DreamBooth's)",
    )
    protocols = vico_protocol.PROTOCOLS
    add(
        "--protocol",
        choices=protocols,
        default="standard",
        help="ViCo's evaluation: whose preprocessing (default standard)",
    )
    add("--no-antialias", action="store_true", help="HPS: resize as its package did in 2023, for the published figures")
    add("--device", help="where the scorers run, such as cuda or cpu (default: cuda where there is one)")
    add("--batch-size", type=at_least(1), metavar="N", help="pictures at once (default 16)")


def add_report(commands) -> None:
    command = add_command(commands, "report", "make a page of a run", REPORT, report)
    add = command.add_argument
    add("run", metavar="RUN", type=Path, help="a folder that evaluate (or the Compare Models node) made")
    add("--out", metavar="PAGE", type=Path, help="the page (default RUN/report.html); .png, .json, .csv lie beside it")
    add("--baseline", metavar="NAME", help="the model that the others are held against (default: the run's first)")
    add("--aggregation", choices=AGGREGATIONS, default="mean", help="a prompt's pictures as one number (default mean)")
    add(
        "--best-of",
        type=at_least(1),
        metavar="K",
        help="for --aggregation best: of the first K pictures (default: all)",
    )
    add("--rounds", metavar="A,B,…", help="models in the order of their training rounds: draws the curves")
    add("--title", help="the page's heading")


def evaluate(arguments: argparse.Namespace) -> None:
    folders = named_folders(arguments.pictures)
    reports = {name: Report() for name in folders}
    wanted = [kind_and_path(text) for text in arguments.scorer]
    if arguments.vico:
        asked, loaders = vico(arguments, folders, dict(wanted), reports)
    else:
        if not wanted:
            raise ValueError(f"Give at least one --scorer: {', '.join(KINDS)}.")
        asked = plain_samples(arguments, folders, reports)
        loaders = [loader(arguments, kind, path) for kind, path in wanted]
    run = Run(arguments.out)
    used = evaluation.evaluate(run, asked, [prepared(load, arguments) for load in loaders])
    if arguments.vico:  # at the end, and both at once: a stop between two protocols leaves the table of the first
        run.describe(protocol=f"ViCo, {arguments.protocol}", protocol_scorers=used)
    tell(run, folders, reports)


def refuse_unread(flags: dict[str, object], instead: str, reason: str) -> None:
    """Raises a sentence for the first flag that was given: nothing would read it. flags: {flag: its value or None}."""
    for flag, value in flags.items():
        if value is not None:
            raise ValueError(f"Leave out {flag}, or {instead}.\n{reason}")


def named_folders(texts: list[str]) -> dict[str, Path]:
    """NAME=FOLDER pairs, in their order."""
    for text in texts:
        if "=" not in text:
            raise ValueError(f'"--pictures {text}" must be NAME=FOLDER, such as base=out/base.')
    pairs = [text.split("=", 1) for text in texts]
    folders = {name: Path(folder) for name, folder in pairs}
    if len(folders) < len(pairs):
        raise ValueError("Two --pictures have the same NAME; every model needs its own.")
    return folders


def kind_and_path(text: str) -> tuple[str, Path | None]:
    kind, _, path = text.partition("=")
    if kind not in KINDS:
        raise ValueError(f'There is no scorer "{kind}"; choose from {", ".join(KINDS)}.')
    return kind, Path(path) if path else None


def loader(arguments: argparse.Namespace, kind: str, path: Path | None):
    """A function that loads the scorer. Its file is looked for now, so that what is missing is said before any work."""
    path = existing(kind, path) if path else find(kind, [arguments.scorers_folder])
    return lambda: load_scorer(kind, path, arguments.tokenizer, antialias=not arguments.no_antialias)


def prepared(load, arguments: argparse.Namespace):
    """The loader with the scorer moved to its device and given its batch size."""

    def loaded():
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading the weights: this command tells its own progress
        scorer = load()
        scorer.module.to(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        scorer.batch_size = arguments.batch_size or scorer.batch_size
        return scorer

    return loaded


def plain_samples(
    arguments: argparse.Namespace, folders: dict[str, Path], reports: dict[str, Report]
) -> list[samples.Sample]:
    if arguments.prompts is None:
        reason = f'Without a list, captions in "{next(iter(folders.values()))}" say the prompts, not numbers in names.'
        unread = {"--layout": arguments.layout, "--first-number": arguments.first_number}
        refuse_unread(unread, "give --prompts too", reason)
    found = []
    for name, folder in folders.items():
        found += prompted_samples(
            name, folder, arguments.prompts, arguments.layout, arguments.first_number, reports[name]
        )
    return evaluation.with_references(found, arguments.references) if arguments.references else found


def prompted_samples(
    name: str,
    folder: Path,
    prompts: Path | None,
    layout: str | None,
    first: int | None = None,
    report: Report | None = None,
) -> list[samples.Sample]:
    """The folder's pictures with their prompts; for a folder of lists (HPDv2's styles), style by style."""
    if prompts is None:
        return samples.samples_of(name, folder, None, layout, report=report)
    if not prompts.is_dir():
        return samples.samples_of(name, folder, read_prompts(prompts), layout, first, report)
    lists = sorted(prompts.glob("*.json"))
    if not lists:
        raise ValueError(f'The folder "{prompts}" has no .json prompt lists, one for each style.')
    styles = ((folder / style.stem, read_prompts(style)) for style in lists)
    return [s for where, listed in styles for s in samples.samples_of(name, where, listed, layout, first, report)]


def vico(
    arguments: argparse.Namespace,
    folders: dict[str, Path],
    paths: dict[str, Path | None],
    reports: dict[str, Report],
):
    """ViCo's evaluation: samples with their concepts' photos, and the protocol's scorers."""
    refuse_unread(
        {f"--scorer {kind}": kind for kind in paths if kind not in ("clip-i", "dino")}
        | {"--prompts": arguments.prompts, "--first-number": arguments.first_number}
        | {"--references": arguments.references},
        "--vico",
        f'"{arguments.vico}" has prompts and photos, and the protocol its scorers: --scorer says where clip-i and dino lie.',
    )
    data, asked = vico_protocol.read_data(arguments.vico), []
    for name, folder in folders.items():
        found = vico_protocol.samples_of(name, folder, data, arguments.protocol, arguments.layout, reports[name])
        for sentence in vico_protocol.gaps(found):
            print(f"{name} is incomplete: {sentence}")
        asked += found
    clip, dino = (paths.get(kind) or find(kind, [arguments.scorers_folder]) for kind in ("clip-i", "dino"))
    loaders = vico_protocol.load_scorers(arguments.protocol, clip, dino, arguments.tokenizer)
    return asked, loaders


def tell(run: Run, folders: dict[str, Path], reports: dict[str, Report]) -> None:
    """What was left out of every model's pictures, and where the scores are."""
    for (model, picture), reason in evaluation.broken(run).items():
        if model in reports:
            reports[model].kept -= 1
            reports[model].leave_out(os.path.relpath(picture, folders[model]), reason)
    for name, report in reports.items():
        print(f"{name}: {report.text()}")
    print(f"{len(run.known)} scores in {run.folder / 'scores.jsonl'}")


def report(arguments: argparse.Namespace) -> None:
    from .report import write_report

    if arguments.aggregation != "best":
        reason = f'The report of "{arguments.run}" is by --aggregation {arguments.aggregation}, which picks no best.'
        refuse_unread({"--best-of": arguments.best_of}, "add --aggregation best", reason)
    written = write_report(
        arguments.run,
        arguments.out or arguments.run / "report.html",
        baseline=arguments.baseline,
        how=arguments.aggregation,
        k=arguments.best_of,
        rounds=arguments.rounds.split(",") if arguments.rounds else (),
        title=arguments.title,
    )
    print("\n".join(map(str, written)))
