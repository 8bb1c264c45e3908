"""Every endpoint of Hostler's own API has a command, which calls it and can show what it answers."""

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from fake_server import Answer, Asked, FakeServer
from marshmallow import Schema, fields, validate

from api.app import groups
from api.dialect import CONTEXTBAY, EXECUTOR
from api.endpoint import Endpoint, Role
from api.times import Time
from cli.main import main

#: The command line of each endpoint. `{file}` is a file, `{folder}` a folder with a hostler.toml.
COMMANDS = {
    "GET /api/apps": "apps list --node n --product p",
    "POST /api/apps": "apps install hello --detach",
    "POST /api/apps/import/cbox": "apps import {file} --detach",
    "DELETE /api/apps/{id}": "apps uninstall x --yes --detach",
    "GET /api/apps/{id}": "apps show x",
    "PUT /api/apps/{id}/autostart": "apps autostart x --off",
    "GET /api/apps/{id}/config": "apps config x",
    "PUT /api/apps/{id}/config": "apps config x a=1 --detach",
    "POST /api/apps/{id}/install": "apps reinstall x --detach",
    "GET /api/apps/{id}/logfile": "apps logfile x --process web --lines 5",
    "GET /api/apps/{id}/logs": "apps logs x",
    "POST /api/apps/{id}/pause": "apps pause x --detach",
    "POST /api/apps/{id}/restart": "apps restart x --detach",
    "POST /api/apps/{id}/resume": "apps resume x --detach",
    "POST /api/apps/{id}/rollback": "apps rollback x --detach",
    "GET /api/apps/{id}/runs": "apps runs x",
    "GET /api/apps/{id}/samples": "apps samples x",
    "POST /api/apps/{id}/scale": "apps scale x web=2 --detach",
    "POST /api/apps/{id}/start": "apps start x --detach",
    "POST /api/apps/{id}/stop": "apps stop x --detach",
    "POST /api/apps/{id}/trigger": "apps trigger x --detach",
    "POST /api/apps/{id}/update": "apps update x --detach",
    "GET /api/audit": "audit --limit 1 --action x",
    "POST /api/auth/login": "login --url {url} --email a@b.org --password-stdin",
    "POST /api/auth/logout": "logout",
    "GET /api/auth/me": "whoami",
    "GET /api/auth/setup": "setup --url {url} --email a@b.org --password-stdin",
    "POST /api/auth/setup": "setup --url {url} --email a@b.org --password-stdin",
    "GET /api/files/download/{fileId}": "files down x --output -",
    "GET /api/files/list": "files ls",
    "POST /api/files/presign": "files up {file} --direct",
    "POST /api/files/upload": "files up {file}",
    "DELETE /api/files/{fileId}": "files rm x",
    "GET /api/files/{fileId}": "files show x",
    "POST /api/files/{fileId}/complete": "files up {file} --direct",
    "GET /api/health": "health",
    "GET /api/health/checks": "health --checks",
    "GET /api/health/ready": "health",
    "POST /api/jobs/cancel": "jobs cancel x",
    "POST /api/jobs/cancel-batch": "jobs cancel x y",
    "POST /api/jobs/retry-batch": "jobs retry x y",
    "GET /api/jobs/list": "jobs list --status failed --tag a --search words",
    "GET /api/jobs/quarantine": "quarantine list",
    "DELETE /api/jobs/quarantine/{id}": "quarantine discard x",
    "POST /api/jobs/quarantine/{id}/release": "quarantine release x",
    "GET /api/jobs/status": "jobs show x",
    "POST /api/jobs/submit": "submit 'echo hello'",
    "POST /api/jobs/submit-batch": "submit --batch {lines}",
    "GET /api/jobs/{id}/artifacts": "jobs artifacts x",
    "GET /api/jobs/{id}/artifacts/{name:path}": "jobs artifacts x a/b",
    "GET /api/jobs/{id}/log": "jobs log x",
    "GET /api/jobs/{id}/attempts": "jobs attempts x",
    "GET /api/jobs/{id}/log/times": "jobs log x --timestamps",
    "GET /api/jobs/{id}/order": "jobs rerun x --tag gpu --without-env",
    "POST /api/jobs/{id}/retry": "jobs retry x",
    "GET /api/jobs/{id}/why": "jobs why x",
    "GET /api/keys": "keys list --all",
    "POST /api/keys": "keys create ci --role operator",
    "DELETE /api/keys/{key_id}": "keys revoke x",
    "GET /api/modules": "modules",
    "GET /api/nodes": "nodes list",
    "GET /api/nodes/{node_id}": "nodes show x",
    "GET /api/overview": "overview",
    "GET /api/queues": "queues --target 60 --tag gpu",
    "GET /api/openapi.json": "openapi",
    "GET /api/releases": "products list",
    "POST /api/releases": "products publish {folder}",
    "GET /api/releases/{product}": "products show x",
    "DELETE /api/releases/{product}/{version}": "products remove x 1",
    "GET /api/releases/{product}/{version}": "products show x 1",
    "GET /api/schedules": "schedules list",
    "DELETE /api/schedules/{id}": "schedules end x",
    "GET /api/schedules/{id}": "schedules show x",
    "GET /api/users": "users list",
    "POST /api/users": "users create ada ada@b.org --role operator --password-stdin",
    "DELETE /api/users/{user_id}": "users delete x --yes",
    "GET /api/users/{user_id}": "users show x",
    "PUT /api/users/{user_id}": "users update x --role viewer",
    "GET /api/workers/list": "workers list --tag gpu --sort -freeSlots",
    "DELETE /api/workers/{workerId}": "workers forget x --yes",
    "GET /api/workers/{workerId}": "workers show x",
    "PUT /api/workers/{workerId}/draining": "workers drain x",
}
#: Endpoints without a command, and why.
EXCEPTIONS = {
    "POST /api/auth/refresh": "every command renews a session that has expired by itself",
    "GET /api/health/live": "a probe for process managers; hostler health says more",
    "GET /api/docs": "a page for browsers",
    "GET /api/docs/{name}": "a part of that page",
    "GET /api/auth/terminal": "the page that hostler login opens in a browser",
    "GET /api/auth/terminal/{name}": "a part of that page",
    "POST /api/workers/register": "what an agent does: hostler agent",
    "WS /api/jobs/stream": "jobs log --follow reads the same as server-sent events",
    "WS /api/events": "what hostler top is fed by",
    "WS /api/ws": "ContextBay's spelling of the same",
}


