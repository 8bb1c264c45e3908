"""CMD Executor's file endpoints, on a real Valkey and a real SeaweedFS."""

import asyncio
import hashlib
from dataclasses import replace

import httpx
import pytest
from forms import DATA

from settings import MIB
from storage import files
from storage.objects import PART_BYTES
from storage.store import Store

from .serving_files import Served

pytestmark = pytest.mark.stack


async def test_an_upload_answers_the_pages_fields_and_comes_back(served):
    body = await served.upload()
    assert set(body) == {
        "success", "fileId", "filename", "size", "uploadedAt", "url", "expiresAt", "sha256", "contentType",
        "uploadedBy",
    }  # fmt: skip
    assert (body["success"], body["filename"], body["size"]) == (True, "project.zip", len(DATA))
    assert body["sha256"] == hashlib.sha256(DATA).hexdigest()
    for path in (f"/api/files/download/{body['fileId']}", body["url"]):
        answer = await served.client.get(path, headers={"X-Role": "viewer"})
        assert answer.status_code == 200
        assert answer.content == DATA
        assert answer.headers["Content-Length"] == str(len(DATA))
        assert answer.headers["Content-Type"] == "application/zip"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="project.zip"'
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        head = await served.client.head(path)
        assert {**head.headers, "date": ""} == {**answer.headers, "date": ""}
        assert head.content == b""
    assert (await served.client.get(f"/api/files/{body['fileId']}")).json() == body


@pytest.mark.parametrize("size_bytes", [0, 1, PART_BYTES + 1])
async def test_files_of_any_size_pass(served, size_bytes):
    data = (DATA * 3)[:size_bytes]
    body = await served.upload(data)
    assert (body["size"], body["sha256"]) == (size_bytes, hashlib.sha256(data).hexdigest())
    assert (await served.client.get(body["url"])).content == data


async def test_the_list_carries_both_keys_and_the_paging(served):
    ids = [(await served.upload(b"x", f"{number}.zip"))["fileId"] for number in range(3)]
    body = (
        await served.client.get("/api/files/list?limit=2&sort=uploadedAt", headers={"X-Role": "viewer"})
    ).json()
    assert body["files"] == body["data"]
    assert (body["total"], body["limit"], body["offset"], body["hasMore"]) == (3, 2, 0, True)
    body = (await served.client.get("/api/files/list?offset=2")).json()
    assert (body["total"], len(body["files"]), body["hasMore"]) == (3, 1, False)
    assert body["files"][0]["fileId"] in ids


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "offset=-1", "sort=size", "x=1"])
async def test_a_bad_page_is_refused(served, query):
    answer = await served.client.get(f"/api/files/list?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"] == "Invalid request"


async def test_a_deleted_file_is_not_found_and_its_object_is_gone(served, nothing_left):
    body = await served.upload(b"x")
    answer = await served.client.delete(f"/api/files/{body['fileId']}")
    assert answer.json() == {"success": True, "fileId": body["fileId"], "deleted": True}
    assert nothing_left()
    for path in (f"/api/files/download/{body['fileId']}", body["url"], f"/api/files/{body['fileId']}"):
        answer = await served.client.get(path)
        assert (answer.status_code, answer.json()["message"]) == (404, "File not found")
    assert (await served.client.delete(f"/api/files/{body['fileId']}")).status_code == 404


async def test_a_viewer_may_read_and_not_write(served, nothing_left):
    viewer = {"X-Role": "viewer"}
    calls = [
        ("POST", "/api/files/upload"),
        ("POST", "/api/files/presign"),
        ("POST", "/api/files/file-1/complete"),
        ("DELETE", "/api/files/file-1"),
    ]
    for method, path in calls:
        assert (await served.client.request(method, path, headers=viewer)).status_code == 403
    assert nothing_left()


async def test_a_worker_reads_the_files_of_the_jobs_it_holds_and_no_others(served, redis_client):
    body, worker = await served.upload(b"x"), {"X-Role": "worker"}
    for path in (body["url"], f"/api/files/download/{body['fileId']}"):
        assert (await served.client.get(path, headers=worker)).status_code == 403
    redis_client.rpush("h:proc:worker-1", "job-1")
    redis_client.hset("h:job:job-1", mapping={"file": body["fileId"], "state": "running"})
    for path in (body["url"], f"/api/files/download/{body['fileId']}"):
        assert (await served.client.get(path, headers=worker)).content == b"x"
    assert (await served.client.get("/api/files/list", headers=worker)).status_code == 403


async def test_a_presigned_upload_goes_around_us(served):
    announced = (
        await served.client.post(
            "/api/files/presign",
            json={"filename": "../big.zip", "size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()},
        )
    ).json()
    assert announced["method"] == "PUT"
    complete = f"/api/files/{announced['fileId']}/complete"
    assert (await served.client.post(complete)).status_code == 409
    assert (await served.client.get(f"/api/files/download/{announced['fileId']}")).status_code == 404
    assert (await served.client.get("/api/files/list")).json()["total"] == 0
    async with httpx.AsyncClient() as outside:
        put = await outside.put(announced["uploadUrl"], content=DATA, headers=announced["headers"])
    assert put.status_code == 200
    for _ in range(2):
        body = (await served.client.post(complete)).json()
        assert (body["filename"], body["size"]) == ("big.zip", len(DATA))
    assert (await served.client.get(body["url"])).content == DATA
    async with httpx.AsyncClient() as outside:  # what was taken in stays as it is
        again = await outside.put(announced["uploadUrl"], content=DATA[::-1], headers=announced["headers"])
    assert again.status_code == 412
    assert (await served.client.get(body["url"])).content == DATA


async def test_a_file_that_changes_behind_our_back_is_not_handed_out(served):
    announced = (
        await served.client.post("/api/files/presign", json={"filename": "a", "size": len(DATA)})
    ).json()
    async with httpx.AsyncClient() as outside:
        await outside.put(announced["uploadUrl"], content=DATA, headers=announced["headers"])
    body = (await served.client.post(f"/api/files/{announced['fileId']}/complete")).json()
    await served.store.objects.put(files.object_key(announced["fileId"]), DATA[::-1])
    assert (await served.client.get(body["url"])).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"filename": "a"},
        {"filename": "a", "size": -1},
        {"filename": "a", "size": "1"},
        {"filename": "..", "size": 1},
        {"filename": "a", "size": 500 * MIB + 1},
        {"filename": "a", "size": 1, "sha256": "x"},
        {"filename": "a", "size": 1, "path": "/etc/passwd"},
        [],
    ],
)
async def test_a_bad_announcement_is_refused(served, nothing_left, body):
    assert (await served.client.post("/api/files/presign", json=body)).status_code == 400
    assert nothing_left()


async def test_without_the_object_store_it_is_503_and_it_recovers(own_s3, settings):
    bucket = {name.lower(): value for name, value in own_s3.environment("probe").items()}
    store = Store(replace(settings, **bucket))
    async with Served(store).client as client:

        async def upload() -> httpx.Response:
            return await client.post("/api/files/upload", files={"file": ("a.zip", DATA)})

        before = (await upload()).json()
        await asyncio.to_thread(own_s3.kill)
        answer = await upload()
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["error"] == "Service Unavailable"
        assert (await client.get(before["url"])).status_code == 503
        assert (await client.get("/api/files/list")).json()["total"] == 1
        await asyncio.to_thread(own_s3.start)
        assert (await upload()).status_code == 201
        assert (await client.get(before["url"])).content == DATA
        due = store.now_ms() + 2 * files.DAY_MS
        assert await files.expire_due(store, due) == 1  # what the outage had left unfinished
    await store.close()
