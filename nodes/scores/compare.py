"""Compare Models."""

import json
from collections.abc import Sequence

import comfy.samplers
from comfy_api.latest import io, ui

from ...intake import write_text
from ...scores.comparison import Duel, duels, tables
from ..host.folders import as_folder_name
from ..host.pictures import to_image
from ..host.progress import say
from ..host.sockets import ScorerSocket
from ..host.texts import lines
from .model_pictures import REFERENCES, Settings, compared, grid_of, new_folder, sample_all, save_references, score_all

MODELS = io.Autogrow.TemplatePrefix(io.Model.Input("model"), prefix="model", min=2, max=8)
SCORERS = io.Autogrow.TemplatePrefix(ScorerSocket.Input("scorer"), prefix="scorer", min=1, max=8)


class ScoreCompareModels(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScoreCompareModels",
            display_name="Compare Models",
            category="ViCo + SPIN/Scores",
            description="Samples the same prompts with the same seeds by every model, scores the pictures, and says "
            "how often each model beats the first, with intervals. Pictures and every number stay in output/scores.",
            search_aliases=["win rate", "a/b test", "evaluation", "benchmark", "grid"],
            is_output_node=True,
            inputs=[
                io.Autogrow.Input("models", template=MODELS,
                    tooltip="The models, baseline first. A free socket appears."),
                io.Autogrow.Input("scorers", template=SCORERS,
                    tooltip="From Load Scorer; each gets its own win rates."),
                io.Clip.Input("clip", tooltip="Reads the prompts, for all models."),
                io.Vae.Input("vae", tooltip="Decodes the pictures, for all models."),
                io.String.Input("names", default="base, tuned", tooltip="The models' names in order, between commas."),
                io.String.Input("prompts", multiline=True, default="",
                    tooltip="One prompt a line. Intervals are over prompts: fewer than about 30 can seldom tell "
                    "models apart."),
                io.String.Input("negative", default="", tooltip="The negative prompt of every picture."),
                io.Int.Input("pictures", default=4, min=1, max=64, tooltip="Pictures a prompt, at seed, seed + 1, …"),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFF, control_after_generate=False,
                    tooltip="The first seed, the same for all models."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."),
                io.Int.Input("width", default=512, min=16, max=4096, step=8, tooltip="Pixels."),
                io.Int.Input("height", default=512, min=16, max=4096, step=8, tooltip="Pixels."),
                io.String.Input("name", default="comparison",
                    tooltip="The folder in output/scores; a number is added."),
                io.Image.Input("references", optional=True, tooltip="Photos of the real thing, for DINO and CLIP-I."),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="Rows of the first prompts, columns of models and seeds, the score under each."),
                io.String.Output("run", tooltip="The folder with pictures and scores, for Score Report."),
                io.String.Output("win_rates", tooltip="Every win rate with its interval, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, names, prompts, models, scorers):
        if names is not None:
            named_models(models, names)
        return prompts is None or bool(prompt_lines(prompts))

    @classmethod
    def execute(cls, models, scorers, clip, vae, names, prompts, negative, pictures, name, references=None, **sampling):
        settings, models = Settings(**sampling), named_models(models, names)
        asked = prompt_lines(prompts)
        folder = new_folder(name)
        photos = save_references(folder, references)
        made = sample_all(folder, models, clip, vae, asked, negative, pictures, settings, photos)
        run = score_all(folder, made, list(scorers.values()), settings)
        found = tables(run.rows, list(models))
        fights = duels(found, next(iter(models)))
        write_text(folder / "win_rates.json", win_rates_json(fights))
        say(sentences(fights))
        grid = to_image(grid_of(found[0]))
        shown = ui.PreviewImage(grid, cls=cls).as_dict() | {"compared": [compared(made, list(models))]}
        return io.NodeOutput(grid, str(folder), win_rates_json(fights), ui=shown)


def named_models(models: dict, names: str) -> dict:
    """{name: model} in order; raises where a name is missing or stands twice, or two make one folder."""
    given = [name.strip() for name in names.split(",") if name.strip()]
    if len(given) != len(models) or len(set(given)) != len(given):
        raise ValueError(
            f'Write {len(models)} different names between commas.\n{len(models)} models need as many; "{names}" is not that.'
        )
    folders = {as_folder_name(name, "model").casefold() for name in given}
    if len(folders - {REFERENCES}) < len(given):
        raise ValueError(
            f'Write names that make different folders.\n"{names}" makes {", ".join(sorted(folders))}; "{REFERENCES}" holds the photos.'
        )
    return dict(zip(given, models.values(), strict=True))


def prompt_lines(text: str) -> list[str]:
    """The prompts, each once."""
    asked = list(dict.fromkeys(lines(text)))
    if not asked:
        raise ValueError("Write prompts, one a line.\nCompare Models has no prompts.")
    return asked


def win_rates_json(fights: Sequence[Duel]) -> str:
    rows = [fight._asdict() | {"verdict": fight.verdict} for fight in fights]
    return json.dumps(rows, indent=1, ensure_ascii=False).replace("NaN", "null")


def sentences(fights: Sequence[Duel]) -> str:
    """The win rates as lines under the node's picture."""
    return "\n".join(
        f"{fight.model} wins {100 * fight.win_rate:.0f}% of {fight.prompts} prompts against {fight.baseline} by "
        f"{fight.scorer} ({100 * fight.interval.low:.0f}-{100 * fight.interval.high:.0f}%)"
        for fight in fights
    )
