"""SPIN Vote."""

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ...spin_core.data import Dataset
from ...spin_core.votes import parse_votes, shares
from ..host.pictures import to_pictures
from ..host.progress import say
from ..host.sockets import DatasetSocket
from ..host.texts import one_each
from ..host.written import view_of
from .ballot import Pair, home_of, lay_out, write_run, write_table

NOTHING_YET = ExecutionBlocker(None)  # what comes after waits for votes, and says nothing


class SPINVote(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINVote",
            display_name="SPIN Vote",
            category="ViCo + SPIN/SPIN",
            description="Choose by eye: two pictures of each prompt, side by side, blind and in random order. The votes "
            "become preference pairs for training, and a win rate.",
            search_aliases=["preference", "rlhf", "dpo", "human feedback", "a/b test", "rate pictures", "pick-a-pic"],
            is_output_node=True,
            inputs=[
                io.Image.Input("first", tooltip="Pictures of one model or seed."),
                io.Image.Input("second", tooltip="Pictures of the same prompts by the other, in the same order."),
                io.String.Input("prompts", multiline=True, default="",
                    tooltip="What the pictures were made from: one line for all, or a line a pair."),
                io.String.Input("names", default="first, second",
                    tooltip="What the two are called in the win rate, between a comma. Voters do not see it."),
                io.String.Input("voter", default="me", tooltip="Your name: several people's votes on a pair are merged."),
                io.String.Input("folder", default="votes",
                    tooltip="Folder in output/scores; a mark of the pairs is added."),
                io.String.Input("votes", multiline=True, default="",
                    tooltip="The votes, a line each, kept with the workflow. Paste other people's lines below yours to "
                    "merge them; empty it to begin again."),
            ],
            outputs=[
                DatasetSocket.Output("dataset", display_name="dataset", tooltip="Preference pairs for Train Baseline (DPO); ties are left out."),
                io.String.Output("run", display_name="run", tooltip="The folder with pictures, votes and a Pick-a-Pic table, for Score "
                    "Report and SPIN Dataset."),
                io.String.Output("win_rate", display_name="win_rate", tooltip="How often the second is preferred, with its interval."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, names, votes):
        if names is not None:
            two_names(names)
        return votes is None or parse_votes(votes) is not None

    @classmethod
    def execute(cls, first, second, prompts, names, voter, folder, votes) -> io.NodeOutput:
        if len(first) != len(second):
            raise ValueError(f"Connect as many pictures to both inputs.\nThere are {len(first)} and {len(second)}.")
        texts = one_each(prompts, len(first), "prompts")
        pairs = lay_out(texts, (to_pictures(first), to_pictures(second)), folder)
        share = shares(parse_votes(votes))
        voted = [pair for pair in pairs if pair.id in share]
        shown = {"pairs": [shown_pair(pair) for pair in pairs]}
        if not voted:
            say(f"{len(pairs)} pairs to vote on: click the better picture.\nKeys: 1, 2, space for a tie, u to undo.")
            return io.NodeOutput(NOTHING_YET, NOTHING_YET, NOTHING_YET, ui=shown)
        write_table(voted, share)
        told = in_words(write_run(voted, share, two_names(names)))
        say(f"{len(voted)} of {len(pairs)} pairs have votes.\n{told}")
        decided = any(share[pair.id] != 0.5 for pair in voted)
        dataset = Dataset(home_of(pairs)) if decided else NOTHING_YET
        return io.NodeOutput(dataset, str(home_of(pairs)), told, ui=shown)


def two_names(names: str) -> tuple[str, str]:
    """The two models' names. ValueError where they are not two."""
    given = tuple(name.strip() for name in names.split(",") if name.strip())
    if len(set(given)) != 2 or len(given) != 2:
        raise ValueError(f'Write two different names between a comma.\n"{names}" is not that.')
    return given


def shown_pair(pair: Pair) -> dict:
    """A pair as the node shows it, with the names by which the host gives its pictures out."""
    first, second = map(view_of, pair.pictures)
    return {"id": pair.id, "prompt": pair.prompt, "first": first, "second": second}


def in_words(fights: list) -> str:
    (fight,) = fights
    low, high = 100 * fight.interval.low, 100 * fight.interval.high
    won = f"{fight.model} wins {100 * fight.win_rate:.0f}% of {fight.pairs} pairs ({low:.0f}-{high:.0f}%)."
    return f"{won} Different prompts: {fight.prompts}."
