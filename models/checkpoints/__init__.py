"""Checkpoint files: what a file is, is decided by its content. Nothing in a file is ever executed.

This package knows file formats and names of tensors. It knows no network: models/loading.py does.
"""

from . import store
from .errors import CheckpointError, WrongKindError
from .read import facts, read
from .store import Stored

__all__ = ["CheckpointError", "Stored", "WrongKindError", "facts", "read", "store"]
