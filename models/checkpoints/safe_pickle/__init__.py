"""Reading of pickles and of torch.save's containers that executes nothing."""

from .reader import is_plain_pickle, read_pickle, read_torch
from .records import Global, OpaqueObject, Storage, TensorRef

__all__ = ["Global", "OpaqueObject", "Storage", "TensorRef", "is_plain_pickle", "read_pickle", "read_torch"]
