"""What becomes of one command, seen from the outside: its end, its output, its files, its artifacts."""

import hashlib
import io
import re
import time
import zipfile
from collections.abc import AsyncIterator

import pytest
from engine import submit
from processes import Stack, finished, log_of, peak_rss_bytes, processes_of, reaches, soon

from storage import files, jobs, logs
from storage.calls import command, pairs
from storage.read_into import Pieces
from storage.store import Store


async def upload(store: Store, name: str, content: bytes) -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    accepted = await files.accept(
        store,
        Pieces(chunks()).read_into,
        filename=name,
        content_type="application/octet-stream",
        actor="user:u",
    )
    return accepted.id


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


async def artifacts(store: Store, job_id: str) -> dict[str, bytes]:
    import orjson

    records = await store.call(command("HGETALL", f"h:artifacts:{job_id}", read=pairs))
    found = {}
    for name, record in records.items():
        content = await store.objects.get(orjson.loads(record)["key"], limit_bytes=1 << 20)
        assert hashlib.sha256(content).hexdigest() == orjson.loads(record)["sha256"]
        found[name] = content
    return found


@pytest.mark.parametrize(
    ("words", "state", "reason", "exit_code"),
    [
        ("true", "completed", None, 0),
        ("exit 3", "failed", "exit_code", 3),
        ("kill -TERM $$", "failed", "exit_code", 143),
        ("kill -KILL $$", "failed", "exit_code", 137),
        ("nosuchcommand", "failed", "exit_code", 127),
    ],
)
async def test_a_command_ends_its_job_as_a_shell_would_say(
    store: Store, words: str, state: str, reason: str | None, exit_code: int
) -> None:
    job = await finished(store, await submit(store, words))
    assert (job.state, job.reason, job.exit_code) == (state, reason, exit_code)


async def test_a_list_of_arguments_needs_no_shell(store: Store) -> None:
    from storage.jobs import Order

    ordered = Order(argv=["printf", "%s|", "$HOME", "a b"], env={"EXTRA": "1"})
    submitted = await jobs.submit(store, "user:u", ordered)
    assert (await finished(store, submitted.id)).state == "completed"
    assert await log_of(store, submitted.id) == b"$HOME|a b|"


async def test_a_program_that_is_not_there_fails_its_job_with_a_message(store: Store) -> None:
    from storage.jobs import Order

    submitted = await jobs.submit(store, "user:u", Order(argv=["/nowhere/to/be/found"]))
    job = await finished(store, submitted.id)
    assert (job.state, job.reason, job.exit_code) == ("failed", "invalid", 127)
    assert "/nowhere/to/be/found" in job.facts["message"]


async def test_a_command_sees_no_secret_and_its_own_job(store: Store) -> None:
    job_id = await submit(store, "env", env={"MINE": "1"})
    await finished(store, job_id)
    seen = dict(line.split("=", 1) for line in (await log_of(store, job_id)).decode().splitlines())
    assert (seen["HOSTLER_JOB_ID"], seen["HOSTLER_ATTEMPT"], seen["MINE"]) == (job_id, "1", "1")
    assert {name for name in seen if name.startswith(("HOSTLER_", "REDIS", "S3_", "AWS_"))} == {
        "HOSTLER_JOB_ID", "HOSTLER_ATTEMPT"
    }  # fmt: skip


async def test_a_timeout_ends_the_whole_tree_and_says_so_in_the_log(store: Store) -> None:
    words = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 600' & sleep 600 & while :; do sleep 1; done"
    job_id = await submit(store, words, timeout_s=1)
    began = time.monotonic()
    job = await finished(store, job_id)
    assert (job.state, job.reason) == ("failed", "timeout")
    assert job.facts["signal"] == "9"
    assert 1 < time.monotonic() - began < 8
    assert b"[hostler] timed out after 1 s\n" in await log_of(store, job_id)
    assert processes_of(job_id) == set()


async def test_a_timeout_lets_a_command_that_listens_clean_up(store: Store) -> None:
    job_id = await submit(store, "trap 'echo cleaning; exit 5' TERM; sleep 600 & wait", timeout_s=1)
    job = await finished(store, job_id)
    assert (job.reason, job.exit_code) == ("timeout", 5)
    assert (await log_of(store, job_id)).startswith(b"cleaning\n")


