"""What a worker may read: the files of the jobs that it holds, and no others."""

from storage.calls import command, text
from storage.store import Store


async def may_read_file(store: Store, worker_id: str, file_id: str) -> bool:
    """Tell whether the worker holds a job that was submitted with that file."""
    held = [text(job_id) for job_id in await store.call(command("LRANGE", f"h:proc:{worker_id}", 0, -1))]
    files = await store.calls(*(command("HGET", f"h:job:{job_id}", "file", read=text) for job_id in held))
    return file_id in files
