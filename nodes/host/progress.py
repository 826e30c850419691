"""What a person sees of long work: a line on the node, the bar, and a picture on it."""

import logging
from collections import deque
from collections.abc import Callable

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ...train_core import StepReport

PREVIEW_SIDE = 512  # pixels at most
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
        self.seconds: deque[float] = deque(maxlen=STEPS_TIMED)
        self.begin(1)

    def begin(self, total: int) -> None:
        """A new bar, of `total` steps or pictures."""
        self.bar, self.total = comfy.utils.ProgressBar(total), total
        self.seconds.clear()

    def pictures(self, done: int, where: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.say(f"{where}: {done} of {self.total} pictures of the opponent")
        self.bar.update_absolute(done, self.total)

    def step(self, report: StepReport, where: str = "") -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.seconds.append(report.seconds)
        seconds = sum(self.seconds) / len(self.seconds)
        left = round(seconds * (self.total - report.step))
        pace = f"{seconds:.2f} s a step, {left // 60}:{left % 60:02} left"
        self.say(f"{where}Step {report.step} of {self.total}: loss {report.loss:.4f}, {pace}")
        self.bar.update_absolute(report.step, self.total, self.picture(report.step))

    def picture(self, step: int):
        due = self.preview and self.every and step % self.every == 0
        return ("JPEG", self.preview(), PREVIEW_SIDE) if due else None
