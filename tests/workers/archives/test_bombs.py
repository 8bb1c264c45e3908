"""Archives that grow are refused soon, and in little memory."""

import gzip
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import zstandard
from packing import END, MIB, good_tar, header, overlapping_zip, tar


@cache
def deflated_zeros(size_bytes: int, wbits: int) -> bytes:
    packer = zlib.compressobj(9, wbits=wbits)
    piece = bytes(MIB)
    return b"".join(packer.compress(piece) for _ in range(size_bytes // MIB)) + packer.flush()


def zip_bomb() -> bytes:
    """One entry that honestly claims 100 MiB."""
    packed = deflated_zeros(100 * MIB, -15)
    sizes = struct.pack("<III", 0, len(packed), 100 * MIB)
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", 1, 0) + b"a"
    table = (
        b"PK\1\2"
        + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33)
        + sizes
        + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0)
        + b"a"
    )
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(table), len(local) + len(packed), 0)
    return local + packed + table + end


def zeros_tar(kind: bytes = tarfile.REGTYPE) -> bytes:
    return tar(header("zeros", kind=kind, size=100 * MIB))[:512]


def crowded_zip(count: int) -> bytes:
    table = b"".join(
        b"PK\1\2"
        + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
        + b"%07d" % at
        for at in range(count)
    )
    # the trailer says 1 entry
    return b"PK\3\4" + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(table), 4, 0)


def crowded_tar(count: int) -> bytes:
    """Empty files, with random bytes where nobody looks, so that the crowd does not pack well."""
    blocks = []
    template = tar(header("0000000"))[:512]
    base = sum(template) - sum(template[:7]) - sum(template[148:156]) + 8 * 32
    for at in range(count):
        name = b"%07d" % at
        noise = os.urandom(12)
        total = base + sum(name) + sum(noise)
        blocks.append(name + template[7:148] + b"%06o\0 " % total + template[156:500] + noise)
    return b"".join(blocks) + END


def zstd_zeros() -> bytes:
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    pieces = [packer.compress(zeros_tar())]
    pieces += [packer.compress(bytes(MIB)) for _ in range(100)]
    return b"".join(pieces) + packer.flush()


BOMBS: dict[str, Callable[[], bytes]] = {
    "a zip of zeros": zip_bomb,
    "a tar.gz of zeros": lambda: gzip.compress(zeros_tar()) + deflated_zeros(100 * MIB, 31),
    "a tar.zst of zeros": zstd_zeros,
    "a pax header of 100 MiB": lambda: (
        gzip.compress(zeros_tar(tarfile.XHDTYPE)) + deflated_zeros(100 * MIB, 31)
    ),
    "a gzip padded with zeros": lambda: gzip.compress(good_tar()) + deflated_zeros(100 * MIB, 31),
    "a zip of many entries": lambda: crowded_zip(150_000),
    "a zip of a million entries": lambda: crowded_zip(1_000_000),
    "a tar of many entries": lambda: crowded_tar(150_000),
    "a tar.gz of many entries": lambda: gzip.compress(crowded_tar(150_000), 1),
    "a gzip of a million empty members": lambda: gzip.compress(zeros_tar()) + gzip.compress(b"") * 1_000_000,
    "a gzip whose header never ends": lambda: (
        gzip.compress(zeros_tar()) + b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 100 * MIB
    ),
    "hard links to one file": lambda: gzip.compress(
        tar(
            header("one", bytes(2 * MIB)),
            *(header(f"{at}", kind=tarfile.LNKTYPE, linkname="one") for at in range(1000)),
        )
    ),
    "overlapping entries": lambda: overlapping_zip(5000, bytes(MIB)),
    "headers that extend nothing": lambda: (
        tar(header("ok"), header("x", b"", kind=tarfile.XHDTYPE))[:1024]
        + tar(header("x", b"", kind=tarfile.XHDTYPE))[:512] * 600_000
    ),
}

JUDGE = """
import sys, time
from pathlib import Path
from workers.archives import ArchiveRefused, extract

def peak_bytes():  # of this process alone: getrusage would count the parent's, from before exec
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

before, began = peak_bytes(), time.process_time()
try:
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
except ArchiveRefused as error:
    print(time.process_time() - began, peak_bytes() - before, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_soon_and_in_little_memory(bomb: str, tmp_path: Path) -> None:
    archive, into = tmp_path / "bomb", tmp_path / "to"
    archive.write_bytes(BOMBS[bomb]())
    judged = subprocess.run(
        [sys.executable, "-c", JUDGE, str(archive), str(into)], capture_output=True, text=True, check=True
    )
    cpu_s, grown_bytes, _ = judged.stdout.split(" ", 2)
    assert float(cpu_s) < 2, judged.stdout
    assert int(grown_bytes) < 100 * MIB, judged.stdout
    assert not into.exists()
    archive.unlink()
