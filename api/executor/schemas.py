"""The fields of jobs and workers as CMD Executor's clients spell them."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import orjson
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate, validates_schema

from api import compiled
from api.paging import PageAnswer, PageQuery, Words, sort_field
from api.times import Time
from storage import batches, bulk, schedules
from storage.errors import HostlerError
from storage.jobs import Job, State, Submitted
from storage.queues import Priority

KIB = 1024
_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:|\\")


# Checks of single fields


def _text(value: str) -> None:
    """Refuse what no command line, environment or file name can hold."""
    if "\0" in value:
        raise ValidationError("Must not contain NUL.")


def _size(limit_bytes: int) -> Any:
    def check(value: str) -> None:
        if len(value.encode("utf-8", "surrogatepass")) > limit_bytes:
            raise ValidationError(f"Must be at most {limit_bytes} bytes.")

    return check


def _not_blank(value: str) -> None:
    if not value.strip():
        raise ValidationError("Must not be empty.")


def _inside(value: str) -> None:
    """Refuse a path that leads out of the job's directory."""
    _text(value)
    if not value.strip() or _WINDOWS_ROOT.match(value) or PurePosixPath(value).is_absolute():
        raise ValidationError("Must be a relative path.")
    if ".." in re.split(r"[/\\]", value):
        raise ValidationError("Must not contain '..'.")


def _tag(value: str) -> None:
    if not _TAG.fullmatch(value):
        raise ValidationError("Must be 1 to 64 letters, digits, dots, underscores or hyphens.")


def _environment(value: dict[str, str]) -> None:
    if len(value) > 200:
        raise ValidationError("At most 200 names are accepted.")
    for name, content in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValidationError(f"{name[:80]!r} is not a name of letters, digits and underscores.")
        if name.startswith("HOSTLER_"):
            raise ValidationError(f"{name!r}: names that start with HOSTLER_ are Hostler's own.")
        _text(content)
        _size(32 * KIB)(content)


#: JSON is written and read up to some 250 levels, and answers put metadata a few levels further down.
_MOST_LEVELS = 100


