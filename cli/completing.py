"""What the shell offers after Tab: names that only the server, or the file of saved servers, knows."""

from collections.abc import Callable

from cli.failures import Failed

#: Who presses Tab does not wait longer for a server, in seconds.
PATIENCE_S = 1.5


def context_names() -> list[str]:
    """Return the names of the saved servers."""
    from cli.contexts import Contexts  # noqa: PLC0415  nothing else than a Tab needs it
    from settings import process_environment  # noqa: PLC0415  as above

    try:
        return sorted(Contexts(process_environment()).load()["contexts"])
    except Failed:
        return []


def _asking(path: str, key: str, name: str, **query: int) -> Callable[[], list[str]]:
    def names() -> list[str]:
        from cli.client import Client  # noqa: PLC0415  nothing else than a Tab needs it
        from cli.options import connect  # noqa: PLC0415  as above

        try:
            with (
                connect(None, None) as known,
                Client(known.server, known.contexts, patience_s=PATIENCE_S) as client,
            ):
                return [str(each[name]) for each in client.get(path, **query)[key]]
        except (Failed, OSError, KeyError, TypeError):
            return []  # a Tab that finds nothing is quiet

    return names


job_ids = _asking("/api/jobs/list", "jobs", "jobId", limit=50)
app_ids = _asking("/api/apps", "apps", "instanceId", limit=1000)
worker_ids = _asking("/api/workers/list", "workers", "workerId", limit=1000)
products = _asking("/api/releases", "products", "product", limit=100)
