"""What can go wrong, in Hostler's own words; HTTP statuses belong to api/errors.py.

* HostlerError
  * Invalid         the request does not make sense (`details` names each field)
    * Unprocessable it makes sense, but contradicts what was said before
  * Unauthenticated nobody, or nobody known, is asking
    * InvalidCredentials a login whose account or password is wrong
  * Denied          the caller is known and may not do this
  * NotFound        the thing asked for does not exist
  * Conflict        it exists, but not in a state that allows this
    * Stale         the write belongs to an attempt that is over
  * TooLarge        more bytes than are accepted
  * TooMany         too often, or too much at once (`retry_after_s` says when to come back)
  * Unavailable     something Hostler stands on is away (`retry_after_s`)
    * NotRunning    an app that would have to run does not
  * BadGateway      a neighbour or an app cannot be reached, or answers nonsense
  * GatewayTimeout  a neighbour or an app does not answer in time
  * NotConfigured   a neighbour that nobody has configured
"""


class HostlerError(Exception):
    """Base class: `code` is stable and machine-readable, the message is a sentence for people.

    `details` maps field names to what is wrong with them, where that applies.
    """

    code = "HOSTLER_ERROR"

    def __init__(self, message: str, *, details: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


class Invalid(HostlerError):
    """The request does not make sense."""

    code = "INVALID_REQUEST"


class Unprocessable(Invalid):
    """The request makes sense, but contradicts what was said before."""

    code = "UNPROCESSABLE"


class Unauthenticated(HostlerError):
    """Nobody, or nobody known, is asking."""

    code = "UNAUTHENTICATED"


class InvalidCredentials(Unauthenticated):
    """A login whose account or password is wrong; which of the two is not told."""

    code = "INVALID_CREDENTIALS"


class Denied(HostlerError):
    """The caller is known and may not do this."""

    code = "DENIED"


class NotFound(HostlerError):
    """The thing asked for does not exist."""

    code = "NOT_FOUND"


class Conflict(HostlerError):
    """The thing exists, but not in a state that allows this."""

    code = "CONFLICT"


class Stale(Conflict):
    """The write belongs to an attempt that is over, or was never the writer's."""

    code = "STALE_ATTEMPT"


class TooLarge(HostlerError):
    """More bytes than are accepted."""

    code = "TOO_LARGE"


class TooMany(HostlerError):
    """Too often, or too much at once."""

    code = "TOO_MANY_REQUESTS"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(HostlerError):
    """Something Hostler stands on is away."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotRunning(Unavailable):
    """An app that would have to run does not."""

    code = "APP_NOT_RUNNING"


class BadGateway(HostlerError):
    """A neighbour or an app cannot be reached, or answers nonsense."""

    code = "BAD_GATEWAY"


class GatewayTimeout(HostlerError):
    """A neighbour or an app does not answer in time."""

    code = "GATEWAY_TIMEOUT"


class NotConfigured(HostlerError):
    """A neighbour that nobody has configured."""

    code = "NOT_CONFIGURED"
