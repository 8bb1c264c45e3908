"""Products: what can be installed, as releases that are archives of ours or packages of a registry."""

import asyncio
import functools
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from storage import files, manifests
from storage.calls import command, script, text
from storage.errors import Conflict, Invalid, NotFound
from storage.manifests import Manifest, archived
from storage.records import genuine, opened, signed
from storage.seal import Seal
from storage.store import Store

#: What stands for the version of a registry's package that is newest when it is installed.
LATEST = "latest"

#: The names that npm and PyPI allow; nothing in them means anything to a shell or a command line.
_PACKAGE = {
    "npm": re.compile(r"(?:@[a-z0-9][a-z0-9._~-]{0,100}/)?[a-z0-9][a-z0-9._~-]{0,200}", re.ASCII),
    "pypi": re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,200}[A-Za-z0-9])?(?:\[[A-Za-z0-9,._-]{1,100}\])?", re.ASCII),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a product.

    `source` says where it comes from: {"kind": "archive", "key", "sha256", "size_bytes", "file"}, or
    {"kind": "npm" | "pypi", "package", "version"}. A registry's package without a `manifest` brings its own.
    """

    product: str
    version: str
    source: dict[str, Any]
    manifest: Manifest | None
    published_ms: int
    published_by: str

    @property
    def name(self) -> str:
        """Return the name people read."""
        return self.manifest.title if self.manifest is not None else self.product

    def record(self, seal: Seal) -> str:
        """Return the release as it lies in Redis, signed as a whole."""
        fields = {
            **{name: getattr(self, name) for name in self.__slots__},
            "manifest": None if self.manifest is None else manifests.as_json(self.manifest),
        }
        return signed(seal, "release", f"{self.product}:{self.version}", fields)


#: To check and read a release takes a millisecond or more, and lists show hundreds, which never change.
_KNOWN = 1024


@functools.lru_cache(maxsize=_KNOWN)
def _opened(seal: Seal, name: str, raw: bytes) -> Release:
    fields = opened(seal, "release", name, raw)
    manifest = fields["manifest"]
    return Release(**{**fields, "manifest": None if manifest is None else manifests.load(manifest)})


async def publish(store: Store, actor: str, file_id: str, manifest: Manifest) -> Release:
    """Keep an upload as a release of the product that its manifest names; the upload then stays as long as it does.

    The same bytes published again are the same release. Raises NotFound without the upload, or Conflict when this
    version has been published with other bytes.
    """
    file = await files.get(store, file_id)
    source = {
        "kind": "archive", "key": file.key, "sha256": file.sha256, "size_bytes": file.size_bytes, "file": file.id,
    }  # fmt: skip
    release = Release(manifest.id, manifest.version, source, manifest, store.now_ms(), actor)
    return await _keep(store, release, file=file.id)


async def packed_manifest(store: Store, file_id: str) -> Manifest:
    """Return the manifest in the archive that an upload is. Raises NotFound, Invalid."""
    file = await files.get(store, file_id)
    if not file.size_bytes:
        raise Invalid("The file is empty.", details={"fileId": "empty"})
    with tempfile.TemporaryFile() as copy:
        reading = await files.open_content(store, file, first=0, last=file.size_bytes - 1)
        try:
            async for chunk in reading:
                await asyncio.to_thread(copy.write, chunk)
        finally:
            await reading.close()
        await asyncio.to_thread(copy.seek, 0)
        return await asyncio.to_thread(archived.read, copy)


async def name(
    store: Store, actor: str, product: str, source: Mapping[str, Any], *, manifest: Manifest | None = None
) -> Release:
    """Keep a registry's package as a release of a product. `source` is {"kind", "package", "version"?}.

    A manifest given here wins over the one in the package. Raises Invalid, or Conflict when this version is kept
    with another source.
    """
    if not manifests.is_name(product):
        raise Invalid("product: not a name", details={"product": "not a name"})
    if manifest is not None and manifest.id != product:
        message = f"The manifest is of {manifest.id!r}."
        raise Invalid(f"manifest: {message}", details={"manifest": message})
    kind, package, version = (str(source.get(each) or "") for each in ("kind", "package", "version"))
    if kind not in _PACKAGE:
        raise Invalid("source.kind: must be npm or pypi", details={"source.kind": "must be npm or pypi"})
    if not _PACKAGE[kind].fullmatch(package):
        raise Invalid(
            "source.package: not a package's name", details={"source.package": "not a package's name"}
        )
    version = version or LATEST
    if not manifests.VERSION.fullmatch(version):
        raise Invalid("source.version: not a version", details={"source.version": "not a version"})
    given = {"kind": kind, "package": package, "version": version}
    return await _keep(store, Release(product, version, given, manifest, store.now_ms(), actor))


async def _keep(store: Store, release: Release, file: str = "") -> Release:
    outcome = await store.call(
        script(
            "release_keep", release.published_ms, release.published_by, release.product, release.version,
            release.record(store.seal), file, read=text,
        )
    )  # fmt: skip
    if outcome == "file":
        raise NotFound("File not found")
    if outcome == "exists":
        kept = await get(store, release.product, release.version)
        if _substance(kept) != _substance(release):
            raise Conflict(
                f"Release {release.version} of {release.product!r} has been published already; give it another version."
            )
        return kept
    return release


def _substance(release: Release) -> Any:
    """Return what makes two releases the same, wherever their bytes lie."""
    source = {name: each for name, each in release.source.items() if name not in {"key", "file"}}
    return source, release.manifest and asdict(release.manifest)


async def get(store: Store, product: str, version: str) -> Release:
    """Return one release. Raises NotFound; Forged when Redis holds one that is not ours."""
    raw = None
    if manifests.is_name(product) and manifests.VERSION.fullmatch(version):
        raw = await store.call(command("GET", f"h:release:{product}:{version}"))
    if raw is None:
        raise NotFound(f"There is no release {version} of {product!r}.")
    return _opened(store.seal, f"{product}:{version}", raw)


async def releases(store: Store, product: str) -> list[Release]:
    """Return the releases of a product, the newest version first; empty when there is no such product."""
    if not manifests.is_name(product):
        return []
    names = await store.call(command("ZRANGE", f"h:releases:{product}", 0, -1))
    if not names:
        return []
    found = [f"{product}:{text(each)}" for each in names]
    raws = await store.call(command("MGET", *(f"h:release:{each}" for each in found)))
    kept = genuine(zip(found, raws, strict=True), lambda which, raw: _opened(store.seal, which, raw))
    return sorted(kept, key=_newness, reverse=True)


def _newness(release: Release) -> tuple[int, Any, int]:
    """Return what orders releases: `latest` above all, then versions, then what is none by the time it came."""
    if release.version == LATEST:
        return 2, 0, release.published_ms
    try:
        return 1, Version(release.version), release.published_ms
    except InvalidVersion:
        return 0, 0, release.published_ms


async def newest(store: Store, product: str) -> Release:
    """Return the newest release of a product. Raises NotFound."""
    found = await releases(store, product)
    if not found:
        raise NotFound(f"There is no product {product!r}.")
    return found[0]


async def page(store: Store, *, limit: int, offset: int) -> tuple[list[list[Release]], int]:
    """Return products in the order of their ids, each as its releases, newest first, and how many there are."""
    names = sorted(text(each) for each in await store.call(command("ZRANGE", "h:products", 0, -1)))
    found = await asyncio.gather(*(releases(store, each) for each in names[offset : offset + limit]))
    return [each for each in found if each], len(names)


async def remove(store: Store, actor: str, product: str, version: str) -> None:
    """Remove a release. Raises NotFound, or Conflict while an app has it or is about to get it."""
    release = await get(store, product, version)
    file = str(release.source.get("file", ""))
    outcome, *detail = map(
        text, await store.call(script("release_remove", store.now_ms(), actor, product, version, file))
    )
    if outcome == "missing":
        raise NotFound(f"There is no release {version} of {product!r}.")
    if outcome == "installed":
        raise Conflict(f"Release {version} of {product!r} is installed as {detail[0]!r}.")
