"""Releases over HTTP: an upload or a package becomes a release, once, and goes when nobody has it."""

import io
import tarfile

import httpx
import pytest
from nodes import HELLO, Node
from whole import Hostler

pytestmark = pytest.mark.stack


def archive(toml: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        member = tarfile.TarInfo("hostler.toml")
        member.size = len(toml)
        opened.addfile(member, io.BytesIO(toml.encode()))
    return packed.getvalue()


async def upload(client: httpx.AsyncClient, data: bytes) -> str:
    answer = await client.post("/api/files/upload", files={"file": ("release.tgz", data, "application/gzip")})
    assert answer.status_code == 201, answer.text
    file_id: str = answer.json()["fileId"]
    return file_id


async def test_an_upload_becomes_a_release_that_can_be_installed(hostler_with_s3: Hostler) -> None:
    await Node.online(hostler_with_s3.store)
    operator = await hostler_with_s3.user("w")
    file_id = await upload(
        operator, archive('id = "hello"\nversion = "1.0"\n[processes.web]\ncommand = "x"\n')
    )
    answer = await operator.post("/api/releases", json={"fileId": file_id})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["product"], answer.json()["version"]) == ("hello", "1.0")
    assert answer.json()["source"]["file"] == file_id
    assert (await operator.delete("/api/files/delete", params={"fileId": file_id})).status_code in {
        404,
        405,
        409,
    }
    assert (await operator.post("/api/apps", json={"product": "hello"})).status_code == 202
    assert (await operator.delete("/api/releases/hello/1.0")).status_code == 409
    broken = await upload(operator, archive('id = "hello"\n[processes.web]\n'))
    answer = await operator.post("/api/releases", json={"fileId": broken})
    assert (answer.status_code, list(answer.json()["details"])) == (400, ["processes.web.command"])


async def test_a_package_is_named_listed_and_removed(hostler: Hostler) -> None:
    operator, viewer = await hostler.user("w"), await hostler.user("r")
    source = {"kind": "npm", "package": "@processcube/engine.cuby", "version": "1.2.3"}
    answer = await operator.post("/api/releases", json={"product": "engine", "source": source})
    assert answer.status_code == 201, answer.text
    assert answer.json()["manifest"] is None
    listed = (await viewer.get("/api/releases")).json()["products"]
    assert [(each["product"], each["newest"]) for each in listed] == [("engine", "1.2.3")]
    assert (await viewer.get("/api/releases/engine/1.2.3")).json()["source"] == source
    assert (await viewer.delete("/api/releases/engine/1.2.3")).status_code == 403
    assert (await operator.delete("/api/releases/engine/1.2.3")).status_code == 204
    assert (await viewer.get("/api/releases/engine")).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "fileId"),
        ({"fileId": "file-x", "source": {"kind": "npm", "package": "x"}, "product": "x"}, "fileId"),
        ({"source": {"kind": "npm", "package": "x"}}, "product"),
        ({"product": "x", "source": {"kind": "git", "package": "x"}}, "source.kind"),
        ({"product": "x", "source": {"kind": "npm", "package": "-x"}}, "source.package"),
        ({"product": "x", "source": {"kind": "npm", "package": "x"}, "manifest": HELLO}, "manifest"),
    ],
)
async def test_what_is_no_release_is_refused_by_its_field(
    hostler: Hostler, body: dict[str, object], field: str
) -> None:
    operator = await hostler.user("w")
    answer = await operator.post("/api/releases", json=body)
    assert (answer.status_code, list(answer.json()["details"])) == (400, [field]), answer.text


async def test_viewers_are_shown_the_names_of_a_releases_environment_and_no_values(hostler: Hostler) -> None:
    operator, viewer = await hostler.user("w"), await hostler.user("r")
    manifest = {"id": "shop", "processes": {"web": {"command": "x", "env": {"TOKEN": "s3cret"}}}}
    source = {"kind": "npm", "package": "shop", "version": "1.0.0"}
    body = {"product": "shop", "source": source, "manifest": manifest}
    published = await operator.post("/api/releases", json=body)
    assert published.status_code == 201, published.text
    for path in ("/api/releases", "/api/releases/shop", "/api/releases/shop/1.0.0"):
        assert "s3cret" not in (await viewer.get(path)).text, path
    shown = [(await each.get("/api/releases/shop/1.0.0")).json()["manifest"] for each in (viewer, operator)]
    assert [each["processes"]["web"]["env"] for each in shown] == [{"TOKEN": "********"}, {"TOKEN": "s3cret"}]
    assert shown[1] == published.json()["manifest"]
