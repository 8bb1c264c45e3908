"""What tests do to apps, and what they look at afterwards."""

from typing import Any

from storage import apps, jobs
from storage.calls import command, pairs
from storage.store import Store

SECRET = {
    "type": "object",
    "properties": {
        "url": {"type": "string"},
        "password": {"type": "string", "minLength": 3, "writeOnly": True},
    },
    "required": ["url"],
}


async def events(store: Store, name: str) -> list[dict[str, str]]:
    entries = await store.call(command("XRANGE", "h:events", "-", "+"))
    found = [pairs(fields) for _, fields in entries]
    return [each for each in found if each["e"] == name]


async def change(store: Store, action: str, instance_id: str = "hello", **how: Any) -> jobs.Submitted:
    return await apps.change(store, "user:u", instance_id, action, **how)
