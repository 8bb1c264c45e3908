"""The page on which somebody lets the command line in, and the session that comes of it."""

import re

import httpx
from whole import ORIGIN, Hostler


async def test_the_page_consists_of_ourselves_alone(hostler: Hostler) -> None:
    client = hostler.client()
    page = await client.get("/api/auth/terminal", params={"port": "4711", "state": "a" * 32})
    assert page.status_code == 200
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(parts) == 2
    for answer in [page, *[await client.get(part) for part in parts]]:
        assert answer.status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", page.text)  # nothing inline


async def test_what_is_asked_in_the_address_is_no_part_of_the_page(hostler: Hostler) -> None:
    plain = await hostler.client().get("/api/auth/terminal")
    asked = await hostler.client().get(
        "/api/auth/terminal", params={"state": "<script>", "port": "javascript:"}
    )
    assert asked.content == plain.content


async def test_other_parts_are_not_served(hostler: Hostler) -> None:
    for name in ("index.html", "..%2fapp.py", "terminal.js.map"):
        assert (await hostler.client().get(f"/api/auth/terminal/{name}")).status_code == 404


async def test_a_token_of_whoever_is_signed_in_becomes_a_session_once(hostler: Hostler) -> None:
    signed_in = await hostler.user("w")
    token = (await signed_in.post("/api/auth/token")).json()["token"]
    anybody = httpx.AsyncClient(transport=httpx.ASGITransport(app=hostler.app), base_url=ORIGIN)
    async with anybody:
        answer = await anybody.post("/api/auth/session", json={"token": token})
        session = answer.cookies["auth_token"]
        again = await anybody.post("/api/auth/session", json={"token": token})
    assert (answer.status_code, again.status_code) == (200, 401)
    me = (await hostler.client(Authorization=f"Bearer {session}").get("/api/auth/me")).json()
    assert (me["username"], me["role"]) == ("user-w", "w")
