"""Helpers of the tests that execute nodes; their fixtures are in conftest.py."""
from __future__ import annotations

import torch

from oneshot_atelier.tests.tiny_models import PX


def picture(seed: int, count: int = 1, side: int = PX, channels: int = 3) -> torch.Tensor:
    """An IMAGE of random pixels."""
    return torch.rand(count, side, side, channels, generator=torch.Generator().manual_seed(seed))


def same(a, b) -> bool:
    """True if two state dicts are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def interrupt_after(monkeypatch, nodes, calls):
    """The user cancels during the given optimiser step; returns the list of steps that were made."""
    import comfy.model_management as mm
    made, picture_of = [], nodes.host.NodeProgress.__call__

    def counted(self, *args):
        made.append(1)
        if len(made) == calls:
            mm.interrupt_current_processing()
        picture_of(self, *args)
    monkeypatch.setattr(nodes.host.NodeProgress, "__call__", counted)
    return made, mm.InterruptProcessingException
