"""Files that a person or a stranger brings: pictures, texts, tables, prompt lists, each by one reader; and files written whole.

A reader takes regular files only, tells what a file is by its content, holds its bounds (`Limits`) before it decodes, and
raises `BadFile` with a sentence that names the file and says what to do. Imports no other room and no host.
"""

from .captioned import Captioned, captioned_folder, captioned_table, table_of
from .captions import CAPTION_ENDINGS, captions_beside, captions_of
from .files import BadFile, Unusable, check_file, files_below, inside, leads_out, pictures_below, read_bytes
from .limits import LIMITS, Limits
from .parquet import open_parquet, parquet_rows
from .pickles import check_pickle
from .pictures import PICTURE_ENDINGS, open_picture, unusable
from .prompts import read_prompts
from .report import Report
from .tables import PROMPT_COLUMNS, Problem, Row, read_json, read_rows, value_of
from .tars import captioned_tar
from .texts import decode_text, lines_of, read_text
from .workflows import is_node, positive_prompts, prompt_of_picture
from .writing import write_atomically, write_text

__all__ = [
    "CAPTION_ENDINGS",
    "LIMITS",
    "PICTURE_ENDINGS",
    "PROMPT_COLUMNS",
    "BadFile",
    "Captioned",
    "Limits",
    "Problem",
    "Report",
    "Row",
    "Unusable",
    "captioned_folder",
    "captioned_table",
    "captioned_tar",
    "captions_beside",
    "captions_of",
    "check_file",
    "check_pickle",
    "decode_text",
    "files_below",
    "inside",
    "is_node",
    "leads_out",
    "lines_of",
    "open_parquet",
    "open_picture",
    "parquet_rows",
    "pictures_below",
    "positive_prompts",
    "prompt_of_picture",
    "read_bytes",
    "read_json",
    "read_prompts",
    "read_rows",
    "read_text",
    "table_of",
    "unusable",
    "value_of",
    "write_atomically",
    "write_text",
]