def _nests(value: Any, levels: int) -> bool:
    """Tell whether there is more of a JSON value than so many levels of objects and lists."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nests(each, levels - 1) for each in inner)


def _metadata(value: dict[str, Any]) -> None:
    if _nests(value, _MOST_LEVELS):
        raise ValidationError(f"Must not be nested deeper than {_MOST_LEVELS} levels.")
    if len(orjson.dumps(value)) > 16 * KIB:
        raise ValidationError("Must be at most 16 KiB as JSON.")


def _text_field(most: int, **more: Any) -> fields.String:
    return fields.String(validate=[validate.Length(1, most), _text], **more)


class Moment(fields.AwareDateTime):
    """A time with its offset, read as milliseconds since the epoch."""

    default_error_messages = {  # noqa: RUF012  as marshmallow reads it
        "invalid_awareness": "Must be ISO 8601 with an offset, such as 2026-01-25T10:30:00Z.",
        "invalid": "Must be ISO 8601 with an offset, such as 2026-01-25T10:30:00Z.",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        moment: datetime = super()._deserialize(value, attr, data, **kwargs)
        try:
            return int(moment.astimezone(UTC).timestamp() * 1000)
        except (OverflowError, ValueError):
            raise self.make_error("invalid", input=value) from None


# What clients send


class BackoffBody(Schema):
    """How long to wait before a failed job is tried again: `delay` s, times `factor` a failure, at most `max` s."""

    delay_s = fields.Float(data_key="delay", load_default=1.0, validate=validate.Range(0, 86_400))
    factor = fields.Float(load_default=2.0, validate=validate.Range(1, 100))
    max_s = fields.Float(data_key="max", load_default=300.0, validate=validate.Range(0, 604_800))


class ScheduleBody(Schema):
    """When a job recurs: a cron expression of five fields, its time zone, and what becomes of missed occurrences."""

    cron = fields.String(required=True)
    timezone = fields.String(load_default="UTC")
    misfire = fields.String(
        load_default="one", validate=validate.OneOf([each.value for each in schedules.Misfire])
    )

    @validates_schema
    def _makes_sense(self, data: dict[str, Any], **_: Any) -> None:
        try:
            schedules.check(data["cron"], data["timezone"])
        except HostlerError as error:
            raise ValidationError(str(error)) from None


class WebhookBody(Schema):
    """Who is told when the job ends; with `secret`, each message is signed by HMAC-SHA256."""

    url = fields.String(required=True, validate=[validate.Length(1, 2048), _text])
    secret = fields.String(validate=[validate.Length(1, 200), _text])


class OrShort(fields.Nested):
    """A nested object, or a string that stands for its most important field."""

    def __init__(self, nested: type[Schema], short: str, **kwargs: Any) -> None:
        super().__init__(nested, **kwargs)
        self.short = short

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        """Read the object, or the string that stands for it."""
        return super().deserialize(
            {self.short: value} if isinstance(value, str) else value, attr, data, **kwargs
        )


class OrderBody(Schema):
    """A job to run: `command` for a shell, or `argv` without one, and how."""

    command = fields.String(
        validate=[_not_blank, _text, _size(64 * KIB)], metadata={"description": "Run by a shell."}
    )
    argv = fields.List(
        fields.String(validate=[_text, _size(64 * KIB)]),
        validate=validate.Length(1, 1000),
        metadata={"description": "Run without a shell."},
    )
    file_url = fields.String(
        data_key="fileUrl",
        allow_none=True,
        validate=validate.Length(1, 2048),
        metadata={"description": "The url of an upload, or an https URL; unpacked into the job's directory."},
    )
    working_directory = fields.String(
        data_key="workingDirectory", allow_none=True, validate=[validate.Length(0, 4096)]
    )
    timeout_s = fields.Integer(
        data_key="timeout",
        load_default=600,
        strict=True,
        validate=validate.Range(1, 604_800),
        metadata={"description": "Seconds."},
    )
    priority = fields.String(
        load_default="normal", validate=validate.OneOf([each.value for each in Priority])
    )
    env = fields.Dict(keys=fields.String(), values=fields.String(), validate=_environment)
    tags = fields.List(
        fields.String(validate=_tag),
        validate=validate.Length(0, 16),
        metadata={"description": "Only a worker that has all of them runs the job."},
    )
    retries = fields.Integer(load_default=0, strict=True, validate=validate.Range(0, 100))
    backoff = fields.Nested(BackoffBody)
    artifacts = fields.List(
        fields.String(validate=[validate.Length(1, 1024), _inside]),
        validate=validate.Length(0, 64),
        metadata={"description": "Globs of files to keep, relative to the working directory."},
    )
    depends_on = fields.List(
        fields.String(validate=validate.Length(1, 64)), data_key="dependsOn", validate=validate.Length(0, 100)
    )
    not_before_ms = Moment(data_key="runAt")
    delay_s = fields.Float(
        data_key="delay",
        validate=validate.Range(0, 366 * 86_400),
        metadata={"description": "Seconds from now."},
    )
    schedule = OrShort(ScheduleBody, "cron")
    concurrency_key = _text_field(
        200, data_key="concurrencyKey", metadata={"description": "Jobs that share one run one at a time."}
    )
    at_most_once = fields.Boolean(
        data_key="atMostOnce",
        load_default=False,
        truthy={True},
        falsy={False},
        metadata={"description": "A worker's death ends the job as lost instead of running it again."},
    )
    webhook = OrShort(WebhookBody, "url")
    name = _text_field(200)
    metadata = fields.Dict(keys=fields.String(), validate=_metadata)

    @validates_schema
    def _whole(self, data: dict[str, Any], **_: Any) -> None:
        if "command" in data and "argv" in data:
            raise ValidationError("Give either command or argv, not both.", "argv")
        if "command" not in data and "argv" not in data:
            raise ValidationError("Missing data for required field.", "command")
        if "argv" in data and not data["argv"][0]:
            raise ValidationError("The first word names the program and must not be empty.", "argv")
        if data.get("working_directory"):
            try:
                _inside(data["working_directory"])
            except ValidationError as error:
                raise ValidationError(error.messages, "workingDirectory") from None
        times = [name for name in ("runAt", "delay", "schedule") if self._times[name] in data]
        if len(times) > 1:
            raise ValidationError(f"Give one of {' and '.join(times)}, not both.", times[1])
        if "schedule" in data and data.get("depends_on"):
            raise ValidationError("A recurring job cannot depend on others.", "dependsOn")
        if data.get("at_most_once") and data.get("retries"):
            raise ValidationError("A job that runs at most once cannot be retried.", "retries")

    _times = {"runAt": "not_before_ms", "delay": "delay_s", "schedule": "schedule"}  # noqa: RUF012


class OlderOrderBody(OrderBody):
    """A job as the older client asks for it; what it says of CPU and memory is not needed to place a job."""

    timeout_s = fields.Integer(
        data_key="timeout", load_default=300, strict=True, validate=validate.Range(1, 604_800)
    )
    timeout_ms = fields.Integer(data_key="timeoutMs", validate=validate.Range(1, 604_800_000))
    filename = fields.String(validate=validate.Length(0, 1024))
    required_cpu = fields.Float(data_key="requiredCpu")
    required_ram_mb = fields.Float(data_key="requiredRamMb")
    max_retries = fields.Integer(data_key="maxRetries", validate=validate.Range(0, 100))


class JobQuery(Schema):
    """Which job."""

    job_id = fields.String(required=True, data_key="jobId")


class Many(fields.List[Any]):
    """A list of what `each` reads; what is wrong with one is told under `[17]`, its place."""

    def __init__(self, each: type[Schema], *, least: int = 0, most: int, **more: Any) -> None:
        super().__init__(fields.Nested(each), validate=validate.Length(least, most), **more)
        self._read, self._most = compiled.loader(each()), most

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        found, wrong = [], {}
        for index, each in enumerate(value[: self._most + 1]):
            try:
                found.append(self._read(each))
                self._check(found[-1])
            except ValidationError as error:
                wrong[f"[{index}]"] = error.messages
        if wrong:
            raise ValidationError(wrong)
        return found

    def _check(self, each: dict[str, Any]) -> None:
        """Raise ValidationError for what only fits elsewhere."""


class Orders(Many):
    """The orders of a batch."""

    def _check(self, each: dict[str, Any]) -> None:
        if "schedule" in each:
            raise ValidationError({"schedule": ["A job of a batch cannot recur."]})


class BatchBody(Schema):
    """Jobs to run: all of them are accepted, or none."""

    jobs = Orders(OrderBody, required=True, least=1, most=batches.MOST_JOBS)


class JobBody(Schema):
    """Which job."""

    job_id = fields.String(required=True, data_key="jobId")


class JobsBody(Schema):
    """Which jobs: one named twice counts once."""

    job_ids = fields.List(
        fields.String(), required=True, data_key="jobIds", validate=validate.Length(1, bulk.MOST_JOBS)
    )


class JobsQuery(PageQuery):
    """Which jobs, in which order."""

    status = fields.String(validate=validate.OneOf([each.value for each in State]))
    worker_id = fields.String(data_key="workerId", validate=validate.Length(1, 64))
    tags = Words(metadata={"description": "All of them; repeated, or between commas."})
    sort = sort_field("createdAt", "completedAt", default="-createdAt")
    search = fields.String(
        validate=validate.Length(1, 200),
        metadata={
            "description": "Words that name, command, id, worker or tags contain; of the newest 20,000 jobs."
        },
    )


# What agents send: fields that we do not know are ignored, since foreign agents say more than we need


#: So many jobs an agent may report on, and ask for, in one exchange.
MOST_AT_ONCE = 100


class _AgentBody(Schema):
    class Meta:
        unknown = EXCLUDE


class RegisterBody(_AgentBody):
    """A worker that introduces itself."""

    worker_id = fields.String(
        required=True,
        data_key="workerId",
        validate=validate.Regexp(
            r"\A[A-Za-z0-9._-]{1,64}\Z",
            error="Must be 1 to 64 letters, digits, dots, underscores or hyphens.",
        ),
    )
    hostname = fields.String(load_default="", allow_none=True, validate=[validate.Length(0, 255), _text])
    cpu_count = fields.Integer(
        data_key="cpuCount", load_default=None, allow_none=True, validate=validate.Range(0, 1_000_000)
    )
    memory_mb = fields.Integer(
        data_key="totalMemoryMb", load_default=None, allow_none=True, validate=validate.Range(0, 10**12)
    )
    metadata = fields.Dict(keys=fields.String(), load_default=dict, validate=_metadata)
    tags = fields.List(fields.String(validate=_tag), validate=validate.Length(0, 64))
    slots = fields.Integer(load_default=1, validate=validate.Range(1, 1024))
    version = fields.String(load_default=None, allow_none=True, validate=[validate.Length(0, 64), _text])
    isolation = fields.String(load_default=None, allow_none=True, validate=[validate.Length(0, 64), _text])
    enroll_secret = fields.String(data_key="enrollSecret", load_default=None, allow_none=True)

    @validates_schema
    def _tags_of_metadata(self, data: dict[str, Any], **_: Any) -> None:
        """Hold the page's `metadata.tags` to the same rules as `tags`."""
        if "tags" in data or "tags" not in data.get("metadata", {}):
            return
        tags = data["metadata"]["tags"]
        if not isinstance(tags, list) or len(tags) > 64 or not all(isinstance(tag, str) for tag in tags):
            raise ValidationError("Must be a list of at most 64 strings.", "metadata.tags")
        for tag in tags:
            try:
                _tag(tag)
            except ValidationError as error:
                raise ValidationError(error.messages, "metadata.tags") from None


