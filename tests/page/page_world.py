"""The places of the page, by what stands in their addresses."""


def PLACES(job: str, waiting: str, app: str) -> list[str]:  # noqa: N802  a table that needs three ids
    """Return every place: of a job that has ended, one that waits, and an app."""
    return [
        "/", "/jobs", f"/jobs/{job}", f"/jobs/{waiting}", "/submit", "/schedules", "/quarantine", "/files", "/apps",
        f"/apps/{app}", f"/apps/{app}?view=log", f"/apps/{app}?view=configuration", "/catalogue",
        "/catalogue?install=hello-web", "/workers", "/backups", "/people", "/people?new=key", "/health",
    ]  # fmt: skip
