"""The OpenAPI document and the table of routes, derived from the declarations that serve the requests.

`python -m api.openapi` writes docs/openapi.json and docs/routes.md; `--check` says whether they are up to date.
"""

import argparse
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, fields

from api.app import groups
from api.dialect import EXECUTOR, Dialect
from api.endpoint import OPEN, ROLES_OF, Endpoint, Group, HTTPStatus, Role
from api.errors import status_of
from api.executor.schemas import OrShort
from api.paging import Words
from settings import __version__
from storage.errors import Denied, HostlerError, Invalid, NotFound, TooMany, Unauthenticated

DOCS = Path(__file__).resolve().parent.parent / "docs"

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A session's token, or an API key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "auth_token"},
    "workerToken": {"type": "apiKey", "in": "header", "name": "X-Worker-Token"},
}

#: The rungs of the ladder from the lowest, with the letters that reach them.
_LADDER = {Role.VIEWER: "r", Role.OPERATOR: "w", Role.ADMIN: "a"}


#: Bodies that handlers read by themselves.
_RAW: dict[str, dict[str, Any]] = {
    "application/json": {"type": "object"},
    "application/octet-stream": {},
    "multipart/form-data": {
        "type": "object",
        "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
        "required": ["file"],
    },
}


class _ErrorBody(Schema):
    """What every error says."""

    error = fields.String(required=True)
    code = fields.String(required=True, metadata={"description": "Stable and machine-readable."})
    details = fields.Dict(metadata={"description": "Which fields are wrong, and how: the first twenty."})
    furtherDetails = fields.Integer(metadata={"description": "How many more are."})
    retryAfter = fields.Integer(metadata={"description": "Seconds."})


class _ExecutorErrorBody(_ErrorBody):
    """What every error says in CMD Executor's dialect."""

    message = fields.String(required=True)


class _CboxErrorBody(Schema):
    """What every error says in cbox-init's dialect; its code is in the header X-Error-Code alone."""

    error = fields.String(required=True)


class _SquarebergErrorBody(_ErrorBody):
    """What every error says in Squareberg's dialect."""

    detail = fields.String(required=True)


_ERROR_BODIES: dict[str, type[Schema]] = {
    "executor": _ExecutorErrorBody,
    "cbox": _CboxErrorBody,
    "squareberg": _SquarebergErrorBody,
}


def name_of(role: Role) -> str:
    """Return a set of roles as the document and the table spell it, e.g. `viewer or worker`."""
    return " or ".join(str(each.name).lower() for each in role)


def may_be_empty(endpoint: Endpoint) -> bool:
    """Tell whether an endpoint answers 204 where there is nothing: its handler may return None."""
    if endpoint.returns is None or endpoint.raw or endpoint.status is not HTTPStatus.OK:
        return False
    answer = typing.get_type_hints(endpoint.handler).get("return")
    return isinstance(answer, types.UnionType) and types.NoneType in typing.get_args(answer)


def errors_of(endpoint: Endpoint) -> list[type[HostlerError]]:
    """Return all errors that an endpoint may answer, those of its role, query, body and path included."""
    found = dict.fromkeys(endpoint.raises)
    if not endpoint.role & Role.PUBLIC:
        found[Unauthenticated] = None
    if not endpoint.role & OPEN:
        found[Denied] = None
    if endpoint.body is not None or endpoint.query is not None:
        found[Invalid] = None
    if "{" in endpoint.path:
        found.setdefault(NotFound)
    if endpoint.counted:
        found[TooMany] = None
    return list(found)


def path_of(endpoint: Endpoint) -> str:
    """Return the path as OpenAPI spells it: without Falcon's converters."""
    return re.sub(r"{(\w+):[^}]*}", r"{\1}", endpoint.path)


def _words_property(converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}} if isinstance(field, Words) else {}


