"""compose.yaml: every name in it leads somewhere, its settings are understood, and its nginx is that of the page."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("prepare", "web", "worker", "scheduler")
#: What somebody puts into .env.
GIVEN = {
    "REDIS_PASSWORD": "a" * 64,
    "S3_SECRET_ACCESS_KEY": "b" * 64,
    "HOSTLER_SECRET_KEY": "0123456789abcdefghijklmnopqrstuvwxyz",
    "HOSTLER_ADMIN_EMAIL": "admin@example.org",
    "HOSTLER_ADMIN_PASSWORD": "a-password-of-tests",
}


def filled_in(text: str) -> str:
    """Return what compose makes of `text`. Raises KeyError for a variable that .env does not have."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return GIVEN[match["name"]] if match["op"] in {"?", None} else GIVEN.get(match["name"], match["word"])

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?::(?P<op>[?-])(?P<word>[^}]*))?\}", value, text)


def environment(service: str) -> dict[str, str]:
    return {name: filled_in(str(value)) for name, value in SERVICES[service]["environment"].items()}


def config(name: str) -> str:
    return filled_in(COMPOSE["configs"][name]["content"])


def test_it_has_all_that_a_fleet_needs() -> None:
    assert set(SERVICES) == {"nginx", *OURS, "valkey", "s3"}
    assert SERVICES["web"]["deploy"] == {"replicas": 2}


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    for other, condition in service.get("depends_on", {}).items():
        wanted = condition["condition"]
        assert wanted in {"service_healthy", "service_completed_successfully"}
        checked = "healthcheck" in SERVICES[other] or other == "web"  # whose check is the image's
        assert checked if wanted == "service_healthy" else SERVICES[other]["restart"] == "no"
    for each in service.get("configs", []):
        assert each["source"] in COMPOSE["configs"]
    for volume in service.get("volumes", []):
        source, colon, _ = volume.partition(":")
        assert not colon or source in COMPOSE["volumes"]
    assert re.search(r":\d+\.\d+(\.\d+)?$", service["image"]) or service["build"] == "."


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_given_settings_that_lead_to_the_others(name: str) -> None:
    settings = Settings.from_env({**environment(name), "HOSTLER_HOST": "0.0.0.0", "HOSTLER_PORT": "8080"})  # noqa: S104
    hosts = re.findall(r"(?:://|@)([a-z0-9-]+):", f"{settings.redis_url} {settings.s3_endpoint_url}")
    assert hosts == ["valkey", "s3"]
    assert settings.secret_key == GIVEN["HOSTLER_SECRET_KEY"]
    assert ("HOSTLER_ADMIN_PASSWORD" in environment(name)) is (name == "prepare")


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_locked_in_and_have_time_to_end(name: str) -> None:
    service, settings = SERVICES[name], Settings.from_env({})
    assert (service["read_only"], service["cap_drop"], service["security_opt"]) == (
        True, ["ALL"], ["no-new-privileges:true"],
    )  # fmt: skip
    assert int(service["stop_grace_period"].removesuffix("s")) >= settings.drain_s + settings.kill_grace_s + 5
    assert any("/var/lib/hostler" in volume for volume in service["volumes"])


def test_only_loopback_is_published_and_forwarding_headers_are_believed_of_the_network_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)
    (pool,) = COMPOSE["networks"]["default"]["ipam"]["config"]
    assert Settings.from_env(environment("web")).trusted_proxies == (pool["subnet"],)


def test_redis_and_s3_are_as_hostler_demands_them() -> None:
    told = dict(line.split(" ", 1) for line in config("valkey").splitlines())
    assert (told["appendonly"], told["maxmemory-policy"]) == ("yes", "noeviction")
    assert told["requirepass"] in environment("web")["REDIS_URL"]
    (identity,) = orjson.loads(config("s3"))["identities"]
    (credentials,) = identity["credentials"]
    given = environment("worker")
    assert (credentials["accessKey"], credentials["secretKey"]) == (
        given["S3_ACCESS_KEY_ID"], given["S3_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    port = next(word for word in SERVICES["s3"]["command"] if word.startswith("-s3.port=")).partition("=")[2]
    assert given["S3_ENDPOINT_URL"] == f"http://s3:{port}"


def test_its_nginx_says_what_the_one_for_machines_says() -> None:
    def directives(text: str) -> set[str]:
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return {
            re.sub(r"\s+", " ", line)
            for line in lines
            if line and not line.startswith(("server", "listen", "keepalive"))
        }

    assert directives(config("nginx")) == directives((ROOT / "deploy/balancers/nginx.conf").read_text())


@pytest.mark.skipif(
    shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists(), reason="there is no nginx"
)
def test_nginx_understands_its_configuration(tmp_path: Path) -> None:
    inner = (
        config("nginx").replace("web:8080", "127.0.0.1:8080").replace("listen 8080", "listen 127.0.0.1:18080")
    )
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in names)
    whole = tmp_path / "nginx.conf"
    whole.write_text(
        f"error_log stderr;\npid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{inner}}}\n"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    ended = subprocess.run(
        [program, "-t", "-p", str(tmp_path), "-c", str(whole)], capture_output=True, text=True, timeout=30, check=False
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
