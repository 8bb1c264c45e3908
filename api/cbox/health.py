"""cbox-init's health check, which tells of its API alone."""

from marshmallow import Schema, fields

from api.dialect import CBOX
from api.endpoint import Context, Group, Role

group = Group("Process health", "/api/v1/health", CBOX)


class HealthAnswer(Schema):
    """The API answers."""

    status = fields.String(required=True)


@group.endpoint("GET ", role=Role.PUBLIC, returns=HealthAnswer(), counted=False)
async def process_health(context: Context) -> dict[str, str]:
    """Say that this API answers; how apps are is told by GET /api/v1/processes."""
    return {"status": "healthy"}
