"""cbox-init.yaml: what of it is understood, what is named as ignored, what is refused."""

import pytest

from storage import manifests
from storage.errors import Invalid
from storage.manifests import cbox

WHOLE = b"""
version: "1.0"
global:
  api_enabled: true
  api_port: 9181
  api_auth: "your-secure-token-here"
  shutdown_timeout: 20
  restart_backoff_initial: 2s
  restart_backoff_max: 1m30s
  tracing_enabled: true
hooks:
  pre-start: [{name: migrate, command: [php, artisan, migrate]}]
processes:
  php-fpm:
    enabled: true
    command: [php-fpm, -F]
    working_dir: /var/www
    scale: 2
    restart: always
    user: www-data
    env: {DEBUG: true, WORKERS: 4}
    health_check: {type: tcp, address: "127.0.0.1:9000", interval: 7, retries: 4}
    shutdown: {signal: SIGQUIT, timeout: 60}
  queue-default:
    enabled: true
    command: [php, artisan, queue:work]
    depends_on: [php-fpm]
    max_memory_mb: 256
    port_base: 9000
    health_check: {type: http, url: "http://localhost:8080/up?deep=1", period: 15, failure_threshold: 2}
  backup:
    enabled: true
    command: [backup]
    type: scheduled
    schedule: "0 3 * * *"
    schedule_timezone: Local
    schedule_timeout: 5m
  migrate:
    enabled: false
    type: oneshot
    initial_state: stopped
    command: [php, artisan, migrate]
"""


def test_each_process_becomes_an_app_with_what_the_file_says_of_it() -> None:
    imported = cbox.read(WHOLE)
    assert (imported.api_enabled, imported.api_port, imported.api_auth) == (
        True,
        9181,
        "your-secure-token-here",
    )
    fpm, queue, backup, migrate = (manifest.processes[0] for manifest in imported.manifests)
    assert [manifest.id for manifest in imported.manifests] == [
        "php-fpm",
        "queue-default",
        "backup",
        "migrate",
    ]
    assert {manifest.kind for manifest in imported.manifests} == {"cbox"}
    assert fpm.command[-3:] == ("/var/www", "php-fpm", "-F")
    assert (fpm.scale, fpm.max_scale, fpm.stop_signal, fpm.stop_timeout_s) == (2, 100, "QUIT", 60)
    assert fpm.env == {"DEBUG": "true", "WORKERS": "4"}
    assert fpm.health is not None
    assert (fpm.health.kind, fpm.health.port, fpm.health.period_s, fpm.health.failures) == ("tcp", 9000, 7, 4)
    assert fpm.restart is not None
    assert (fpm.restart.policy, fpm.restart.attempts, fpm.restart.backoff_s, fpm.restart.max_s) == (
        "always", 3, 2, 90,
    )  # fmt: skip
    assert (queue.depends_on, queue.memory_limit_bytes, queue.port) == (("php-fpm",), 256 << 20, 9000)
    assert queue.stop_timeout_s == 20
    assert queue.health is not None
    assert (queue.health.path, queue.health.port, queue.health.failures) == ("/up?deep=1", 8080, 2)
    assert (backup.type, backup.schedule, backup.timezone) == ("scheduled", "0 3 * * *", "UTC")
    assert (backup.timeout_s, backup.max_concurrent) == (300, 0)
    assert (migrate.type, migrate.enabled, migrate.initial) == ("oneshot", False, "stopped")
    assert migrate.restart is not None
    assert migrate.restart.policy == "never"
    for manifest in imported.manifests:
        assert manifests.load(manifests.as_json(manifest)) == manifest


def test_what_has_no_meaning_here_is_named() -> None:
    ignored = cbox.read(WHOLE).ignored
    assert set(ignored) == {
        "hooks", "global.tracing_enabled", "processes.php-fpm.user", "processes.backup.schedule_timezone",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"processes: {a: {command: [x], scale: many}}", "scale"),
        (b"processes: {a: {command: [x], shutdown: {timeout: soon}}}", "processes.a.shutdown.timeout"),
        (b"processes: {a: {}}", "command"),
        (b"processes: {}", "processes"),
        (b"processes: [a]", "processes: must be a mapping"),
        (b"processes: {'../a': {command: [x]}}", "id"),
        (b"processes: {a: {command: [x], enabled: maybe}}", "processes.a.enabled"),
        (b"processes: {a: {command: [x], health_check: {type: http, url: 'http://10.0.0.1/'}}}", "10.0.0.1"),
        (b"processes: {a: {command: [x], type: oneshot, restart: always}}", "restart"),
        (
            b"processes: {a: {command: [x], depends_on: [b]}, b: {command: [x], depends_on: [a]}}",
            "processes.a.depends_on: They wait for one another: a -> b -> a",
        ),
        (b"a: &a [x]\nb: *a", "Aliases"),
        (b"!!python/object/apply:os.system ['true']", "no YAML"),
        (b"[" * 5000, "nested too deeply"),
        (b"\x00\xff", "no YAML: character 2 is none that may stand in it"),
        (b"version: 1\na: [", "no YAML: line 2, column 5: expected the node content"),
        (b"a: 2024-13-45", "line 1, column 4: '2024-13-45' is no timestamp"),
        (b"a: !!timestamp soon", "'soon' is no timestamp"),
        (b"a: !!bool maybe", "'maybe' is no bool"),
        (b"a: !!int many", "'many' is no int"),
        (b"a: " + b"9" * 5000, "'9{40}' is no int"),
        (
            b"global: {api_port: .inf}\nprocesses: {a: {command: [x]}}",
            "global.api_port: 'inf' is no number",
        ),
        (b"global: {api_port: .nan}\nprocesses: {a: {command: [x]}}", "global.api_port"),
        (
            b"processes: {a: {command: [x], health_check: {type: tcp, address: 'x:1', retries: .inf}}}",
            "retries",
        ),
        (b"global: {api_auth: 0x" + b"f" * 4000 + b"}\nprocesses: {a: {command: [x]}}", "is no int"),
        (b"global: {api_port: 0}\nprocesses: {a: {command: [x]}}", "global.api_port"),
        (b"#" * 300_000, "256 KiB"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_place(content: bytes, complaint: str) -> None:
    with pytest.raises(Invalid, match=complaint):
        cbox.read(content)
