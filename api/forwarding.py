"""Requests that are meant for an app: handed to its node less what is ours, and its answer handed back."""

from falcon.asgi import Request, Response

from api import addresses, body
from api.endpoint import Context
from storage import relay
from storage.relay import Answer, Ask

#: What an app's answer does not decide: how a browser may use what comes from our origin, and keep it.
_OURS = frozenset(
    {
        "content-security-policy", "content-security-policy-report-only", "x-content-type-options", "x-frame-options",
        "referrer-policy", "cache-control", "x-request-id", "x-error-code", "content-type", "pragma", "expires",
        "permissions-policy", "cross-origin-opener-policy", "cross-origin-embedder-policy",
        "cross-origin-resource-policy",
    }
)  # fmt: skip


async def ask(
    context: Context, *, app: str, path: str, prefix: str, process: str = "",
    limit_bytes: int = relay.LIMIT_BYTES, timeout_s: float = relay.TIMEOUT_S,
) -> Ask:  # fmt: skip
    """Return the question that a request is for an app: `path`, still encoded, is what it sees below `prefix`.

    Raises TooLarge, Invalid.
    """
    req, settings = context.request, context.store.settings
    seen_scheme, _, seen_host = addresses.seen_url(req, settings).partition("://")
    return Ask(
        app=app,
        process=process,
        method=req.method,
        path=path,
        query=req.query_string,
        headers=tuple(req.headers.items()),
        body=await body.read(req, limit_bytes),
        caller=relay.caller(context.identity),
        forwarded={
            "for": addresses.peer(req, settings), "proto": seen_scheme, "host": seen_host, "prefix": prefix,
        },
        limit_bytes=limit_bytes,
        timeout_s=timeout_s,
    )  # fmt: skip


def encoded_path(req: Request) -> str:
    """Return the path of a request as its client wrote it, percent-encoded."""
    raw: bytes = req.scope.get("raw_path") or b""
    return raw.partition(b"?")[0].decode("ascii", "replace")


def write(resp: Response, answer: Answer) -> None:
    """Answer with what the app answered."""
    resp.status = answer.status
    resp.content_type = answer.header("content-type") or "application/octet-stream"
    for name, value in answer.headers:
        if name not in _OURS:
            resp.append_header(name, value)
    resp.data = answer.body
