"""Every knob Hostler has, read from the environment once at start-up."""

import ipaddress
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit


def _version() -> str:
    """Return the version of the wheel that this file was installed from, or else the release that is worked on."""
    installed = re.compile(r"hostler-(.+)\.dist-info")
    found = map(installed.fullmatch, os.listdir(os.path.dirname(os.path.abspath(__file__))))
    return next((match.group(1) for match in found if match), "0.1.0")


__version__ = _version()

MIB = 1024 * 1024


class BadSettings(ValueError):
    """The environment holds values that make no sense; `problems` lists them all, a sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _text(value: str) -> str:
    return value


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"must be a whole number, not {value!r}") from None
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"must be a number, not {value!r}") from None
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return parse


def _flag(value: str) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if value.lower() not in words:
        raise ValueError("must be 1 or 0")
    return words[value.lower()]


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return parse


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _networks(value: str) -> tuple[str, ...]:
    return tuple(str(ipaddress.ip_network(word, strict=False)) for word in _words(value))


def _mebibytes(value: str) -> int:
    return int(_number(0.001, 1_000_000)(value) * MIB)


def _secret(value: str) -> str:
    if len(value.encode()) < 32:
        raise ValueError("must be 32 bytes or more")
    if len(set(value)) < 8:
        raise ValueError("must not repeat a few characters; make one with: openssl rand -base64 48")
    return value


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


#: The parts of Hostler that can be switched off as a whole.
MODULES = ("backups",)

#: The dialects that may have a port of their own.
DIALECTS_TO_LISTEN = ("cbox", "cuby", "squareberg")


@dataclass(frozen=True, slots=True)
class Listener:
    """A port that speaks one dialect alone; `asks` tells whether it asks for credentials."""

    dialect: str
    host: str
    port: int
    asks: bool

    @classmethod
    def parse(cls, word: str) -> "Listener":
        """Read `dialect=host:port`, or `dialect+auth=host:port` for a loopback port that asks. Raises ValueError."""
        spoken, _, address = word.partition("=")
        dialect, _, suffix = spoken.partition("+")
        host, _, port = address.rpartition(":")
        host = "127.0.0.1" if host == "localhost" else host.strip("[]")
        if (
            dialect not in DIALECTS_TO_LISTEN
            or suffix not in {"", "auth"}
            or not host
            or not port.isdecimal()
        ):
            dialects = "|".join(DIALECTS_TO_LISTEN)
            raise ValueError(f"'{word}' is not {dialects}=address:port")
        number = _integer(0, 65535)(port)
        loopback = ipaddress.ip_address(host).is_loopback
        return cls(dialect, host, number, asks=suffix == "auth" or not loopback)

    @property
    def address(self) -> str:
        """Return host and port as they are written in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        suffix = "+auth" if self.asks and ipaddress.ip_address(self.host).is_loopback else ""
        return f"{self.dialect}{suffix}={self.address}"


def _listeners(value: str) -> tuple[Listener, ...]:
    return tuple(Listener.parse(word) for word in _words(value))


def _modules(value: str) -> tuple[str, ...]:
    for word in _words(value):
        if word not in MODULES:
            raise ValueError(f"there is no module '{word}'; there are {', '.join(MODULES)}")
    return _words(value)


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        raise ValueError("must be letters, digits, '.', '_' and '-', at most 64")
    return value


