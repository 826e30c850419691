"""The nodes, a room a subject: in each, a file a node or two, and the glue between them and the cores."""

from comfy_api.latest import ComfyExtension

from .host.errors import errors_on_it
from .host.training_options import TrainingOptionsNode
from .scores.compare import ScoreCompareModels
from .scores.load_scorer import ScoreLoadScorer
from .scores.report import ScoreReport
from .scores.score_pictures import ScorePictures
from .spin.curves import SPINCurves
from .spin.dataset import SPINDataset
from .spin.load_save import LoadSPINCheckpoint, SaveSPIN
from .spin.options import SPINOpponent, SPINOptions
from .spin.train import TrainBaseline, TrainSPIN
from .spin.vote import SPINVote
from .sprite_world.load import SpriteWorldLoad
from .sprite_world.measure import SpriteWorldMeasure
from .sprite_world.pictures import SpriteWorldPictures
from .vico.apply import ApplyViCo
from .vico.checkpoint_grid import ViCoCheckpointGrid
from .vico.load_save import LoadViCoConcept, SaveViCoConcept
from .vico.mask_preview import ViCoMaskPreview
from .vico.options import ViCoOptions
from .vico.reference import ViCoReference
from .vico.train import TrainViCo

VICO = [
    LoadViCoConcept,
    SaveViCoConcept,
    ViCoReference,
    ApplyViCo,
    ViCoMaskPreview,
    TrainViCo,
    ViCoOptions,
    ViCoCheckpointGrid,
]
SPIN = [
    SPINDataset,
    LoadSPINCheckpoint,
    SPINOpponent,
    SPINOptions,
    TrainSPIN,
    TrainBaseline,
    SaveSPIN,
    SPINCurves,
    SPINVote,
]
SCORES = [ScoreLoadScorer, ScorePictures, ScoreCompareModels, ScoreReport]
SPRITE_WORLD = [SpriteWorldLoad, SpriteWorldPictures, SpriteWorldMeasure]


class Pack(ComfyExtension):
    async def get_node_list(self):
        return [errors_on_it(node) for node in (*VICO, TrainingOptionsNode, *SPIN, *SCORES, *SPRITE_WORLD)]
