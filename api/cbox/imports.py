"""A whole cbox-init.yaml, imported: an app for each of its processes, and its API's token."""

from typing import Any

from marshmallow import Schema, fields, validate

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, HTTPStatus, Role
from storage import api_keys, apps
from storage.apps import App
from storage.errors import Conflict, Invalid, NotFound, Unavailable
from storage.identity import lesser
from storage.manifests import Manifest, cbox

group = Group("Import", "/api/apps/import", CONTEXTBAY)

SCOPE = "cbox"


class Import(Schema):
    """A file, and where its processes shall run: all on one machine."""

    content = fields.String(
        required=True,
        validate=validate.Length(1, cbox.LIMIT_BYTES),
        metadata={"description": "The YAML itself."},
    )
    node = fields.String(metadata={"description": "The node; the least loaded without it."})
    tags = fields.List(fields.String(), load_default=list, validate=validate.Length(0, 16))


class ImportedProcess(Schema):
    """What became of one process."""

    instanceId = fields.String(required=True)
    action = fields.String(required=True, validate=validate.OneOf(["install", "update", "unchanged"]))
    node = fields.String(required=True)
    jobId = fields.String(required=True, allow_none=True)


class ImportedApi(Schema):
    """What the file says of its API, and the key that its token is now."""

    enabled = fields.Boolean(required=True)
    port = fields.Integer(required=True)
    keyId = fields.String(required=True, allow_none=True)


class ImportAnswer(Schema):
    """What was imported, and the settings that have no meaning here."""

    processes = fields.List(fields.Nested(ImportedProcess), required=True)
    api = fields.Nested(ImportedApi, required=True)
    ignored = fields.List(fields.String(), required=True)


@group.endpoint(
    "POST /cbox",
    role=Role.OPERATOR,
    body=Import(),
    returns=ImportAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=(Invalid, NotFound, Conflict, Unavailable),
)
async def import_cbox(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Install each process of a cbox-init.yaml as an app, or update the app that it was imported as before.

    Where `global.api_enabled` is true, the token in `global.api_auth` becomes a key of yours that counts for
    `/api/v1` alone. Importing the same file again changes nothing.
    """
    store, actor = context.store, context.caller.actor
    try:
        imported = cbox.read(body["content"].encode())
    except Invalid as error:
        raise Invalid(f"content: {error}", details={"content": str(error)}) from None
    known = {app.instance_id: app for app in await apps.every(store)}
    for manifest in imported.manifests:
        _check(manifest, known.get(manifest.id))
    key_id = await _adopt(context, imported)
    node = body.get("node") or await _node(
        context, body["tags"], [known.get(each.id) for each in imported.manifests]
    )
    done = []
    for manifest in imported.manifests:
        app = known.get(manifest.id)
        if app is None:
            app, submitted = await apps.install(store, actor, inline=manifest, node=node)
            done.append(_done(app, "install", submitted.id))
        elif app.manifest == manifest:
            done.append(_done(app, "unchanged", None))
        else:
            submitted = await apps.change(store, actor, manifest.id, "update", inline=manifest)
            done.append(_done(app, "update", submitted.id))
    api = {"enabled": imported.api_enabled, "port": imported.api_port, "keyId": key_id}
    return {"processes": done, "api": api, "ignored": list(imported.ignored)}


def _check(manifest: Manifest, app: App | None) -> None:
    """Raise Conflict where the name belongs to an app that was not imported."""
    if app is not None and (app.source.get("kind") != "inline" or app.kind != "cbox"):
        raise Conflict(f"There is an app {manifest.id!r} already, and it was not imported from cbox-init.")


async def _adopt(context: Context, imported: cbox.Imported) -> str | None:
    if not imported.api_enabled or imported.api_auth is None:
        return None
    role: Any = lesser("w", context.caller.role)
    try:
        key = await api_keys.adopt(
            context.store,
            context.caller,
            imported.api_auth,
            name="cbox-init api_auth",
            role=role,
            scope=SCOPE,
        )
    except Invalid as error:
        message = f"global.api_auth: {error}"
        raise Invalid(message, details={"global.api_auth": str(error)}) from None
    return key.id


async def _node(context: Context, tags: list[str], known: list[App | None]) -> str:
    """Return where new processes go: beside those of an earlier import, since they may depend on one another."""
    nodes = [app.node for app in known if app is not None]
    return nodes[0] if nodes else await apps.choose_node(context.store, tags=tags)


def _done(app: App, action: str, job_id: str | None) -> dict[str, Any]:
    return {"instanceId": app.instance_id, "action": action, "node": app.node, "jobId": job_id}
