"""How cost grows: python -m vico_spin.benchmarks.scale [--docs docs] [--quick] [--json]

Writes SCALE.md, one page of plots and one table. On paper: operations and bytes of SD1.x's own shape, counted on tensors without
numbers. Measured: the processor's seconds in the Sprite World, and the listing of data sets. GPUs: a step's counted operations at
a stated speed beside the bytes that its gradients take over a stated wire.
"""

from contextlib import suppress
from itertools import count
from pathlib import Path

from ..scripts.get_host import ROOT
from ..scripts.host import Host
from .harness import finish, flags, machine, on_paper, timed

SIDES, BATCHES, PHOTOS, SUBJECTS = (256, 512, 1024, 2048), (1, 2, 4, 8, 16), (1, 2, 4, 8), (1, 2, 3, 4)
LISTED, PROMPTS, GPUS = (100, 1000, 10_000, 100_000), (1, 10, 100, 1000), (1, 2, 4, 8)
TEXT, WIDTH, SIDE, STEPS = 77, 768, 512, 20
CACHE = 1024 * 2**20  # Apply ViCo's default cache_mb
SPEED = 100e12  # operations a second of one GPU in training: an assumption
WIRES = {"PCIe 4, 25 GB/s": 25e9, "NVLink, 300 GB/s": 300e9}  # bytes a second: assumptions
LINKS = {"LoRA": "lora", "all weights": "full"}


# ---- on paper ------------------------------------------------------------------------------------------------------


