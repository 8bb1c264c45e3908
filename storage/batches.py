"""Batches: many jobs accepted at once, all or none, without holding Redis for all of them at once.

The jobs are laid ready where nobody looks; one script then accepts the batch, or refuses it whole; from there on they
are made in portions, by whoever asked and, should it die, by the leader. Nothing of a batch that was not accepted is
ever seen, and nothing of one that was is missing for longer than a duty's turn.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storage import tasks
from storage.attempts import rq_time
from storage.calls import Word, command, script, text
from storage.errors import Invalid, Unavailable, Unprocessable
from storage.jobs import Order, described
from storage.store import Store

MOST_JOBS = 1000
#: What one script makes, at most: some 2 ms of Redis, so that others hardly wait.
_PORTION, _PORTION_BYTES = 50, 128 * 1024
#: What one script lays ready, at most.
_STAGE_PORTIONS, _STAGE_BYTES = 5, 512 * 1024
#: What was laid ready and never accepted is forgotten after so long.
_STAGED_S = 600


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that was accepted: its jobs in the order in which they were asked for."""

    id: str
    created_ms: int
    job_ids: list[str]


def _job_id(batch_id: str, index: int) -> str:
    return f"job-{batch_id.removeprefix('batch-')}-{index:03}"


async def submit(
    store: Store, actor: str, orders: Sequence[Order], *, idempotency: tuple[str, str] | None = None
) -> Batch:
    """Accept all of `orders` durably, or none. `idempotency` is the caller's key and the digest of what it asks for.

    Raises Invalid naming `jobs[i]`, Unprocessable where the key was used with something else, Unavailable.
    """
    batch_id = store.new_id("batch")
    portions = await _stage(store, batch_id, orders)
    key, digest = idempotency or ("", "")
    uploads: dict[str, int] = {}
    parents: dict[str, int] = {}
    for index, order in enumerate(orders):
        if order.file:
            uploads.setdefault(order.file, index)
        for parent in order.depends_on:
            parents.setdefault(parent, index)
    files = [word for name, index in uploads.items() for word in (name, index, _job_id(batch_id, index))]
    needs = [word for name, index in parents.items() for word in (name, index)]

    def read(reply: list[bytes]) -> Batch:
        outcome, *words = map(_word, reply)
        _refused(outcome, words)
        return Batch(words[0], int(words[1]), [_job_id(words[0], index) for index in range(int(words[2]))])

    batch = await store.call(
        script(
            "batch_commit", batch_id, actor, rq_time(), len(orders), portions, tasks.COMMAND.function, key, digest,
            len(uploads), *files, *needs, read=read,
        )
    )  # fmt: skip
    await unfold(store, batch.id)
    return batch


def _word(value: bytes | int) -> str:
    return text(value) if isinstance(value, bytes) else str(value)


def _refused(outcome: str, words: Sequence[str]) -> None:
    if outcome == "conflict":
        raise Unprocessable("This Idempotency-Key was used before, with another body.")
    if outcome == "lost":
        raise Unavailable("Redis lost the batch before it was accepted; nothing of it will run.")
    if outcome == "file":
        field = f"jobs[{words[0]}].fileUrl"
        raise Invalid(f"{field}: File not found", details={field: "File not found"})
    if outcome == "parent":
        field, message = (
            f"jobs[{words[0]}].dependsOn",
            f"Job {words[1]!r}, which dependsOn names, is {words[2]}.",
        )
        raise Invalid(f"{field}: {message}", details={field: message})


async def _stage(store: Store, batch_id: str, orders: Sequence[Order]) -> int:
    """Lay the jobs ready in portions, and return in how many."""
    portions, waiting, size_bytes = 0, list[Word](), 0
    for portion in _portions(store, batch_id, orders):
        waiting.append(portion)
        portions += 1
        size_bytes += len(portion)
        if len(waiting) == _STAGE_PORTIONS or size_bytes > _STAGE_BYTES:
            await store.call(script("batch_stage", batch_id, _STAGED_S, *waiting))
            waiting, size_bytes = [], 0
    if waiting:
        await store.call(script("batch_stage", batch_id, _STAGED_S, *waiting))
    return portions


#: The lengths of what a portion holds of a job, and the numbers between them.
_SHORT, _LONG, _LONGS = (struct.Struct(each).pack for each in (">H", ">I", ">II"))


def _portions(store: Store, batch_id: str, orders: Sequence[Order]) -> Iterator[bytes]:
    """Yield the jobs in portions, each one word of the form that batch_unfold.lua reads.

    That is the number of its first job and then, for each, its queue (empty for that of the job before), timeout, spec,
    signature, description and options.
    """
    portion, queue = bytearray(), ""
    for index, order in enumerate(orders):
        job = described(store, order, job_id=_job_id(batch_id, index))
        if index % _PORTION == 0 or len(portion) > _PORTION_BYTES:
            if portion:
                yield bytes(portion)
            portion, queue = bytearray(_SHORT(index)), ""
        named = b"" if job.queue == queue else job.queue.encode()
        queue = job.queue
        signature, description = job.signature.encode(), job.description.encode()
        options = job.packed_options
        portion += b"".join((
            _SHORT(len(named)), named, _LONGS(job.timeout_s, len(job.spec)), job.spec,
            _SHORT(len(signature)), signature, _SHORT(len(description)), description, _LONG(len(options)), options,
        ))  # fmt: skip
    yield bytes(portion)


async def unfold(store: Store, batch_id: str) -> None:
    """Make the jobs of an accepted batch that are not made yet. Safe to run twice, and by several at once."""
    while await store.call(script("batch_unfold", batch_id)):
        pass


async def unfold_all(store: Store) -> list[str]:
    """Finish what others accepted and left; answers the ids of those batches."""
    found = sorted(text(each) for each in await store.call(command("SMEMBERS", "h:batches")))
    for batch_id in found:
        await unfold(store, batch_id)
    return found