class HeartbeatBody(_AgentBody):
    """A sign of life."""

    worker_id = fields.String(data_key="workerId", load_default=None, allow_none=True)
    status = fields.String(load_default="idle", allow_none=True, validate=validate.Length(0, 32))


class NextJobQuery(_AgentBody):
    """How long to wait for work."""

    wait = fields.Float(
        load_default=0.0,
        validate=validate.Range(0, 60),
        metadata={"description": "Seconds to wait for a job; more than 24 count as 24."},
    )
    worker_id = fields.String(data_key="workerId", load_default=None)


class CheckBody(_AgentBody):
    """Which job."""

    job_id = fields.String(required=True, data_key="jobId")


class AttemptQuery(Schema):
    """Which attempt; without it, the one that the agent holds."""

    attempt = fields.Integer(load_default=None, validate=validate.Range(1, 10**9))


class PartQuery(AttemptQuery):
    """Which lines of the log the body holds."""

    first = fields.Integer(required=True, validate=validate.Range(0, 10**12))
    next = fields.Integer(required=True, validate=validate.Range(0, 10**12))


class OutputBody(_AgentBody):
    """A piece of what a job prints."""

    job_id = fields.String(required=True, data_key="jobId")
    data = fields.String(required=True)
    type = fields.String(required=True, validate=validate.OneOf(("stdout", "stderr")))
    attempt = fields.Integer(load_default=None, allow_none=True, validate=validate.Range(1, 10**9))
    first_line = fields.Integer(
        data_key="firstLine",
        load_default=None,
        allow_none=True,
        validate=validate.Range(0, 10**12),
        metadata={"description": "The number of the first line, so that a repeated piece counts once."},
    )
    line_count = fields.Integer(
        data_key="lineCount",
        load_default=None,
        allow_none=True,
        validate=validate.Range(0, 10**9),
        metadata={"description": "How many lines end in it, where that is not its number of newlines."},
    )


