"""The configuration of the installation, as Cuby's clients see it: what is installed, and the marketplace's key."""

import asyncio
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from api.cuby import catalogue, words
from api.dialect import CUBY
from api.endpoint import Context, Group, Role
from api.shared.users import RoleField
from api.times import Time
from settings import __version__
from storage import apps, marketplace
from storage.errors import (
    BadGateway,
    Conflict,
    Denied,
    Invalid,
    NotConfigured,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from storage.identity import ROLE_WORDS
from storage.marketplace import StoredKey

group = Group("Cuby: Configuration", "/api/config", CUBY)

_READ = (Unauthenticated, Denied)
_BODY_BYTES = 16 * 1024


class Product(Schema):
    """An installed product."""

    instanceId = fields.String(required=True)
    id = fields.String(required=True)
    alias = fields.String(required=True, allow_none=True)
    name = fields.String(required=True)
    npmPackage = fields.String(required=True, allow_none=True)
    version = fields.String(required=True)
    url = fields.String(required=True, allow_none=True)
    configured = fields.Boolean(required=True)
    installedAt = fields.String(required=True, allow_none=True)
    status = fields.String(required=True, validate=validate.OneOf(words.PRODUCT_WORDS))
    node = fields.String(required=True)


class KeyStatus(Schema):
    """Whether a key for the marketplace is kept, how it begins, and whether it logs in."""

    configured = fields.Boolean(required=True)
    prefix = fields.String(required=True, allow_none=True)
    active = fields.Boolean(required=True)
    role = fields.String(required=True, allow_none=True)
    storedAt = Time(required=True, allow_none=True)


class ConfigAnswer(Schema):
    """The installation at a glance."""

    products = fields.List(fields.Nested(Product), required=True)
    apiKey = fields.Nested(KeyStatus, required=True)
    hasApiKey = fields.Boolean(required=True)
    operatorMode = fields.Boolean(required=True)
    autostart = fields.Boolean(required=True)
    setupCompleted = fields.Boolean(required=True)
    marketplace = fields.Boolean(required=True)
    version = fields.String(required=True)


class KeyBody(Schema):
    """The key to store, a UUID of version 4, and what it may do here; `operator` unless said otherwise."""

    apiKey = fields.String(required=True, validate=validate.Length(1, 64))
    role = RoleField(load_default="w")


class KeyStored(Schema):
    """That the key is stored and logs in."""

    apiKey = fields.Nested(KeyStatus, required=True)


class TrialBody(Schema):
    """What the trial's key may do here; `operator` unless said otherwise."""

    role = RoleField(load_default="w")


class TrialStarted(KeyStored):
    """A trial that the marketplace has registered; `trialKey` is shown this once."""

    trialKey = fields.String(required=True)


class Autostart(Schema):
    """Whether products come back after a reboot of their node."""

    enabled = fields.Boolean(required=True)


def _is_switch(value: Any) -> None:
    if not isinstance(value, bool):
        raise ValidationError("Must be true or false.")


class StrictAutostart(Schema):
    """The same, and nothing but true or false will do."""

    enabled = fields.Raw(required=True, validate=_is_switch, metadata={"type": "boolean"})


class Validity(Schema):
    """Whether the marketplace knows the stored key."""

    valid = fields.Boolean(required=True)
    message = fields.String(required=True)


@group.endpoint("GET ", role=Role.VIEWER, returns=ConfigAnswer(), raises=_READ)
async def read(context: Context) -> dict[str, Any]:
    """Get what is installed, whether a key is stored, whether you may operate, and which version this is.

    `operatorMode` says whether whoever asks may install, start, stop and configure.
    """
    store = context.store
    found, key, autostart, completed_ms = await asyncio.gather(
        apps.every(store),
        marketplace.key(store),
        marketplace.autostart(store),
        marketplace.setup_completed_ms(store),
    )
    status = await _key_status(context, key)
    return {
        "products": [words.product_entry(app) for app in found],
        "apiKey": status,
        "hasApiKey": status["configured"],
        "operatorMode": context.caller.role in {"w", "a"},
        "autostart": autostart,
        "setupCompleted": completed_ms is not None,
        "marketplace": catalogue.upstream(store) is not None,
        "version": __version__,
    }


async def _key_status(context: Context, key: StoredKey | None) -> dict[str, Any]:
    if key is None:
        return {"configured": False, "prefix": None, "active": False, "role": None, "storedAt": None}
    return {
        "configured": True,
        "prefix": key.prefix,
        "active": await marketplace.lets_in(context.store, key),
        "role": ROLE_WORDS[key.role],
        "storedAt": key.stored_ms,
    }


@group.endpoint(
    "POST /apikey",
    role=Role.ADMIN,
    body=KeyBody(),
    returns=KeyStored(),
    body_limit_bytes=_BODY_BYTES,
    raises=(*_READ, Invalid),
)
async def store_key(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Store the key for the marketplace, a UUID of version 4; the one before it ends at once, with its sessions.

    It logs in too: as a Bearer token, at `/api/auth` and in Socket.IO's handshake, for Cuby's endpoints alone and
    with the given role. It acts for whoever stored it.
    """
    key = await marketplace.store_key(context.store, context.caller, body["apiKey"], role=body["role"])
    return {"apiKey": await _key_status(context, key)}


@group.endpoint("GET /autostart", role=Role.VIEWER, returns=Autostart(), raises=_READ)
async def read_autostart(context: Context) -> dict[str, Any]:
    """Tell whether products come back by themselves after a reboot of their node."""
    return {"enabled": await marketplace.autostart(context.store)}


@group.endpoint(
    "POST /autostart",
    role=Role.OPERATOR,
    body=StrictAutostart(),
    returns=Autostart(),
    raises=(*_READ, Invalid),
)
async def switch_autostart(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Say whether products come back by themselves after a reboot: all that are installed, and all to come."""
    store, actor, enabled = context.store, context.caller.actor, bool(body["enabled"])
    await marketplace.keep_autostart(store, actor, enabled)
    for app in await apps.every(store):
        if app.autostart is not enabled:
            try:
                await apps.set_autostart(store, actor, app.instance_id, enabled)
            except (NotFound, Conflict):  # it is going, or being changed: its own setting then says
                continue
    return {"enabled": enabled}


@group.endpoint(
    "POST /trial",
    role=Role.ADMIN,
    body=TrialBody(),
    returns=TrialStarted(),
    raises=(*_READ, NotConfigured, Unavailable, BadGateway),
)
async def start_trial(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Make a new key, have the marketplace register a trial for it, and store it as `POST /apikey` does.

    NOT_CONFIGURED without a marketplace, for nobody else can grant a trial.
    """
    above = catalogue.configured_upstream(context.store)
    secret = marketplace.new_key()
    await above.register_trial(secret)
    key = await marketplace.store_key(context.store, context.caller, secret, role=body["role"])
    return {"trialKey": secret, "apiKey": await _key_status(context, key)}


@group.endpoint(
    "GET /validate-apikey",
    role=Role.VIEWER,
    returns=Validity(),
    raises=(*_READ, NotConfigured, Unavailable, BadGateway),
)
async def validate_key(context: Context) -> dict[str, Any]:
    """Ask the marketplace whether it knows the stored key. NOT_CONFIGURED without a marketplace."""
    above = catalogue.configured_upstream(context.store)
    secret = await catalogue.key_for_upstream(context.store)
    if not secret:
        return {"valid": False, "message": "No API key is stored."}
    valid = await above.knows(secret)
    return {"valid": valid, "message": "" if valid else "The marketplace does not know the stored API key."}