#: Whose commands print what is there as it is, and take no --json.
TAKES_NO_JSON = {"GET /api/openapi.json", "GET /api/apps/{id}/logfile"}
#: Whose commands print a file or lines with --json too.
PRINTS_NO_JSON = {
    "GET /api/files/download/{fileId}", "GET /api/jobs/{id}/artifacts/{name:path}", "GET /api/apps/{id}/logs"
}  # fmt: skip


def own(endpoint: Endpoint) -> bool:
    """Whether people call an endpoint, by Hostler's own name for it."""
    people = endpoint.role & ~Role.WORKER and endpoint.method != "HEAD"
    return (
        bool(people)
        and endpoint.group.dialect in {EXECUTOR, CONTEXTBAY}
        and endpoint.path.startswith("/api/")
    )


def of_another_client(endpoint: Endpoint) -> bool:
    """Whether an endpoint is there for clients of a system that Hostler stands in for."""
    return endpoint.group.title == "Jobs, older spellings"


OWN = {
    f"{endpoint.method} {endpoint.path}": endpoint
    for group in groups()
    for endpoint in group.endpoints
    if own(endpoint) and not of_another_client(endpoint)
}


def test_every_endpoint_has_a_command_or_a_reason_to_have_none() -> None:
    without = sorted(OWN.keys() - COMMANDS.keys() - EXCEPTIONS.keys())
    assert not without, f"add a command and its line to COMMANDS: {', '.join(without)}"


def test_the_tables_name_no_endpoint_that_is_gone() -> None:
    assert not (COMMANDS.keys() | EXCEPTIONS.keys()) - OWN.keys()
    assert not COMMANDS.keys() & EXCEPTIONS.keys()


def example(schema: Schema) -> dict[str, Any]:
    """Return an answer as a schema declares it."""
    return {field.data_key or name: value(field) for name, field in schema.fields.items()}


