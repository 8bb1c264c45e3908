"""Manifests: what is declared is read whole or refused by the name of its field; configuration keeps its secrets."""

import io
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from storage import manifests
from storage.errors import Invalid, NotFound
from storage.manifests import archived, configuration

WHOLE: dict[str, Any] = {
    "id": "shop", "name": "The shop", "version": "1.2.0-rc.1", "description": "Sells things.",
    "install": {"command": ["npm", "ci"], "timeout_s": 60, "network": True},
    "processes": {
        "web": {
            "command": ["node", "server.js"], "scale": 2, "max_scale": 8, "port": 3000, "env": {"MODE": "web"},
            "depends_on": ["migrate", "postgres"], "stop_signal": "INT", "stop_timeout_s": 5,
            "memory_limit_bytes": 1 << 28, "health": {"kind": "http", "path": "/health", "failures": 5},
            "restart": {"policy": "always", "attempts": 10},
        },
        "migrate": {"command": "npm run migrate", "type": "oneshot"},
        "nightly": {"command": "npm run report", "type": "scheduled", "schedule": "0 3 * * *", "timezone": "UTC"},
        "queue": {"command": ["node", "q.js"], "socket": True, "health": {"kind": "exec", "command": "true"}},
    },
    "config": {"type": "object", "properties": {"token": {"type": "string", "x-secret": True}}},
    "routes": {"process": "web", "prefix": "/api"},
    "components": {"config": "ui/config.js", "detail": "ui/detail.js"},
    "links": {"engine_url": "http://localhost:8000", "lowcode_urls": ["http://localhost:1880"]},
    "frontends": {"main": {"path": "dist", "title": "Main"}},
    "active_frontends": ["main"],
}  # fmt: skip
PROCESS = {"command": "x"}


