"""The nodes of the pack. ComfyUI asks the extension for them; files pair by family."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    blend,
    density,
    edit,
    evaluation_table,
    faces,
    geometry,
    host,
    loaders,
    metrics,
    mmfs,
    mmfs_stages,
    mmfs_training,
    osasis,
    osasis_snapshots,
    osasis_training,
    photo_twin,
    stylegan2,
    sweep,
)

NODES: list[type[io.ComfyNode]] = [
    *loaders.NODES, *photo_twin.NODES, *osasis.NODES, *osasis_training.NODES, *osasis_snapshots.NODES, *metrics.NODES,
    *stylegan2.NODES, *mmfs.NODES, *mmfs_training.NODES, *mmfs_stages.NODES, *faces.NODES, *edit.NODES,
    *density.NODES, *sweep.NODES, *evaluation_table.NODES,
    *blend.NODES, *geometry.NODES]


class AtelierExtension(ComfyExtension):
    """What comfy_entrypoint returns."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        host.register_folders()  # before any schema is asked for: the loaders list the folders' files
        host.put_examples()
        host.serve_help_pictures()
        return NODES
