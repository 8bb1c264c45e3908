"""The audit log, as admins read it: every change that was accepted, with who made it."""

from typing import Any

from marshmallow import Schema, fields, validate

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.times import Time
from storage import audit
from storage.calls import STREAM_ID
from storage.errors import Denied, Invalid, Unauthenticated

group = Group("Audit log", "/api/audit", CONTEXTBAY)


class AuditQuery(Schema):
    """Which part of the log."""

    limit = fields.Integer(load_default=100, validate=validate.Range(1, 1000))
    before = fields.String(
        validate=validate.Regexp(rf"^{STREAM_ID}\Z"),
        metadata={"description": "The `next` of the page before."},
    )


class AuditEntry(Schema):
    """One accepted change: who did what to which thing."""

    id = fields.String(required=True)
    at = Time(required=True, attribute="at_ms")
    actor = fields.String(required=True)
    action = fields.String(required=True)
    subject = fields.String(required=True)


class AuditAnswer(Schema):
    """A part of the log, the newest first; `next` is null where it begins."""

    entries = fields.List(fields.Nested(AuditEntry), required=True)
    next = fields.String(required=True, allow_none=True)


@group.endpoint(
    "GET ",
    role=Role.ADMIN,
    query=AuditQuery(),
    returns=AuditAnswer(),
    raises=(Unauthenticated, Denied, Invalid),
)
async def list_audit(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """Read the audit log, the newest changes first."""
    found = await audit.newest(context.store, **query)
    return {"entries": found, "next": found[-1].id if len(found) == query["limit"] else None}
