from typing import Any

import pytest
from marshmallow import Schema, fields
from whole import Hostler

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, ModuleDisabled, Role
from settings import BadSettings, Settings


async def test_anybody_may_ask_which_modules_are_on(hostler: Hostler) -> None:
    found = (await hostler.client().get("/api/modules")).json()
    assert found == {"modules": {"backups": True}, "enabled": ["backups"]}


async def test_a_module_that_is_off_is_listed_as_such_and_its_rows_are_gone(settings_for: Any) -> None:
    async with settings_for(modules_off=("backups",)) as hostler:
        found = (await hostler.client().get("/api/modules")).json()
        assert found == {"modules": {"backups": False}, "enabled": []}
        admin, nobody = await hostler.user("a"), hostler.client()
        record = f"/api/backup-jobs/backup-{'0' * 20}/records/job-{'0' * 20}"
        for method, path in (
            ("GET", "/api/backup-jobs"),
            ("POST", "/api/backup-jobs"),
            ("GET", f"{record}/download"),
        ):
            answer = await admin.request(method, path, json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()["code"]) == (404, "MODULE_DISABLED"), answer.text
            assert "'backups' is switched off" in answer.json()["error"]
            assert (await nobody.request(method, path)).status_code == 401
        assert (await admin.get("/api/nodes")).status_code == 200


def test_every_endpoint_of_a_module_says_that_it_may_be_off() -> None:
    group = Group("Some", "/api/some", CONTEXTBAY, module="backups")

    class Answer(Schema):
        """One."""

        one = fields.Integer(required=True)

    @group.endpoint("GET ", role=Role.VIEWER, returns=Answer())
    async def some(context: Context) -> dict[str, int]:
        """Answer one."""
        return {"one": 1}

    assert group.endpoints[0].raises == (ModuleDisabled,)
    with pytest.raises(TypeError, match="carry"):
        group.endpoint("GET /more", role=Role.VIEWER, returns=Answer(), carries=True)(some)


def test_a_module_that_does_not_exist_cannot_be_switched_off() -> None:
    with pytest.raises(BadSettings, match="no module 'backup'"):
        Settings.from_env({"HOSTLER_MODULES_OFF": "backup"})
