"""The nodes of the pack. ComfyUI asks the extension for them; a node file is a room of the house."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host, loaders, metrics, mmfs, mmfs_loaders, mmfs_stages, mmfs_training, osasis, stylegan2, training, twin

NODES: list[type[io.ComfyNode]] = [
    *loaders.NODES, *twin.NODES, *osasis.NODES, *training.NODES, *metrics.NODES,
    *mmfs_loaders.NODES, *stylegan2.NODES, *mmfs.NODES, *mmfs_training.NODES,
    *mmfs_stages.NODES]


class AtelierExtension(ComfyExtension):
    """What comfy_entrypoint returns."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        host.register_folders()  # before any schema is asked for: the loaders list the folders' files
        return NODES
