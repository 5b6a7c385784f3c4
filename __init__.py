"""oneshot-atelier: OSASIS and MMFS as ComfyUI nodes. This file is the door and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI calls to get the nodes; nothing of the pack is imported before."""
    from .nodes import AtelierExtension
    return AtelierExtension()
