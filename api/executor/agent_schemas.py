"""The fields of what agents send and get, as CMD Executor's agents spell them."""

from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate, validates_schema

from api.executor import rules
from api.executor.schemas import Many

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
    hostname = fields.String(
        load_default="", allow_none=True, validate=[validate.Length(0, 255), rules.plain_text]
    )
    cpu_count = fields.Integer(
        data_key="cpuCount", load_default=None, allow_none=True, validate=validate.Range(0, 1_000_000)
    )
    memory_mb = fields.Integer(
        data_key="totalMemoryMb", load_default=None, allow_none=True, validate=validate.Range(0, 10**12)
    )
    metadata = fields.Dict(keys=fields.String(), load_default=dict, validate=rules.metadata)
    tags = fields.List(fields.String(validate=rules.tag), validate=validate.Length(0, 64))
    slots = fields.Integer(load_default=1, validate=validate.Range(1, 1024))
    version = fields.String(
        load_default=None, allow_none=True, validate=[validate.Length(0, 64), rules.plain_text]
    )
    isolation = fields.String(
        load_default=None, allow_none=True, validate=[validate.Length(0, 64), rules.plain_text]
    )
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
                rules.tag(tag)
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


# What they are answered


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