def test_a_whole_manifest_is_read_and_written_and_read_again_as_the_same() -> None:
    manifest = manifests.load(WHOLE)
    assert manifests.load(manifests.as_json(manifest)) == manifest
    web = manifest.process("web")
    assert web is not None
    assert (web.port, web.depends_on, manifest.restart_of(web).attempts) == (
        3000,
        ("migrate", "postgres"),
        10,
    )
    assert [manifest.restart_of(web).delay_s(each) for each in range(5)] == [5, 10, 20, 40, 60]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id": "two words"}, "id"),
        ({"id": "a__b"}, "id"),
        ({"id": "../up"}, "id"),
        ({"version": "1/2"}, "version"),
        ({"nonsense": 1}, "nonsense"),
        ({"processes": {"w": {}}}, "processes.w.command"),
        ({"processes": {"w": {"command": []}}}, "processes.w.command"),
        ({"processes": {"w": {**PROCESS, "port": 70_000}}}, "processes.w.port"),
        ({"processes": {"w": {**PROCESS, "port": 65_535, "scale": 2}}}, "processes.w.port"),
        ({"processes": {"w": {**PROCESS, "scale": 1001}}}, "processes.w.scale"),
        ({"processes": {"w": {**PROCESS, "scale": 3, "max_scale": 2}}}, "processes.w.scale"),
        ({"processes": {"w": {**PROCESS, "type": "oneshot", "scale": 2}}}, "processes.w.scale"),
        ({"processes": {"w": {**PROCESS, "type": "oneshot", "restart": {"policy": "always"}}}}, "processes.w.restart"),
        ({"processes": {"w": {**PROCESS, "type": "scheduled"}}}, "processes.w.schedule"),
        ({"processes": {"w": {**PROCESS, "type": "scheduled", "schedule": "* * *"}}}, "processes.w.schedule"),
        ({"processes": {"w": {**PROCESS, "schedule": "* * * * *"}}}, "processes.w.schedule"),
        ({"processes": {"w": {**PROCESS, "env": {"A B": "x"}}}}, "processes.w.env"),
        ({"processes": {"w": {**PROCESS, "working_directory": "/etc"}}}, "processes.w.working_directory"),
        ({"processes": {"w": {**PROCESS, "stop_timeout_s": 3601}}}, "processes.w.stop_timeout_s"),
        ({"processes": {"w": {**PROCESS, "memory_limit_mb": "1G"}}}, "processes.w.memory_limit_mb"),
        ({"processes": {"w": {**PROCESS, "health": {"kind": "exec"}}}}, "processes.w.health.command"),
        ({"processes": {"w": {**PROCESS, "depends_on": ["v"]}, "v": {**PROCESS, "depends_on": ["w"]}}},
         "processes.v.depends_on"),
        ({"processes": {"w": {**PROCESS, "depends_on": ["w"]}}}, "processes.w.depends_on"),
        ({"processes": {"w/../v": PROCESS}}, "processes.w/../v"),
        ({"routes": {"process": "nobody"}}, "routes.process"),
        ({"components": {"config": "../../etc/passwd"}}, "components.config"),
        ({"frontends": {"main": {"path": "C:\\\\Windows"}}}, "frontends.main.path"),
        ({"active_frontends": ["nobody"]}, "active_frontends"),
        ({"links": {"engine_url": "javascript:alert(1)"}}, "links.engine_url"),
        ({"config": {"type": "string"}}, "config"),
        ({"config": {"properties": 5}}, "config"),
        ({"config": {"properties": {"a": {"pattern": "(a+)+$"}}}}, "config"),
        ({"config": {"patternProperties": {"(a+)+$": {}}}}, "config"),
        ({"config": {"$ref": "http://169.254.169.254/"}}, "config"),
        ({"config": {"additionalProperties": {"writeOnly": True}}}, "config"),
        ({"config": {"properties": {"a": {"items": {"x-secret": True}}}}}, "config"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_the_name_of_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        manifests.load({"id": "shop", "processes": {"w": PROCESS}, **changes})
    assert list(refused.value.details) == [field]


def test_the_manifest_in_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text()
    manifest = manifests.load(tomllib.loads(page.partition("```toml\n")[2].partition("```")[0]))
    assert [each.name for each in manifest.processes] == ["web", "api", "migrate", "report"]


def test_short_spellings_are_understood() -> None:
    manifest = manifests.load({
        "id": "a", "processes": {"w": {"command": "x", "memory_limit_mb": 64}}, "frontends": {"main": "dist"},
        "links": {"engineUrl": "http://e", "lowcodeUrls": ["http://l"], "authorityUrl": "http://a"},
    })  # fmt: skip
    assert manifest.processes[0].memory_limit_bytes == 64 << 20
    assert manifest.frontends["main"].path == "dist"
    assert manifest.links == manifests.Links("http://e", ("http://l",), "http://a")


def test_squarebergs_manifest_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".squareberg").mkdir()
    (tmp_path / ".squareberg/manifest.toml").write_text(
        '[app]\nname = "notes"\ndisplay_name = "Notes"\n[backend]\nmodule = "main:api"\n'
        '[frontend]\nactive = ["web"]\n[frontend.web]\ndisplay_name = "Web"\n'
    )
    manifest = manifests.read_directory(tmp_path)
    (backend,) = manifest.processes
    assert (manifest.id, manifest.title, manifest.version, manifest.kind) == (
        "notes",
        "Notes",
        "0.0.0",
        "squareberg",
    )
    assert (backend.socket, backend.stop_timeout_s, backend.env) == (True, 5, {"HOSTLER_MODULE": "main:api"})
    assert manifest.restart_of(backend).policy == "never"
    assert manifest.frontends["web"] == manifests.Frontend("frontend/web", "Web")


def test_our_own_manifest_wins_over_squarebergs_and_none_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        manifests.read_directory(tmp_path)
    (tmp_path / ".squareberg").mkdir()
    (tmp_path / ".squareberg/manifest.toml").write_text("[app]\n")
    with pytest.raises(Invalid, match=r"app\.name"):
        manifests.read_directory(tmp_path)
    (tmp_path / "hostler.toml").write_text('id = "mine"\n[processes.w]\ncommand = "x"\n')
    assert manifests.read_directory(tmp_path).id == "mine"
    (tmp_path / "hostler.toml").write_text("id = ")
    with pytest.raises(Invalid, match="no TOML"):
        manifests.read_directory(tmp_path)


def test_a_manifest_that_is_a_link_out_of_the_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.toml").write_text('id = "secret"\n')
    (tmp_path / "release").mkdir()
    (tmp_path / "release/hostler.toml").symlink_to(tmp_path / "outside.toml")
    with pytest.raises(Invalid, match="leads out"):
        manifests.read_directory(tmp_path / "release")


# In archives

TOML = b'id = "packed"\n[processes.w]\ncommand = "x"\n'