class Paper:
    """SD1.x's U-Net without numbers: what a forward of one row takes."""

    def __init__(self, counted):
        import torch

        from ..scripts import models

        self.torch, self.counted = torch, counted
        self.net = models.sd1(width=320, context_dim=WIDTH).model.diffusion_model.requires_grad_(False)

    def forward(self, side: int, seen=None, capture=None) -> dict[str, int]:
        """{"flops", "bytes": at their peak beside the weights}."""
        from ..nodes.host.denoiser import graded_attention
        from ..nodes.host.families.image_tokens import LATENT
        from ..nodes.vico.capture import CAPTURE, LastPlaceReached

        x = self.torch.empty(1, 4, side // 8, side // 8)
        options = {"optimized_attention_override": graded_attention, LATENT: x.shape}
        options |= {CAPTURE: capture} if capture else {}
        held, flops = self.counted.held, self.counted.flops
        held.peak = before = held.held
        with self.torch.no_grad(), suppress(LastPlaceReached):
            self.net(x, self.torch.empty(1), context=self.torch.empty(1, TEXT, WIDTH), transformer_options=options)
        return {"flops": self.counted.flops - flops, "bytes": held.peak - before}

    def costs(self, side: int, photos: int = 1) -> dict[str, dict[str, int]]:
        """A row of the plain model, of a further picture with all keys, and of a reference pass; and bytes kept a step."""
        from ..nodes.vico.capture import NO_MASK, Capture
        from .vico_flops import Seen

        seen = Seen(self.net, photos)
        capture = Capture(seen.places, [[0]], NO_MASK, None)
        capture.rows = [0]
        found = {"plain": self.forward(side)}
        with seen.attached():
            found |= {"further": self.forward(side, seen), "reference": self.forward(side, seen, capture)}
        kept = sum(t.nbytes for of in capture.tokens.values() for t in of.values())
        return found | {"kept": {"bytes": kept * photos}}


def on_paper_costs(quick: bool) -> dict:
    """{"sides": {side: costs}, "photos": {photos: costs at 512²}}."""
    from ..nodes.host.copies import training_mode

    sides, photos = (SIDES[:2], PHOTOS[:2]) if quick else (SIDES, PHOTOS)
    with training_mode(), on_paper() as counted:
        paper = Paper(counted)
        by_side = {side: paper.costs(side) for side in sides}
        return {"sides": by_side, "photos": {n: by_side[SIDE] if n == 1 else paper.costs(SIDE, n) for n in photos}}


def first_over_plain(costs: dict, batch: int = 1, contexts: int = 2, photos: int = 1, subjects: int = 1) -> float:
    """Operations of a guided step that runs the references of so many contexts, over the plain one's, by the counted parts."""
    plain, further, reference = (costs[part]["flops"] for part in ("plain", "further", "reference"))
    rows = 2 * batch
    return (rows * (plain + subjects * (further - plain)) + contexts * photos * subjects * reference) / (rows * plain)


def training_costs(quick: bool) -> dict:
    """{"side": {side: bytes}, "batch": {pairs: bytes}} of a step by LoRA; {"flops", "wire"} by what is trained, 2 pairs at 512²."""
    from .spin_step import counted

    sides, batches = (SIDES[:1], BATCHES[:1]) if quick else (SIDES[:3], BATCHES[:3])
    by_side = {side: counted("lora", 1, side // 8, steps=1) for side in sides}
    by_batch = {
        batch: by_side.get(SIDE) if batch == 1 and not quick else counted("lora", batch, 64, steps=1)
        for batch in batches
    }
    last = max(batches)
    return {
        "side": {side: found[0] for side, found in by_side.items()},
        "batch": {batch: found[0] for batch, found in by_batch.items()},
        "flops": {"pairs": last, "lora": by_batch[last][1], "full": counted("full", last, 64, steps=1)[1]},
    }


def gradient_bytes() -> dict[str, int]:
    """Float32 gradients of a step that go over the wire."""
    from ..train_core import LoRA, find_layers, unet_layers
    from .spin_step import RANK, base

    with on_paper():
        network = base(320)
        lora = LoRA(network, find_layers(network, unet_layers("attention")), RANK)
        return {name: sum(4 * p.numel() for p in m.parameters()) for name, m in (("lora", lora), ("full", network))}


def efficiency(step: float, gradients: int, gpus: int, wire: float) -> float:
    """Share of a step that is computing, its gradients reduced by a ring and not beside the backward pass."""
    return step / (step + 2 * (gpus - 1) / gpus * gradients / wire)


# ---- measured ------------------------------------------------------------------------------------------------------


class World:
    """The Sprite World's U-Net with its example concept; a step's processor seconds by what is asked of it."""

    def __init__(self, host: Host, steps: int):
        import torch

        from ..nodes.host.sampling import Sampling
        from ..sprite_world import EXAMPLE_CONCEPT
        from ..vico_core import ViCoConcept

        self.torch, self.steps, self.seeds = torch, steps, count()
        self.model, self.clip, self.vae = host.call("SpriteWorldLoad", architecture="U-Net")
        self.concept, self.sampling = ViCoConcept.load(EXAMPLE_CONCEPT), Sampling("ddim", "ddim_uniform", steps, 3.0)

    def attached(self, photos: int = 1, subjects: int = 1):
        """(model, clip) with so many subjects of so many photos."""
        from ..nodes.vico.attach import ApplySettings, attach, make_subject
        from ..nodes.vico.photos import Photo, Reference
        from ..nodes.vico.trigger import with_trigger

        model, clip = self.model, self.clip
        for word in "*@#%"[:subjects]:
            shown = [Photo(self.torch.randn(1, 4, 16, 16), self.torch.zeros(128, 128, 3)) for _ in range(photos)]
            subject = make_subject(model, clip, self.concept, Reference(shown), ApplySettings(trigger=word))
            model, clip = attach(model, subject), with_trigger(clip, subject.trigger)
        return model, clip

    def seconds(self, model, clip, prompt: str = "a large * in snow", batch: int = 1) -> float:
        """Of a picture, without decoding."""
        from ..nodes.host.sampling import sample_latents

        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "")]
        seeds = [next(self.seeds) for _ in range(batch)]
        taken = timed(lambda: sample_latents(model, (4, 16, 16), seeds, self.sampling, *texts))
        return taken["cpu_seconds"] / batch

    def first_and_further(self, photos: int = 1, subjects: int = 1, batch: int = 1) -> tuple[float, float]:
        model, clip = self.attached(photos, subjects)
        prompt = "a large " + " and a ".join("*@#%"[:subjects]) + " in snow"
        return tuple(self.seconds(model, clip, prompt, batch) for _ in range(2))

    def queue(self, prompts: int) -> list[float]:
        """Seconds of each of so many prompts, one behind the other, over a plain picture's."""
        model, clip = self.attached()
        return [self.seconds(model, clip, f"a large * in snow, number {i}") for i in range(prompts)]


def world_costs(host: Host, quick: bool) -> dict:
    world = World(host, 2 if quick else 4)
    shorter = 2 if quick else None
    with world.torch.inference_mode():
        world.seconds(world.model, world.clip)  # warms up
        plain = {batch: world.seconds(world.model, world.clip, batch=batch) for batch in BATCHES[:shorter]}
        return {
            "plain": plain,
            "batch": {batch: world.first_and_further(batch=batch) for batch in BATCHES[:shorter]},
            "photos": {photos: world.first_and_further(photos) for photos in PHOTOS[:shorter]},
            "subjects": {subjects: world.first_and_further(1, subjects) for subjects in SUBJECTS[:shorter]},
            "queue": world.queue(3 if quick else 10),
        }


def listings(quick: bool) -> dict:
    from .intake import listing

    return {number: listing(number) for number in (LISTED[:2] if quick else LISTED)}


# ---- the page ------------------------------------------------------------------------------------------------------


def mean_of_queue(paper: dict, prompts: int) -> float:
    """Mean operations of a picture over the plain one, each prompt of the queue drawn once: the empty prompt runs once."""
    costs = paper["sides"][SIDE]
    first, known = first_over_plain(costs), first_over_plain(costs, contexts=1)
    return (first + (prompts - 1) * known) / prompts


def step_seconds(training: dict, kind: str) -> float:
    return training["flops"][kind] / SPEED


def plots(found: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(15, 7), layout="constrained")
    draw_pictures([*axes[0], axes[1][0]], found["paper"], found["world"])
    draw_training(axes[1][1:], found)
    figure.savefig(path, dpi=80)


def draw(axis, title: str, across: str, up: str, lines: dict[str, dict], log: bool = True) -> None:
    for name, points in lines.items():
        axis.plot(list(points), list(points.values()), "o-", label=name)
    axis.set(title=title, xlabel=across, ylabel=up, xscale="log" if log else "linear")
    axis.set_xticks(sorted({x for points in lines.values() for x in points}))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.legend(fontsize=8)


def draw_pictures(axes, paper: dict, world: dict) -> None:
    """What a picture costs by resolution, batch, photos, subjects and prompts in the queue."""
    resolution, batch, photos, subjects, queue = axes
    sides = paper["sides"]
    tera = {part: {s: c[part]["flops"] / 1e12 for s, c in sides.items()} for part in ("plain", "further", "reference")}
    draw(resolution, "Resolution, on paper", "side in pixels", "TFLOP a row and step", tera)
    resolution.set_yscale("log")
    over = {"first, on paper": {b: first_over_plain(sides[SIDE], b) for b in world["batch"]}}
    for place, name in enumerate(("first, Sprite World", "further, Sprite World")):
        over[name] = {b: pair[place] / world["plain"][b] for b, pair in world["batch"].items()}
    draw(batch, "Batch", "pictures at once", "time over plain", over)
    plain = world["plain"][1]
    by_photos = {
        "first, on paper": {n: first_over_plain(c, photos=n) for n, c in paper["photos"].items()},
        "further, on paper": {n: first_over_plain(c, contexts=0) for n, c in paper["photos"].items()},
        "first, Sprite World": {n: pair[0] / plain for n, pair in world["photos"].items()},
        "further, Sprite World": {n: pair[1] / plain for n, pair in world["photos"].items()},
    }
    draw(photos, "Photos of a reference", "photos", "time over plain", by_photos, log=False)
    by_subjects = {
        "first, on paper": {n: first_over_plain(sides[SIDE], subjects=n) for n in world["subjects"]},
        "further, on paper": {n: first_over_plain(sides[SIDE], contexts=0, subjects=n) for n in world["subjects"]},
        "first, Sprite World": {n: pair[0] / plain for n, pair in world["subjects"].items()},
        "further, Sprite World": {n: pair[1] / plain for n, pair in world["subjects"].items()},
    }
    draw(subjects, "Subjects", "subjects", "time over plain", by_subjects, log=False)
    running = [sum(world["queue"][: i + 1]) / (i + 1) / plain for i in range(len(world["queue"]))]
    means = {"on paper": {n: mean_of_queue(paper, n) for n in PROMPTS}}
    draw(queue, "Prompts in the queue, a picture each", "prompts", "mean time over plain", means)
    queue.plot(range(1, len(running) + 1), running, "o-", label="Sprite World")
    queue.legend(fontsize=8)


def draw_training(axes, found: dict) -> None:
    """What listing a data set, memory and several GPUs cost."""
    data, memory, gpus = axes
    sides, training = found["paper"]["sides"], found["training"]
    lists = {"processor's seconds": {n: of["processor's seconds"] for n, of in found["listing"].items()}}
    lists["MB / 10"] = {n: of["MB"] / 10 for n, of in found["listing"].items()}
    draw(data, "Data set listed", "pictures", "", lists)
    data.set_yscale("log")
    gib = {"SPIN by LoRA, 1 pair": {s: b / 2**30 for s, b in training["side"].items()}}
    gib["features kept a prompt, 20 steps"] = {s: STEPS * c["kept"]["bytes"] / 2**30 for s, c in sides.items()}
    gib["a row of the plain model, drawing"] = {s: c["plain"]["bytes"] / 2**30 for s, c in sides.items()}
    draw(memory, "Memory, float32, on paper", "side in pixels", "GiB", gib)
    memory.set_yscale("log")
    shares = {
        f"{name}, {wire}": {
            n: efficiency(step_seconds(training, kind), found["gradients"][kind], n, speed) for n in GPUS
        }
        for name, kind in LINKS.items()
        for wire, speed in WIRES.items()
    }
    draw(gpus, "GPUs, on paper", "GPUs", "share of a step that computes", shares)


def law_rows(found: dict) -> list[tuple[str, ...]]:
    """(what grows, measured or counted, law, where it breaks)."""
    return [*picture_laws(found["paper"], found["world"]), listing_law(found["listing"]), *training_laws(found)]


def picture_laws(paper: dict, world: dict) -> list[tuple[str, ...]]:
    sides, plain = paper["sides"], world["plain"][1]
    low, high = min(sides), max(sides)
    grown = {part: sides[high][part]["flops"] / sides[low][part]["flops"] for part in ("plain", "further")}
    ratio = {side: first_over_plain(costs, contexts=0) for side, costs in sides.items()}
    most_photos, most_subjects, most_batch = (max(world[name]) for name in ("photos", "subjects", "batch"))
    kept = STEPS * sides[SIDE]["kept"]["bytes"]
    return [
        (
            f"resolution {low}² to {high}²",
            f"operations ×{grown['plain']:.0f} plain, ×{grown['further']:.0f} with ViCo; a further picture "
            + ", ".join(f"{ratio[s]:.2f}× at {s}²" for s in sides),
            "convolutions with the area, self-attention and image attention with its square",
            "above 1024² the squares lead; the mask's share of keys lowers ViCo's",
        ),
        (
            "batch",
            f"first picture of a batch {first_over_plain(sides[SIDE]):.2f}× at 1, {first_over_plain(sides[SIDE], most_batch):.2f}× "
            f"at {most_batch} (counted); Sprite World {world['batch'][1][0] / plain:.2f}× and "
            f"{world['batch'][most_batch][0] / world['plain'][most_batch]:.2f}×",
            "1 + attention + reference / batch",
            "where a batch no longer fits, the host splits it and the reference still runs once",
        ),
        (
            "photos",
            f"further {first_over_plain(paper['photos'][max(paper['photos'])], contexts=0):.2f}× at {max(paper['photos'])} (counted), "
            f"{world['photos'][most_photos][1] / plain:.2f}× (Sprite World); first {world['photos'][most_photos][0] / plain:.2f}× (Sprite World)",
            "first: a reference pass a photo; further: the keys of image attention alone",
            "the features kept grow alike: 8 photos fill the cache 8 times as fast",
        ),
        (
            "subjects",
            f"further {first_over_plain(sides[SIDE], contexts=0, subjects=most_subjects):.2f}× at {most_subjects} (counted), "
            f"{world['subjects'][most_subjects][1] / plain:.2f}× (Sprite World)",
            "modules, reference passes and features a subject",
            "each has a cache of its own",
        ),
        (
            "prompts in the queue, a picture each",
            f"mean {mean_of_queue(paper, 1):.2f}× of one, {mean_of_queue(paper, 1000):.2f}× of 1000 (counted)",
            "one pass for the empty prompt, then one a prompt",
            f"features of {STEPS} steps take {kept / 2**20:.0f} MB a context (float32, all keys): {CACHE // kept} contexts fit into "
            "cache_mb 1024, older ones are run again",
        ),
    ]


def listing_law(listed: dict) -> tuple[str, ...]:
    last, fewest = max(listed), min(listed)
    worked = listed[last]["processor's seconds"]
    per = (worked - listed[fewest]["processor's seconds"]) / (last - fewest)
    return (
        f"data set, {fewest} to {last} pictures listed",
        f"{worked:.1f} s of the processor, {listed[last]['MB']:.0f} MB at {last}; 10⁶ by this law: {per * 1e6:.0f} s",
        f"linear: {1e6 * per:.0f} µs a picture",
        f"10⁶ was not listed; the listing holds names and captions, {2**20 * listed[last]['MB'] / last:.0f} bytes a picture",
    )


def training_laws(found: dict) -> list[tuple[str, ...]]:
    training = found["training"]
    shares = {
        name: efficiency(step_seconds(training, kind), found["gradients"][kind], max(GPUS), WIRES["PCIe 4, 25 GB/s"])
        for name, kind in LINKS.items()
    }
    batches, pairs = training["batch"], training["flops"]["pairs"]
    row = (batches[max(batches)] - batches[min(batches)]) / max(1, max(batches) - min(batches)) / 2**30
    return [
        (
            "a step of SPIN by LoRA",
            f"{min(batches.values()) / 2**30:.1f} GiB at {min(batches)} pair, {max(batches.values()) / 2**30:.1f} at {max(batches)} "
            "(counted, 512², float32, model included)",
            f"linear in pairs: {row:.2f} GiB each",
            "gradient_checkpointing and low_memory lower the slope",
        ),
        (
            f"GPUs, 1 to {max(GPUS)}, {pairs} pairs on each",
            "; ".join(f"{name}: {share:.0%} of a step computes" for name, share in shares.items()),
            "2(n−1)/n of the gradients' bytes a step over the slowest wire (25 GB/s)",
            "small batches of all weights; a LoRA's gradients are "
            f"{found['gradients']['lora'] / 2**20:.0f} MB beside {found['gradients']['full'] / 2**20:.0f} MB",
        ),
    ]


def page(found: dict) -> str:
    head = "| what grows | found | law | where it breaks |\n| --- | --- | --- | --- |\n"
    rows = "".join(f"| {' | '.join(row)} |\n" for row in law_rows(found))
    return f"""# How cost grows

![Resolution, batch, photos, subjects, queue, data set, memory, GPUs](scale.png)

{head}{rows}
Made by `python -m vico_spin.benchmarks.scale` on {found["machine"]}, torch {found["torch"]}.

- *Counted, on paper*: SD1.x's own U-Net (float32, {TEXT} text tokens, guidance, all keys of the reference kept) on tensors that have shapes and no numbers. Exact for operations and allocated bytes; nothing of caches, launches or copies.
- *Sprite World*: the processor's seconds of a few sampling steps in the small world, one run each on a machine that had other work: they show the form of a curve, not its last digit.
- *GPUs*: no GPU was used. A step is its counted operations at {SPEED / 1e12:.0f} TFLOP/s, which is assumed, as are the two wires; gradients are reduced by a ring and not beside the backward pass. Generation shares out whole pictures and sends nothing.
"""


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of SCALE.md and scale.png")
    parser.add_argument("--quick", action="store_true", help="few points: does it all run?")
    options = parser.parse_args()
    host = Host()
    found = {
        **machine(),
        "paper": on_paper_costs(options.quick),
        "training": training_costs(options.quick),
        "gradients": gradient_bytes(),
        "world": world_costs(host, options.quick),
        "listing": listings(options.quick),
    }
    options.docs.mkdir(parents=True, exist_ok=True)
    plots(found, options.docs / "scale.png")
    (options.docs / "SCALE.md").write_text(page(found), encoding="utf-8")
    finish(found, options, page(found))


if __name__ == "__main__":
    main()
