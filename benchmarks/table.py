"""Every figure that is promised, beside its limit: python -m vico_spin.benchmarks.table [--quick] [--only NAME …] [--json]

Runs the other benchmarks, each in a process of its own and within --minutes, and prints one table: what, measured, limit, command.
--quick: small models and few repetitions, to see that all runs; the figures of speed then say little.
"""

import json
import operator
import subprocess
import sys
from dataclasses import dataclass
from functools import reduce

from .harness import finish, flags, machine


@dataclass(frozen=True)
class Row:
    """A figure of a benchmark's JSON by its path there, and what it must hold: at most or at least the limit."""

    what: str
    path: tuple
    most: float | None = None
    least: float | None = None

    def value(self, found: dict) -> float:
        return reduce(operator.getitem, self.path, found)

    def holds(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    @property
    def limit(self) -> str:
        limits = (("≥", self.least), ("≤", self.most))
        return ", ".join(f"{sign} {value:g}" for sign, value in limits if value is not None)


@dataclass(frozen=True)
class Bench:
    """A benchmark with its flags, those of --quick, and its rows."""

    name: str
    flags: str
    quick: str
    rows: list[Row]

    def command(self, quick: bool) -> list[str]:
        given = self.quick if quick else self.flags
        return [sys.executable, "-m", f"vico_spin.benchmarks.{self.name}", *given.split(), "--json"]


def zero(words: str, *names: str) -> list[Row]:
    return [Row(f"{words}: {name}", (name,), most=0) for name in names]


BENCHES = [
    Bench("vico_overhead", "--sizes 512 --repetitions 1", "--sizes 128 --width 64 --repetitions 1", [
        Row("ViCo, a further picture over the plain one, time", ("cached_over_plain",), 1.15),
        Row("ViCo, first picture, time", ("first_over_plain",), 2.07),
        Row("ViCo, first picture, empty prompt known, time", ("first_empty_known_over_plain",), 1.55),
        Row("ViCo, first of a batch of 4, time", ("batch4_first_over_plain",), 1.36),
        Row("ViCo, reads that a step waits for beside the plain one's, counted", ("added_reads",), 0),
        Row("ViCo, copies that a step waits for beside the plain one's, counted", ("added_copies",), 0),
    ]),
    Bench("vico_flops", "--seconds 3", "--side 256", [
        Row("ViCo on Z-Image, a further picture, operations", ("rows", "Z-Image", "further"), 1.2),
        Row("ViCo on Qwen-Image, a further picture, operations", ("rows", "Qwen-Image", "further"), 1.2),
    ]),
    Bench("vico_training", "--repetitions 1", "--sizes 128 --width 64 --host-width 32 --repetitions 1", [
        Row("Train ViCo's step over the authors' two streams, processor's time", ("cpu_time_over_original",), 0.8),
        Row("Train ViCo's step over the authors' two streams, memory", ("memory_over_original",), 0.75),
        Row("Train ViCo's step over TrainLoraNode's, processor's time", ("host", "cpu_time_over_hosts"), 1),
        Row("Train ViCo's step over TrainLoraNode's, memory", ("host", "memory_over_hosts"), 1),
    ]),
    Bench("spin_step", "", "--repetitions 1 --memory-latent 32", [
        Row("SPIN by LoRA over full Diffusion-DPO, processor's time", ("cpu_time_over_plain", "lora"), 0.8),
        Row("SPIN by LoRA over full Diffusion-DPO, operations", ("flops_over_plain", "lora"), 0.8),
        Row("SPIN by LoRA over full Diffusion-DPO, memory at 512²", ("memory_over_plain", "lora"), 0.45),
        Row("SFT by LoRA over TrainLoraNode, processor's time", ("sft_over_hosts",), 1),
    ]),
    Bench("spin_generation", "--width 160 --size 256 --batch 8 --steps 4 --repetitions 2", "--width 64 --size 128 --batch 4 --steps 2 --repetitions 1", [
        Row("opponent's pictures in batches, times as fast (3 on a GPU)", ("times_as_fast_cpu", "batched, guided"), least=1),
        Row("the same without guidance", ("times_as_fast_cpu", "batched, cfg 1"), least=1.7),
    ]),
    Bench("frozen_step", "--repetitions 3", "--repetitions 1 --width 32 --side 8", [
        Row("a LoRA's step beside float32 weights over one on a copy, processor's time", ("U-Net, float32", "cpu_time"), 1.1),
        Row("the same, memory", ("U-Net, float32", "memory"), 0.7),
        Row("the same, bfloat16, memory", ("U-Net, bfloat16", "memory"), 0.7),
    ]),
    Bench("intake", "", "--pictures 20 --listed 2000 --repetitions 2", [
        Row("reading pictures over plain Pillow, time", ("pictures, intake / plain",), 1.1),
        Row("listing 100,000 pictures, processor's seconds", ("listing, processor's seconds",), 20),
        Row("listing 100,000 pictures, MB", ("listing, MB",), 300),
    ]),
    Bench("scores_overhead", "--pictures 400", "--pictures 40 --side 128", [
        Row("scoring, share outside network and decoding", ("outside",), 0.1),
    ]),
    Bench("scores_page", "--pictures 1000", "--pictures 80", [
        Row("a report page of 1,000 pictures opens, seconds", ("slowest of 3 openings",), 2),
    ]),
    Bench("scores_coverage", "--draws 500", "--draws 20", [
        Row("95% intervals that hold the truth", ("even, 200 prompts", "coverage"), 0.965, 0.935),
    ]),
    Bench("faults", "--short", "--short", zero("broken and hostile files", "unclear", "hang", "memory", "executed", "outside")),
    Bench("kills", "--kills 5", "--kills 1", zero("kill -9 while training", "half written", "failed", "differ")),
    Bench("queue_mix", "--prompts 12", "--prompts 2", zero("queued prompts against their single runs", "differ")),
]  # fmt: skip


def run(bench: Bench, quick: bool, minutes: int) -> tuple[dict | None, str]:
    """(the benchmark's JSON, ""), or (None, why there is none)."""
    try:
        done = subprocess.run(bench.command(quick), capture_output=True, text=True, timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        return None, f"over {minutes} minutes"
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def rows_of(bench: Bench, quick: bool, minutes: int) -> list[dict]:
    found, why = run(bench, quick, minutes)
    command = " ".join([bench.name, bench.quick if quick else bench.flags]).strip()
    rows = []
    for row in bench.rows:
        value = why if found is None else row.value(found)
        holds = found is not None and row.holds(value)
        rows.append({"what": row.what, "measured": value, "limit": row.limit, "holds": holds, "command": command})
    return rows


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = flags(__doc__, minutes=(12, "that one benchmark may take"))
    parser.add_argument("--quick", action="store_true", help="small models: does it all run?")
    parser.add_argument("--only", nargs="+", choices=[bench.name for bench in BENCHES], help="these benchmarks alone")
    options = parser.parse_args()
    head = ["what", "measured", "limit", "holds", "command (vico_spin.benchmarks.)"]
    print(line(head), line(["---"] * len(head)), sep="\n", flush=True)
    found = []
    for bench in BENCHES:
        if options.only and bench.name not in options.only:
            continue
        for row in rows_of(bench, options.quick, options.minutes):
            found.append(row)
            value = row["measured"] if isinstance(row["measured"], str) else f"{row['measured']:.3g}"
            print(line([row["what"], value, row["limit"], "yes" if row["holds"] else "no", row["command"]]), flush=True)
    told = machine()
    finish({**told, "quick": options.quick, "rows": found}, options, f"\n{told['machine']}, torch {told['torch']}")


if __name__ == "__main__":
    main()