class EndingBody(_AgentBody):
    """How an attempt ended."""

    job_id = fields.String(required=True, data_key="jobId")
    exit_code = fields.Integer(
        data_key="exitCode", load_default=None, allow_none=True, validate=validate.Range(-(2**31), 2**32)
    )
    attempt = fields.Integer(load_default=None, allow_none=True, validate=validate.Range(1, 10**9))
    error = fields.String(load_default=None, allow_none=True)
    reason = fields.String(load_default=None, allow_none=True)
    status = fields.String(load_default=None, allow_none=True)
    cpu_ms = fields.Integer(
        data_key="cpuMs", load_default=None, allow_none=True, validate=validate.Range(0, 10**15)
    )
    max_rss_bytes = fields.Integer(
        data_key="maxRssBytes", load_default=None, allow_none=True, validate=validate.Range(0, 10**18)
    )
    signal = fields.Integer(load_default=None, allow_none=True, validate=validate.Range(1, 255))
    truncated = fields.Boolean(load_default=False, allow_none=True)

    @validates_schema
    def _ended_somehow(self, data: dict[str, Any], **_: Any) -> None:
        if all(data[name] is None for name in ("exit_code", "error", "status", "reason")):
            raise ValidationError("Missing data for required field.", "exitCode")


class ResultBody(EndingBody):
    """How an attempt ended, and what it printed."""

    worker_id = fields.String(data_key="workerId", load_default=None, allow_none=True)
    stdout = fields.String(load_default="", allow_none=True)
    stderr = fields.String(load_default="", allow_none=True)


class FailureBody(ResultBody):
    """An attempt that failed, as the older agent reports it."""

    @validates_schema
    def _ended_somehow(self, data: dict[str, Any], **_: Any) -> None:
        """Nothing more is needed: the call itself says that it failed."""