async def test_a_running_job_that_ignores_term_is_cancelled_with_all_that_it_started(store: Store) -> None:
    job_id = await submit(store, "trap '' TERM; setsid sleep 600 & echo on; while :; do sleep 0.1; done")
    await reaches(store, job_id, "running")
    await soon(lambda: len(processes_of(job_id)) >= 2, "it runs")
    began = time.monotonic()
    assert await jobs.cancel(store, "user:u", job_id) == "running"
    job = await finished(store, job_id)
    assert (job.state, job.reason) == ("cancelled", "cancelled")
    assert time.monotonic() - began < 6  # the grace is 1 s
    assert processes_of(job_id) == set()


async def test_a_daemon_dies_with_the_job_that_left_it(store: Store) -> None:
    job_id = await submit(
        store, "setsid sh -c 'sleep 600 & sleep 600' >/dev/null 2>&1 & sleep 0.2; echo done"
    )
    job = await finished(store, job_id)
    assert (job.state, job.exit_code) == ("completed", 0)
    await soon(lambda: not processes_of(job_id), "its daemon is gone")


async def test_output_of_both_channels_is_numbered_in_its_order(store: Store) -> None:
    words = "for i in 1 2 3; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done; printf last"
    job_id = await submit(store, words)
    await finished(store, job_id)
    log = await logs.read(store, job_id)
    assert [(line.seq, line.stream, line.text) for line in log.lines] == [
        (1, "stdout", "out 1"), (2, "stderr", "err 1"), (3, "stdout", "out 2"), (4, "stderr", "err 2"),
        (5, "stdout", "out 3"), (6, "stderr", "err 3"), (7, "stdout", "last"),
    ]  # fmt: skip


@pytest.mark.proves("F13")
async def test_binary_output_comes_back_byte_for_byte(store: Store) -> None:
    words = r"printf '\000\377\376\r\n\200text\n\033[0m'"
    job_id = await submit(store, words)
    await finished(store, job_id)
    assert await log_of(store, job_id) == b"\0\xff\xfe\r\n\x80text\n\x1b[0m"


