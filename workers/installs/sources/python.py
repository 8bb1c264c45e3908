"""A Python package: a wheel and its dependencies, installed by pip into an environment of the release's own.

Wheels run nothing when they are installed. But one may depend on sources at an address of its own, which pip builds
whatever it is told; so pip installs as no app's user, or behind Landlock.
"""

import ast
import asyncio
import contextlib
import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from storage import manifests
from storage.errors import Invalid, NotFound, Unavailable
from workers.installs import toolchains
from workers.installs.programs import InstallFailed
from workers.installs.releases import remove_tree
from workers.installs.sources import (
    FETCH_TIMEOUT_S,
    NEWEST,
    RESOLVE_TIMEOUT_S,
    Complaints,
    Resolved,
    Workbench,
    last_line,
    refusal,
)
from workers.lines import IntegrityError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(\[[A-Za-z0-9,._-]+\])?")

_COMPLAINTS: Complaints = (
    (
        r"Failed to establish a new connection|NewConnectionError|Name or service not known|name resolution"
        r"|Connection refused|ConnectTimeoutError|Read timed out|ProxyError|Network is unreachable"
        r"|connection broken|Could not fetch URL",
        Unavailable,
        "the Python package registry cannot be reached from this node",
    ),
    (r"401 |403 |Unauthorized|Forbidden", InstallFailed, "the Python package registry refuses this node"),
    (
        r"No matching distribution|Could not find a version",
        NotFound,
        "the Python package registry has no such version of it, or no wheel for this machine",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies",
        InstallFailed,
        "what it depends on contradicts itself",
    ),
    (r"do not match|HASHES FROM|hash", IntegrityError, "what was fetched is not what the registry promises"),
)


@dataclass(frozen=True, slots=True)
class PythonPackage:
    """A package of the Python registry that is configured on the node; wheels only."""

    package: str
    version: str

    async def resolve(self, bench: Workbench) -> Resolved:
        """Ask the registry which version that is, and for the digest of its wheel."""
        if not _NAME.fullmatch(self.package) or len(self.package) > 200:
            raise Invalid(f"{self.package!r} is no name of a Python package.")
        wanted = self.package
        if self.version not in NEWEST:
            try:
                wanted = f"{self.package}=={Version(self.version)}"
            except InvalidVersion:
                raise Invalid(f"{self.version!r} is no version of a Python package.") from None
        beside = Path(tempfile.mkdtemp(prefix=".resolve-", dir=bench.apps_dir))
        try:
            report = beside / "report.json"
            interpreter = toolchains.python(bench.environment, shared=bench.shared)
            ended = await bench.programs.run(
                [*toolchains.pip(interpreter), "install", *_WHEELS, "--dry-run", "--ignore-installed", "--no-deps",
                 "--report", str(report), wanted],
                directory=bench.apps_dir, environment=bench.environment, timeout_s=RESOLVE_TIMEOUT_S,
            )  # fmt: skip
            if not ended.succeeded:
                raise refusal(ended, "pip", self.package, _COMPLAINTS)
            found = json.loads(report.read_bytes())["install"][0]
        finally:
            await asyncio.to_thread(remove_tree, beside)
        version = str(found["metadata"]["version"])
        digests = found["download_info"].get("archive_info", {}).get("hashes", {})
        return Resolved(
            version, f"pypi:{canonicalize_name(self.package)}=={version}#{digests.get('sha256', '')}"
        )

    async def fetch(self, resolved: Resolved, into: Path, bench: Workbench) -> None:
        """Make an environment in `.venv`, install the package there, and bring up what its manifest lies beside."""
        interpreter = toolchains.python(bench.environment, shared=bench.shared)
        lent = toolchains.lends_pip(shared=bench.shared)
        made = await bench.programs.run(
            [interpreter, "-m", "venv", *(["--without-pip"] if lent else []), str(into / ".venv")], directory=into,
            environment=bench.environment, timeout_s=RESOLVE_TIMEOUT_S,
        )  # fmt: skip
        if not made.succeeded:
            raise InstallFailed(f"A Python environment cannot be made on this node: {last_line(made.tail)}")
        own = str(into / ".venv" / "bin" / "python")
        client = toolchains.pip(own) if lent else toolchains.own_pip(own)
        words = ("--no-warn-script-location", "--no-compile", f"{self.package}=={resolved.version}")
        with bench.apart() as apart:
            environment = dict(bench.environment)
            if apart.isolation != "none":  # it reads no file of the worker's, and writes none
                own_home = {"HOME": str(into), "PIP_NO_CACHE_DIR": "1"}
                environment = {**await _configured(bench), **environment, **own_home}
            apart.prepare(into)
            ended = await apart.run(
                [*client, "install", *_WHEELS, *words], directory=into, environment=environment,
                timeout_s=FETCH_TIMEOUT_S,
            )  # fmt: skip
            apart.reclaim(into)
        if not ended.succeeded:
            raise refusal(ended, "pip", self.package, _COMPLAINTS)
        await asyncio.to_thread(_bring_up, into, self.package)


_WHEELS = ("--only-binary", ":all:", "--root-user-action", "ignore", "--progress-bar", "off", "--quiet")


async def _configured(bench: Workbench) -> dict[str, str]:
    """Return what the files of the worker's user tell pip, as variables: whoever installs apart cannot read them."""
    listed = await bench.programs.run(
        [*toolchains.pip(sys.executable), "config", "list"], directory=bench.apps_dir,
        environment=bench.environment, timeout_s=RESOLVE_TIMEOUT_S, quiet=True,
    )  # fmt: skip
    found = re.findall(r"^(?:global|install)\.([a-z-]+)=(.+)$", listed.tail, re.MULTILINE)
    told: dict[str, str] = {}
    for name, value in found:
        with contextlib.suppress(ValueError, SyntaxError):
            told[f"PIP_{name.upper().replace('-', '_')}"] = str(ast.literal_eval(value))
    return told


def _bring_up(root: Path, package: str) -> None:
    """Copy the folder of the distribution that holds the manifest to the release's root, where its paths begin."""
    for record in (root / ".venv").glob("lib/python*/site-packages/*.dist-info/RECORD"):
        name = record.parent.name.partition("-")[0]
        if canonicalize_name(name) != canonicalize_name(_bare(package)):
            continue
        packages = record.parent.parent
        for line in record.read_text(errors="replace").splitlines():
            file = line.rsplit(",", 2)[0].strip('"')
            if file.rpartition("/")[2] != manifests.OWN:
                continue
            found = (packages / file).resolve()
            if not found.is_relative_to(root.resolve()) or not found.is_file():
                continue
            if found.parent.parent == packages.resolve() or packages.resolve() in found.parent.parents:
                ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(found.parent, root, dirs_exist_ok=True, symlinks=True, ignore=ignore)
            else:
                shutil.copyfile(found, root / manifests.OWN)
            return


def _bare(package: str) -> str:
    """Return a package's name without its extras."""
    return package.partition("[")[0]
