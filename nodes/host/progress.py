"""What a person sees of long work: a line on the node, the bar, and a picture on it."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ...train_core import SCORE, StepReport

PREVIEW_SIDE, SHEET_SIDE = 512, 1536  # pixels at most, of previews and of whole grids
STEPS_TIMED = 20  # the time left is told by as many last steps


def say(text: str) -> None:
    """A word on the node that runs or is checked, and in the log where nobody looks at a node."""
    if running := get_executing_context():
        PromptServer.instance.send_progress_text(text, running.node_id)
    logging.debug(text)


class Watch:
    """A training on its node: step, loss, seconds a step and time left in words, a bar, previews, and the person's interrupt."""

    def __init__(self, say: Callable[[str], None], every: int, preview: Callable[[], Image.Image] | None):
        self.say, self.every, self.preview = say, every, preview
        self.note = ""  # stands below the opponent's pictures, before the first step
        self.seconds: deque[float] = deque(maxlen=STEPS_TIMED)
        self.steps_done, self.where = 0, ""
        self.begin(1)

    def begin(self, total: int) -> None:
        """A new bar, of `total` steps or pictures."""
        self.bar, self.total, self.pictures_done = comfy.utils.ProgressBar(total), total, 0
        self.seconds.clear()

    def pictures(self, done: int, where: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.pictures_done, self.where, self.since = done, where, time.perf_counter()
        self.say(f"{where}: {done} of {self.total} pictures of the opponent\n{self.note}".strip())
        self.bar.update_absolute(done, self.total)

    def sampling_step(self, step: int, steps: int, drawn: float) -> None:
        """Step 1, 2, … of the sampler; drawn: pictures of this batch that are done, by their share of the steps."""
        done = self.pictures_done + drawn
        left = round((time.perf_counter() - self.since) / drawn * (self.total - done))
        self.say(
            f"{self.where}: the opponent's picture {math.ceil(done)} of {self.total}\n"
            f"Sampling step {step} of {steps}, {left // 60}:{left % 60:02} left\n{self.note}".strip()
        )
        self.bar.update_absolute(done, self.total)

    def drawn(self, picture: Callable[[], Image.Image]) -> None:
        """Shows what was just drawn, where previews are wanted."""
        if self.every:
            self.bar.update_absolute(self.bar.current, self.total, ("JPEG", picture(), PREVIEW_SIDE))

    def step(self, report: StepReport, where: str = "") -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.seconds.append(report.seconds)
        self.steps_done += 1
        seconds = sum(self.seconds) / len(self.seconds)
        left = round(seconds * (self.total - report.step))
        margin, accuracy = report.metrics.get("z"), report.metrics.get("implicit_accuracy")
        pair = "" if margin is None else f", margin {margin:.4f}"
        won = "" if accuracy is None else f"accuracy {accuracy:.2f}, "
        scored = f"score {report.metrics[SCORE]:.4f}, " if SCORE in report.metrics else ""
        self.say(
            f"{where}Step {report.step} of {self.total}: loss {report.loss:.4f}{pair}\n"
            f"{won}{scored}{seconds:.2f} s a step, {left // 60}:{left % 60:02} left"
        )
        self.bar.update_absolute(report.step, self.total, self.picture(report.step))

    def picture(self, step: int):
        due = self.preview and self.every and step % self.every == 0
        return ("JPEG", self.preview(), PREVIEW_SIDE) if due else None

    def outcome(self, steps: int) -> str:
        """What is said of a run of so many steps when it is done."""
        return f"{'Trained' if self.steps_done else 'Already trained'}: {steps} of {steps} steps."


class Filling:
    """Many draws on their node: a bar over all sampling steps, and the pictures as they come."""

    def __init__(self, steps: int):
        self.bar = comfy.utils.ProgressBar(steps)

    def step(self, _step: int) -> None:
        self.bar.update(1)

    def show(self, picture: Image.Image) -> None:
        self.bar.update_absolute(self.bar.current, preview=("JPEG", picture, SHEET_SIDE))
