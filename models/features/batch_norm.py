"""Batch norms that are never trained."""
from __future__ import annotations

from torch import nn


def drop_counters(net: nn.Module) -> None:
    """Take the counters of batches out of a network's batch norms: they are no weights, and files may lack them.

    The network is for evaluation alone after that.
    """
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.track_running_stats, module.num_batches_tracked = False, None
