"""A cbox-init.yaml, imported: an app for each process, and a token that opens /api/v1 and nothing else."""

from typing import Any

import pytest
from whole import Hostler

from api.app import groups
from api.endpoint import Role
from storage import apps

TOKEN = "your-secure-token-here"
FILE = f"""
global:
  api_enabled: true
  api_port: 9180
  api_auth: "{TOKEN}"
processes:
  php-fpm: {{enabled: true, command: [php-fpm, -F], scale: 2}}
  queue-default: {{enabled: true, command: [php, artisan, "queue:work"], depends_on: [php-fpm], user: www-data}}
"""


async def imported(fleet: Any, content: str = FILE, **rest: Any) -> Any:
    return await fleet.operator.post("/api/apps/import/cbox", json={"content": content, **rest})


async def test_every_process_becomes_an_app_and_importing_again_changes_nothing(fleet: Any) -> None:
    answer = await imported(fleet)
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert [(each["instanceId"], each["action"], each["node"]) for each in told["processes"]] == [
        ("php-fpm", "install", "n1"), ("queue-default", "install", "n1"),
    ]  # fmt: skip
    assert told["ignored"] == ["processes.queue-default.user"]
    assert (told["api"]["enabled"], told["api"]["port"]) == (True, 9180)
    await fleet.node.carry_out()
    assert (await fleet.process("php-fpm"))["scale"] == 2
    again = (await imported(fleet)).json()
    assert {each["action"] for each in again["processes"]} == {"unchanged"}
    assert again["api"]["keyId"] == told["api"]["keyId"]
    changed = (await imported(fleet, FILE.replace("scale: 2", "scale: 3"))).json()
    assert [each["action"] for each in changed["processes"]] == ["update", "unchanged"]
    await fleet.node.carry_out()
    assert (await fleet.process("php-fpm"))["scale"] == 3


async def test_the_page_s_requests_work_with_the_file_s_token(fleet: Any) -> None:
    await imported(fleet)
    await fleet.node.carry_out()
    client = fleet.hostler.client(Authorization=f"Bearer {TOKEN}")
    assert (await client.get("/api/v1/processes")).status_code == 200
    answer = await client.post("/api/v1/processes/php-fpm/restart")
    assert answer.json() == {"message": "restart initiated", "process": "php-fpm"}
    answer = await client.post("/api/v1/processes/queue-default/scale", json={"scale": 10})
    assert answer.json() == {"message": "scale initiated", "process": "queue-default", "scale": 10}


async def test_the_file_s_token_opens_no_other_door(fleet: Any) -> None:
    await imported(fleet)
    client = fleet.hostler.client(Authorization=f"Bearer {TOKEN}")
    for endpoint in (each for group in groups() for each in group.endpoints):
        if endpoint.role is Role.PUBLIC or endpoint.method == "WS" or endpoint.group.dialect.name == "cbox":
            continue
        answer = await client.request(endpoint.method, endpoint.path.replace("{", "").replace("}", ""))
        assert answer.status_code == 403, (endpoint.method, endpoint.path, answer.text)


@pytest.mark.parametrize(
    ("old", "new"), [("api_enabled: true", "api_enabled: false"), (f'api_auth: "{TOKEN}"', "api_auth: ''")]
)
async def test_without_an_api_or_a_token_no_key_is_made(fleet: Any, old: str, new: str) -> None:
    answer = await imported(fleet, FILE.replace(old, new))
    assert answer.json()["api"]["keyId"] is None
    assert (
        await fleet.hostler.client(Authorization=f"Bearer {TOKEN}").get("/api/v1/processes")
    ).status_code == 401


@pytest.mark.parametrize(
    ("content", "status", "complaint"),
    [
        (FILE.replace(TOKEN, "short"), 400, "api_auth"),
        (FILE.replace("scale: 2", "scale: x"), 400, "scale"),
        ("processes: &p {a: *p}", 400, "Aliases"),
        ("", 400, "content"),
    ],
)
async def test_a_file_that_makes_no_sense_installs_nothing(
    fleet: Any, content: str, status: int, complaint: str
) -> None:
    answer = await imported(fleet, content)
    assert answer.status_code == status
    assert complaint in answer.text
    assert await apps.every(fleet.hostler.store) == []


async def test_an_app_of_another_origin_is_not_taken_over(fleet: Any) -> None:
    await fleet.install("php-fpm")
    answer = await imported(fleet)
    assert answer.status_code == 409
    assert [app.instance_id for app in await apps.every(fleet.hostler.store)] == ["php-fpm"]


async def test_viewers_import_nothing(hostler: Hostler) -> None:
    viewer = await hostler.user("r")
    assert (await viewer.post("/api/apps/import/cbox", json={"content": FILE})).status_code == 403
