"""What is shown: harmless to a terminal, plain for a pipe."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import rendering


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m\n", "\x1b[31mred\x1b[0m\n"),
        ("\x1b[38;2;1;2;3mtrue\x1b[38:5:9mcolour", "\x1b[38;2;1;2;3mtrue\x1b[38:5:9mcolour"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;c2VjcmV0\x1b\\after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP+q544e\x1b\\after", "after"),
        ("\x1bcreset", "reset"),
        ("\x9b31mC1", "31mC1"),
        ("a\x08b\x00c\x7fd", "abcd"),
        ("10%\r20%\tdone\n", "10%\r20%\tdone\n"),
        ("\u202egnp.exe", "gnp.exe"),
        ("cut \x1b[3", "cut 3"),
        ("naïve 日本 ✓", "naïve 日本 ✓"),
    ],
)
def test_a_terminal_gets_colours_and_nothing_else_that_drives_it(text: str, shown: str) -> None:
    terminal = Terminal()
    rendering.write_output(text, terminal)
    assert terminal.getvalue() == shown


def test_a_pipe_gets_what_was_printed_byte_for_byte() -> None:
    pipe = io.StringIO()
    rendering.write_output("\x1b[2J\x00raw", pipe)
    assert pipe.getvalue() == "\x1b[2J\x00raw"


@given(st.text(alphabet=st.characters(max_codepoint=0xFF)), st.booleans())
def test_no_escape_survives_but_whole_colours(text: str, colours: bool) -> None:
    rest = rendering.harmless(text, colours=colours)
    for number, character in enumerate(rest):
        if character == "\x1b":
            assert colours
            body = rest[number + 2 : rest.index("m", number)]
            assert rest[number + 1] == "["
            assert set(body) <= set("0123456789;:")
        assert character in "\x1b\t\n\r" or not (ord(character) < 32 or 127 <= ord(character) < 160)


def test_a_table_shows_somebody_elses_markup_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    rendering.print_table(("A", "B"), [("[red]x[/red]", "two\nlines\x1b[2J"), (None, 3)], empty="none")
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert "two lines" in shown
    assert "\x1b" not in shown


def test_an_empty_table_says_so_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    rendering.print_table(("A",), [], empty="There is nothing.")
    assert capsys.readouterr() == ("", "There is nothing.\n")


def test_no_colour_is_used_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for no_color, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        rendering.say("hello", style="red")
        assert ("\x1b[31m" in terminal.getvalue()) is coloured


def test_a_pipe_sees_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with rendering.progress("Uploading") as advance:
        advance(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 s"), (3.44, "3.4 s"), (59.0, "59 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert rendering.duration(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1_200_000, "1.2 MB"), (5 * 10**13, "50.0 TB")]
)
def test_sizes_read_well(size: int, words: str) -> None:
    assert rendering.size(size) == words
