"""Building a release: resolve, fetch, verify, unpack, read the manifest, run what the package wants to run.

Every step may be cut off at any point. What is not whole is thrown away and built again; what is whole is not touched.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage import manifests, progress
from storage.errors import HostlerError, Invalid, NotFound
from storage.manifests import Install, Manifest
from storage.objects import Objects
from workers.installs import toolchains
from workers.installs.programs import (
    Ended,
    InstallFailed,
    Programs,
    client_environment,
    package_environment,
)
from workers.installs.releases import Note, Releases, remove_tree
from workers.installs.sources import Source, Workbench, last_line, npm
from workers.installs.sources.archive import Archive
from workers.installs.sources.npm import NpmPackage
from workers.installs.sources.python import PythonPackage
from workers.installs.toolchains import Node
from workers.supervisor import users
from workers.threads import to_the_end

#: The folder inside a release, gone when it is whole, that an install step has for HOME and temporary files.
SCRATCH = ".install"
#: A registry's package that brings no install step of its own may take so long with its scripts.
SCRIPTS_TIMEOUT_S = 900.0
#: Where in the progress of an install each step begins, in percent.
PROGRESS = {"resolve": 5, "fetch": 10, "manifest": 45, "script": 50, "whole": 85, "start": 90}


class StepFailed(InstallFailed):
    """What the package wanted to run did not end well; with its exit code where it has one."""

    code = "INSTALL_STEP_FAILED"

    def __init__(self, message: str, exit_code: int | None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where releases are built: the node's directories and ways."""

    objects: Objects
    apps_dir: Path
    isolation: str
    limit_bytes: int
    environ: Mapping[str, str]
    announce: Callable[[str], Awaitable[None]]
    step: Callable[[str], None] = lambda _: None  # told of each step as it begins; tests cut off there


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """On whose behalf: the job, and what it hears and says."""

    id: str
    app: str
    hear: Callable[[str, bytes], None]
    tell: Callable[[int, str], Coroutine[Any, Any, None]]
    cancelled: Callable[[], bool]


def source_of(release: Mapping[str, Any], objects: Objects, limit_bytes: int) -> Source:
    """Return what a release is made from. Raises Invalid for a source that is none."""
    source = release["source"]
    kind, version = source["kind"], str(source.get("version") or release["version"])
    if kind == "archive":
        return Archive(objects, source["key"], source["sha256"], str(release["version"]), limit_bytes)
    if kind == "npm":
        return NpmPackage(source["package"], version)
    if kind == "pypi":
        return PythonPackage(source["package"], version)
    raise Invalid(f"A release cannot come from {kind!r}.")


