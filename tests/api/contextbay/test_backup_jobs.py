from typing import Any

from engine import register
from whole import Hostler


async def made(hostler: Hostler, **more: Any) -> Any:
    """Make a backup job of a node that has the engine, and return it as its admin sees it."""
    await register(hostler.store, "n1", metadata='{"backupEngine": "restic 0.14.0"}')
    body = {"name": "nightly", "node_id": "n1", "volumes": ["/srv"], "dest_path": "shop", **more}
    answer = await (await hostler.user("a")).post("/api/backup-jobs", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_viewers_see_that_there_are_commands_and_not_what_they_are(hostler: Hostler) -> None:
    command = {"type": "command", "name": "dump", "command": "dump --key=s3cret"}
    backup = await made(
        hostler, volumes=["/srv", command], hooks={"pre": "stop --key=s3cret"},
        drill={"command": "check --key=s3cret"},
    )  # fmt: skip
    assert backup["volumes"][1] == command
    assert backup["drill"]["command"] == "check --key=s3cret"
    viewer = await hostler.user("r")
    for path in (f"/api/backup-jobs/{backup['id']}", "/api/backup-jobs"):
        answer = await viewer.get(path)
        assert answer.status_code == 200
        assert "s3cret" not in answer.text
    seen = (await viewer.get(f"/api/backup-jobs/{backup['id']}")).json()
    assert seen["volumes"] == ["/srv", {"type": "command", "name": "dump"}]
    assert seen["hooks"] == {"pre": None, "post": None}


async def test_where_the_data_lie_may_be_said_again_and_not_changed(hostler: Hostler) -> None:
    backup = await made(hostler)
    path = f"/api/backup-jobs/{backup['id']}"
    assert backup["dest_path"] == f"backups/shop/{backup['id']}"
    admin = await hostler.user("a")
    for same in (backup["dest_path"], "shop"):
        changed = await admin.put(path, json={"dest_path": same, "name": "weekly"})
        assert (changed.status_code, changed.json()["dest_path"]) == (200, backup["dest_path"])
    for other in ("", "elsewhere", "../shop"):
        assert (await admin.put(path, json={"dest_path": other})).status_code == 400


async def test_what_makes_no_sense_is_refused_by_its_field(hostler: Hostler) -> None:
    await register(hostler.store, "n1", metadata='{"backupEngine": "restic 0.14.0"}')
    admin = await hostler.user("a")
    for volumes in ([{"type": []}], [{"type": {}}], [{}], [7], [None], [[]], [{"type": "app", "app": 1}]):
        answer = await admin.post("/api/backup-jobs", json={"name": "x", "node_id": "n1", "volumes": volumes})
        assert (answer.status_code, "volumes" in answer.text) == (400, True), answer.text
