"""The audit log over the API: what changed, newest first, page by page."""

from whole import Hostler


async def test_changes_are_listed_newest_first_page_by_page(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    made = [
        (await admin.post("/api/keys", json={"name": f"key {number}"})).json()["id"] for number in range(3)
    ]
    first = (await admin.get("/api/audit", params={"limit": 2})).json()
    assert [each["subject"] for each in first["entries"]] == made[:0:-1]
    assert all(each["actor"].startswith("user:") and each["at"] for each in first["entries"])
    rest = (await admin.get("/api/audit", params={"before": first["next"]})).json()
    assert rest["entries"][0]["subject"] == made[0]
    assert rest["next"] is None
    assert not {each["id"] for each in rest["entries"]} & {each["id"] for each in first["entries"]}


async def test_nothing_lies_before_the_first_place_there_can_be(hostler: Hostler) -> None:
    answer = await (await hostler.user("a")).get("/api/audit", params={"before": "0-0"})
    assert (answer.status_code, answer.json()) == (200, {"entries": [], "next": None})


async def test_a_place_that_is_none_is_refused_by_name(hostler: Hostler) -> None:
    answer = await (await hostler.user("a")).get("/api/audit", params={"before": "+"})
    assert answer.status_code == 400
    assert "before" in answer.text


async def test_admins_alone_read_it(hostler: Hostler) -> None:
    assert (await (await hostler.user("w")).get("/api/audit")).status_code == 403
