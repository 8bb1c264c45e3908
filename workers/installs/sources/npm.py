"""An npm package: fetched by npm, unpacked by us, and what it depends on installed beside it by npm."""

import asyncio
import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import Invalid, NotFound, Unavailable
from workers.installs import toolchains
from workers.installs.programs import Ended, InstallFailed
from workers.installs.releases import remove_tree
from workers.installs.sources import (
    FETCH_TIMEOUT_S,
    NEWEST,
    RESOLVE_TIMEOUT_S,
    Complaints,
    Resolved,
    Workbench,
    refusal,
    unpack,
)
from workers.installs.toolchains import Node
from workers.lines import IntegrityError

#: https://docs.npmjs.com/cli/configuring-npm/package-json#name, and what a file name may hold besides.
_NAME = re.compile(r"(@[a-z0-9~-][a-z0-9._~-]*/)?[A-Za-z0-9~-][A-Za-z0-9._~-]*")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]*")

_COMPLAINTS: Complaints = (
    (
        r"E404|404 Not Found|ETARGET|No matching version",
        NotFound,
        "the npm registry has no such package or version",
    ),
    (
        r"ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|ENETUNREACH|EHOSTUNREACH|network|socket hang up"
        r"|ERR_SOCKET",
        Unavailable,
        "the npm registry cannot be reached from this node",
    ),
    (r"E401|E403|ENEEDAUTH", InstallFailed, "the npm registry refuses this node"),
    (r"EINTEGRITY", IntegrityError, "what was fetched is not what the registry promises"),
    (r"ERESOLVE", InstallFailed, "what it depends on contradicts itself"),
    (r"EBADENGINE|Unsupported engine", InstallFailed, "it does not run with this node's Node.js"),
)


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """A package of the npm registry that is configured on the node."""

    package: str
    version: str

    async def resolve(self, bench: Workbench) -> Resolved:
        """Ask the registry which version that is, and for the digest of its archive."""
        if not _NAME.fullmatch(self.package) or len(self.package) > 214:
            raise Invalid(f"{self.package!r} is no name of an npm package.")
        wanted = "latest" if self.version in NEWEST else self.version
        if not _VERSION.fullmatch(wanted):
            raise Invalid(f"{self.version!r} is no version of an npm package.")
        ended = await self._npm(
            bench, "view", f"{self.package}@{wanted}", "version", "dist.integrity", "dist.shasum", "--json",
            directory=bench.apps_dir, timeout_s=RESOLVE_TIMEOUT_S, quiet=True,
        )  # fmt: skip
        try:
            said = json.loads(_json_of(ended.tail))
            said = said[-1] if isinstance(said, list) else said
            version, digest = str(said["version"]), said.get("dist.integrity") or said.get("dist.shasum")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise NotFound(f"The npm registry knows no version {wanted!r} of {self.package!r}.") from None
        return Resolved(version, f"npm:{self.package}@{version}#{digest}")

    async def fetch(self, resolved: Resolved, into: Path, bench: Workbench) -> None:
        """Fetch the package, which npm compares with its digest, and what it depends on."""
        beside = Path(tempfile.mkdtemp(prefix=".fetch-", dir=into.parent))
        try:
            await self._npm(
                bench, "pack", f"{self.package}@{resolved.version}", "--pack-destination", str(beside),
                directory=beside, timeout_s=FETCH_TIMEOUT_S,
            )  # fmt: skip
            packed = next(beside.glob("*.tgz"), None)
            if packed is None:
                raise InstallFailed(f"npm fetched nothing for {self.package}@{resolved.version}.")
            await asyncio.to_thread(_compare, packed, resolved.origin.partition("#")[2])
            await unpack(packed, into, bench)
        finally:
            await asyncio.to_thread(remove_tree, beside)
        remove_tree(into / ".npmrc")  # it could name another registry, and programs to run
        about = _package_json(into)
        if (
            about.pop("devDependencies", None) is not None
        ):  # for whoever makes the package, not for who runs it
            (into / "package.json").write_text(json.dumps(about, indent=2))
        if any(about.get(word) for word in ("dependencies", "optionalDependencies", "peerDependencies")):
            words = ("--omit=dev", "--workspaces=false")
            await self._npm(
                bench, "install", "--package-lock-only", *words, directory=into, timeout_s=FETCH_TIMEOUT_S, quiet=True
            )  # fmt: skip
            _refuse_places(into, self.package)
            await self._npm(bench, "ci", *words, directory=into, timeout_s=FETCH_TIMEOUT_S)

    async def _npm(
        self, bench: Workbench, *words: str, directory: Path, timeout_s: float, quiet: bool = False
    ) -> Ended:
        node = await bench.node()
        ended = await bench.programs.run(
            [*node.client(), *words], directory=directory, timeout_s=timeout_s, quiet=quiet,
            environment=environment_of(bench.environment, bench.apps_dir, node),
        )  # fmt: skip
        if not ended.succeeded:
            raise refusal(ended, "npm", self.package, _COMPLAINTS)
        return ended


