"""What a checkpoint may have at most, whatever its format."""

MAX_FILE_BYTES = 16 << 30
MAX_TENSORS = 20_000  # several times those of the largest training that is saved
MAX_DIMS = 8  # of a tensor