def tar(mode: str, prefix: str = "") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in (("big.bin", bytes(100_000)), ("hostler.toml", TOML)):
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("shop-1.0/hostler.toml", TOML)
    return packed.getvalue()


@pytest.mark.parametrize(
    "pack",
    [lambda: tar("w"), lambda: tar("w:gz", "./"), lambda: tar("w:xz", "shop/"), zipped,
     lambda: zstandard.compress(tar("w"))],
    ids=["tar", "gzip", "xz", "zip", "zstd"],
)  # fmt: skip
def test_the_manifest_is_found_in_any_archive(pack: Callable[[], bytes]) -> None:
    assert archived.read(io.BytesIO(pack())).id == "packed"


@pytest.mark.parametrize(
    "data", [b"", b"hello" * 200, b"\x1f\x8b" + bytes(50), b"\x28\xb5\x2f\xfd" + bytes(50), b"PK"]
)
def test_what_is_no_archive_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        archived.read(io.BytesIO(data))
    assert list(refused.value.details) == ["fileId"]


def test_an_archive_that_unpacks_to_too_much_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archived, "MOST_BYTES", 50_000)
    for packed in (tar("w:gz"), zstandard.compress(tar("w"))):
        with pytest.raises(Invalid, match="before its manifest"):
            archived.read(io.BytesIO(packed))


# Configuration

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "url": {"type": "string", "format": "uri", "default": "http://x"},
        "password": {"type": "string", "writeOnly": True},
        "smtp": {
            "type": "object",
            "properties": {"key": {"$ref": "#/$defs/key"}, "host": {"type": "string"}},
        },
        "peers": {"type": "array", "items": {"type": "object", "properties": {"token": {"x-secret": True}}}},
    },
    "required": ["url"],
    "$defs": {"key": {"type": "string", "maxLength": 5, "writeOnly": True}},
}
GIVEN = {
    "url": "http://u",
    "password": "p",
    "smtp": {"key": "k", "host": "h"},
    "peers": [{"token": "t"}, {"token": "s"}],
}


def test_secrets_are_masked_wherever_they_are_and_kept_where_the_mask_comes_back() -> None:
    shown = configuration.masked(SCHEMA, GIVEN)
    mask = configuration.MASK
    assert shown == {
        "url": "http://u", "password": mask, "smtp": {"key": mask, "host": "h"},
        "peers": [{"token": mask}, {"token": mask}],
    }  # fmt: skip
    assert configuration.unmasked(SCHEMA, shown, GIVEN) == GIVEN
    assert configuration.unmasked(SCHEMA, {"password": mask, "url": mask}, {}) == {"url": mask}


def test_a_wrong_configuration_is_refused_by_field_without_telling_secrets() -> None:
    configuration.check(SCHEMA, GIVEN)
    for config, field in (
        ({}, "config.url"),
        ({"url": 5}, "config.url"),
        ({**GIVEN, "smtp": {"host": 5}}, "config.smtp.host"),
        ({**GIVEN, "smtp": {"key": "too-long-a-secret"}}, "config.smtp.key"),
    ):
        with pytest.raises(Invalid) as refused:
            configuration.check(SCHEMA, config)
        assert list(refused.value.details) == [field]
        assert "too-long-a-secret" not in str(refused.value)
    with pytest.raises(Invalid, match="takes no configuration"):
        configuration.check(None, {"a": 1})
    assert configuration.defaults(SCHEMA) == {"url": "http://x"}


def test_each_field_that_is_missing_or_unknown_is_named_also_where_the_schema_has_secrets() -> None:
    closed = {**SCHEMA, "required": ["url", "password"], "additionalProperties": False}
    with pytest.raises(Invalid) as refused:
        configuration.check(closed, {"colour": "red", "size": 1})
    known = "is unknown; known are: url, password, smtp, peers"
    assert refused.value.details == {
        "config.url": "is required",
        "config.password": "is required",
        "config.colour": known,
        "config.size": known,
    }
    many = {**GIVEN, **{f"{'n' * 1000}{count}": 1 for count in range(50)}}
    with pytest.raises(Invalid) as refused:
        configuration.check(closed, many)
    assert len(str(refused.value.details)) < 5000


def test_a_schema_that_refers_to_itself_for_ever_is_no_schema() -> None:
    with pytest.raises(Invalid, match="cannot be applied"):
        configuration.check({"$ref": "#"}, {})
