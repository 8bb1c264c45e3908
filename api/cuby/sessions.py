"""Signing in as Cuby's clients do: an API key, or a token that counts once, becomes a session's cookie."""

from typing import Any

from marshmallow import Schema, fields, validate

from api import auth
from api.dialect import CUBY
from api.endpoint import Context, Group, HTTPStatus, Role
from storage import handoffs, sessions
from storage.errors import Denied, Invalid, InvalidCredentials, Unauthenticated
from storage.sessions import SESSION_S

group = Group("Cuby: Authentication", "/api/auth", CUBY)

_BODY_BYTES = 16 * 1024


class KeyLogin(Schema):
    """The API key to log in with."""

    apiKey = fields.String(required=True, validate=validate.Length(1, 512))


class HandoffToken(Schema):
    """A token that becomes a session once, and for how many seconds it may."""

    token = fields.String(required=True)
    expiresIn = fields.Integer(required=True)


class TokenLogin(Schema):
    """The token to trade in."""

    token = fields.String(required=True, validate=validate.Length(1, 512))


class SessionBegun(Schema):
    """That the cookie is set, and for how many seconds it lasts."""

    authenticated = fields.Boolean(required=True)
    expiresIn = fields.Integer(required=True)


@group.endpoint(
    "POST ",
    role=Role.PUBLIC,
    body=KeyLogin(),
    returns=SessionBegun(),
    body_limit_bytes=_BODY_BYTES,
    raises=(Invalid, InvalidCredentials),
)
async def log_in(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Log in with an API key and get a session as the cookie `auth_token`.

    Takes the marketplace's key, which is a UUID, and every other API key. The session may do what the key may, for
    24 hours, and ends when the key is revoked or replaced.
    """
    return _begun(context, await handoffs.session_of_key(context.store, body["apiKey"]))


@group.endpoint("POST /token", role=Role.VIEWER, returns=HandoffToken(), raises=(Unauthenticated, Denied))
async def create_token(context: Context) -> dict[str, Any]:
    """Create a token with which a browser gets a session of yours, once, within 60 seconds."""
    token = await handoffs.create(context.store, context.caller)
    return {"token": token, "expiresIn": handoffs.TOKEN_S}


@group.endpoint(
    "POST /session",
    role=Role.PUBLIC,
    body=TokenLogin(),
    returns=SessionBegun(),
    body_limit_bytes=_BODY_BYTES,
    raises=(Invalid, Unauthenticated),
)
async def trade_in(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Trade a one-time token in for a session as the cookie `auth_token`.

    It works once, within 60 seconds, and only as long as what it was made with still counts.
    """
    return _begun(context, await handoffs.spend(context.store, body["token"]))


@group.endpoint(
    "DELETE /session",
    role=Role.VIEWER,
    status=HTTPStatus.NO_CONTENT,
    raises=(Unauthenticated, Denied, Invalid),
)
async def log_out(context: Context) -> None:
    """End the session that this request came by, and take its cookie back.

    Cuby's page has no such row; the session of a key that speaks Cuby's dialect alone could not be ended otherwise.
    """
    if not context.caller.family:
        raise Invalid("An API key has no session to end.")
    await sessions.revoke(context.store, context.caller)
    if context.response is not None:
        auth.clear_session(context.request, context.response, context.store)


def _begun(context: Context, token: str) -> dict[str, Any]:
    if context.response is not None:
        auth.set_session(context.request, context.response, context.store, token)
    return {"authenticated": True, "expiresIn": SESSION_S}