@pytest.mark.proves("F13")
async def test_a_line_of_fifty_megabytes_is_broken_but_whole_and_takes_little_memory(
    stack: Stack, store: Store
) -> None:
    size_bytes = 50 * 1024 * 1024
    job_id = await submit(store, f"head -c {size_bytes} /dev/zero")
    job = await finished(store, job_id)
    assert (job.state, job.lines) == ("completed", size_bytes // 65536)
    got_bytes = 0
    async for piece in await logs.text(store, job_id):
        assert not piece.strip(b"\0")
        got_bytes += len(piece)
    assert got_bytes == size_bytes
    process = stack.processes[1 if job.worker == "one" else 2]
    assert peak_rss_bytes(process) < 200 * 1024 * 1024


async def test_a_log_longer_than_the_live_cap_is_whole(store: Store) -> None:
    lines = 400_000
    job_id = await submit(store, f"seq -f 'line %.0f is here' {lines}; echo end >&2")
    job = await finished(store, job_id)
    assert job.lines == lines + 1
    text = await log_of(store, job_id)
    whole, marked = b"".join(b"line %d is here\n" % number for number in range(1, lines + 1)), b"end\n"
    assert text.count(marked) == 1
    assert text.replace(marked, b"") == whole  # which of two pipes is read first, nobody promises
    log = await logs.read(store, job_id, after=200_000, limit_lines=2)
    assert [line.text for line in log.lines] == ["line 200001 is here", "line 200002 is here"]


@pytest.mark.proves("F13")
async def test_output_beyond_the_quota_is_cut_with_a_mark(stack: Stack, store: Store) -> None:
    worker = stack.worker("strict", "--tags", "strict", HOSTLER_JOB_LOG_LIMIT_MB="4")
    try:
        job_id = await submit(store, "yes 'some words on a line' | head -c 9000000; exit 4", tags=["strict"])
        job = await finished(store, job_id)
    finally:
        stack.end(worker)
    assert (job.state, job.exit_code, job.facts["truncated"]) == ("failed", 4, "1")
    text = await log_of(store, job_id)
    assert text.endswith(b"[hostler] output limit of 4194304 bytes reached; what follows is not kept\n")
    assert 4_000_000 < len(text) < 4_200_000


async def test_progress_is_read_from_either_kind_of_line(store: Store) -> None:
    job_id = await submit(store, "echo HOSTLER_PROGRESS=45; sleep 0.3; echo '::progress 80'; sleep 600")
    await soon_progress(store, job_id, 45)
    await soon_progress(store, job_id, 80)
    await jobs.cancel(store, "user:u", job_id)
    await finished(store, job_id)


async def soon_progress(store: Store, job_id: str, percent: int) -> None:
    import asyncio

    for _ in range(500):
        if ((await jobs.get(store, job_id)).progress or 0) >= percent:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{job_id} never got to {percent} percent.")


async def test_an_upload_is_unpacked_where_the_command_starts(store: Store) -> None:
    file = await upload(store, "project.zip", zipped(top="1", sub__inner="2"))
    job_id = await submit(store, "ls; cat inner; cat ../top", file=file, working_directory="sub")
    assert (await finished(store, job_id)).state == "completed"
    assert await log_of(store, job_id) == b"inner\n21"


async def test_an_upload_that_is_no_archive_lies_there_under_its_name(store: Store) -> None:
    file = await upload(store, "notes.txt", b"as it was")
    job_id = await submit(store, "cat notes.txt", file=file)
    await finished(store, job_id)
    assert await log_of(store, job_id) == b"as it was"


@pytest.mark.parametrize("wanted", ["missing", "../..", "/etc", "file"])
async def test_a_working_directory_that_is_not_in_the_upload_fails_the_job(store: Store, wanted: str) -> None:
    file = await upload(store, "project.zip", zipped(file="1"))
    job_id = await submit(store, "echo started", file=file, working_directory=wanted)
    job = await finished(store, job_id)
    assert (job.state, job.reason, job.exit_code) == ("failed", "invalid", None)
    assert repr(wanted) in job.facts["message"]
    assert b"started" not in await log_of(store, job_id)


async def test_an_archive_that_is_not_safe_fails_the_job(store: Store) -> None:
    file = await upload(store, "evil.zip", zipped(**{"..__..__evil": "1"}))
    job = await finished(store, await submit(store, "true", file=file))
    assert (job.state, job.reason) == ("failed", "invalid")


async def test_an_upload_that_was_tampered_with_is_not_run(store: Store) -> None:
    file = await upload(store, "notes.txt", b"as it was")
    await store.objects.put((await files.get(store, file)).key, b"as it wos")
    job = await finished(store, await submit(store, "cat notes.txt", file=file))
    assert (job.state, job.reason) == ("failed", "integrity")


async def test_artifacts_are_what_the_patterns_name(store: Store) -> None:
    words = (
        "mkdir -p out/deep/er; echo 1 >out/a.txt; echo 2 >out/deep/er/b.txt; echo 3 >out/c.log; echo 4 >r.xml"
    )
    job_id = await submit(store, words, artifacts=["out/**/*.txt", "./*.xml"])
    assert (await finished(store, job_id)).state == "completed"
    assert await artifacts(store, job_id) == {
        "out/a.txt": b"1\n", "out/deep/er/b.txt": b"2\n", "r.xml": b"4\n"
    }  # fmt: skip


async def test_a_job_that_failed_leaves_its_artifacts_too(store: Store) -> None:
    job_id = await submit(store, "echo broken >report; exit 1", artifacts=["report"])
    assert (await finished(store, job_id)).exit_code == 1
    assert await artifacts(store, job_id) == {"report": b"broken\n"}


async def test_links_are_no_artifacts(store: Store) -> None:
    words = "ln -s /etc/passwd p; ln -s /etc dir; mkdir real; echo 1 >real/f; mkfifo real/pipe"
    job_id = await submit(store, words, artifacts=["**"])
    assert (await finished(store, job_id)).state == "completed"
    assert await artifacts(store, job_id) == {"real/f": b"1\n"}


async def test_a_working_directory_that_became_a_link_gives_nothing_away(store: Store) -> None:
    file = await upload(store, "project.zip", zipped(sub__inner="2"))
    words = "cd ..; mv sub old; ln -s /etc sub"
    job_id = await submit(store, words, file=file, working_directory="sub", artifacts=["**"])
    job = await finished(store, job_id)
    assert (job.state, job.reason) == ("failed", "invalid")
    assert "link" in job.facts["message"]
    assert await artifacts(store, job_id) == {}


async def test_a_job_leaves_neither_process_nor_directory(stack: Stack, store: Store) -> None:
    ids = [await submit(store, "mkdir -m 000 shut; echo $$ >f; chmod 000 .; true") for _ in range(4)]
    for job_id in ids:
        await finished(store, job_id)
    work = stack.settings.work_dir
    # what a slot that idles has ready for its next command is empty
    await soon(
        lambda: not [path for path in work.glob("*/job-*") if any(path.iterdir())], "the directories are gone"
    )
    assert not [job_id for job_id in ids if processes_of(job_id)]


async def test_a_jobs_cost_is_measured(store: Store) -> None:
    job = await finished(store, await submit(store, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"))
    assert int(job.facts["cpu_ms"]) > 0
    assert re.fullmatch(r"\d+", job.facts["max_rss_bytes"])
