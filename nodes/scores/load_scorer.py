"""Load Scorer."""

import json

from comfy_api.latest import io

from ...scores.load import KINDS, existing, load_scorer
from ..host.errors import check_choice
from ..host.folders import marks
from ..host.sockets import ScorerSocket
from .folder import AUTOMATIC, CLIP_VOCABULARY, HostedScorer, chosen_path, scorer_files
from .sprite_world_scorers import SPRITE_WORLD, sprite_world_scorer

TITLES = {kind.title: name for name, kind in KINDS.items()}


class ScoreLoadScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ScoreLoadScorer",
            display_name="Load Scorer",
            category="ViCo + SPIN/Scores",
            description="Loads what rates pictures: a preference score, CLIP or DINO similarity, or Sprite World's "
            "own measures. Says which file to put where if it is not there.",
            search_aliases=["pickscore", "hps", "imagereward", "aesthetic score", "clip score", "dino", "preference", "reward"],
            inputs=[
                io.Combo.Input("scorer", options=[*TITLES, *SPRITE_WORLD],
                    tooltip="PickScore, HPS and ImageReward say which picture people would prefer for a prompt; "
                    "Aesthetic looks at the picture alone; DINO and CLIP-I compare with reference photos; Sprite "
                    "World's need no file."),
                io.Combo.Input("file", options=[AUTOMATIC, *scorer_files()], default=AUTOMATIC,
                    tooltip="A file or model folder in models/scorers. Automatic takes the one with its published "
                    "name."),
            ],
            outputs=[
                ScorerSocket.Output("scorer", tooltip="For Score Pictures and Compare Models."),
                io.String.Output("about", tooltip="What is loaded: file, sha256, preprocessing, formula, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, scorer, file):
        return [] if scorer in SPRITE_WORLD else marks(chosen_path(TITLES[scorer], file))

    @classmethod
    def validate_inputs(cls, scorer, file):
        check_choice("scorer", scorer, [*TITLES, *SPRITE_WORLD])
        if scorer in TITLES:
            existing(TITLES[scorer], chosen_path(TITLES[scorer], file))
        return True

    @classmethod
    def execute(cls, scorer, file) -> io.NodeOutput:
        if scorer in SPRITE_WORLD:
            loaded = sprite_world_scorer(scorer)
        else:
            loaded = load_scorer(TITLES[scorer], chosen_path(TITLES[scorer], file), CLIP_VOCABULARY)
        hosted = HostedScorer(loaded)
        return io.NodeOutput(hosted, json.dumps(hosted.record(), indent=1, ensure_ascii=False))
