"""Notifications: what people should hear of, told as an event to everybody who watches."""

from storage.calls import Call, command, text

#: As much of each is told.
_MOST_CHARS = 500


def event(name: str, **fields: str | int) -> Call[str]:
    """Describe telling one event of which no record speaks; answers its id."""
    words = [word for pair in fields.items() for word in pair]
    return command("XADD", "h:events", "MAXLEN", "~", 100_000, "*", "e", name, *words, read=text)


def notify(title: str, body: str, *, level: str = "info") -> Call[str]:
    """Describe telling people something; `level` is info, warning or error. Neither text may hold secrets."""
    return event("notification", title=title[:_MOST_CHARS], body=body[:_MOST_CHARS], level=level)