class Building:
    """Builds one release of one app."""

    def __init__(self, site: Site, job: Job, releases: Releases, uid: int | None) -> None:
        self._site, self._job, self._releases, self._uid = site, job, releases, uid
        self._clients = client_environment(site.environ)

    async def build(self, release: Mapping[str, Any], given: Manifest | None) -> tuple[str, Note]:
        """Build what `release` ({product, version, source}) says, unless it is there; answers its name and note.

        A manifest that is `given` wins over the one in the package. Raises HostlerError and OSError; what was begun is
        then gone.
        """
        if release["source"]["kind"] == "inline":
            return self._inline(given)
        with Programs("none", self._job.id, hear=self._job.hear) as clients:
            await asyncio.to_thread(clients.sweep)  # what an earlier attempt left may still write
            await asyncio.to_thread(self._releases.sweep)
            bench = self._bench(clients)
            await self._step("resolve", f"Looking for {release['product']} {release['version']}.")
            source = source_of(release, self._site.objects, self._site.limit_bytes)
            resolved = await source.resolve(bench)
            name = self._releases.name_for(resolved.version, resolved.origin)
            note = self._releases.note(name)
            if note is not None:
                return name, note
            try:
                return name, await self._make(name, source, release, given, bench, resolved)
            except BaseException:
                await to_the_end(self._releases.discard, name)
                raise

    async def _make(  # noqa: PLR0917  the words of one release, in order
        self,
        name: str,
        source: Source,
        release: Mapping[str, Any],
        given: Manifest | None,
        bench: Workbench,
        resolved: Any,
    ) -> Note:
        into = self._releases.begin(name)
        await self._step("fetch", f"Fetching {release['product']} {resolved.version}.")
        await source.fetch(resolved, into, bench)
        await self._step("manifest", "Reading the manifest.")
        manifest = given or _manifest_in(into, release)
        if manifest.id != release["product"]:
            raise Invalid(
                f"The manifest in the package is of {manifest.id!r}, not of {release['product']!r}."
            )
        scripts: list[tuple[list[str], float]] = []
        if release["source"]["kind"] == "npm":
            node = await bench.node()
            scripts = [([*node.client(), *words], SCRIPTS_TIMEOUT_S) for words in npm.scripts(into)]
        if manifest.install is not None:
            scripts.append((_argv(manifest.install), manifest.install.timeout_s))
        if scripts:
            await self._step("script", "Running the install step.")
            network = manifest.install is None or manifest.install.network
            await self._run_apart(into, scripts, network=network)
        await self._step("whole", "Finishing.")
        await asyncio.to_thread(users.give, into, self._uid)
        note = Note(resolved.version, resolved.origin, manifests.as_json(manifest))
        self._releases.finish(name, note)
        return note

    def _inline(self, given: Manifest | None) -> tuple[str, Note]:
        """Make the empty release of an app that has a manifest and nothing else."""
        if given is None:
            raise Invalid("An app without a release needs its manifest.")
        data = manifests.as_json(given)
        name = self._releases.name_for(given.version, f"inline:{_digest(data)}")
        note = self._releases.note(name)
        if note is None:
            into = self._releases.begin(name)
            users.give(into, self._uid)
            note = Note(given.version, f"inline:{_digest(data)}", data)
            self._releases.finish(name, note)
        return name, note

    def _bench(self, clients: Programs) -> Workbench:
        shared = self._site.isolation == "uid"

        async def node() -> Node:
            try:
                return toolchains.find_node(self._site.apps_dir, self._clients, shared=shared)
            except toolchains.NodeMissing:
                await self._site.announce(
                    f"This node has no Node.js; {self._job.app!r} needs it: fetching it."
                )
                found = await toolchains.bring_node(self._site.apps_dir, clients, self._clients)
                await self._site.announce("Node.js has been brought to this node.")
                return found

        def apart() -> Programs:
            return Programs(self._site.isolation, self._job.id, hear=self._job.hear)

        return Workbench(
            clients, self._clients, self._site.apps_dir, shared, self._job.cancelled, node, apart
        )

    async def _step(self, name: str, message: str) -> None:
        self._site.step(name)
        await self._job.tell(PROGRESS[name], message)

    async def _run_apart(self, root: Path, scripts: list[tuple[list[str], float]], *, network: bool) -> None:
        """Run what the package brings, as a user of no app or behind Landlock, in its own directory alone."""
        loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        told = PROGRESS["script"]

        def hear(channel: str, data: bytes) -> None:
            nonlocal told
            self._job.hear(channel, data)
            percent = progress.last(data)
            done = PROGRESS["script"] + (percent or 0) * (PROGRESS["whole"] - PROGRESS["script"]) // 100
            if done > told:  # each step once, however often a package says so
                told = done
                task = loop.create_task(self._job.tell(done, "Running the install step."))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        scratch = root / SCRATCH
        scratch.mkdir()
        inherited = self._site.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        environment = {
            **package_environment(self._site.environ),
            "PATH": toolchains.search_path(root, self._site.apps_dir, inherited),
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "HOSTLER_APP": self._job.app,
        }
        readable = [self._site.apps_dir / toolchains.FOLDER]
        try:
            with Programs(self._site.isolation, self._job.id, hear=hear, readable=readable) as programs:
                programs.prepare(root)
                prefix = [] if network else await self._without_network(programs, root, environment)
                for argv, timeout_s in scripts:
                    ended = await programs.run(
                        [*prefix, *argv], directory=root, environment=environment, timeout_s=timeout_s
                    )
                    if not ended.succeeded:
                        raise StepFailed(_why_step_failed(ended), ended.outcome.exit_code)
                programs.reclaim(root)
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(remove_tree, scratch)

    async def _without_network(
        self, programs: Programs, root: Path, environment: Mapping[str, str]
    ) -> list[str]:
        """Return the words that keep a program from the network, where this kernel lets anybody do that."""
        prefix = ["unshare", "--user", "--map-current-user", "--net", "--"]
        if sys.platform == "linux" and shutil.which("unshare") is not None:
            with contextlib.suppress(HostlerError):
                tried = await programs.run(
                    [*prefix, "true"], directory=root, environment=environment, timeout_s=10, quiet=True
                )
                if tried.succeeded:
                    return prefix
        self._job.hear("e", b"[hostler] this node cannot keep the install step from the network\n")
        return []


def _manifest_in(root: Path, release: Mapping[str, Any]) -> Manifest:
    try:
        return manifests.read_directory(root)
    except NotFound:
        raise InstallFailed(
            f"The package of {release['product']!r} has no {manifests.OWN} and no {manifests.SQUAREBERG}, so it does "
            f"not say what to run. Publish the release with a manifest of yours, or add one to the package."
        ) from None


def _argv(install: Install) -> list[str]:
    if isinstance(install.command, str):
        return ["/bin/sh", "-c", install.command]
    return list(install.command)


def _why_step_failed(ended: Ended) -> str:
    return f"The install step {ended.how}: {last_line(ended.tail)}"


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def sentence_of(error: HostlerError | OSError) -> str:
    """Return why an install failed, for people."""
    if isinstance(error, HostlerError):
        return str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "The disk of this node is full."
    return f"{error.strerror or error}: {error.filename or ''}".rstrip(": ") + "."
