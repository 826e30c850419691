"""Does ViCo keep the object and follow the prompt? python -m vico_spin.benchmarks.vico_evidence [--architecture DiT] [--quick] [--json]

In the Sprite World, whose truth is known: identities that its model never saw, a few photos of each, prompts that put the
object in other scenes. The same prompts and seeds by every condition; identity similarity, recognition (the share of other
creatures of the class and colour that the picture resembles less) and the share of the prompt's words that the picture shows, as
`sprite_world.measure` reads them. Means over identities with bootstrap intervals over identities.

The world's model has only read captions that name colour and scene, so training captions and prompts name them, as they name
the size, which is that of all photos.

Every identity's numbers, picture by picture, are kept in the folder results beside the documents as soon as a condition's are
there, and found again: a run can be cut and gone on with on another machine, identities and conditions can be added, and
several processes of one machine share the work.
The paper's learning rates are for SD1.4: --choose-rates tries the world's own, on identities that the evaluation does not use.
--architecture DiT: the same on the world's diffusion transformer, with ViCo's method carried over; the paper has no such experiment.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from PIL import Image

from ..intake import write_atomically
from ..scripts.get_host import ROOT
from ..scripts.host import Host
from ..sprite_world import ARCHITECTURES
from ..train_core import keyed_generator
from ..vico_core.training import REGULARIZATION, Draws, Photos
from .grid import named_rows
from .kept import claim, held

PHOTOS = "photos through the VAE"
OUTPUT = ROOT / "output" / "vico_evidence"
LOCKS = OUTPUT / "locks"


@dataclass(frozen=True)
class Condition:
    """How a creature is learnt and drawn; what is not named is as the paper has it.

    regularization and steps: times the paper's weight, times the plan's steps. scale: the reference's side against the pictures'.
    zero_init: image attention begins as the identity, where the plan does not have it so already.
    """

    told: str
    learns: bool = True
    image_attention: bool = True
    mask: bool = True
    regularization: float = 1
    detach_reference: bool = False
    dense: bool = False
    steps: int = 1
    scale: int = 1
    zero_init: bool = False
    unseen: bool = False

    @property
    def learnt_as(self) -> "Condition":
        """The same for all conditions that draw by one concept."""
        return replace(self, told="", unseen=False)


CONDITIONS = {
    "class word": Condition("the class word alone, plain model", learns=False),
    "textual inversion": Condition("the same trainer, the word alone", image_attention=False),
    "ViCo": Condition("word and image attention, reference from the photos"),
    "mask off": Condition("no automatic mask, in training and drawing", mask=False),
    "no regularisation": Condition("attention regularisation's weight 0", regularization=0),
    "unseen reference": Condition("ViCo's concept, reference never seen in training", unseen=True),
    "fast mode": Condition("reference stream detached in training", detach_reference=True),
}
# What might bring the finer markings; run where --conditions names them.
TRIALS = {
    "regularisation x 10": Condition("ten times the paper's weight", regularization=10),
    "dense": Condition("after every decoder block with attention, not every second", dense=True),
    "twice the steps": Condition("twice as many steps", steps=2),
    "begins as nothing": Condition("image attention begins as the identity, as on the transformer", zero_init=True),
    "larger reference": Condition("the reference at twice the side, in training and drawing", scale=2),
    PHOTOS: Condition("the most that a latent holds of the creature", learns=False),
}
ALL = CONDITIONS | TRIALS
PHOTOS_SCENE, OBJECT_SIZE = "tiles", "large"  # the training photos are taken in one place, close up
CHOSEN_ON = (94, 98, 114)  # held-out identities that captions, size, rates, steps and CFG were chosen on
MEASURES = ("identity", "recognition", "prompt")
# What a creature is told by from its twins, which differ in that alone; and how well the mask of its word, and one of the end of
# text that the regularisation pulls the word's attention to, find it in a photo (intersection over union with the true one).
PARTS = ("marking", "shape", "eyes", "colour")
MASKS = ("the word's mask", "the end of text's")
LEVELS = (0.25, 0.5, 0.75)  # of the noise schedule, at which masks are looked at
SIZE = 128
# The rates rise over these and fall to zero at the end: at this world's high rates the last steps are noise otherwise.
WARM_UP_STEPS = 20


@dataclass(frozen=True)
class Plan:
    """How much is trained and drawn. Rates, steps and CFG: chosen for the world on CHOSEN_ON.

    places: of image attention, evenly over the second half of a transformer; 0: those that Train ViCo takes.
    """

    identities: int = 40
    photos: int = 4
    prompts: int = 8
    seeds: int = 4
    steps: int = 300
    batch: int = 4
    word_lr: float = 2e-2
    attention_lr: float = 6e-3
    sampling_steps: int = 15
    cfg: float = 2.0
    sampler: str = "ddim"
    scheduler: str = "ddim_uniform"
    zero_init: bool = False
    places: int = 0


PLANS = {
    "U-Net": Plan(),
    "DiT": Plan(
        identities=20,
        steps=200,
        word_lr=1e-2,
        seeds=1,
        attention_lr=2e-3,
        sampling_steps=20,
        cfg=3.0,
        sampler="euler",
        scheduler="normal",
        zero_init=True,
    ),
}
SUFFIXES = {"U-Net": "", "DiT": "_dit"}  # of files and folders
CHANGEABLE = ("identities", "seeds", "steps", "word_lr", "attention_lr", "cfg", "places", "prompts")
QUICK = {"identities": 2, "prompts": 2, "seeds": 1, "steps": 60, "sampling_steps": 10}


def evaluated_identities(count: int) -> list[int]:
    """Identities that no training picture of the world shows, and that no setting was chosen on."""
    from ..sprite_world.identity import is_held_out

    return list(islice((seed for seed in range(10**9) if is_held_out(seed) and seed not in CHOSEN_ON), count))


class World:
    """The model, and one identity's photos, prompts and measures."""

    def __init__(self, host: Host, plan: Plan, architecture: str = "U-Net"):
        import torch

        from ..nodes.host.copies import training_mode

        self.torch, self.plan = torch, plan
        self.weights = ARCHITECTURES[architecture]
        with training_mode():
            load = host.node_classes["SpriteWorldLoad"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
            self.model, self.clip, self.vae = load.execute(architecture).result

    def scenes(self, identity: int) -> list:
        """What the training photos show and, last, one that is never trained on, in any scene."""
        from ..sprite_world.pictures import chosen_pictures

        known = {"identity_seed": identity, "size": OBJECT_SIZE}
        drawn = list(islice(chosen_pictures(seed=identity, scene=PHOTOS_SCENE, **known), self.plan.photos))
        return [*drawn, next(chosen_pictures(seed=identity + 1, **known))]

    def photo(self, scene, scale: int = 1):
        """A photo of it [H, W, 3] in 0…1, its sides `scale` times those of the pictures."""
        from ..sprite_world.pictures import render, show

        shown = show(render(scene)[0]).repeat(scale, 0).repeat(scale, 1)
        return self.torch.from_numpy(shown).float() / 255

    def measure(self, art, who) -> dict[str, list[float]]:
        """Per picture: how it resembles the creature, and the share of the prompt's words that it shows."""
        from ..sprite_world.measure import measure

        truth = [prompt for prompt in self.prompts(who, who.class_word) for _ in range(self.plan.seeds)]
        followed = [sum(one.follows.values()) / len(one.follows) for one in measure(art, truth)]
        return self.resemblance(art, who) | {"prompt": rounded(followed)}

    def resemblance(self, art, who) -> dict[str, list[float]]:
        """Per picture: identity similarity, recognition, and PARTS."""
        from ..sprite_world.measure import identity_similarity, recognition, told_from_twins

        found = {"identity": identity_similarity(art, who), "recognition": recognition(art, who)}
        return {what: rounded(told) for what, told in (found | told_from_twins(art, who)).items()}

    def prompts(self, who, word: str) -> list[str]:
        """The object, by this word for it, in scenes that the photos do not show."""
        from ..sprite_world.vocabulary import SCENES, caption

        scenes = [scene for scene in SCENES if scene != PHOTOS_SCENE][: self.plan.prompts]
        return [caption(word, who.colour, scene, size=OBJECT_SIZE, opening="a photo of {}") for scene in scenes]

    def evaluate(self, identity: int, conditions: list[str]):
        """Of one identity, each condition with its numbers {a measure: […], "seconds": a training step's} and pictures."""
        from ..sprite_world.identity import identity as identity_of
        from ..sprite_world.measure import to_art

        who, scenes, learnt = identity_of(identity), self.scenes(identity), {}
        for name in conditions:
            how = ALL[name]
            if name == PHOTOS:
                with self.torch.no_grad():
                    shown = self.vae.decode(self.vae.encode(self.torch.stack([self.photo(scene) for scene in scenes])))
                yield name, self.resemblance(to_art(shown), who) | {"seconds": 0.0}, shown
                continue
            if how.learns and how.learnt_as not in learnt:
                learnt[how.learnt_as] = self.learn(scenes[:-1], who, how)
            concept, numbers = learnt.get(how.learnt_as, (None, {"seconds": 0.0}))
            drawn = self.draw(how, concept, self.photo(scenes[-1 if how.unseen else 0], how.scale), who)
            yield name, self.measure(to_art(drawn), who) | numbers, drawn[:: self.plan.seeds]

    def learn(self, scenes: list, who, how: Condition):
        """(concept, a step's seconds and its masks' overlaps): by the trainer that Train ViCo runs, without its files."""
        from ..nodes.host.copies import load_for_training, training_copy, training_mode
        from ..nodes.vico.places import known_family
        from ..nodes.vico.streams import HostStreams, training_clip
        from ..nodes.vico.trigger import start_words
        from ..sprite_world.vocabulary import OPENINGS, caption
        from ..train_core import LocalEngine, LoopSettings, train
        from ..vico_core.training import TrainedConcept, ViCoObjective

        with training_mode():
            photos = self.encoded(scenes)
            if not how.mask:
                photos = replace(photos, masks=self.torch.ones(len(scenes), SIZE, SIZE))
            references = self.encoded(scenes, how.scale)
            patcher, text = training_copy(self.model), training_clip(self.clip)
            load_for_training([patcher, text.patcher])
            shapes = self.shapes(patcher.model, how.dense) if how.image_attention else []
            words = start_words(text, who.class_word)
            trained = TrainedConcept(shapes, words, zero_init=self.plan.zero_init or how.zero_init).to(
                patcher.load_device
            )
            engine = LocalEngine(patcher.load_device)
            two = HostStreams(patcher, text, trained, "*", engine, detach_reference=how.detach_reference)
            objective = ViCoObjective(two, how.regularization * REGULARIZATION)
            shown = caption("*", who.colour, PHOTOS_SCENE, size=OBJECT_SIZE)
            captions = [opening.format(shown) for opening in dict.fromkeys(OPENINGS)]
            stream = (photos, captions, len(two.schedule), self.plan.batch, 0, engine.device)
            draws = Draws(*stream) if how.scale == 1 else OtherReferences(references, *stream)
            optimizer = trained.optimizer(self.plan.word_lr, self.plan.attention_lr)
            loop = LoopSettings(self.plan.steps * how.steps, WARM_UP_STEPS, "linear")
            ran = train(objective, draws, trained, optimizer, loop, engine)
            with self.torch.no_grad():
                masks = self.overlaps(two, references.mean[:1].to(engine.device), captions[0], scenes[0])
        seconds = sorted(report.seconds for report in ran.history)[len(ran.history) // 2]
        concept = trained.concept(placeholder="*", family=known_family(self.model.model))
        return concept, {"seconds": seconds} | masks

    def encoded(self, scenes: list, scale: int = 1) -> Photos:
        from ..nodes.vico.training_photos import Picture, encode_photos

        with self.torch.no_grad():
            pictures = [Picture(self.photo(scene, scale)) for scene in scenes]
            return encode_photos(self.vae, self.model, pictures, SIZE * scale)

    def overlaps(self, two, reference, caption: str, scene) -> dict[str, list[float]]:
        """MASKS, each at all noise levels and places; nothing where there are no places."""
        from ..nodes.host.families.image_tokens import LATENT
        from ..nodes.vico.streams import GradedCapture
        from ..sprite_world.pictures import render

        read, truth = two.encode(caption, reference), self.torch.from_numpy(render(scene)[1])
        options = {**two.denoiser.transformer_options, LATENT: reference.shape}
        found = {name: [] for name in MASKS if two.places}
        for level in LEVELS if two.places else ():
            timestep = two.denoiser.timestep(self.torch.tensor([round(level * len(two.schedule))]))
            capture = GradedCapture(two.places, [read.columns], [read.end_of_text], None)
            with two.image_attention():
                two.run_reference(reference, timestep, read.conditions, capture, options)
            for place, maps in capture.maps.items():
                for name, attention in zip(MASKS, maps, strict=True):
                    found[name].append(overlap(attention, truth, capture.grids[place]))
        return found

    def shapes(self, model, dense: bool) -> list:
        from ..nodes.vico.places import places_of, possible_places, shape_at
        from ..vico_core import spread_places

        if not self.plan.places:
            return places_of(model, dense)[1]
        network = model.diffusion_model
        blocks = [place.block for place in possible_places(network)]
        return [shape_at(network, place) for place in spread_places(blocks, self.plan.places)]

    def draw(self, how: Condition, concept, reference, who):
        """Pictures [prompts × seeds, H, W, 3] of one condition, by a reference photo [H, W, 3]."""
        from ..nodes.host.sampling import Sampling
        from ..nodes.vico.attach import ApplySettings, attach, make_subject
        from ..nodes.vico.capture import AUTOMATIC, NO_MASK
        from ..nodes.vico.drawing import draw
        from ..nodes.vico.photos import Photo, Reference
        from ..nodes.vico.trigger import make_trigger, with_trigger

        sampling = Sampling(self.plan.sampler, self.plan.scheduler, self.plan.sampling_steps, self.plan.cfg)
        prompts = self.prompts(who, "*" if how.learns else who.class_word)
        model, clip = self.model, self.clip
        with self.torch.no_grad():
            latent = self.vae.encode(reference[None])
            if how.learns and not how.image_attention:
                clip = with_trigger(clip, make_trigger(clip, "evidence", "*", concept.embeddings))
            elif how.learns:
                settings = ApplySettings(mask=AUTOMATIC if how.mask else NO_MASK)
                subject = make_subject(model, clip, concept, Reference([Photo(latent, reference)]), settings)
                model, clip = attach(model, subject), with_trigger(clip, subject.trigger)
            shape = [latent.shape[1], *(side // how.scale for side in latent.shape[-2:])]
            return draw(model, clip, self.vae, prompts, list(range(self.plan.seeds)), sampling, shape)


class OtherReferences(Draws):
    """The same stream of samples, their references drawn from other latents of the same photos."""

    def __init__(self, references: Photos, *stream, **settings):
        super().__init__(*stream, **settings)
        self.references = references

    def sample(self, position: int, photo: int):
        x0, _, *rest, number = super().sample(position, photo)
        drawn = self.references.draw(number, keyed_generator(self.seed, "other references", position))
        return x0, drawn, *rest, number


def rounded(values) -> list[float]:
    """As they are kept."""
    return [round(float(value), 5) for value in values]


def overlap(attention, truth, grid) -> float:
    """Intersection over union of Otsu's mask of a map [1, N] with the true mask [H, W] on the grid."""
    import torch.nn.functional as F

    from ..vico_core import object_mask

    mask = object_mask(attention)[0]
    true = F.adaptive_avg_pool2d(truth.float()[None, None], grid).flatten() > 0.5
    return float((mask & true).sum() / (mask | true).sum())


def strip(pictures):
    """Pictures [N, H, W, 3] of 0…1 side by side."""
    import torch

    side_by_side = torch.cat([picture.cpu() for picture in pictures], dim=1)
    return Image.fromarray((side_by_side * 255).round().byte().numpy())


def draw_grid(world: "World", identity: int, folder: Path, path: Path) -> None:
    """One identity's photos, the last one unseen, and below them a row a condition whose pictures are kept."""
    rows = {"photos": strip([world.photo(scene) for scene in world.scenes(identity)])}
    kept = {condition: strip_path(folder, identity, condition) for condition in ALL}
    rows |= {condition: Image.open(path) for condition, path in kept.items() if path.is_file()}
    named_rows(rows, label=120).save(path, optimize=True)


def strip_path(folder: Path, identity: int, condition: str) -> Path:
    return folder / f"identity-{identity}-{condition.replace(' ', '-')}.png"


def of_identities(results: list[dict], condition: str, what: str) -> list[float]:
    """Each identity's mean over its prompts and seeds."""
    return [sum(r[condition][what]) / len(r[condition][what]) for r in results]


def having(results: list[dict], *conditions: str) -> list[dict]:
    """The identities for which all of these are there: a condition may have been run for the first few alone."""
    return [result for result in results if all(condition in result for condition in conditions)]


def measures_of(results: list[dict], condition: str, *among: str) -> list[str]:
    """Those among these that all have numbers of: without places there are no masks."""
    return [what for what in among if all(what in result[condition] for result in results)]


def table(results: list[dict]) -> dict:
    """Each condition's means with their intervals, and the median of a training step's seconds.

    {condition: {"identities": how many, "seconds": …, "identity": mean, "identity_interval": [low, high], "prompt": …}}
    """
    from ..scores.statistics import mean_interval

    rows = {}
    for condition in ALL:
        found = having(results, condition)
        if not found:
            continue
        seconds = sorted(result[condition]["seconds"] for result in found)
        row = {"identities": len(found), "seconds": seconds[len(found) // 2]}
        for what in measures_of(found, condition, *MEASURES, *PARTS, *MASKS):
            values = of_identities(found, condition, what)
            row[what], row[f"{what}_interval"] = sum(values) / len(values), known(mean_interval(values))
        rows[condition] = row
    return rows


def known(interval) -> list:
    """The ends of an interval, None where all are alike or one alone."""
    return [None if math.isnan(end) else end for end in interval]


def gains(results: list[dict]) -> dict[str, dict]:
    """What ViCo adds to each condition, identity by identity: {condition: {"identity": [mean, low, high], "prompt": …}}."""
    from ..scores.statistics import mean_difference_interval

    found = {}
    for condition in ALL:
        both = having(results, "ViCo", condition)
        if condition == "ViCo" or not both:
            continue
        found[condition] = {}
        for what in measures_of(both, condition, *MEASURES, *PARTS):
            a, b = (of_identities(both, name, what) for name in ("ViCo", condition))
            difference = sum(a) / len(a) - sum(b) / len(b)
            found[condition][what] = [difference, *known(mean_difference_interval(a, b))]
    return found


def cell(row: dict, what: str) -> str:
    if what not in row:
        return ""
    low, high = row[f"{what}_interval"]
    return f"{row[what]:.3f}" if low is None else f"{row[what]:.3f} [{low:.3f}, {high:.3f}]"


def gain_cell(gain: list | None) -> str:
    if gain is None:
        return ""
    mean, low, high = gain
    return f"{mean:+.3f}" if low is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def lines_of(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table in Markdown, an empty line after it."""
    cells = list(header)
    return [f"| {' | '.join(row)} |" for row in (cells, ["---"] * len(cells), *rows)] + [""]


def as_markdown(rows: dict, added: dict, plan: Plan) -> str:
    lines = lines_of(
        ["condition", "creatures", *MEASURES, "s a step"],
        (
            [
                f"{name}: {ALL[name].told}",
                str(row["identities"]),
                *(cell(row, what) for what in MEASURES),
                f"{row['seconds']:.2f}" if row["seconds"] else "",
            ]
            for name, row in rows.items()
        ),
    )
    lines += lines_of(
        ["ViCo over, identity by identity", *MEASURES],
        ([name, *(gain_cell(gain.get(what)) for what in MEASURES)] for name, gain in added.items()),
    )
    lines += lines_of(
        ["told from twins by", *PARTS, *(f"overlap of {what}" for what in MASKS)],
        ([name, *(cell(row, what) for what in (*PARTS, *MASKS))] for name, row in rows.items()),
    )
    lines += lines_of(
        ["ViCo over, identity by identity", *PARTS],
        ([name, *(gain_cell(gain.get(what)) for what in PARTS)] for name, gain in added.items()),
    )
    told = (
        f"Held-out creatures, {plan.photos} photos, {plan.prompts} prompts, {plan.seeds} seeds; {plan.steps} steps of {plan.batch}, "
        f"rates {plan.word_lr:g} (word) and {plan.attention_lr:g} (image attention); {plan.sampler} {plan.sampling_steps} steps, "
        f"CFG {plan.cfg:g}. "
        "Means over creatures, 95% bootstrap intervals over creatures."
    )
    return "\n".join(lines) + f"\n{told}\n"


def as_json(rows: dict) -> dict:
    """{condition: {"identity": mean, "identity_low": …, "identity_high": …, and so for the other measures; "creatures": how many}}."""
    return {
        condition: {
            key: value
            for what in (*MEASURES, *PARTS, *MASKS)
            if what in row
            for key, value in zip(
                (what, f"{what}_low", f"{what}_high"), (row[what], *row[f"{what}_interval"]), strict=True
            )
        }
        | {"creatures": row["identities"]}
        for condition, row in rows.items()
    }


def verdict(rows: dict) -> dict[str, bool]:
    """What the project promises of (c) against (b) and (a)."""
    vico, inversion, plain = (rows.get(name) for name in ("ViCo", "textual inversion", "class word"))
    if not (vico and inversion and plain) or None in vico["identity_interval"] + inversion["identity_interval"]:
        return {}
    return {
        "identity above textual inversion, intervals apart": vico["identity_interval"][0]
        > inversion["identity_interval"][1],
        "recognition above textual inversion, intervals apart": vico["recognition_interval"][0]
        > inversion["recognition_interval"][1],
        "prompt at most 3 points below the class word": vico["prompt"] >= plain["prompt"] - 0.03,
    }


def draw_figure(rows: dict, path: Path) -> None:
    """Identity against prompt following, a cross a condition."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.5))
    for condition, row in ((name, row) for name, row in rows.items() if "prompt" in row):
        spread = [
            [[row[w] - low], [high - row[w]]] if low is not None else None
            for w, (low, high) in ((w, row[f"{w}_interval"]) for w in ("prompt", "identity"))
        ]
        label = f"{condition} ({row['identities']} creatures)"
        axis.errorbar(
            row["prompt"], row["identity"], xerr=spread[0], yerr=spread[1], marker="o", capsize=3, label=label
        )
    axis.set_xlabel("prompt following")
    axis.set_ylabel("identity similarity")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def run_identity(world: World, identity: int, conditions: list[str], folder: Path, shown: bool) -> dict:
    """Numbers of one identity {condition: {a measure: [a picture's, …]}}, from its file as far as they are there.

    shown: its pictures are kept, too.
    """
    path = folder / f"identity-{identity}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    missing = [condition for condition in conditions if condition not in found]
    started = time.perf_counter()
    for condition, numbers, drawn in world.evaluate(identity, missing):
        if shown:
            strip(drawn).save(strip_path(folder, identity, condition), optimize=True)
        found[condition] = numbers
        write_atomically(path, lambda partial: partial.write_text(json.dumps(found)))
        print(f"identity {identity}, {condition}: {time.perf_counter() - started:.0f} s", flush=True)
    return found


def evaluate(world: World, identities: list[int], conditions: list[str], folder: Path) -> list[dict]:
    """The results of these identities; the folder may hold more of them, but of no other plan."""
    claim(folder, world.weights, {k: v for k, v in asdict(world.plan).items() if k != "identities"})
    found = {}
    for wait in (False, True):  # what another process is at is left to it at first
        for identity in identities:
            with held(LOCKS / folder.parent.name / folder.name / str(identity), wait) as mine:
                if mine and identity not in found:
                    found[identity] = run_identity(world, identity, conditions, folder, identity == identities[0])
    return [found[identity] for identity in identities]


def choose_rates(host: Host, plan: Plan, architecture: str) -> None:
    """ViCo alone, by a few rates, on identities that the evaluation does not use."""
    tried = replace(plan, prompts=4, seeds=2)
    print("| word | image attention | identity | prompt |\n| --- | --- | --- | --- |")
    for word_lr, attention_lr in ((2e-2, 2e-3), (2e-2, 6e-3), (2e-2, 1.2e-2), (1e-1, 6e-3)):
        at = replace(tried, word_lr=word_lr, attention_lr=attention_lr)
        folder = OUTPUT / f"rates{SUFFIXES[architecture]}" / f"{word_lr:g}-{attention_lr:g}"
        rows = table(evaluate(World(host, at, architecture), list(CHOSEN_ON), ["ViCo"], folder))
        print(
            f"| {word_lr:g} | {attention_lr:g} | {rows['ViCo']['identity']:.3f} | {rows['ViCo']['prompt']:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two identities, two prompts, 60 steps: does it all run?")
    parser.add_argument("--choose-rates", action="store_true", help="tries learning rates on other identities instead")
    parser.add_argument("--docs", type=Path, help="folder for results, table, figure and grid (default: in output/)")
    parser.add_argument("--conditions", nargs="+", choices=ALL, default=list(CONDITIONS), help="only these")
    parser.add_argument("--architecture", choices=list(PLANS), default="U-Net", help="of the world's model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    for name in CHANGEABLE:
        kind = type(getattr(Plan(), name))
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"instead of {getattr(Plan(), name)}")
    options = parser.parse_args()
    changed = {name: getattr(options, name) for name in CHANGEABLE}
    plan = replace(PLANS[options.architecture], **(QUICK if options.quick else {}))
    plan = replace(plan, **{k: v for k, v in changed.items() if v is not None})
    host, architecture = Host(device=options.device), options.architecture
    name = SUFFIXES[architecture]
    if options.choose_rates:
        choose_rates(host, plan, architecture)
        return
    docs = options.docs or OUTPUT / ("quick" if options.quick else "full")
    folder = docs / f"results{name}"
    world, identities = World(host, plan, architecture), evaluated_identities(plan.identities)
    results = evaluate(world, identities, options.conditions, folder)
    rows, added = table(results), gains(results)
    (docs / f"vico_evidence{name}.md").write_text(as_markdown(rows, added, plan), encoding="utf-8")
    (docs / f"vico_evidence{name}.json").write_text(json.dumps(as_json(rows), indent=1) + "\n", encoding="utf-8")
    draw_figure(rows, docs / f"vico_evidence{name}.png")
    draw_grid(world, identities[0], folder, docs / f"vico_evidence{name}_pictures.png")
    print(as_markdown(rows, added, plan))
    held = verdict(rows)
    for promise, kept in held.items():
        print(f"{'holds' if kept else 'DOES NOT HOLD'}: {promise}")
    if options.json:
        print(json.dumps({"rows": rows, "gains": added, "plan": asdict(plan), "holds": held}))


if __name__ == "__main__":
    main()
