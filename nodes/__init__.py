"""The nodes, one file a subject. Each file ends in its list NODES."""

from comfy_api.latest import ComfyExtension

from . import scores, scores_compare, spin, sprite_world, vico, vico_train

SUBJECTS = [vico, vico_train, spin, scores, scores_compare, sprite_world]


class Pack(ComfyExtension):
    async def get_node_list(self):
        return [node for subject in SUBJECTS for node in subject.NODES]


async def comfy_entrypoint() -> Pack:
    return Pack()
