"""How much may come out of an archive: said beforehand, counted as it comes, and refused once it is too much."""

from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import HostlerError, Invalid

KIB = 1024
MIB = 1024 * KIB


class ArchiveRefused(Invalid):
    """The archive is damaged, too large, or holds what may not be unpacked; the message says which."""

    code = "ARCHIVE_REFUSED"


class ExtractionCancelled(HostlerError):
    """Whoever asked for the files no longer wants them."""

    code = "CANCELLED"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much an archive may hold."""

    max_members: int = 100_000  # files, links and directories, those that are only implied included
    max_total_bytes: int = 4 * KIB * MIB  # unpacked, with a tar's own headers
    max_ratio: int = 200  # unpacked : packed
    ratio_from_bytes: int = 8 * MIB  # unpacked; below, the ratio is nobody's concern
    max_path_bytes: int = 1024  # of one path, or of one link's target
    max_depth: int = 200  # directories above one file


class Meter:
    """Counts what comes out, and refuses when it is too much, or too much for what went in."""

    def __init__(
        self, limits: Limits, packed_bytes: Callable[[], int], cancelled: Callable[[], bool]
    ) -> None:
        self._limits = limits
        self._packed_bytes = packed_bytes
        self._cancelled = cancelled
        self._unpacked_bytes = 0

    def tick(self) -> None:
        """Raise ExtractionCancelled once nobody wants more."""
        if self._cancelled():
            raise ExtractionCancelled("Unpacking was cancelled.")

    def add(self, size_bytes: int) -> None:
        """Count so many bytes more. Raises ArchiveRefused when these are too many, or ExtractionCancelled."""
        self.tick()
        self._unpacked_bytes += size_bytes
        limits = self._limits
        if self._unpacked_bytes > limits.max_total_bytes:
            raise ArchiveRefused(f"The archive unpacks to more than {limits.max_total_bytes:,} bytes.")
        if self._unpacked_bytes > limits.ratio_from_bytes and (
            self._unpacked_bytes > limits.max_ratio * self._packed_bytes()
        ):
            raise ArchiveRefused(f"The archive unpacks to more than {limits.max_ratio} times its size.")