def _knob(names: str, default: Any, parse: Callable[[str], Any] = _text) -> Any:
    """A field read from the first of the environment variables in `names` that is set and not empty."""
    return field(default=default, metadata={"names": names.split(), "parse": parse})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator may choose. Each field names its environment variables, its unit and its default."""

    # Where things are
    redis_url: str = _knob("REDIS_URL HOSTLER_REDIS_URL", "redis://127.0.0.1:6379/0")
    # for rediss://, a file with the certificate authority to trust instead of the system's; and whether the server's
    # certificate is looked at at all, which some managed services with self-signed ones do not stand
    redis_ca_file: Path | None = _knob("HOSTLER_REDIS_CA_FILE", None, Path)
    redis_tls_verify: bool = _knob("HOSTLER_REDIS_TLS_VERIFY", True, _flag)
    s3_endpoint_url: str | None = _knob("S3_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_ENDPOINT_URL", None, _url)
    # the address under which clients outside reach the same S3, for presigned URLs; default: s3_endpoint_url
    s3_public_endpoint_url: str | None = _knob("S3_PUBLIC_ENDPOINT_URL", None, _url)
    s3_bucket: str = _knob("S3_BUCKET", "hostler")
    s3_region: str = _knob("S3_REGION AWS_REGION AWS_DEFAULT_REGION", "us-east-1")
    s3_access_key_id: str | None = _knob("S3_ACCESS_KEY_ID AWS_ACCESS_KEY_ID", None)
    s3_secret_access_key: str | None = _knob("S3_SECRET_ACCESS_KEY AWS_SECRET_ACCESS_KEY", None)

    # Web
    host: str = _knob("HOSTLER_HOST", "")  # default: 127.0.0.1, or 0.0.0.0 when the platform sets PORT
    port: int = _knob("PORT HOSTLER_PORT", 8080, _integer(0, 65535))
    web_concurrency: int = _knob("WEB_CONCURRENCY", 2, _integer(1, 512))  # gunicorn worker processes
    # the address clients use, for absolute URLs and the cookie's Secure flag
    public_url: str | None = _knob("HOSTLER_PUBLIC_URL", None, _url)
    # proxies whose forwarding headers are believed: addresses or networks, comma-separated; default none
    trusted_proxies: tuple[str, ...] = _knob("HOSTLER_TRUSTED_PROXIES", (), _networks)
    # ports that speak one dialect alone, comma-separated: squareberg=127.0.0.1:9100; default none. On loopback they
    # ask for no credentials, unless written cbox+auth=127.0.0.1:9180, and act as this actor with this role
    listen: tuple[Listener, ...] = _knob("HOSTLER_LISTEN", (), _listeners)
    listen_actor: str = _knob("HOSTLER_LISTEN_ACTOR", "local", _name)
    listen_role: str = _knob("HOSTLER_LISTEN_ROLE", "operator", _one_of("viewer", "operator"))
    rate_limit_per_s: int = _knob(
        "HOSTLER_RATE_LIMIT", 100, _integer(1, 10_000_000)
    )  # per identity or address
    upload_limit_bytes: int = _knob("HOSTLER_UPLOAD_LIMIT_MB", 500 * MIB, _mebibytes)  # in MiB
    file_max_age_days: int = _knob("HOSTLER_FILE_MAX_AGE_DAYS", 31, _integer(1, 36_500))

    # Identity
    secret_key: str | None = _knob("HOSTLER_SECRET_KEY", None, _secret)  # 32 bytes or more, never in Redis
    admin_email: str | None = _knob("HOSTLER_ADMIN_EMAIL", None)  # the admin that the first start creates
    admin_password: str | None = _knob("HOSTLER_ADMIN_PASSWORD", None)
    enroll_secret: str | None = _knob("HOSTLER_ENROLL_SECRET", None)  # lets agents register
    open_registration: bool = _knob("HOSTLER_OPEN_REGISTRATION", False, _flag)  # lets anybody do so

    # Jobs
    lease_s: float = _knob("HOSTLER_LEASE_S", 15.0, _number(0.5, 3600))  # not renewed for so long: lost
    heartbeat_s: float = _knob("HOSTLER_HEARTBEAT_S", 5.0, _number(0.1, 1200))
    reap_s: float = _knob("HOSTLER_REAP_S", 3.0, _number(0.1, 600))  # how often the leader looks
    job_log_limit_bytes: int = _knob("HOSTLER_JOB_LOG_LIMIT_MB", 256 * MIB, _mebibytes)  # MiB, an attempt
    job_log_live_bytes: int = _knob("HOSTLER_JOB_LOG_LIVE_MB", 1 * MIB, _mebibytes)  # MiB, kept in Redis
    finished_keep_days: float = _knob("HOSTLER_FINISHED_KEEP_DAYS", 7.0, _number(0.0001, 36_500))  # then S3
    finished_keep_count: int = _knob("HOSTLER_FINISHED_KEEP_COUNT", 1_000_000, _integer(1, 1_000_000_000))

    # Workers
    slots: int = _knob("HOSTLER_SLOTS", 2, _integer(1, 1024))  # jobs at once on one worker
    tags: tuple[str, ...] = _knob("HOSTLER_TAGS", (), _words)
    work_dir: Path = _knob("HOSTLER_WORK_DIR", Path(tempfile.gettempdir()) / "hostler-work", Path)
    # where apps live on this machine, across restarts; default: apps in work_dir
    app_dir: Path | None = _knob("HOSTLER_APPS_DIR", None, Path)
    kill_grace_s: float = _knob("HOSTLER_KILL_GRACE_S", 5.0, _number(0, 3600))  # between TERM and KILL
    drain_s: float = _knob("HOSTLER_DRAIN_S", 20.0, _number(0, 86_400))  # then running jobs are handed back
    isolation: str = _knob("HOSTLER_ISOLATION", "auto", _one_of("auto", "uid", "landlock", "none"))

    # Outbound requests
    # private hosts or networks that fileUrl and webhook may reach all the same; default none
    outbound_allow: tuple[str, ...] = _knob("HOSTLER_OUTBOUND_ALLOW", (), _words)
    fetch_limit_bytes: int = _knob("HOSTLER_FETCH_LIMIT_MB", 500 * MIB, _mebibytes)  # in MiB

    # Cuby: the marketplace above our own catalogue; docs/cuby.md says what it is asked
    marketplace_url: str | None = _knob("HOSTLER_MARKETPLACE_URL", None, _url)

    # Parts of Hostler that are switched off, comma-separated, such as backups; default none
    modules_off: tuple[str, ...] = _knob("HOSTLER_MODULES_OFF", (), _modules)

    # Hostler's own recovery points; docs/disaster-recovery.md
    recovery_every_s: float = _knob("HOSTLER_RECOVERY_EVERY_S", 900.0, _number(0, 604_800))  # 0: never
    recovery_keep_last: int = _knob("HOSTLER_RECOVERY_KEEP_LAST", 12, _integer(1, 10_000))
    recovery_keep_days: int = _knob("HOSTLER_RECOVERY_KEEP_DAYS", 7, _integer(0, 3650))  # one of each day
    recovery_keep_weeks: int = _knob("HOSTLER_RECOVERY_KEEP_WEEKS", 4, _integer(0, 520))  # one of each week

    # What is told of Hostler itself; docs/observability.md
    log_format: str = _knob(
        "HOSTLER_LOG_FORMAT", "auto", _one_of("auto", "json", "text")
    )  # text on a terminal
    log_level: str = _knob("HOSTLER_LOG_LEVEL", "info", _one_of("debug", "info", "warning", "error"))
    # sets of tags that /metrics names, comma-separated, such as gpu,gpu+linux; beside those that workers have
    metrics_tags: tuple[str, ...] = _knob("HOSTLER_METRICS_TAGS", (), _words)
    # where traces go by OTLP over HTTP; none are made without it. OpenTelemetry's SDK reads its other variables itself
    otlp_endpoint: str | None = _knob(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT OTEL_EXPORTER_OTLP_ENDPOINT", None, _url
    )

    # Safety catches
    allow_volatile: bool = _knob("HOSTLER_ALLOW_VOLATILE", False, _flag)  # a Redis that may lose data

    @property
    def bind_host(self) -> str:
        """Return the address to listen on."""
        return self.host or "127.0.0.1"

    @property
    def apps_dir(self) -> Path:
        """Return the directory that holds this machine's apps."""
        return self.app_dir or self.work_dir / "apps"

    def announcement(self, listener: Listener) -> str:
        """Return what operators are told of a port of one dialect when it opens."""
        opened = f"http://{listener.address} speaks {listener.dialect} alone"
        if listener.asks:
            return f"{opened}, with credentials."
        return (
            f"{opened}, without credentials: whoever is on this machine acts there as "
            f"listener:{self.listen_actor}, {self.listen_role}."
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings from `environ` (default: the process's own).

        `NAME_FILE` may stand for any `NAME`: the value is then read from that file, for mounted secrets.
        Raises BadSettings with every problem.
        """
        environ = os.environ if environ is None else environ
        problems: list[str] = []
        values: dict[str, Any] = {}
        known = set(NOT_KNOBS)
        for name, knob in cls.__dataclass_fields__.items():
            for variable in knob.metadata["names"]:
                known |= {variable, f"{variable}_FILE"}
                try:
                    raw = _value(environ, variable)
                    if raw and name not in values:
                        values[name] = knob.metadata["parse"](raw)
                except ValueError as error:
                    problems.append(f"{variable}: {error}.")
                except OSError as error:
                    problems.append(f"{variable}_FILE: '{error.filename}' cannot be read: {error.strerror}.")
        problems += [
            f"{name}: no such setting."
            for name in environ
            if name.startswith("HOSTLER_") and name not in known
        ]
        taken = [int(values.get("port", cls.port)), *(each.port for each in values.get("listen", ()))]
        problems += [
            f"HOSTLER_LISTEN: port {port} is taken twice."
            for port in {*taken}
            if taken.count(port) > 1 and port
        ]
        problems += ["HOSTLER_LISTEN: port 0 is no port that clients could know."] if 0 in taken[1:] else []
        problems += _trust(values, cls.redis_url)
        if "host" not in values and environ.get("PORT"):
            values["host"] = "0.0.0.0"  # noqa: S104  a platform that assigns PORT routes to it from outside
        if problems:
            raise BadSettings(problems)
        return cls(**values)


#: Names with our prefix that others read: the commands that workers run, and the command line as a client.
NOT_KNOBS = {
    "HOSTLER_JOB_ID", "HOSTLER_ATTEMPT", "HOSTLER_URL", "HOSTLER_API_KEY", "HOSTLER_TOKEN", "HOSTLER_CONTEXT",
    "HOSTLER_WORKER_TOKEN", "HOSTLER_CONFIG",
}  # fmt: skip


def _trust(values: dict[str, Any], default_url: str) -> list[str]:
    """Write whom to trust into `values`' Redis URL, where all clients of Redis look for it; return the problems."""
    authority, verify = values.get("redis_ca_file"), values.get("redis_tls_verify", True)
    if authority is None and verify:
        return []
    url, named = values.get("redis_url", default_url), "HOSTLER_REDIS_CA_FILE"
    if not verify:
        named = "HOSTLER_REDIS_TLS_VERIFY"
    if not url.startswith("rediss://"):
        return [f"{named}: REDIS_URL does not start with rediss://, so nothing is encrypted."]
    if authority is not None and not verify:
        return [
            "HOSTLER_REDIS_CA_FILE: HOSTLER_REDIS_TLS_VERIFY=0 trusts any certificate; choose one of the two."
        ]
    if authority is not None and not authority.is_file():
        return [f"HOSTLER_REDIS_CA_FILE: there is no file {authority}."]
    words = {"ssl_ca_certs": str(authority)} if authority is not None else {"ssl_cert_reqs": "none"}
    values["redis_url"] = f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(words)}"
    return []


def _value(environ: Mapping[str, str], name: str) -> str | None:
    if path := environ.get(f"{name}_FILE"):
        return Path(path).read_text().strip()
    return environ.get(name)


def is_loopback(host: str) -> bool:
    """Tell whether a host, as URLs name it but without brackets, is this very machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def publish(name: str, value: str) -> None:
    """Set a variable of this process's environment, for a library that is told in no other way."""
    os.environ[name] = value


def process_environment() -> dict[str, str]:
    """Return a copy of this process's environment, for starting a child with some of it."""
    return dict(os.environ)