class HeldEntry(Schema):
    """One attempt that a worker holds."""

    job_id = fields.String(required=True, data_key="jobId")
    attempt = fields.Integer(required=True, validate=validate.Range(1, 10**9))


class ExchangedEnding(EndingBody):
    """How an attempt ended, said together with what may bring the job's next attempt: so it says which one."""

    attempt = fields.Integer(required=True, validate=validate.Range(1, 10**9))


class ExchangeBody(_AgentBody):
    """What an agent says of its jobs, and how many it wants to have."""

    worker_id = fields.String(data_key="workerId", load_default=None, allow_none=True)
    results = Many(ExchangedEnding, most=MOST_AT_ONCE, load_default=list)
    begun = Many(
        HeldEntry,
        most=MOST_AT_ONCE,
        load_default=list,
        metadata={"description": "Jobs that it was given as `heldAhead` and that have started."},
    )
    most = fields.Integer(load_default=0, validate=validate.Range(0, MOST_AT_ONCE))
    startable = fields.Integer(
        load_default=MOST_AT_ONCE,
        validate=validate.Range(0, MOST_AT_ONCE),
        metadata={"description": "How many of them it can start now; the others are `heldAhead`."},
    )


# What is answered


class SubmittedAnswer(Schema):
    """The job that was accepted."""

    id = fields.String(required=True, data_key="jobId")
    status = fields.String(required=True)
    created_ms = Time(required=True, data_key="createdAt")
    estimated_wait_s = fields.Integer(
        required=True,
        allow_none=True,
        data_key="estimatedWaitTime",
        metadata={"description": "Seconds, from what was observed; null where nothing was."},
    )


class BatchAnswer(Schema):
    """The batch that was accepted."""

    id = fields.String(required=True, data_key="batchId")
    created_ms = Time(required=True, data_key="createdAt")
    job_ids = fields.List(
        fields.String(),
        required=True,
        data_key="jobIds",
        metadata={"description": "In the order of the request."},
    )
    total = fields.Integer(required=True)


class JobEntry(Schema):
    """A job as lists show it."""

    id = fields.String(required=True, data_key="jobId")
    command = fields.String(required=True, allow_none=True)
    argv = fields.List(fields.String(), required=True, allow_none=True)
    name = fields.String(required=True, allow_none=True)
    status = fields.String(required=True, validate=validate.OneOf([each.value for each in State]))
    reason = fields.String(required=True, allow_none=True)
    worker = fields.String(required=True, allow_none=True, data_key="workerId")
    created_ms = Time(required=True, allow_none=True, data_key="createdAt")
    started_ms = Time(required=True, allow_none=True, data_key="startedAt")
    ended_ms = Time(required=True, allow_none=True, data_key="completedAt")
    waited_ms = fields.Integer(
        required=True,
        allow_none=True,
        data_key="waitedMs",
        metadata={"description": "From its creation to the start of its last attempt."},
    )
    ran_ms = fields.Integer(
        required=True,
        allow_none=True,
        data_key="ranMs",
        metadata={"description": "From the start of its last attempt to its end."},
    )
    progress = fields.Integer(required=True, allow_none=True)
    exit_code = fields.Integer(required=True, allow_none=True, data_key="exitCode")
    tags = fields.List(fields.String(), required=True)
    priority = fields.String(required=True)
    attempt = fields.Integer(required=True)
    wait = fields.String(required=True, allow_none=True)
    not_before_ms = Time(required=True, allow_none=True, data_key="notBefore")
    cancel_requested = fields.Boolean(required=True, data_key="cancelRequested")
    retry_of = fields.String(required=True, allow_none=True, data_key="retryOf")
    schedule = fields.String(required=True, allow_none=True, data_key="scheduleId")


class JobDetail(JobEntry):
    """Everything about one job."""

    stdout = fields.String(required=True)
    stderr = fields.String(required=True)
    truncated = fields.Boolean(
        required=True, metadata={"description": "Whether stdout and stderr are only the end of the output."}
    )
    timeout_s = fields.Integer(required=True, allow_none=True, data_key="timeout")
    working_directory = fields.String(required=True, allow_none=True, data_key="workingDirectory")
    metadata = fields.Dict(required=True)
    submitted_by = fields.String(required=True, data_key="submittedBy")
    message = fields.String(required=True, allow_none=True)
    cpu_ms = fields.Integer(required=True, allow_none=True, data_key="cpuMs")
    max_rss_bytes = fields.Integer(required=True, allow_none=True, data_key="maxRssBytes")


