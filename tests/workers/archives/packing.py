"""Archives to unpack, whole and handmade, and what came of them."""

import gzip
import io
import os
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import zstandard

MIB = 1024 * 1024
END = bytes(1024)
Header = tuple[tarfile.TarInfo, bytes]


def header(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, **fields: object) -> Header:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def tar(*members: Header, format: int = tarfile.GNU_FORMAT) -> bytes:
    out = b""
    for member, data in members:
        out += member.tobuf(format, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)
    return out + END


def pax(records: dict[str, str], member: Header, *, kind: bytes = tarfile.XHDTYPE) -> tuple[Header, Header]:
    data = b""
    for key, value in records.items():
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        data += str(length).encode() + body
    return header("pax", data, kind=kind), member


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def entry(name: str, mode: int, flag_bits: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    info.flag_bits = flag_bits
    return info


def tree(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


GOOD_TREE = {"a": None, "a/run.sh": b"#!/bin/sh\n", "a/b": None, "a/b/data": b"x" * 300_000, "empty": None}


def good_tar() -> bytes:
    return tar(
        header("a/", kind=tarfile.DIRTYPE),
        header("./a/run.sh", b"#!/bin/sh\n", mode=0o755),
        header("a/b/data", b"x" * 300_000, mode=0o644),
        header("empty/", kind=tarfile.DIRTYPE),
    )


def good_zip() -> bytes:
    return zipped(
        (entry("a/run.sh", stat.S_IFREG | 0o755), b"#!/bin/sh\n"),
        ("a/b/data", b"x" * 300_000),
        ("empty/", b""),
    )


GOOD = {
    "zip": good_zip,
    "tar": good_tar,
    "tar.gz": lambda: gzip.compress(good_tar(), 1),
    "tar.zst": lambda: zstandard.compress(good_tar()),
}


def overlapping_zip(count: int, kernel: bytes) -> bytes:
    """Many entries of the table of contents that share one local entry."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(kernel) + packer.flush()
    sizes = struct.pack("<III", zlib.crc32(kernel), len(packed), len(kernel))
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", 4, 0)
    table = b"".join(
        b"PK\1\2"
        + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33)
        + sizes
        + struct.pack("<HHHHHII", 4, 0, 0, 0, 0, 0, 0)
        + b"%04d" % at
        for at in range(count)
    )
    body = local + b"0000" + packed
    return body + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(table), len(body), 0)