def _short_property(converter: Any, field: Any, *, ret: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Spell an object for which a string may stand (api/executor/schemas.py, OrShort)."""
    if not isinstance(field, OrShort) or "$ref" not in ret:
        return {}
    return {"anyOf": [{"type": "string", "description": f"Its {field.short}."}, {"$ref": ret.pop("$ref")}]}


class _Document:
    """One document in the making: remembers which schemas and operation ids it has named."""

    def __init__(self) -> None:
        self.plugin = MarshmallowPlugin(schema_name_resolver=self._named)
        self.spec = APISpec(
            "Hostler",
            __version__,
            "3.1.0",
            plugins=[self.plugin],
            info={
                "description": "Commands on a fleet, carried out durably: jobs, workers, files, and what happened.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            components={"securitySchemes": _SECURITY_SCHEMES},
        )
        converter: Any = self.plugin.converter  # which comes with the document
        self.converter = converter
        for function in (_words_property, _short_property):
            self.converter.add_attribute_function(function.__get__(self.converter))
        self._ids: set[str] = set()

    def _named(self, schema: Any) -> str:
        kind = schema if isinstance(schema, type) else type(schema)
        return str(kind.__name__).strip("_")

    def add(self, group: Group) -> None:
        """Describe all endpoints of a group."""
        self.spec.tag({"name": group.title})
        for endpoint in group.endpoints:
            if endpoint.method == "WS":
                continue
            self.spec.path(
                path_of(endpoint), operations={endpoint.method.lower(): self._operation(group, endpoint)}
            )

    def _operation_id(self, endpoint: Endpoint) -> str:
        name = endpoint.name
        if name in self._ids:  # a second route to the same handler
            name = re.sub(r"\W+", "_", f"{name}_{endpoint.method.lower()}{path_of(endpoint)}").strip("_")
        self._ids.add(name)
        return name

    def _operation(self, group: Group, endpoint: Endpoint) -> dict[str, Any]:
        operation: dict[str, Any] = {
            **described(endpoint),
            "tags": [group.title],
            "operationId": self._operation_id(endpoint),
            "x-role": name_of(endpoint.role),
            "security": security(endpoint.role),
            "parameters": list(self._parameters(endpoint)),
            "responses": {**self._successes(endpoint), **self._errors(endpoint)},
        }
        if endpoint.body is not None:
            content = {"application/json": {"schema": endpoint.body}}
            required = any(field.required for field in endpoint.body.fields.values())
            operation["requestBody"] = {"required": required, "content": content}
        elif endpoint.takes is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {endpoint.takes: {"schema": _RAW[endpoint.takes]}},
            }
        return operation

    def _parameters(self, endpoint: Endpoint) -> Iterator[dict[str, Any]]:
        for name in re.findall(r"{(\w+)", endpoint.path):
            yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        if endpoint.query is not None:
            yield {"in": "query", "schema": endpoint.query}

    def _successes(self, endpoint: Endpoint) -> dict[str, Any]:
        success: dict[str, Any] = {"description": endpoint.status.phrase}
        content: dict[str, Any] = {}
        if endpoint.returns is not None:
            content["application/json"] = {"schema": self._answer(endpoint)}
        if endpoint.media_type is not None:
            content[endpoint.media_type] = {"schema": {}}
        if content:
            success["content"] = content
        answers = {str(endpoint.status.value): success}
        if endpoint.otherwise is not None:
            answers[str(endpoint.otherwise.value)] = {**success, "description": endpoint.otherwise.phrase}
        if may_be_empty(endpoint):
            answers["204"] = {"description": "There is none."}
        return answers

    def _answer(self, endpoint: Endpoint) -> dict[str, Any]:
        """Return the schema of a success: every field named and no other, in the dialect's envelope."""
        described = dict(self.converter.schema2jsonschema(endpoint.returns))
        if endpoint.group.dialect is EXECUTOR and "success" not in described["properties"]:
            described["properties"] = {
                "success": {"type": "boolean", "const": True},
                **described["properties"],
            }
            described["required"] = ["success", *described.get("required", [])]
        return {**described, "additionalProperties": False}

    def _errors(self, endpoint: Endpoint) -> dict[str, Any]:
        by_status: dict[int, list[str]] = {}
        for error in errors_of(endpoint):
            by_status.setdefault(status_of(error), []).append(error.code)
        content = {"application/json": {"schema": _error_body(endpoint.group.dialect)}}
        return {
            str(status): {"description": ", ".join(dict.fromkeys(sorted(codes))), "content": content}
            for status, codes in sorted(by_status.items())
        }

    def finished(self) -> dict[str, Any]:
        """Return the document; what is answered admits no other fields, however deep it lies."""
        document: dict[str, Any] = self.spec.to_dict()
        schemas = document["components"].get("schemas", {})
        answers = [
            answer
            for path in document["paths"].values()
            for each in path.values()
            for answer in each["responses"].values()
        ]
        for name in _referred(answers, schemas):
            if not name.endswith("ErrorBody"):
                schemas[name]["additionalProperties"] = False
        return document


def _referred(described: Any, schemas: dict[str, Any]) -> set[str]:
    """Return the names of all schemas that something refers to, directly or through others."""
    found: set[str] = set()
    waiting = [described]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += each.values()
            name = str(each.get("$ref", "")).rpartition("/")[2]
            if name in schemas and name not in found:
                found.add(name)
                waiting.append(schemas[name])
        elif isinstance(each, list):
            waiting += each
    return found


def _error_body(dialect: Dialect) -> type[Schema]:
    return _ERROR_BODIES.get(dialect.name, _ErrorBody)


def described(endpoint: Endpoint) -> dict[str, str]:
    """Return the handler's docstring as summary (its first sentence line) and description (the rest)."""
    summary, _, rest = (inspect.getdoc(endpoint.handler) or "").partition("\n")
    return {"summary": summary, **({"description": rest.strip()} if rest.strip() else {})}


def security(role: Role) -> list[dict[str, list[str]]]:
    """Return by which credentials an endpoint of that role can be called; any one of them is enough."""
    if role & Role.PUBLIC:
        return []
    ways: list[dict[str, list[str]]] = []
    if role & (ROLES_OF["a"] | Role.SELF | Role.ENROLL):
        ways += [{"bearer": []}, {"apiKey": []}, {"cookie": []}]
    if role & (Role.WORKER | Role.ENROLL):
        ways += [{"workerToken": []}]
    if role & Role.ENROLL:
        ways += [{}]
    return ways


def document(of: Iterable[Group]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the groups; WebSockets, which OpenAPI lacks, are under x-websockets."""
    making = _Document()
    sockets: dict[str, Any] = {}
    for group in of:
        making.add(group)
        for endpoint in group.endpoints:
            if endpoint.method == "WS":
                asked = (
                    sorted(each.data_key or name for name, each in endpoint.query.fields.items())
                    if (endpoint.query)
                    else []
                )
                sockets[endpoint.path] = {
                    **described(endpoint),
                    "x-role": name_of(endpoint.role),
                    "security": security(endpoint.role),
                    "query": asked,
                }
    return {**making.finished(), "x-websockets": sockets}


def table(of: Iterable[Group]) -> str:
    """Return all routes as a table: method, path, role, and where the handler is."""
    rows = [
        (endpoint.path, endpoint.method, name_of(endpoint.role), _place(endpoint))
        for group in of
        for endpoint in group.endpoints
    ]
    lines = [f"| {method} | `{path}` | {role} | {place} |" for path, method, role, place in sorted(rows)]
    head = ["# Routes", "", "Written by `make docs` from the declarations.", ""]
    return "\n".join([*head, "| method | path | role | handler |", "|---|---|---|---|", *lines, ""])


def _place(endpoint: Endpoint) -> str:
    module = endpoint.handler.__module__.replace(".", "/")
    return f"`{module}.py:{endpoint.handler.__name__}`"


def _files() -> dict[Path, bytes]:
    found = groups()
    pretty = orjson.dumps(document(found), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
    return {DOCS / "openapi.json": pretty, DOCS / "routes.md": table(found).encode()}


def main(arguments: list[str] | None = None) -> int:
    """Write the generated pages, or say which of them are out of date; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m api.openapi", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 when a page is out of date"
    )
    check = parser.parse_args(arguments).check
    stale = [path for path, content in _files().items() if not path.exists() or path.read_bytes() != content]
    for path in stale:
        if check:
            sys.stderr.write(f"docs/{path.name} is out of date; run `make docs`.\n")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_files()[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