def environment_of(environment: Mapping[str, str], apps_dir: Path, node: Node) -> dict[str, str]:
    """Return an environment in which npm runs no script, asks nothing, and fetches nothing but packages."""
    path = environment.get("PATH", "")
    return {
        "npm_config_cache": str(apps_dir / toolchains.FOLDER / "npm-cache"),
        **environment,
        "PATH": f"{node.directory}:{path}",
        "npm_config_ignore_scripts": "true",
        "npm_config_git": "false",  # the program: packages from git repositories are not fetched
        "npm_config_omit_lockfile_registry_resolved": "false",
        "npm_config_audit": "false",
        "npm_config_fund": "false",
        "npm_config_update_notifier": "false",
        "npm_config_fetch_retries": "1",
        "npm_config_fetch_retry_mintimeout": "500",
        "npm_config_loglevel": "error",
        "npm_config_progress": "false",
        "npm_config_yes": "false",
        "npm_config_logs_max": "0",
    }


def scripts(root: Path) -> list[list[str]]:
    """Return the words for npm by which a package and what it depends on do what they want to be done at install."""
    commands: list[list[str]] = []
    try:
        locked = json.loads((root / "node_modules" / ".package-lock.json").read_bytes())
        if any(each.get("hasInstallScript") for each in locked.get("packages", {}).values()):
            commands.append(["rebuild", "--foreground-scripts"])
    except (OSError, ValueError, AttributeError):
        pass
    scripts = _package_json(root).get("scripts")
    own = [
        name
        for name in ("preinstall", "install", "postinstall")
        if isinstance(scripts, dict) and scripts.get(name)
    ]
    return commands + [["run", name] for name in own]


def _package_json(root: Path) -> dict[str, Any]:
    try:
        about = json.loads((root / "package.json").read_bytes())
    except (OSError, ValueError):
        raise InstallFailed("The package has no package.json that can be read.") from None
    if not isinstance(about, dict):
        raise InstallFailed("The package's package.json is no object.")
    return about


def _refuse_places(root: Path, package: str) -> None:
    """Raise InstallFailed when anything that would be installed comes from this machine: npm would read it as us."""
    for file in ("npm-shrinkwrap.json", "package-lock.json"):
        try:
            locked = json.loads((root / file).read_bytes())["packages"].items()
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        for place, each in locked:
            remote = str(each.get("resolved", "")).startswith(("https://", "http://")) and not each.get(
                "link"
            )
            if place and not remote and not each.get("inBundle"):
                name = place.rpartition("node_modules/")[2]
                raise InstallFailed(
                    f"{package!r} cannot be installed: {name!r}, which it depends on, is no package of a registry."
                )
        return
    raise InstallFailed(f"{package!r} cannot be installed: npm did not say what it depends on.")


def _compare(packed: Path, digest: str) -> None:
    """Hold an archive against what the registry said of it (https://www.w3.org/TR/SRI/, or a SHA-1 in hex)."""
    data = packed.read_bytes()
    known = False
    for word in digest.split():
        algorithm, _, value = word.partition("-")
        if algorithm in {"sha256", "sha384", "sha512"}:
            known = True
            if base64.b64encode(hashlib.new(algorithm, data).digest()).decode() == value:
                return
    if not known and re.fullmatch("[0-9a-f]{40}", digest):
        known = True
        if hashlib.sha1(data, usedforsecurity=False).hexdigest() == digest:
            return
    why = "its digest differs from the registry's" if known else "the registry gives no digest of it"
    raise IntegrityError(f"The package that npm fetched cannot be trusted: {why}.")


def _json_of(tail: str) -> str:
    """Return the JSON in what npm printed, which may have warned before or after."""
    start = min((at for at in (tail.find("{"), tail.find("[")) if at >= 0), default=0)
    return tail[start : max(tail.rfind("}"), tail.rfind("]")) + 1]
