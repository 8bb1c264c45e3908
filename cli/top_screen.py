"""The screen of `hostler top`: four tables that follow what happens, a line of numbers, and the log of a job."""

import asyncio
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen
from textual.widgets import ContentSwitcher, DataTable, Footer, Input, RichLog, Static

from cli import live, rendering
from cli.client import Client, segment
from cli.failures import Away, Failed
from cli.top_views import VIEWS, View

#: What events have changed is read anew at most so often, and everything at least so often, in seconds.
AT_MOST_EVERY_S, AT_LEAST_EVERY_S = 0.5, 5.0
_BARS = " ▁▂▃▄▅▆▇█"
_HELP = """\
1 2 3 4     jobs, queues, nodes, apps
/           filter what is shown; Escape ends that
j k ↑ ↓     move
Enter  l    the log of the job or app
c           cancel the job
r           run the job again
s           only jobs of one state, the next one each time
q           leave
"""
_STATES = (None, "running", "queued", "failed", "completed", "cancelled")


class Top(App[Failed]):
    """The whole of it; ends with what went wrong, if anything did."""

    CSS = """
    #head { height: 1; background: $primary; color: $text; padding: 0 1; }
    #numbers { height: 3; padding: 0 1; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    #filter.shown { display: block; }
    #empty { padding: 1 2; display: none; }
    Screen { overflow: hidden; }
    ContentSwitcher { height: 1fr; }
    DataTable { height: 1fr; }
    RichLog { height: 1fr; }
    Question { align: center middle; }
    #box { width: auto; max-width: 70; height: auto; border: round $primary; padding: 1 2; background: $surface; }
    """
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def on_mount(self) -> None:
        """Open the screen."""
        self.push_screen(Dashboard(self._client))


