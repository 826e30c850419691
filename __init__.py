"""ViCo and SPIN-Diffusion for ComfyUI."""

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """What ComfyUI calls for the nodes. They are imported here: the other rooms work without a host."""
    from .nodes import Pack

    return Pack()
