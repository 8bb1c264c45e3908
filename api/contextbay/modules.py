"""Which modules this Hostler has, and which of them are switched on."""

from typing import Any

from marshmallow import Schema, fields

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from settings import MODULES

group = Group("Modules", "/api/modules", CONTEXTBAY)


class ModulesAnswer(Schema):
    """Every module by its name with whether it is switched on, and the names of those that are."""

    modules = fields.Dict(keys=fields.String(), values=fields.Boolean(), required=True)
    enabled = fields.List(fields.String(), required=True)


@group.endpoint("GET ", role=Role.PUBLIC, returns=ModulesAnswer(), counted=False)
async def list_modules(context: Context) -> dict[str, Any]:
    """List the modules. Endpoints of one that is switched off answer 404 with the code MODULE_DISABLED."""
    off = context.store.settings.modules_off
    return {
        "modules": {name: name not in off for name in MODULES},
        "enabled": [name for name in MODULES if name not in off],
    }
