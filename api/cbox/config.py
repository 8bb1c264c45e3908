"""cbox-init's file of configuration, of which there is none here: what is said through the API is what holds."""

from marshmallow import Schema, fields

from api.dialect import CBOX
from api.endpoint import Context, Group, Role
from storage.errors import Conflict

group = Group("Process configuration", "/api/v1/config", CBOX)


class ConfigSaved(Schema):
    """Nothing is left to save."""

    status = fields.String(required=True)
    message = fields.String(required=True)


@group.endpoint("POST /save", role=Role.OPERATOR, returns=ConfigSaved())
async def save_config(context: Context) -> dict[str, str]:
    """Say that all is saved: each change is durable before it is answered."""
    return {"status": "saved", "message": "Every change was saved when it was answered"}


@group.endpoint("POST /reload", role=Role.OPERATOR, returns=ConfigSaved(), raises=(Conflict,))
async def reload_config(context: Context) -> dict[str, str]:
    """Refuse: there is no file to read again. An altered cbox-init.yaml is imported with `hostler apps import`."""
    raise Conflict(
        "there is no configuration file to reload; import it with: hostler apps import cbox-init.yaml"
    )