class Dashboard(Screen[None]):
    """Four tables that follow what happens, under a line of where we are and three of numbers."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(number), f"view('{view.name}')", view.title) for number, view in enumerate(VIEWS, 1)),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("l,enter", "log", "Log", key_display="l"),
        Binding("c", "cancel", "Cancel"),
        Binding("r", "retry", "Again"),
        Binding("s", "state", "State"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("escape", "clear", show=False),
        Binding("j", "move(1)", show=False),
        Binding("k", "move(-1)", show=False),
        Binding("q", "app.quit", "Leave"),
    ]

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client
        self.view = VIEWS[0]
        self.words = ""
        self.state: str | None = None
        self._stale = {view.name for view in VIEWS} | {"overview"}
        self._wake = asyncio.Event()
        self._live = False
        self._found: dict[str, Any] = {}

    def compose(self) -> ComposeResult:
        """Lay out one line of where we are, three of numbers, the tables, and the keys."""
        yield Static(id="head")
        yield Static(id="numbers")
        yield Input(placeholder="words to look for", id="filter")
        yield Static(id="empty")
        with ContentSwitcher(initial=self.view.name):
            for view in VIEWS:
                yield DataTable(id=view.name, cursor_type="row", zebra_stripes=True)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to listen, and to read what has changed."""
        for view in VIEWS:
            self._table(view).add_columns(*view.columns)
        self._table(self.view).focus()
        self._show_head()
        self._listen()
        self._read()

    def _table(self, view: View) -> DataTable[Any]:
        return self.query_one(f"#{view.name}", DataTable)

    # What happens

    @work
    async def _listen(self) -> None:
        try:
            async for message in live.listen(self.client, "/api/events", on_state=self._connected):
                self._changed(str(message["type"]))
        except Failed as error:
            self.app.exit(error)

    def _connected(self, is_live: bool) -> None:
        self._live = is_live
        self._show_head()

    def _changed(self, kind: str) -> None:
        about = kind.partition(".")[0]
        everything = about == "stream"
        self._stale |= {view.name for view in VIEWS if everything or about in view.events} | {"overview"}
        self._wake.set()

    @work
    async def _read(self) -> None:
        while True:
            try:
                await self._read_once()
            except Away:
                self._connected(False)
            except Failed as error:
                self.app.exit(error)
            self._wake.clear()
            try:
                async with asyncio.timeout(AT_LEAST_EVERY_S):
                    await self._wake.wait()
                    await asyncio.sleep(AT_MOST_EVERY_S)
            except TimeoutError:
                self._stale |= {self.view.name, "overview"}

    async def _read_once(self) -> None:
        """Read what is stale of what can be seen."""
        if "overview" in self._stale:
            self._stale.discard("overview")
            self._show_numbers(await live.ask(self.client, "/api/overview"))
        view = self.view
        if view.name in self._stale:
            self._stale.discard(view.name)
            query = dict(view.query)
            if view.name == "jobs":
                query |= {"status": self.state, "search": self.words or None}
            self._found[view.name] = await live.ask(self.client, view.path, **query)
            self._show_rows(view)

    # What is seen

    def _show_head(self) -> None:
        state = "live" if self._live else "connecting …"
        only = f"  only {self.state}" if self.state and self.view.name == "jobs" else ""
        words = f"  /{self.words}" if self.words else ""
        self.query_one("#head", Static).update(
            Text(
                f"hostler top  {self.client.server.url}  {state}  {self.view.title}{only}{words}",
                no_wrap=True,
            )
        )

    def _show_numbers(self, found: dict[str, Any]) -> None:
        jobs, workers, minutes = found["jobs"], found["workers"], found["minutes"]
        apps = ", ".join(f"{count} {status}" for status, count in sorted(found["apps"].items())) or "none"
        first = Text.assemble(
            ("jobs ", "dim"), f"{jobs['running']} running, {jobs['queued']} queued, ",
            (f"{jobs['failed']} failed", "red" if jobs["failed"] else ""), f", {jobs['completed']} completed",
        )  # fmt: skip
        second = Text.assemble(
            ("workers ", "dim"), f"{workers['online']}/{workers['total']} online, ",
            f"{workers['running']}/{workers['slots']} slots busy  ", ("apps ", "dim"), apps,
        )  # fmt: skip
        ended = [each or 0 for each in minutes["ended"]]
        third = Text.assemble(("ended, last hour ", "dim"), (_bars(ended), "green"), f" {sum(ended)}")
        lines = Text("\n").join((first, second, third))
        lines.no_wrap = True
        self.query_one("#numbers", Static).update(lines)

    def _show_rows(self, view: View) -> None:
        table = self._table(view)
        at = self._selected(view)
        rows = [(key, cells) for key, cells in view.rows(self._found[view.name]) if self._wanted(view, cells)]
        with self.app.batch_update():
            table.clear()
            for key, cells in rows:
                table.add_row(*(_cell(cell) for cell in cells), key=key)
            keys = [key for key, _ in rows]
            if at in keys:
                table.move_cursor(row=keys.index(at), animate=False)
        empty = self.query_one("#empty", Static)
        empty.update(view.empty if not self.words else f"Nothing holds {self.words!r}.")
        empty.display = view is self.view and not rows

    def _wanted(self, view: View, cells: tuple[Any, ...]) -> bool:
        if view.name == "jobs" or not self.words:  # jobs are searched by the server
            return True
        return self.words.casefold() in " ".join(map(str, cells)).casefold()

    def _selected(self, view: View) -> str | None:
        table = self._table(view)
        if not table.row_count:
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    # What keys do

    def action_view(self, name: str) -> None:
        """Show another table."""
        self.view = next(view for view in VIEWS if view.name == name)
        self.query_one(ContentSwitcher).current = name
        self.query_one("#empty", Static).display = False
        self._table(self.view).focus()
        self._again()

    def _again(self) -> None:
        self._stale.add(self.view.name)
        self._show_head()
        self._wake.set()

    def action_filter(self) -> None:
        """Ask for words to look for."""
        field = self.query_one("#filter", Input)
        field.add_class("shown")
        field.call_after_refresh(field.focus)  # what is not shown yet takes no focus

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Look for the words that were typed."""
        self.words = event.value.strip()
        event.input.remove_class("shown")
        self._table(self.view).focus()
        self._again()

    def action_clear(self) -> None:
        """Show everything again."""
        field = self.query_one("#filter", Input)
        field.value = self.words = ""
        self.state = None
        field.remove_class("shown")
        self._table(self.view).focus()
        self._again()

    def action_state(self) -> None:
        """Show only jobs of one state, or of all."""
        self.state = _STATES[(_STATES.index(self.state) + 1) % len(_STATES)]
        self.action_view("jobs")

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        table = self._table(self.view)
        table.move_cursor(row=table.cursor_row + by)

    def action_help(self) -> None:
        """Show what the keys do."""
        self.app.push_screen(Question(_HELP, asks=False))

    def on_data_table_row_selected(self) -> None:
        """Open the log of what Enter was pressed on."""
        self.action_log()

    def action_log(self) -> None:
        """Open the log of the selected job or app."""
        chosen = self._selected(self.view)
        if chosen is not None and self.view.name in {"jobs", "apps"}:
            self.app.push_screen(LogScreen(self.client, self.view.name, chosen))

    def action_cancel(self) -> None:
        """Cancel the selected job, once somebody has agreed."""
        chosen = self._selected(self.view)
        if chosen is not None and self.view.name == "jobs":
            body = {"jobId": chosen}
            self.run_worker(self._ask(f"Cancel {chosen}?", "/api/jobs/cancel", body))

    def action_retry(self) -> None:
        """Run the selected job again, once somebody has agreed."""
        chosen = self._selected(self.view)
        if chosen is not None and self.view.name == "jobs":
            self.run_worker(self._ask(f"Run {chosen} again?", f"/api/jobs/{segment(chosen)}/retry", None))

    async def _ask(self, question: str, path: str, body: Any) -> None:
        if not await self.app.push_screen_wait(Question(question)):
            return
        try:
            await live.do(self.client, "POST", path, body)
        except Failed as error:
            self.notify(rendering.harmless(str(error)), severity="error", markup=False)
        self._again()


class Question(ModalScreen[bool]):
    """Something to say yes or no to, or only to read."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q,enter,question_mark", "answer(False)", "No"),
    ]

    def __init__(self, text: str, *, asks: bool = True) -> None:
        super().__init__()
        self._text, self._asks = text, asks

    def compose(self) -> ComposeResult:
        """Show the text in a box."""
        yield Static(Text(self._text + ("   y / n" if self._asks else "")), id="box")

    def action_answer(self, agreed: bool) -> None:
        """Go back with the answer."""
        self.dismiss(agreed and self._asks)


