"""The fields of jobs as CMD Executor's clients spell them."""

from collections.abc import Sequence
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from api import compiled
from api.executor import rules
from api.paging import PageAnswer, PageQuery, Words, sort_field
from api.times import Time
from storage import batches, bulk, schedules
from storage.errors import HostlerError
from storage.jobs import Job, State, Submitted
from storage.queues import Priority

_KIB = 1024


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

    url = fields.String(required=True, validate=[validate.Length(1, 2048), rules.plain_text])
    secret = fields.String(validate=[validate.Length(1, 200), rules.plain_text])


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
        validate=[rules.not_blank, rules.plain_text, rules.size(64 * _KIB)],
        metadata={"description": "Run by a shell."},
    )
    argv = fields.List(
        fields.String(validate=[rules.plain_text, rules.size(64 * _KIB)]),
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
    env = fields.Dict(keys=fields.String(), values=fields.String(), validate=rules.environment)
    tags = fields.List(
        fields.String(validate=rules.tag),
        validate=validate.Length(0, 16),
        metadata={"description": "Only a worker that has all of them runs the job."},
    )
    retries = fields.Integer(load_default=0, strict=True, validate=validate.Range(0, 100))
    backoff = fields.Nested(BackoffBody)
    artifacts = fields.List(
        fields.String(validate=[validate.Length(1, 1024), rules.inside]),
        validate=validate.Length(0, 64),
        metadata={"description": "Globs of files to keep, relative to the working directory."},
    )
    depends_on = fields.List(
        fields.String(validate=validate.Length(1, 64)), data_key="dependsOn", validate=validate.Length(0, 100)
    )
    not_before_ms = rules.Moment(data_key="runAt")
    delay_s = fields.Float(
        data_key="delay",
        validate=validate.Range(0, 366 * 86_400),
        metadata={"description": "Seconds from now."},
    )
    schedule = OrShort(ScheduleBody, "cron")
    concurrency_key = rules.text_field(
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
    name = rules.text_field(200)
    metadata = fields.Dict(keys=fields.String(), validate=rules.metadata)

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
                rules.inside(data["working_directory"])
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
