"""Virtual environments for peers, whose packages would clash with ours; made once and kept in `.bench/`."""

import subprocess
import sys
from pathlib import Path

from bench.figure import Missing
from bench.processes import ROOT, environment

CACHE = ROOT / ".bench"


def virtual_environment(name: str, *packages: str) -> Path:
    """Return the `bin` of an environment that holds `packages`. Raises Missing when pip cannot install them."""
    home = CACHE / name
    # with its place: the programs in it name the interpreter by its path, and a tree may be moved
    mark, wanted = home / "installed.txt", "\n".join((str(home), *packages))
    if mark.exists() and mark.read_text() == wanted:
        return home / "bin"
    home.mkdir(parents=True, exist_ok=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(home)], [*pip, *packages]):
        try:
            subprocess.run(
                command, env=environment(), capture_output=True, text=True, timeout=600, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            told = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise Missing(f"{name} cannot be installed: {told[-1] if told else error}") from None
    mark.write_text(wanted)
    return home / "bin"
