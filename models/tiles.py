"""MMFS on pictures larger than fit into memory: windows that overlap by what a pixel depends on (docs/mmfs.md E.1).

Noise is given for the whole picture, and each window takes its part of it. So a picture in windows is the picture as a
whole, up to rounding.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .mmfs import MMFSConfig

Work = Callable[..., Tensor]  # (pictures, w, *noise) -> pictures


def reach(config: MMFSConfig) -> int:
    """How far from a pixel of the result a pixel of the picture can lie that it depends on: a multiple of the stride,
    which windows that begin at multiples of it need.

    Backwards through the network, the range of a whole stride's pixels: at each resolution a 3 x 3 convolution, the
    filter and the up-convolution; the features' convolutions; then the encoder's blocks and its stem (A.2, B.1).
    """
    blocks = len(config.encoder) - 1
    first, last = 0, config.stride - 1
    for _ in range(blocks):
        first, last = -(-(first - 4) // 2), (last + 3) // 2
    first, last = first - 2, last + 2
    for _ in range(blocks):
        first, last = 2 * first - 3, 2 * last + 4
    most = max(1 - first, last + 1 - (config.stride - 1))
    return -(-most // config.stride) * config.stride


@dataclass(frozen=True)
class Window:
    """Rows or columns start:stop of a picture are computed, and of these first:last are kept."""
    start: int
    stop: int
    first: int
    last: int


def windows(side: int, most: int, config: MMFSConfig) -> list[Window]:
    """Windows of one size over a padded side, of at most `most` px (0: one of any size), and never of less than 4
    times the reach."""
    overlap, stride = reach(config), config.stride
    most = max(most, 4 * overlap) // stride * stride if most else side
    if side <= most:
        return [Window(0, side, 0, side)]
    count = -(-(side - 2 * overlap) // (most - 2 * overlap))
    size = -(-(side - 2 * overlap) // (count * stride)) * stride + 2 * overlap
    starts = [min(k * (size - 2 * overlap), side - size) for k in range(count)]
    return [Window(start, start + size, start + overlap if k else 0, start + size - overlap * (k < count - 1))
            for k, start in enumerate(starts)]


@dataclass(frozen=True)
class Tiling:
    """Windows over the rows and over the columns of a picture."""
    rows: Sequence[Window]
    columns: Sequence[Window]

    @classmethod
    def of(cls, height: int, width: int, most: int, config: MMFSConfig) -> Tiling:
        """Of padded pictures of this size, see `windows`."""
        return cls(windows(height, most, config), windows(width, most, config))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every window."""
        return self.rows[0].stop, self.columns[0].stop

    def __call__(self, work: Work, pictures: Tensor, w: Tensor, *noise: Tensor) -> Tensor:
        """work(pictures (B, 3, H, W), w, *noise), window by window. A layer's noise is the whole picture's, (B or 1, 1,
        H', W')."""
        if len(self.rows) == len(self.columns) == 1:
            return work(pictures, w, *noise)
        out: Tensor | None = None
        for row in self.rows:
            for column in self.columns:
                given = (part(x, row, column, pictures.shape[2:]) for x in (pictures, *noise))
                made = work(next(given), w, *given)
                out = pictures.new_empty(made.shape[:2] + pictures.shape[2:], dtype=made.dtype) if out is None else out
                out[:, :, row.first:row.last, column.first:column.last] = made[
                    :, :, row.first - row.start:row.last - row.start,
                    column.first - column.start:column.last - column.start]
        assert out is not None
        return out


def part(x: Tensor, row: Window, column: Window, size: Sequence[int]) -> Tensor:
    """A window of maps (B, C, H', W') that belong to pictures of this (height, width)."""
    (top, bottom), (left, right) = ((window.start * n // side, window.stop * n // side)
                                    for window, n, side in zip((row, column), x.shape[2:], size))
    return x[:, :, top:bottom, left:right].contiguous()
