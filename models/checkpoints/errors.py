"""What can be said about a file that is not the one that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, foreign, hostile or of another kind; the text says what to do."""


class ForeignFileError(CheckpointError):
    """The file is no checkpoint at all, or of a program that the pack does not read."""


class WrongKindError(CheckpointError):
    """The file is a valid one of another kind. `file`: its name. `found`: its kind."""

    def __init__(self, file: str, found: str, wanted: Sequence[str]) -> None:
        super().__init__(f"{file}: this is a file of kind '{found}'. Expected: {' or '.join(wanted)}")
        self.file, self.found = file, found


LONGEST = 80  # characters of a name or text from a file that a message repeats


def short(text: object, longest: int = LONGEST) -> str:
    """`text` cut to `longest` characters, for messages."""
    text = str(text)
    return text if len(text) <= longest else f"{text[:longest - 3]}..."


_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (0, b"Rar!", "a RAR archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first (torch files of before 2017 look so too and are not supported)"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"version https://git-lfs", "a Git LFS pointer of a few lines; fetch the real file with 'git lfs pull'"),
    (8, b"{", "a safetensors file"),
)


def describe_bytes(head: bytes) -> str:
    """Name what a file seems to be from its first 512 bytes, in words that fit after 'this is'."""
    if not head:
        return "an empty file; download it again"
    if not head.strip(b"\0"):
        return "a file of zero bytes, as an interrupted download leaves; download it again"
    for offset, magic, words in _SIGNATURES:
        if head[offset:offset + len(magic)] == magic:
            return words
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page; the download saved the page around the file, use the page's own download button"
    return "no file that this pack knows"


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """CheckpointError in place of an OSError inside the block: the file cannot be opened or read."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{Path(path).name}: it cannot be read ({error.strerror or error}); close the program "
                              "that has it open, or make it readable") from error


def check_file(path: str | Path, max_bytes: int) -> Path:
    """Return `path` as a Path if it is a file of 1..max_bytes bytes; raise CheckpointError otherwise."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path.name}: no such file in {path.parent}; put the checkpoint there or pick another")
    if not path.is_file():
        raise CheckpointError(f"{path.name}: not a file; give the checkpoint file itself, not its folder")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path.name}: this is {describe_bytes(b'')}")
    if size > max_bytes:
        raise CheckpointError(f"{path.name}: {size} bytes is more than the {max_bytes} that a checkpoint may have; "
                              "check that the right file was picked")
    return path

