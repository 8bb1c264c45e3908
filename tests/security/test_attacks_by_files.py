"""Attacks by commands, paths, archives and uploads."""

import contextlib
import gzip
import io
import os
import secrets
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from target import Target, until

WORDS = (
    "; touch {c}",
    "$(touch {c})",
    "`touch {c}`",
    "| touch {c}",
    "\ntouch {c}\n",
    "&& touch {c}",
    "-rf",
    "--help",
)


@pytest.fixture
def canary() -> Iterator[Path]:
    """A path where a file appears only if somebody was made to put it there; anybody could."""
    path = Path(f"/tmp/canary-{secrets.token_hex(6)}")  # noqa: S108  every user of the machine must be able to write it
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.proves("A22")
def test_words_of_the_shell_are_words_where_no_shell_was_asked_for(
    target: Target, canary: Path, evidence: list[str]
) -> None:
    words = [word.format(c=canary) for word in WORDS]
    job = target.run(argv=["printf", "%s|", *words])
    assert job["stdout"] == "".join(f"{word}|" for word in words)
    job = target.run(
        'printf "%s" "$WORD"', env={"WORD": "".join(words)}, name=words[1], metadata={"n": words[1]}
    )
    assert job["stdout"] == "".join(words)
    assert not canary.exists()
    evidence.append(f"{len(words)} words in argv, env, name, metadata, file name: literal; canary absent")


@pytest.mark.proves("A23")
def test_only_operators_run_commands_and_only_below_their_jobs_directory(
    target: Target, evidence: list[str]
) -> None:
    for who in ("viewer", "agent", None):
        for path in ("/api/jobs/submit", "/api/jobs/create", "/jobs/create"):
            answer = target.client(who).post(path, json={"command": "id"})
            assert answer.status_code == (403 if who else 401), f"{who} {path}"
    outward = target.upload("out.zip", _zip("out", mode=0o120777)(Path("/etc")))
    for order in ({"workingDirectory": "/etc"}, {"workingDirectory": "../../etc"}):
        assert (
            target.client("operator").post("/api/jobs/submit", json={"command": "id", **order}).status_code
            == 400
        )
    job = target.run("pwd", fileUrl=outward["url"], workingDirectory="out")
    assert (job["status"], job["reason"]) == ("failed", "invalid")
    assert "/etc" not in job["stdout"]
    missing = target.run("pwd", workingDirectory="nowhere")
    assert missing["reason"] == "invalid"
    evidence.append("403 and 401 by role; a directory outside is 400, a link to one fails the job")


@pytest.mark.proves("A22")
@pytest.mark.parametrize(
    "order",
    [
        {"workingDirectory": "../.."}, {"workingDirectory": "/etc"}, {"workingDirectory": "a\0b"},
        {"workingDirectory": "C:\\Windows"}, {"workingDirectory": "a/../../b"}, {"env": {"A=B": "c"}},
        {"env": {"A;touch": "c"}}, {"env": {"A\n": "c"}}, {"env": {"HOSTLER_JOB_ID": "job-x"}}, {"env": {"A": "c\0"}},
        {"env": {"": "c"}}, {"env": {"A": {"$ne": 1}}}, {"tags": ["a;b"]}, {"tags": ["$(id)"]}, {"tags": ["../x"]},
        {"artifacts": ["../../etc/*"]}, {"artifacts": ["/etc/passwd"]}, {"artifacts": ["a/../../b"]},
        {"command": "true\0"}, {"command": " "}, {"command": ["true"]}, {"argv": "true"}, {"argv": []},
        {"fileUrl": "ext::sh -c touch% /tmp/x"}, {"fileUrl": "--upload-pack=touch /tmp/x"}, {"dependsOn": ["../x"]},
    ],
    ids=lambda order: str(order)[:40],
)  # fmt: skip
def test_an_order_that_reaches_out_is_refused(target: Target, order: dict[str, Any]) -> None:
    body = order if "argv" in order else {"command": "true", **order}
    answer = target.client("operator").post("/api/jobs/submit", json=body)
    assert answer.status_code == 400, answer.text


