"""A tree of files such as a backup meets: links, holes, odd names and modes; and a judge of copies that is not ours."""

import os
import random
import subprocess
from pathlib import Path


def make(root: Path, *, files: int, size_bytes: int, seed: int = 1) -> Path:
    """Make a tree of so many files that hold so much, half of it hard to compress, and return it."""
    chance = random.Random(seed)  # noqa: S311  the same tree each time
    root.mkdir(parents=True)
    mean = size_bytes // files
    made = []
    for number in range(files):
        folder = root / f"d{number % 23}" / f"e{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"f{number}" if number % 50 else f"odd * ? [x] \\ ü -- {number} \n'\"$(x)"
        path = folder / name
        size = min(int(chance.expovariate(1 / mean)), mean * 20)
        path.write_bytes(
            chance.randbytes(size) if number % 2 else (b"line %d\n" % number * (size // 8 + 1))[:size]
        )
        path.chmod(chance.choice([0o644, 0o600, 0o755, 0o444, 0o4755]))
        made.append(path)
    for number in range(max(4, files // 50)):
        os.link(chance.choice(made), root / f"hard{number}")
        (root / f"soft{number}").symlink_to(chance.choice(["../x", "/etc/passwd", "d1", "nowhere"]))
    with (root / "sparse").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(5 << 20)
        file.write(b"x" * 5000)
    with open(os.path.join(os.fsencode(root), b"bad\xff\xfename"), "wb") as file:
        file.write(b"odd")
    os.mkfifo(root / "pipe")
    (root / "empty").mkdir()
    os.utime(root / "empty", ns=(10**18 + 123_456_789, 10**18 + 123_456_789))
    (root / "readonly").mkdir(mode=0o755)
    (root / "readonly" / "inside").write_text("inside")
    (root / "readonly").chmod(0o555)
    return root


def differences(one: Path, other: Path) -> list[str]:
    """Return what rsync would do to make `other` like `one`: content, modes, owners, times, links, hard links."""
    argv = ["rsync", "-nacHiX", "--delete", f"{one}/", f"{other}/"]
    said = subprocess.run(argv, capture_output=True, check=True)
    return [line for line in said.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