class JobAnswer(Schema):
    """One job."""

    job = fields.Nested(JobDetail, required=True)


class JobsAnswer(PageAnswer):
    """A page of jobs, under the row's own key and under the Pagination section's."""

    jobs = fields.List(fields.Nested(JobEntry), required=True)
    data = fields.List(fields.Nested(JobEntry), required=True)


class CancelAnswer(Schema):
    """What became of a wish to cancel."""

    job_id = fields.String(required=True, data_key="jobId")
    status = fields.String(required=True)
    message = fields.String(required=True)


class OutcomeEntry(Schema):
    """What became of one of many jobs: its `status`, or that of the one made of it; else `error` says why not."""

    job_id = fields.String(required=True, data_key="jobId")
    ok = fields.Boolean(required=True)
    status = fields.String(required=True, allow_none=True)
    made = fields.String(
        required=True,
        allow_none=True,
        data_key="newJobId",
        metadata={"description": "The job that runs it again."},
    )
    error = fields.String(required=True, allow_none=True)
    code = fields.String(required=True, allow_none=True)


class OutcomesAnswer(Schema):
    """What became of each job, in the order in which they were named."""

    results = fields.List(fields.Nested(OutcomeEntry), required=True)
    succeeded = fields.Integer(required=True)
    failed = fields.Integer(required=True)


class ReasonEntry(Schema):
    """One reason why a job waits."""

    code = fields.String(required=True)
    message = fields.String(required=True)
    job_id = fields.String(data_key="jobId", allow_none=True)
    key = fields.String()
    tags = fields.List(fields.String())
    position = fields.Integer()
    not_before_ms = Time(data_key="notBefore", allow_none=True)


class WhyAnswer(Schema):
    """Why a job is not running."""

    job_id = fields.String(required=True, data_key="jobId")
    status = fields.String(required=True)
    waiting = fields.Boolean(required=True)
    reasons = fields.List(fields.Nested(ReasonEntry), required=True)


class ArtifactEntry(Schema):
    """A file that a job left."""

    name = fields.String(required=True)
    size = fields.Integer(required=True, metadata={"description": "Bytes."})
    sha256 = fields.String(required=True)
    content_type = fields.String(required=True, data_key="contentType")
    attempt = fields.Integer(required=True)
    url = fields.String(required=True)


class ArtifactsAnswer(Schema):
    """The files that a job left."""

    job_id = fields.String(required=True, data_key="jobId")
    artifacts = fields.List(fields.Nested(ArtifactEntry), required=True)
    total = fields.Integer(required=True)


class NextJob(Schema):
    """One attempt of a job, handed to an agent; an agent that knows `argv` runs that instead of `command`."""

    job_id = fields.String(required=True, data_key="jobId")
    command = fields.String(required=True)
    argv = fields.List(fields.String(), required=True, allow_none=True)
    file_url = fields.String(required=True, allow_none=True, data_key="fileUrl")
    file_id = fields.String(required=True, allow_none=True, data_key="fileId")
    retries = fields.Integer(required=True)
    working_directory = fields.String(required=True, allow_none=True, data_key="workingDirectory")
    timeout_s = fields.Integer(required=True, data_key="timeout")
    attempt = fields.Integer(required=True)
    env = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    artifacts = fields.List(fields.String(), required=True)
    priority = fields.String(required=True)
    tags = fields.List(fields.String(), required=True)
    name = fields.String(required=True, allow_none=True)
    lease_s = fields.Float(required=True, data_key="leaseSeconds")
    lines = fields.Integer(required=True, metadata={"description": "Lines of log that the job already has."})
    at_most_once = fields.Boolean(
        required=True,
        data_key="atMostOnce",
        metadata={"description": "It must not start unless it is surely this attempt's."},
    )
    held_ahead = fields.Boolean(
        required=True,
        data_key="heldAhead",
        metadata={"description": "It has not started, for all that is known, until its agent says so."},
    )


class NextJobAnswer(Schema):
    """The next job for an agent."""

    job = fields.Nested(NextJob, required=True)


class NoJobAnswer(Schema):
    """The next job for an older agent, or the news that there is none."""

    success = fields.Boolean(required=True)
    job = fields.Nested(NextJob, required=True, allow_none=True)