@pytest.mark.proves("A22")
def test_the_name_of_an_upload_is_never_a_word_of_a_command(target: Target, canary: Path) -> None:
    for name in (f"$(touch {canary.name}).tar", "-rf", "a;b`c`.zip", "a\tb.txt", ".bashrc", "...a"):
        file = target.upload(name.replace("/", "_"), b"plain")
        job = target.run("ls -1A", fileUrl=file["url"])
        assert job["status"] == "completed", job
        assert job["stdout"].count("\n") == 1, job["stdout"]
        assert not job["stdout"].startswith(("-", "."))
    assert not canary.exists()


@pytest.mark.proves("A24")
def test_no_spelling_of_a_path_leads_out(target: Target, evidence: list[str]) -> None:
    viewer, file = target.client("viewer"), target.upload("plain.txt", b"plain")
    spellings = (
        "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..%252f..%252fetc%252fpasswd",
        "..%5c..%5cetc%5cpasswd", "/etc/passwd", "%2fetc%2fpasswd", "a%00b", "%c0%ae%c0%ae%2fetc", "%ff%fe",
        "..;/etc/passwd", "....//etc/passwd", "file-x*", "file-x:jobs", "'--", "%0d%0aSet-Cookie:x=y",
    )  # fmt: skip
    asked = 0
    for spelling in spellings:
        for place in (
            "/uploads/{}", f"/uploads/{file['fileId']}/{{}}", "/api/files/{}", "/api/files/download/{}",
            "/api/jobs/{}/log", "/api/jobs/{}/artifacts", "/api/jobs/{}/artifacts/{}", "/api/workers/{}",
            "/api/schedules/{}",
        ):  # fmt: skip
            answer = target.ask_raw(
                f"GET {place.replace('{}', spelling)} HTTP/1.1\r\nHost: x\r\nX-API-Key: {target.keys['viewer']}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            asked += 1
            assert answer.split(b" ")[1] in {b"400", b"404"}, f"{place} {spelling}: {answer[:80]!r}"
            assert b"root:" not in answer
            assert b"\nset-cookie" not in answer.lower()
    assert viewer.get(file["url"]).content == b"plain"
    operator = target.client("operator")
    for url in (
        "/uploads/../../etc/passwd", "/uploads/..%2f..%2fetc%2fpasswd/x", f"/uploads/{file['fileId']}/../../x",
        "/etc/passwd", "file:///etc/passwd", "uploads/x", "/uploads//x", f"/uploads/{file['fileId']}%2f..%2fx/y",
        f"{target.url}/api/users", f"{target.url}@evil.example/uploads/x/y",
    ):  # fmt: skip
        answer = operator.post("/api/jobs/submit", json={"command": "true", "fileUrl": url})
        assert answer.status_code == 400, f"{url}: {answer.text}"
    evidence.append(f"{asked} paths and 10 fileUrls: 400 or 404")


@pytest.mark.proves("A24")
def test_an_agents_artifact_stays_below_its_job(target: Target) -> None:
    target.enroll("climber", tags=["climber"])
    job_id = target.submit("true", tags=["climber"])
    agent = target.client("climber")
    assert agent.get("/api/jobs/get-job").json()["job"]["jobId"] == job_id
    for name in ("..%2fx", "a%2f..%2f..%2fx", "%2fx", "a%5cb", "%00", "a%0ab", "a%2f%2fb", "x" * 600):
        answer = agent.put(f"/api/jobs/{job_id}/artifacts/{name}", content=b"x")
        assert answer.status_code in {400, 404}, f"{name}: {answer.text}"
    assert agent.post("/api/jobs/submit-result", json={"jobId": job_id, "exitCode": 0}).status_code == 200
    assert target.client("viewer").get(f"/api/jobs/{job_id}/artifacts").json()["total"] == 0


@pytest.mark.proves("A25")
def test_json_is_no_upload_and_a_form_no_order(target: Target, evidence: list[str]) -> None:
    operator = target.client("operator")
    imitation = {
        "files": {"file": {"filepath": "/etc/passwd", "originalFilename": "x", "path": "/etc/passwd"}}
    }
    assert operator.post("/api/files/upload", json=imitation).status_code in {400, 415}
    for content_type in (
        "application/x-www-form-urlencoded", "text/plain", "text/json", "application/xml", "multipart/form-data",
        "multipart/mixed; boundary=x", "application/jsonx", "", "application/json, multipart/form-data; boundary=x",
    ):  # fmt: skip
        headers = {"Content-Type": content_type} if content_type else {}
        answer = operator.post("/api/jobs/submit", content=b'{"command": "true"}', headers=headers)
        assert answer.status_code in {400, 415}, content_type
        if not content_type.startswith("multipart/form-data"):
            answer = operator.post("/api/files/upload", content=b"--x\r\n\r\n", headers=headers)
            assert answer.status_code in {400, 415}, content_type
    form = {"file": (None, '{"filepath": "/etc/passwd"}', "application/json")}
    assert operator.post("/api/files/upload", files=form).status_code == 400
    evidence.append("400 or 415, nothing read")


Build = Callable[[Path], bytes]


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> Build:
    def build(out: Path) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for member, content in members:
                member.size = len(content)
                member.name = member.name.replace("{out}", str(out))
                member.linkname = member.linkname.replace("{out}", str(out))
                archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    return build


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **more: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, more.pop("mode", 0o644)
    member.pax_headers = more
    return member


def _zip(*names: str, mode: int = 0o100644) -> Build:
    def build(out: Path) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in names:
                info = zipfile.ZipInfo("x")
                info.filename = name.replace("{out}", str(out))
                info.external_attr = mode << 16
                archive.writestr(info, str(out) if mode & 0o170000 == 0o120000 else "evil")
        return buffer.getvalue()

    return build


ESCAPES: dict[str, Build] = {
    "dots.tar": _tar((_member("../escaped"), b"evil")),
    "deep-dots.tar": _tar((_member("a/../../escaped"), b"evil")),
    "absolute.tar": _tar((_member("{out}/escaped"), b"evil")),
    "symlink.tar": _tar((_member("l", tarfile.SYMTYPE, "{out}"), b""), (_member("l/escaped"), b"evil")),
    "symlink-up.tar": _tar((_member("l", tarfile.SYMTYPE, ".."), b""), (_member("l/escaped"), b"evil")),
    "hardlink.tar": _tar((_member("l", tarfile.LNKTYPE, "/etc/passwd"), b"")),
    "device.tar": _tar((_member("d", tarfile.CHRTYPE), b"")),
    "fifo.tar": _tar((_member("p", tarfile.FIFOTYPE), b"")),
    "pax.tar": _tar((_member("a", path="../escaped"), b"evil")),
    "backslash.tar": _tar((_member("..\\escaped"), b"evil")),
    "drive.tar": _tar((_member("C:/escaped"), b"evil")),
    "case.tar": _tar((_member("A/x"), b"1"), (_member("a/x"), b"2")),
    "realpath.tar": _tar(
        *((_member("/".join("d" * 200 for _ in range(n + 1)), tarfile.DIRTYPE), b"") for n in range(20)),
        (_member("s", tarfile.SYMTYPE, "/".join(["d" * 200] * 20) + "/../" * 25), b""),
        (_member("s/escaped"), b"evil"),
    ),
    "dots.zip": _zip("../escaped"),
    "absolute.zip": _zip("{out}/escaped"),
    "backslash.zip": _zip("..\\escaped"),
    "link.zip": _zip("l", mode=0o120777),
    "twice.zip": _zip("x", "x/escaped"),
}


@pytest.mark.proves("A26")
def test_no_archive_writes_outside_its_job(target: Target, evidence: list[str]) -> None:
    work = Path(target.env["HOSTLER_WORK_DIR"])
    out = work / "outside"
    out.mkdir(mode=0o777)
    out.chmod(0o777)
    files = {name: target.upload(name, build(out)) for name, build in ESCAPES.items()}
    jobs = {
        name: target.submit("ls -lR; cat l p 2>/dev/null", fileUrl=file["url"], timeout=10)
        for name, file in files.items()
    }
    for name, job_id in jobs.items():
        job = target.finished(job_id)
        assert (job["status"], job["reason"]) == ("failed", "invalid"), (
            f"{name}: {job['status']} {job['stdout']}"
        )
        assert "root:" not in job["stdout"]
        assert str(work / "worker") not in job["message"] + job["stdout"], f"{name}: {job['message']}"
    assert list(out.iterdir()) == []
    assert not list(work.rglob("escaped"))
    out.rmdir()
    evidence.append(f"{len(ESCAPES)} archives refused before their command ran; nothing outside")


@pytest.mark.proves("A26")
def test_no_member_of_an_archive_brings_privileges(target: Target) -> None:
    archive = _tar((_member("tool", mode=0o6755), b"#!/bin/sh\necho ran\n"))(Path())
    job = target.run("stat -c '%a %u' tool; id -u; ./tool", fileUrl=target.upload("s.tar", archive)["url"])
    if job["status"] == "completed":
        mode, *_ = job["stdout"].split()
        assert int(mode, 8) & 0o7000 == 0, job["stdout"]
    else:
        assert job["reason"] == "invalid"


def _overlapping_zip() -> bytes:
    """A thousand entries that all point at the same compressed bytes (Fifield's way)."""
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = raw.compress(b"\0" * 7_000_000) + raw.flush()
    crc = zlib.crc32(b"\0" * 7_000_000)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(data), 7_000_000, 1, 0) + b"a" + data
    central = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(data), 7_000_000, 5, 0, 0, 0, 0, 0, 0
        )
        + f"{number:05d}".encode()
        for number in range(1000)
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, len(central), len(local), 0)
    return local + central + end


