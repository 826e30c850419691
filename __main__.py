"""The command line: vico-spin train | generate | convert | evaluate | report, also as python -m vico_spin."""

import sys

COMMANDS = {
    "train": "self-play, or its baselines, of a diffusers pipeline or of ComfyUI's single files",
    "generate": "the first opponent's pictures alone",
    "convert": "what a run learnt, as a LoRA or a U-Net folder",
    "evaluate": "score folders of pictures",
    "report": "a web page of such scores: who wins, and by how much",
}
SCORES = {"evaluate", "report"}


def main(arguments: list[str] | None = None) -> int:
    """Hands the command to its room; a room is imported when one of its commands is asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        print(usage())
        return 0 if arguments[:1] in ([], ["--help"], ["-h"]) else 2
    if arguments[0] in SCORES:
        from .scores.cli import main as run
    elif arguments[0] == "train":
        run = train
    else:
        from .spin_core.cli import main as run
    return run(arguments)


def train(arguments: list[str]) -> int:
    """train: --model by diffusers, --checkpoint by ComfyUI's classes. Errors are printed as their sentence."""
    from .spin_core.cli import run_train, told
    from .spin_core.settings import parse

    def run() -> None:
        settings = parse(arguments[0], arguments[1:])
        (run_train if settings.checkpoint is None else train_in_comfyui)(settings)

    return told(arguments[0], run)


def train_in_comfyui(settings) -> None:
    """Puts ComfyUI's folder first on the path, says which device it computes on, and trains. ValueError where it is none."""
    import torch

    if not (settings.comfyui / "comfy").is_dir():
        raise ValueError(f'"{settings.comfyui}" is no folder of ComfyUI: --comfyui names the one with main.py in it')
    sys.path.insert(0, str(settings.comfyui.resolve()))
    from comfy.cli_args import args

    args.cpu = not torch.accelerator.is_available()
    from .nodes.spin.command_line import run_train

    run_train(settings)


def usage() -> str:
    lines = [f"  {name:10}{about}" for name, about in COMMANDS.items()]
    return "\n".join(["usage: vico-spin COMMAND …", "", *lines, "", "vico-spin COMMAND --help says the rest"])


if __name__ == "__main__":
    sys.exit(main())
