"""Apps: what is installed on which node, what each one is doing, and which changes are allowed."""

from storage.apps.changes import (
    ACTIONS,
    Action,
    again,
    change,
    finished,
    install,
    instance_id_of,
    set_autostart,
)
from storage.apps.history import (
    KEPT_LINES,
    KEPT_RUNS,
    KEPT_SAMPLES,
    LINE_LIMIT_BYTES,
    LogLine,
    Run,
    Sample,
    append,
    keeps,
    lines,
    published,
    ran,
    runs,
    sample,
    samples,
)
from storage.apps.placement import choose as choose_node
from storage.apps.reading import every, get, of_node, page
from storage.apps.records import (
    ALIVE,
    KEPT_RELEASES,
    PASSING,
    App,
    Instance,
    Phase,
    Release,
    ScheduleState,
    Status,
    Wanted,
    Wish,
)
from storage.apps.reports import (
    abandon,
    configured,
    forget,
    installing,
    observe,
    released,
    rest,
    say,
)

__all__ = [
    "ACTIONS", "ALIVE", "KEPT_LINES", "KEPT_RELEASES", "KEPT_RUNS", "KEPT_SAMPLES", "LINE_LIMIT_BYTES", "PASSING",
    "Action", "App", "Instance", "LogLine", "Phase", "Release", "Run", "Sample", "ScheduleState", "Status", "Wanted",
    "Wish", "abandon", "again", "append", "change", "choose_node", "configured", "every", "finished", "forget", "get",
    "install", "installing", "instance_id_of", "keeps", "lines", "observe", "of_node", "page", "published", "ran",
    "released", "rest", "runs", "sample", "samples", "say", "set_autostart",
]  # fmt: skip