class LogScreen(Screen[None]):
    """What a job or an app prints, as it prints it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,l", "app.pop_screen", "Back", key_display="esc"),
        Binding("f", "follow", "Follow"),
        Binding("g", "edge(True)", "Top"),
        Binding("G", "edge(False)", "End"),
    ]

    def __init__(self, client: Client, kind: str, name: str) -> None:
        super().__init__()
        self._client, self._kind, self._thing = client, kind, name

    def compose(self) -> ComposeResult:
        """Lay out a line that says whose log it is, and the log."""
        yield Static(Text(f"{self._thing}", no_wrap=True), id="head")
        yield RichLog(max_lines=20_000, wrap=True, auto_scroll=True)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to read the log."""
        self.query_one(RichLog).focus()
        if self._kind == "jobs":
            self._follow_job()
        else:
            self._follow_app()

    @work
    async def _follow_job(self) -> None:
        rest = {"stdout": "", "stderr": ""}
        try:
            async for message in live.listen(self._client, "/api/jobs/stream", jobId=self._thing):
                if message["type"] == "job.output":
                    stream = message["stream"]
                    *lines, rest[stream] = (rest[stream] + message["data"]).split("\n")
                    for line in lines:
                        self._put(line, stream)
                elif message["type"] == "job.completed":
                    ending = f"{message['status']}, exit code {message['exitCode']}"
                    for stream, line in rest.items():
                        if line:
                            self._put(line, stream)
                    self._say(ending)
                elif message["type"] == "job.started":
                    self._say(f"running on {message['workerId'] or 'a worker'}, attempt {message['attempt']}")
                elif message["type"] == "stream.gap":
                    self._say(f"lines {message['from']} to {message['to']} are not kept any more")
        except Failed as error:
            self._say(str(error))

    @work
    async def _follow_app(self) -> None:
        path, after = f"/api/apps/{segment(self._thing)}/logs", None
        while True:
            try:
                answer = await live.ask(self._client, path, after=after, limit=1000)
            except Failed as error:
                self._say(str(error))
                return
            for line in answer["lines"]:
                self._put(f"{line['instance']} | {line['text']}", line["stream"])
                after = line["id"]
            await asyncio.sleep(1)

    def _put(self, line: str, stream: str) -> None:
        text = Text.from_ansi(rendering.harmless(line.rstrip("\r"), colours=True))
        if stream == "stderr":
            text.stylize("red", 0, 0 if text.spans else len(text))
        self.query_one(RichLog).write(text)

    def _say(self, sentence: str) -> None:
        self.query_one(RichLog).write(Text(f"[{rendering.harmless(sentence)}]", style="dim"))

    def action_follow(self) -> None:
        """Follow the end of the log, or stop to."""
        log = self.query_one(RichLog)
        log.auto_scroll = not log.auto_scroll

    def action_edge(self, top: bool) -> None:
        """Go to the first line, or the last."""
        log = self.query_one(RichLog)
        log.auto_scroll = not top
        if top:
            log.scroll_home(animate=False)
        else:
            log.scroll_end(animate=False)


def _cell(value: Any) -> Text:
    text = rendering.one_line(value, 80)
    return Text(text, style=rendering.STATUS_STYLES.get(text, ""), no_wrap=True)


def _bars(values: list[int]) -> str:
    most = max(values, default=0)
    return "".join(_BARS[min(8, -(-each * 8 // most))] if most else " " for each in values)
