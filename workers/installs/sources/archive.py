"""An archive of ours: fetched from the object store, held against its digest, unpacked as a stranger's."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from storage.objects import Objects
from workers.installs.releases import remove_tree
from workers.installs.sources import Resolved, Workbench, unpack
from workers.lines import IntegrityError
from workers.threads import until_told


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive in the object store, known by its digest."""

    objects: Objects
    key: str
    sha256: str
    version: str
    limit_bytes: int

    async def resolve(self, bench: Workbench) -> Resolved:
        """Say what would be installed."""
        del bench
        return Resolved(self.version, f"sha256:{self.sha256}")

    async def fetch(self, resolved: Resolved, into: Path, bench: Workbench) -> None:
        """Download, compare the digest, unpack under the rules for archives of strangers."""
        del resolved
        beside = Path(tempfile.mkdtemp(prefix=".fetch-", dir=into.parent))
        try:
            packed = beside / "archive"
            fetched = await until_told(
                lambda told: self.objects.get_file(
                    self.key,
                    packed,
                    limit_bytes=self.limit_bytes,
                    cancelled=lambda: told() or bench.cancelled(),
                )
            )
            if fetched.sha256 != self.sha256:
                raise IntegrityError("The release's archive is not what was published: its sha256 differs.")
            await unpack(packed, into, bench)
        finally:
            await asyncio.to_thread(remove_tree, beside)