class OutputAnswer(Schema):
    """Whether output has arrived, and whether the job shall end."""

    received = fields.Boolean(required=True)
    cancel_requested = fields.Boolean(required=True, data_key="cancelRequested")
    next_line = fields.Integer(required=True, data_key="nextLine")
    full = fields.Boolean(
        required=True, metadata={"description": "Whether the quota is reached: nothing more is kept."}
    )


class ResultAnswer(Schema):
    """A result that was saved."""

    message = fields.String(required=True)
    job_id = fields.String(required=True, data_key="jobId")
    status = fields.String(required=True)


class EndedEntry(Schema):
    """What became of one result: the job's `status`, or why the result was refused."""

    job_id = fields.String(required=True, data_key="jobId")
    status = fields.String(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)
    message = fields.String(required=True, allow_none=True)


class ExchangeAnswer(Schema):
    """What became of what an agent said, and its next jobs."""

    results = fields.List(
        fields.Nested(EndedEntry),
        required=True,
        metadata={"description": "In the order in which they were sent."},
    )
    lost = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "Jobs that are not, or no longer, its own to start: it shall end them."},
    )
    jobs = fields.List(fields.Nested(NextJob), required=True)


class CancelCheckAnswer(Schema):
    """Whether an agent shall end a job: it was cancelled, or is no longer its own."""

    job_id = fields.String(required=True, data_key="jobId")
    cancelled = fields.Boolean(required=True)
    cancel_requested = fields.Boolean(required=True, data_key="cancelRequested")


class KeptAnswer(Schema):
    """An object that was kept for a job."""

    job_id = fields.String(required=True, data_key="jobId")
    name = fields.String(required=True)
    size = fields.Integer(required=True)
    sha256 = fields.String(required=True)


# Spelling


def promised(submitted: Submitted) -> dict[str, Any]:
    """Return what a submit promises, as SubmittedAnswer takes it."""
    return {
        "id": submitted.id,
        "status": "queued",
        "created_ms": submitted.created_ms,
        "estimated_wait_s": submitted.estimated_wait_s,
    }


def outcomes(found: Sequence[bulk.Outcome]) -> dict[str, Any]:
    """Return what became of many jobs, as OutcomesAnswer takes it."""
    results = [
        {
            "job_id": each.job_id,
            "ok": each.error is None,
            "status": each.state and each.state.value,
            "made": each.made,
            "error": each.error and str(each.error),
            "code": each.error and each.error.code,
        }
        for each in found
    ]
    succeeded = sum(each.error is None for each in found)
    return {"results": results, "succeeded": succeeded, "failed": len(found) - succeeded}


def entry_of(job: Job) -> dict[str, Any]:
    """Return a job as lists show it."""
    spec, started_ms, ended_ms = job.spec, job.started_ms, job.ended_ms
    return {
        "id": job.id,
        "command": spec.get("command"),
        "argv": spec.get("argv"),
        "name": spec.get("name"),
        "status": job.state.value,
        "reason": job.reason,
        "worker": job.worker,
        "created_ms": job.created_ms,
        "started_ms": job.started_ms,
        "ended_ms": job.ended_ms,
        "waited_ms": None if started_ms is None else started_ms - job.created_ms,
        "ran_ms": None if started_ms is None or ended_ms is None else ended_ms - started_ms,
        "progress": job.progress,
        "exit_code": job.exit_code,
        "tags": spec.get("tags", []),
        "priority": spec.get("priority", "normal"),
        "attempt": job.attempt,
        "wait": job.wait,
        "not_before_ms": job.not_before_ms,
        "cancel_requested": job.cancel_requested,
        "retry_of": job.retry_of,
        "schedule": job.schedule,
    }


def detail_of(job: Job, stdout: str, stderr: str, *, truncated: bool) -> dict[str, Any]:
    """Return all there is to say about a job; its environment is not, since it may hold secrets."""
    return {
        **entry_of(job),
        "stdout": stdout,
        "stderr": stderr,
        "truncated": truncated,
        "timeout_s": job.spec.get("timeout_s"),
        "working_directory": job.spec.get("working_directory"),
        "metadata": job.spec.get("metadata", {}),
        "submitted_by": job.actor,
        "message": job.facts.get("message"),
        "cpu_ms": job.facts.get("cpu_ms"),
        "max_rss_bytes": job.facts.get("max_rss_bytes"),
    }
