"""Files that a person or a stranger brings: pictures, texts, tables, prompt lists, each by one reader.

A reader takes regular files only, tells what a file is by its content, holds its bounds (`Limits`) before it decodes, and
raises `BadFile` with a sentence that names the file and says what to do. Imports no other room and no host.
"""

from .files import BadFile, inside, pictures_below, read_bytes
from .limits import LIMITS, Limits
from .pictures import PICTURE_ENDINGS, open_picture
from .prompts import read_prompts
from .tables import PROMPT_COLUMNS, Problem, Row, read_json, read_rows, value_of
from .texts import caption_beside, decode_text, lines_of, read_text

__all__ = [
    "LIMITS",
    "PICTURE_ENDINGS",
    "PROMPT_COLUMNS",
    "BadFile",
    "Limits",
    "Problem",
    "Row",
    "caption_beside",
    "decode_text",
    "inside",
    "lines_of",
    "open_picture",
    "pictures_below",
    "read_bytes",
    "read_json",
    "read_prompts",
    "read_rows",
    "read_text",
    "value_of",
]
