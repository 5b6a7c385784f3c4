"""Hostile pickles for the self-check: code that a plain `pickle.load` would run, and floods that take memory or time.

A fragment pushes one value and touches no memo, so it fits anywhere in a pickle of protocol 2.
"""
from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

Fragment = Callable[[Path], bytes]
FLOOD = 20_000


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def touching(canary: Path) -> bytes:
    """A program that creates the canary, as an opcode."""
    return text(f"open({str(canary)!r}, 'w').close()")


def command(canary: Path) -> bytes:
    """A shell command that creates the canary, as an opcode."""
    return text(f'echo x> "{canary}"')


CODE: dict[str, Fragment] = {
    "os.system by REDUCE": lambda c: b"cos\nsystem\n" + command(c) + b"\x85R",
    "exec by REDUCE": lambda c: b"cbuiltins\nexec\n" + touching(c) + b"\x85R",
    "eval by REDUCE": lambda c: b"cbuiltins\neval\n" + touching(c) + b"\x85R",
    "open by REDUCE": lambda c: b"cbuiltins\nopen\n" + text(str(c)) + text("w") + b"\x86R",
    "exec by INST": lambda c: b"(" + touching(c) + b"ibuiltins\nexec\n",
    "exec by OBJ": lambda c: b"(cbuiltins\nexec\n" + touching(c) + b"o",
    "exec by NEWOBJ": lambda c: b"cbuiltins\ntuple\ncbuiltins\nmap\ncbuiltins\nexec\n" + touching(c)
                                + b"\x85\x86R\x85\x81",
    "exec by NEWOBJ_EX": lambda c: b"cbuiltins\ntuple\ncbuiltins\nmap\ncbuiltins\nexec\n" + touching(c)
                                   + b"\x85\x86R\x85}\x92",
    "exec by STACK_GLOBAL": lambda c: text("builtins") + text("exec") + b"\x93" + touching(c) + b"\x85R",
    "exec by getattr": lambda c: b"cbuiltins\ngetattr\nc__builtin__\n__import__\n" + text("builtins") + b"\x85R"
                                 + text("exec") + b"\x86R" + touching(c) + b"\x85R",
    "exec by a partial": lambda c: b"cfunctools\npartial\ncbuiltins\nexec\n" + touching(c) + b"\x86R)R",
    "exec in a set": lambda c: b"cbuiltins\nset\n](cbuiltins\nexec\n" + touching(c) + b"oa\x85R",
    "exec as a key": lambda c: b"}cbuiltins\nexec\n" + touching(c) + b"\x85RNs",
    "exec inside a storage": lambda c: b"ctorch.storage\n_load_from_bytes\n"
                                       + _bytes(b"\x80\x02cbuiltins\nexec\n" + touching(c) + b"\x85R.") + b"\x85R",
}


def _bytes(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def _long(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


FLOODS: dict[str, bytes] = {
    "steps": b"N0" * 3_000_000 + b"N",
    "lists in lists": b"]" * FLOOD + b"a" * (FLOOD - 1),
    "tuples in tuples": b"N" + b"\x85" * 1_000_000,
    "a tuple that doubles": b")" + b"2\x86" * 60,
    "a doubling tuple as a key": b"})" + b"2\x86" * 60 + b"Ns",
    "keys of one hash": b"}(" + b"".join(_long(k * (2 ** 61 - 1)) + b"N" for k in range(FLOOD)) + b"u",
    "numbers as keys": b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"N" for k in range(2 * FLOOD)) + b"u",
    "a memo of 4e9": b"Nr\xff\xff\xff\xff",
    "a memo of many": b"N" + b"".join(b"r" + struct.pack("<I", k * 7919) for k in range(FLOOD)),
    "a text of 1 TB": b"\x8d" + struct.pack("<Q", 2 ** 40) + b"x",
    "bytes of 1 TB": b"\x8e" + struct.pack("<Q", 2 ** 40) + b"x",
    "a bytearray of 2^62": b"\x96" + struct.pack("<Q", 2 ** 62) + b"x",
    "a frame of 2^62": b"\x95" + struct.pack("<Q", 2 ** 62) + b"N",
    "a number of 10^7 digits": b"I" + b"9" * 10_000_000 + b"\n",
    "a number of 10 MB": b"\x8b" + struct.pack("<i", 10_000_000) + b"\x7f" * 10_000_000,
    "a number of 10 MB as a key": b"}\x8b" + struct.pack("<i", 10_000_000) + b"\x7f" * 10_000_000 + b"Ns",
    "copies of a list": b"(" + b"N" * 10_000 + b"lq\x00" + b"ctorch\nSize\nh\x00\x85R0" * 10_000 + b"h\x00",
    "copies of a text": text("x" * 1_000_000) + b"q\x000" + b"]" + b"(" + b"h\x00" * 100_000 + b"e",
    "a nested storage in itself": b"ctorch.storage\n_load_from_bytes\n" + _bytes(
        b"\x80\x02ctorch.storage\n_load_from_bytes\n" + _bytes(b"\x80\x02N.") + b"\x85R.") + b"\x85R",
    "marks": b"(" * 1_000_000 + b"N",
    "an extension": b"\x82\x01",
    "a persistent id of nonsense": text("storage") + b"Q",
}


# --- containers -------------------------------------------------------------------------------------------------------
def plain(fragment: bytes) -> bytes:
    return b"\x80\x02" + fragment + b"."


def as_zip(path: Path, fragment: bytes) -> None:
    """A file of torch.save whose pickle is the fragment."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", plain(fragment))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


def as_legacy(fragment: bytes) -> bytes:
    """A file of the older torch.save whose object is the fragment."""
    magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
    info = b"\x80\x02}(" + text("protocol_version") + b"M\xe9\x03" + text("little_endian") + b"\x88" + text(
        "type_sizes") + b"}(" + text("short") + b"K\x02" + text("int") + b"K\x04" + text("long") + b"K\x04uu."
    return magic + b"\x80\x02M\xe9\x03." + info + plain(fragment) + plain(b"]")


def beside_weights(source: Path, form: str, fragment: bytes, target: Path) -> None:
    """A whole checkpoint of a form whose outermost dict has one entry more: the fragment."""
    def more(data: bytes) -> bytes:
        return data[:-1] + text("callbacks") + fragment + b"s."
    if form == "zip":
        with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
            for info in archive.infolist():
                data = archive.read(info)
                out.writestr(info.filename, more(data) if info.filename.endswith("/data.pkl") else data)
        return
    data = source.read_bytes()
    if form == "pickle":
        target.write_bytes(more(data))
        return
    file, ends = io.BytesIO(data), []
    for _ in range(4):  # magic number, version, sizes, object
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    target.write_bytes(data[:ends[2]] + more(data[ends[2]:ends[3]]) + data[ends[3]:])
