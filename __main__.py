"""The command line: vico-spin train | generate | convert | evaluate | report, also as python -m vico_spin."""

import sys

COMMANDS = {
    "train": "self-play, or its baselines, of a diffusers pipeline or of ComfyUI's single files",
    "generate": "the first opponent's pictures alone, of the same",
    "convert": "what a run learnt, as a LoRA or a U-Net folder",
    "evaluate": "score folders of pictures",
    "report": "a web page of such scores: who wins, and by how much",
}
SCORES, OF_FILES = {"evaluate", "report"}, {"train", "generate"}


def main(arguments: list[str] | None = None) -> int:
    """Hands the command to its room; a room is imported when one of its commands is asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        print(usage())
        return 0 if arguments[:1] in ([], ["--help"], ["-h"]) else 2
    if arguments[0] in SCORES:
        from .scores.cli import main as run
    elif arguments[0] in OF_FILES:
        run = play
    else:
        from .spin_core.cli import main as run
    return run(arguments)


def play(arguments: list[str]) -> int:
    """train, generate: --model by diffusers, --checkpoint by ComfyUI's classes. Errors are printed as their sentence."""
    from .spin_core.cli import RUNS, told
    from .spin_core.settings import parse

    def run() -> None:
        settings = parse(arguments[0], arguments[1:])
        runs = RUNS if settings.checkpoint is None else runs_in_comfyui(settings)
        runs[arguments[0]](settings)

    return told(arguments[0], run)


def runs_in_comfyui(settings) -> dict:
    """Puts ComfyUI's folder first on the path, and says which device it computes on. ValueError where it is none."""
    import torch

    if not (settings.comfyui / "comfy").is_dir():
        raise ValueError(f'"{settings.comfyui}" is no folder of ComfyUI: --comfyui names the one with main.py in it')
    sys.path.insert(0, str(settings.comfyui.resolve()))
    from comfy.cli_args import args

    args.cpu = not torch.accelerator.is_available()
    from .nodes.spin.command_line import RUNS

    return RUNS


def usage() -> str:
    lines = [f"  {name:10}{about}" for name, about in COMMANDS.items()]
    return "\n".join(["usage: vico-spin COMMAND …", "", *lines, "", "vico-spin COMMAND --help says the rest"])


if __name__ == "__main__":
    sys.exit(main())