def value(field: Any) -> Any:
    one_of = [each for each in (field.validators or []) if isinstance(each, validate.OneOf | validate.Equal)]
    if one_of:
        each = one_of[0]
        return each.comparable if isinstance(each, validate.Equal) else next(iter(each.choices))
    if isinstance(field, Time):
        return "2026-01-25T10:30:00Z"
    if isinstance(field, fields.Nested):
        return [example(field.schema)] if field.many else example(field.schema)
    if isinstance(field, fields.List):
        return [value(field.inner)]
    plain: dict[type, Any] = {
        fields.Boolean: False,
        fields.Integer: 1,
        fields.Float: 1.5,
        fields.Dict: {"kind": "x", "package": "x"},
        fields.String: "x",
    }
    return next((made for kind, made in plain.items() if isinstance(field, kind)), None)


class Declared(dict[str, list[Any]]):
    """What the server answers on each route: what its endpoint declares, without a single request having been real."""

    def get(self, route: str, _default: Any = None) -> Any:
        for endpoint in sorted(OWN.values(), key=lambda each: each.path.count("{")):
            shape = re.sub(r"{[^}]+:path}", ".+", endpoint.path)
            if re.fullmatch(f"{endpoint.method} {re.sub('{[^}]+}', '[^/]+', shape)}", route):
                return [lambda asked, found=endpoint: answer(found, asked)]
        return [Answer(200, b"")] if route.startswith("PUT /object") else None


def answer(endpoint: Endpoint, asked: Asked) -> Answer:
    if endpoint.returns is None:
        return Answer(endpoint.status.value, b"{}" if endpoint.media_type == "application/json" else b"")
    body = example(endpoint.returns)
    if endpoint.path == "/api/files/presign":
        body |= {"uploadUrl": f"http://{asked.headers['host']}/object", "method": "PUT", "headers": {}}
    if endpoint.path == "/api/jobs/{id}/artifacts":
        body["artifacts"][0] |= {"name": "a/b", "url": "/api/jobs/x/artifacts/a/b"}
    if endpoint.path == "/api/jobs/{id}/log/times":
        body["times"] = [[1, 1_700_000_000_000]]
    if endpoint.path == "/api/auth/setup" and endpoint.method == "GET":
        body["needed"] = True
    if endpoint.path.endswith("-batch") and "results" in body:
        body["results"][0]["ok"] = True
    if "hasMore" in body:
        body["hasMore"] = False
    return Answer(endpoint.status.value, endpoint.group.dialect.success(body))


@pytest.fixture
def declared(server: FakeServer, config: Path) -> FakeServer:
    server.routes = Declared()  # type: ignore[assignment]
    return server


def words(command: str, server: FakeServer, folder: Path) -> list[str]:
    """Return the words of a command line, with the files that it names made."""
    (folder / "a.txt").write_text("content")
    (folder / "jobs.jsonl").write_text('{"command": "true"}\n')
    (folder / "hostler.toml").write_text(
        'id = "hello"\nname = "Hello"\nversion = "1.0.0"\n[processes.web]\ncommand = "true"\n'
    )
    names = {
        "file": folder / "a.txt", "lines": folder / "jobs.jsonl", "folder": folder, "url": server.url
    }  # fmt: skip
    return [word.format(**names) for word in shlex.split(command)]


@pytest.mark.parametrize("route", sorted(COMMANDS))
def test_its_command_calls_it_and_shows_what_it_answers(
    route: str,
    declared: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    endpoint = OWN[route]
    for as_json in ("", " --json"):
        if as_json and route in TAKES_NO_JSON:
            continue
        monkeypatch.setattr("sys.stdin", io.StringIO("pass word\n"))
        if route == "POST /api/auth/logout":
            assert main(words(COMMANDS["POST /api/auth/login"], declared, tmp_path)) == 0
        declared.asked.clear()
        code = main(words(COMMANDS[route] + as_json, declared, tmp_path))
        printed = capsys.readouterr()
        shape = re.sub("{[^}]+}", "[^/]+", re.sub(r"{[^}]+:path}", ".+", endpoint.path))
        asked = [each for each in declared.asked if each.method == endpoint.method]
        assert any(re.fullmatch(shape, each.path) for each in asked), (printed.err, declared.asked)
        assert code == 0 or route.startswith("GET /api/health"), printed.err
        if as_json and route not in PRINTS_NO_JSON:
            assert json.loads(printed.out)