def _many_entries() -> bytes:
    member = tarfile.TarInfo("a")
    return gzip.compress(member.tobuf() * 1_000_000, 1)


def _sparse_tar() -> bytes:
    member = tarfile.TarInfo("sparse")
    member.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse",
        "GNU.sparse.realsize": str(1 << 40),
    }  # fmt: skip
    content = b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512
    member.size = len(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _big_tar_gz() -> bytes:
    member = tarfile.TarInfo("zeros")
    member.size = 6 << 30
    out = io.BytesIO()
    block = b"\0" * (1 << 20)
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        packed.write(member.tobuf())
        for _ in range(600):  # it promises more than it holds: the rest need not be unpacked to be refused
            packed.write(block)
    return out.getvalue()


@pytest.mark.proves("A27")
def test_a_bomb_is_refused_quickly_and_takes_no_memory(target: Target, evidence: list[str]) -> None:
    bombs = {
        "overlapping.zip": _overlapping_zip(), "entries.tar.gz": _many_entries(), "sparse.tar": _sparse_tar(),
        "big.tar.gz": _big_tar_gz(),
    }  # fmt: skip
    files = {name: target.upload(name, content) for name, content in bombs.items()}
    took = {}
    for name, file in files.items():
        before_s, began = target.cpu_s("worker"), time.monotonic()
        job = target.run("du -s --apparent-size .; ls | wc -l", fileUrl=file["url"])
        took[name] = (target.cpu_s("worker") - before_s, time.monotonic() - began)
        assert (job["status"], job["reason"]) == ("failed", "invalid"), (
            f"{name}: {job['stdout']} {took[name]}"
        )
    peak = max(_peak_mib(pid) for pid in target.pids("worker"))
    slowest = max(took, key=lambda name: took[name][0])
    assert took[slowest][0] < 2, took
    assert peak < 150
    evidence.append(
        f"{len(bombs)} bombs refused, at most {took[slowest][0]:.1f} s of CPU ({slowest}), {peak} MiB"
    )


def _peak_mib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    return 0


@pytest.mark.proves("A27")
def test_a_packed_body_is_not_unpacked(target: Target) -> None:
    body = gzip.compress(b'{"command": "' + b"a" * 50_000_000 + b'"}')
    before = {pid: _peak_mib(pid) for pid in target.pids("web")}
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = target.client("operator").post("/api/jobs/submit", content=body, headers=headers)
    assert answer.status_code in {400, 415}
    assert all(_peak_mib(pid) - peak < 16 for pid, peak in before.items())


@pytest.mark.proves("A28")
def test_no_link_that_is_swapped_in_gives_a_foreign_file_away(target: Target, evidence: list[str]) -> None:
    secret = target.directory / "secret"
    secret.write_text("TOP-SECRET")
    secret.chmod(0o600)
    swap = (
        "mkdir -p d real; echo mine > real/f; echo mine > f; "
        f"(setsid sh -c 'while :; do ln -sfn {secret} f; ln -sfn {target.directory} d/x; ln -sf {secret} d/secret; "
        "rm -f f d/x d/secret; echo mine > f; done' >/dev/null 2>&1 &) ; sleep 0.3"
    )
    rounds = [target.submit(swap, artifacts=["**", "f", "d/**"], timeout=20) for _ in range(4)]
    links = f"ln -s {secret} s; ln -s {target.directory} dir; ln {secret} hard; ln -s /etc/shadow e; mkfifo p; : > ok"
    rounds.append(target.submit(links, artifacts=["**", "dir/secret"]))
    rounds.append(
        target.submit(f"cd ..; mv $OLDPWD gone; ln -s {target.directory} $OLDPWD; true", artifacts=["**"])
    )
    viewer, kept = target.client("viewer"), 0
    for job_id in rounds:
        target.finished(job_id)
        for each in viewer.get(f"/api/jobs/{job_id}/artifacts").json()["artifacts"]:
            content = viewer.get(each["url"]).content
            kept += 1
            assert b"TOP-SECRET" not in content, each
            assert b"root:" not in content, each
            assert each["name"] not in {"s", "e", "p", "hard", "dir/secret"}
    link = target.upload("wd.zip", _zip("in", mode=0o120777)(target.directory))
    job = target.run("pwd; cat secret", fileUrl=link["url"], workingDirectory="in")
    assert job["reason"] == "invalid"
    assert "TOP-SECRET" not in job["stdout"]
    secret.unlink()
    evidence.append(f"{len(rounds)} jobs swapped links; {kept} artifacts, none of them foreign")


@pytest.mark.proves("A30")
def test_what_is_uploaded_is_never_run_by_a_browser(target: Target, evidence: list[str]) -> None:
    hostile = {
        "a.html": ("text/html", b"<script>alert(1)</script>"), "a.svg": ("image/svg+xml", b"<svg onload='alert(1)'/>"),
        "a.xhtml": ("application/xhtml+xml", b"<html/>"), "a.gif": ("text/html; charset=utf-7", b"GIF89a<script>"),
        "a.js": ("text/javascript", b"alert(1)"), "a.pdf": ("application/pdf", b"%PDF-<script>"),
        'q".html': ("text/html X-Evil: 1", b"x"), "ü\u202egnp.html": ("image/png", b"<script>"),
        "x.mht": ("multipart/x-mixed-replace; boundary=x", b"x"),
    }  # fmt: skip
    viewer = target.client("viewer")
    for name, (content_type, content) in hostile.items():
        file = target.upload(name, content, content_type)
        for url in (file["url"], f"/api/files/download/{file['fileId']}"):
            answer = viewer.get(url)
            assert answer.content == content
            headers = answer.headers
            assert headers["content-disposition"].startswith("attachment"), name
            assert headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in headers["content-security-policy"]
            assert "default-src 'none'" in headers["content-security-policy"]
            assert not any(
                word in headers["content-type"] for word in ("html", "svg", "javascript", "xml", "multipart")
            )
            assert "x-evil" not in headers
    job = target.run("echo '<script>' > a.html; cp a.html a.svg", artifacts=["*"])
    for each in viewer.get(f"/api/jobs/{job['jobId']}/artifacts").json()["artifacts"]:
        headers = viewer.get(each["url"]).headers
        assert headers["content-disposition"].startswith("attachment")
        assert not any(word in headers["content-type"] for word in ("html", "svg"))
    evidence.append(f"{len(hostile)} uploads and 2 artifacts: attachment, nosniff, sandboxed, no live type")


@pytest.mark.proves("A28")
def test_the_work_directory_is_closed_to_others(target: Target) -> None:
    root = Path(target.env["HOSTLER_WORK_DIR"]) / "worker"
    job_id = target.submit("umask; stat -c %a . ; touch f; stat -c %a f; sleep 1", timeout=20)
    mode = until(
        lambda: [path.stat().st_mode & 0o777 for path in root.glob("job-*")], "its directory is there"
    )
    assert all(each & 0o007 == 0 for each in mode), [oct(each) for each in mode]
    job = target.finished(job_id)
    assert job["status"] == "completed", job
    assert os.stat(root).st_mode & 0o004 == 0
