"""The end of the set-up, as Cuby's clients declare it."""

from typing import Any

from marshmallow import Schema, fields

from api.dialect import CUBY
from api.endpoint import Context, Group, Role
from api.times import Time
from storage import marketplace
from storage.errors import Denied, Unauthenticated

group = Group("Cuby: Setup", "/api/setup", CUBY)


class SetupCompleted(Schema):
    """Since when the set-up is complete."""

    setupCompleted = fields.Boolean(required=True)
    completedAt = Time(required=True)


@group.endpoint("POST /complete", role=Role.ADMIN, returns=SetupCompleted(), raises=(Unauthenticated, Denied))
async def complete(context: Context) -> dict[str, Any]:
    """Mark the set-up as complete. To say it again changes nothing."""
    completed_ms = await marketplace.complete_setup(context.store, context.caller.actor)
    return {"setupCompleted": True, "completedAt": completed_ms}
