"""A slug as a buildpack makes it: the tree, and an environment that holds what the lock names and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from settings import process_environment

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "workers", "scheduler", "storage", "integrations", "cli")


def uv(*words: str, within_s: float = 300) -> "subprocess.CompletedProcess[str]":
    """Run uv, the one of this environment, to its end."""
    program = str(Path(sys.executable).parent / "uv")
    return subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=within_s, check=False, cwd=ROOT
    )


def make_slug(directory: Path) -> Path:
    """Copy the tree and install the lock, hashes checked; answers where the slug's programs are."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, directory / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.py", "Procfile", "requirements.txt", ".python-version"):
        shutil.copy(ROOT / name, directory / name)
    environment = directory / ".heroku"
    for words in (
        ("venv", "--quiet", "--python", sys.executable, str(environment)),
        ("pip", "install", "--quiet", "--require-hashes", "--no-deps", "--python", str(environment), "-r",
         str(directory / "requirements.txt")),
    ):  # fmt: skip
        ended = uv(*words)
        assert ended.returncode == 0, ended.stderr
    return environment / "bin"


def environ_of(programs: Path, **values: str) -> dict[str, str]:
    """Return the environment of the slug's processes: a bare one, with `values`."""
    kept = ("LANG", "TMPDIR", "SSL_CERT_FILE")
    own = process_environment()
    return {
        "PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HOME": str(programs.parents[1]),
        **{name: own[name] for name in kept if name in own},
        **values,
    }
