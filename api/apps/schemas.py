"""What apps and releases look like in requests and answers."""

from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from api.paging import PageAnswer, PageQuery, sort_field
from api.times import Time
from storage import apps, manifests
from storage.apps import App, Instance
from storage.jobs import Submitted
from storage.manifests import Manifest, Process
from storage.manifests.configuration import MASK
from storage.products import Release

_NAME = validate.Length(1, 63)


def _seconds(at_ms: int | None, now_ms: int) -> int | None:
    return None if at_ms is None else max(0, (now_ms - at_ms) // 1000)


# What is asked


class NewApp(Schema):
    """What to install, and where: a product that has been published, or a manifest that needs no release."""

    product = fields.String(validate=_NAME)
    version = fields.String(
        validate=validate.Length(1, 64), metadata={"description": "Default: the newest release."}
    )
    manifest = fields.Dict(
        keys=fields.String(), metadata={"description": "As hostler.toml, in JSON; instead of a product."}
    )
    alias = fields.String(validate=_NAME, metadata={"description": "Makes the instance id `product__alias`."})
    node = fields.String(
        validate=validate.Length(1, 64), metadata={"description": "Default: the least loaded that fits."}
    )
    tags = fields.List(fields.String(validate=validate.Length(1, 64)), validate=validate.Length(0, 16))
    config = fields.Dict(keys=fields.String())
    autostart = fields.Boolean(
        load_default=True,
        truthy={True},
        falsy={False},
        metadata={"description": "Whether it comes back after its node was rebooted."},
    )
    start = fields.Boolean(
        load_default=True,
        truthy={True},
        falsy={False},
        metadata={"description": "Whether it starts once it is installed and configured."},
    )

    @validates_schema
    def _one_of_both(self, data: dict[str, Any], **_: Any) -> None:
        if ("product" in data) == ("manifest" in data):
            raise ValidationError("Give either product or manifest.", "product")


class AppProcess(Schema):
    """Which process; without one, the whole app, or its only one."""

    process = fields.String(validate=_NAME)


class AppScale(Schema):
    """How many instances of each process, or of how many more or fewer of one."""

    scale = fields.Dict(
        keys=fields.String(), values=fields.Integer(strict=True, validate=validate.Range(0, 1000))
    )
    process = fields.String(validate=_NAME)
    delta = fields.Integer(strict=True, validate=validate.Range(-1000, 1000))

    @validates_schema
    def _one_of_both(self, data: dict[str, Any], **_: Any) -> None:
        if ("scale" in data) == ("delta" in data):
            raise ValidationError("Give either scale or delta.", "scale")


class AppUpdate(Schema):
    """What to update to; without either, the newest release."""

    version = fields.String(validate=validate.Length(1, 64))
    manifest = fields.Dict(keys=fields.String())


class AppRollback(Schema):
    """Which of the releases that the node has kept; without one, the last before this."""

    version = fields.String(validate=validate.Length(1, 128))


class AppConfig(Schema):
    """An app's configuration; a secret given as `********` keeps its value."""

    config = fields.Dict(keys=fields.String(), required=True)


class AutostartBody(Schema):
    """Whether an app comes back after a reboot of its node."""

    autostart = fields.Boolean(required=True, truthy={True}, falsy={False})


class AppUninstallQuery(Schema):
    """How to uninstall."""

    keep_data = fields.Boolean(
        data_key="keepData", load_default=False, metadata={"description": "Leave its data on the node."}
    )
    abandon = fields.Boolean(
        load_default=False,
        metadata={"description": "Its node is away for good: drop the record, and no more than that."},
    )


class AppsQuery(PageQuery):
    """Which apps."""

    node = fields.String(validate=validate.Length(1, 64))
    product = fields.String(validate=_NAME)
    sort = sort_field("createdAt", default="createdAt")


class _OfInstance(Schema):
    process = fields.String(validate=_NAME)
    index = fields.Integer(validate=validate.Range(0, 1000))


class AppLinesQuery(_OfInstance):
    """Which lines: the newest, or the first ones after an id."""

    limit = fields.Integer(load_default=100, validate=validate.Range(1, apps.KEPT_LINES))
    after = fields.String(validate=validate.Length(1, 40))


class SamplesQuery(_OfInstance):
    """Which samples."""

    limit = fields.Integer(load_default=apps.KEPT_SAMPLES, validate=validate.Range(1, 10_000))
    since_ms = fields.Integer(
        data_key="since",
        load_default=0,
        validate=validate.Range(0, 10**15),
        metadata={"description": "Milliseconds since the epoch."},
    )


class LogFileQuery(Schema):
    """Which file, and how much of its end."""

    process = fields.String(validate=_NAME, metadata={"description": "Default: the first process."})
    index = fields.Integer(load_default=0, validate=validate.Range(0, 1000))
    lines = fields.Integer(load_default=500, validate=validate.Range(1, 10_000))


class RunsQuery(Schema):
    """Which runs."""

    process = fields.String(validate=_NAME)
    limit = fields.Integer(load_default=apps.KEPT_RUNS, validate=validate.Range(1, 1000))


class SourceBody(Schema):
    """A registry's package."""

    kind = fields.String(required=True, validate=validate.OneOf(["npm", "pypi"]))
    package = fields.String(required=True, validate=validate.Length(1, 214))
    version = fields.String(
        validate=validate.Length(1, 64), metadata={"description": "Default: the newest when it is installed."}
    )


class NewRelease(Schema):
    """An upload that holds a release, or a registry's package under the name of a product."""

    file_id = fields.String(data_key="fileId", validate=validate.Length(1, 64))
    product = fields.String(validate=_NAME)
    source = fields.Nested(SourceBody)
    manifest = fields.Dict(
        keys=fields.String(), metadata={"description": "For a package that brings none, or another one."}
    )

    @validates_schema
    def _one_of_both(self, data: dict[str, Any], **_: Any) -> None:
        if ("file_id" in data) == ("source" in data):
            raise ValidationError("Give either fileId or source.", "fileId")
        if "source" in data and "product" not in data:
            raise ValidationError("Missing data for required field.", "product")


# What is answered


class AppInstance(Schema):
    """One instance, as its node last saw it."""

    id = fields.String(required=True)
    index = fields.Integer(required=True)
    state = fields.String(required=True)
    pid = fields.Integer(required=True, allow_none=True)
    startedAt = Time(required=True, allow_none=True, attribute="started_ms")
    uptime = fields.Integer(
        required=True, allow_none=True, metadata={"description": "Seconds; null where it does not run."}
    )
    restartCount = fields.Integer(required=True, attribute="restart_count")
    exitCode = fields.Integer(required=True, allow_none=True, attribute="exit_code")
    signal = fields.Integer(required=True, allow_none=True)
    cpuPercent = fields.Float(required=True, allow_none=True, attribute="cpu_percent")
    memoryBytes = fields.Integer(required=True, allow_none=True, attribute="memory_rss_bytes")
    memoryPercent = fields.Float(required=True, allow_none=True, attribute="memory_percent")
    port = fields.Integer(required=True, allow_none=True)
    health = fields.String(required=True)
    message = fields.String(required=True)


class AppSchedule(Schema):
    """How a scheduled process does."""

    cron = fields.String(required=True)
    timezone = fields.String(required=True)
    paused = fields.Boolean(required=True)
    executing = fields.Integer(required=True)
    nextRun = Time(required=True, allow_none=True, attribute="next_ms")
    lastRun = Time(required=True, allow_none=True, attribute="last_ms")
    runCount = fields.Integer(required=True, attribute="run_count")
    successRate = fields.Float(required=True, allow_none=True, attribute="success_rate")
    lastExitCode = fields.Integer(required=True, allow_none=True, attribute="last_exit_code")


class AppProcessEntry(Schema):
    """One process of an app: what is wished of it, and what there is."""

    name = fields.String(required=True)
    type = fields.String(required=True)
    status = fields.String(required=True)
    running = fields.Boolean(required=True, metadata={"description": "Whether it shall run."})
    scale = fields.Integer(required=True)
    maxScale = fields.Integer(required=True, attribute="max_scale")
    instances = fields.List(fields.Nested(AppInstance), required=True)
    schedule = fields.Nested(AppSchedule, required=True, allow_none=True)


class AppEntry(Schema):
    """An app as lists show it."""

    instanceId = fields.String(required=True, attribute="instance_id")
    product = fields.String(required=True)
    alias = fields.String(required=True, allow_none=True)
    name = fields.String(required=True)
    kind = fields.String(required=True)
    version = fields.String(required=True)
    node = fields.String(required=True)
    nodeOnline = fields.Boolean(required=True, attribute="online")
    status = fields.String(required=True)
    phase = fields.String(required=True)
    desired = fields.String(required=True)
    configured = fields.Boolean(required=True)
    autostart = fields.Boolean(required=True)
    message = fields.String(required=True)
    error = fields.String(required=True)
    progress = fields.Integer(required=True)
    jobId = fields.String(required=True, allow_none=True, attribute="job")
    createdAt = Time(required=True, attribute="created_ms")
    installedAt = Time(required=True, allow_none=True, attribute="installed_ms")
    updatedAt = Time(required=True, attribute="updated_ms")
    processes = fields.List(fields.Nested(AppProcessEntry), required=True)


class KeptRelease(Schema):
    """A release that the node has."""

    version = fields.String(required=True)
    directory = fields.String(required=True, attribute="dir")
    since = Time(required=True, attribute="at_ms")


class AppDetail(AppEntry):
    """Everything about one app but its configuration."""

    source = fields.Dict(required=True)
    releases = fields.List(fields.Nested(KeptRelease), required=True)
    manifest = fields.Dict(required=True, allow_none=True)
    generation = fields.Integer(required=True)
    observedGeneration = fields.Integer(required=True, attribute="observed_generation")


class AppsAnswer(PageAnswer):
    """A page of apps."""

    apps = fields.List(fields.Nested(AppEntry), required=True)
    data = fields.List(fields.Nested(AppEntry), required=True)


class ChangeAnswer(Schema):
    """The job that carries a change out."""

    instanceId = fields.String(required=True)
    jobId = fields.String(required=True)
    status = fields.String(required=True)


class AppConfigAnswer(Schema):
    """An app's configuration, secrets hidden, and what it may be."""

    instanceId = fields.String(required=True)
    configured = fields.Boolean(required=True)
    config = fields.Dict(required=True)
    schema = fields.Dict(required=True, allow_none=True)


class AppLine(Schema):
    """One line that an instance wrote."""

    id = fields.String(required=True)
    timestamp = fields.Integer(
        required=True, attribute="at_ms", metadata={"description": "Milliseconds since the epoch."}
    )
    process = fields.String(required=True)
    index = fields.Integer(required=True)
    instance = fields.String(required=True)
    stream = fields.String(required=True)
    level = fields.String(required=True)
    text = fields.String(required=True)


class AppLines(Schema):
    """Lines in the order they were written."""

    instanceId = fields.String(required=True)
    lines = fields.List(fields.Nested(AppLine), required=True)


class SampleEntry(Schema):
    """What one instance used at a time."""

    timestamp = fields.Integer(
        required=True, attribute="at_ms", metadata={"description": "Milliseconds since the epoch."}
    )
    process = fields.String(required=True)
    index = fields.Integer(required=True)
    state = fields.String(required=True)
    cpuPercent = fields.Float(required=True, attribute="cpu_percent")
    memoryBytes = fields.Integer(required=True, attribute="memory_rss_bytes")
    memoryPercent = fields.Float(required=True, attribute="memory_percent")
    restartCount = fields.Integer(required=True, attribute="restart_count")


class SamplesAnswer(Schema):
    """Samples, oldest first."""

    instanceId = fields.String(required=True)
    samples = fields.List(fields.Nested(SampleEntry), required=True)


class RunEntry(Schema):
    """One run of a scheduled or oneshot process."""

    id = fields.String(required=True)
    process = fields.String(required=True)
    startedAt = Time(required=True, attribute="started_ms")
    endedAt = Time(required=True, attribute="ended_ms")
    exitCode = fields.Integer(required=True, allow_none=True, attribute="exit_code")
    signal = fields.Integer(required=True, allow_none=True)
    cause = fields.String(required=True)


class RunsAnswer(Schema):
    """Runs that have ended, newest first."""

    instanceId = fields.String(required=True)
    runs = fields.List(fields.Nested(RunEntry), required=True)


class ReleaseEntry(Schema):
    """One release."""

    product = fields.String(required=True)
    version = fields.String(required=True)
    name = fields.String(required=True)
    source = fields.Dict(required=True)
    publishedAt = Time(required=True, attribute="published_ms")
    publishedBy = fields.String(required=True, attribute="published_by")


class ReleaseDetail(ReleaseEntry):
    """One release with its manifest; null for a package that brings it when it is installed."""

    manifest = fields.Dict(required=True, allow_none=True)


class ReleasedProduct(Schema):
    """A product and its releases, newest first."""

    product = fields.String(required=True)
    name = fields.String(required=True)
    description = fields.String(required=True)
    newest = fields.String(required=True)
    releases = fields.List(fields.Nested(ReleaseEntry), required=True)


class ReleasedProducts(PageAnswer):
    """A page of products."""

    products = fields.List(fields.Nested(ReleasedProduct), required=True)
    data = fields.List(fields.Nested(ReleasedProduct), required=True)


# Spelling


def entry_of(app: App, now_ms: int) -> dict[str, Any]:
    """Return an app as lists show it."""
    names = [name for name, field in AppEntry().fields.items() if name != "processes"]
    shown = {(AppEntry().fields[name].attribute or name): None for name in names}
    return {
        **{name: getattr(app, name) for name in shown},
        "phase": app.phase.value,
        "job": app.job or None,
        "processes": [_process_of(app, each, now_ms) for each in app.processes],
    }


def _process_of(app: App, process: Process, now_ms: int) -> dict[str, Any]:
    wanted = app.wanted(process)
    return {
        "name": process.name, "type": process.type, "status": app.process_status(process).value,
        "running": wanted.running, "scale": wanted.scale, "max_scale": process.max_scale,
        "instances": [_instance_of(each, now_ms) for each in app.instances_of(process.name)],
        "schedule": _schedule_of(app, process, paused=wanted.paused),
    }  # fmt: skip


def _instance_of(instance: Instance, now_ms: int) -> dict[str, Any]:
    fields_of = {name: getattr(instance, name) for name in Instance.__slots__}
    alive = instance.state in apps.ALIVE
    return {**fields_of, "uptime": _seconds(instance.started_ms, now_ms) if alive else None}


def _schedule_of(app: App, process: Process, *, paused: bool) -> dict[str, Any] | None:
    if process.schedule is None:
        return None
    state = app.schedules.get(process.name, apps.ScheduleState())
    return {
        **{name: getattr(state, name) for name in apps.ScheduleState.__slots__},
        "cron": process.schedule, "timezone": process.timezone, "paused": paused,
    }  # fmt: skip


def detail_of(app: App, now_ms: int, *, secrets: bool) -> dict[str, Any]:
    """Return all there is to say about an app; its configuration is an endpoint of its own.

    `secrets`: with the values of its environment, which may be some.
    """
    return {
        **entry_of(app, now_ms),
        "source": app.source,
        "releases": app.releases,
        "manifest": _manifest_of(app.manifest, secrets=secrets),
        "generation": app.generation,
        "observed_generation": app.observed_generation,
    }


def _manifest_of(manifest: Manifest | None, *, secrets: bool) -> dict[str, Any] | None:
    shown = None if manifest is None else manifests.as_json(manifest)
    for each in shown["processes"].values() if shown is not None and not secrets else ():
        each["env"] = dict.fromkeys(each["env"], MASK)
    return shown


def promised(instance_id: str, submitted: Submitted) -> dict[str, Any]:
    """Return what is answered to a change that has been accepted."""
    return {"instanceId": instance_id, "jobId": submitted.id, "status": "queued"}


def release_of(release: Release, *, secrets: bool) -> dict[str, Any]:
    """Return one release; `secrets`: with the values of its environment, as of an app."""
    fields_of = {name: getattr(release, name) for name in Release.__slots__}
    manifest = _manifest_of(release.manifest, secrets=secrets)
    return {**fields_of, "name": release.name, "manifest": manifest}


def product_of(releases: list[Release]) -> dict[str, Any]:
    """Return a product by its releases, newest first."""
    first = releases[0]
    return {
        "product": first.product, "name": first.name, "newest": first.version,
        "description": first.manifest.description if first.manifest is not None else "",
        "releases": [release_of(each, secrets=False) for each in releases],
    }  # fmt: skip
