"""The pages: every link leads somewhere, every command in them exists, and a site can be made of them."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cli import reference
from storage import manifests

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def name(page: object) -> str:
    return page.relative_to(ROOT).as_posix() if isinstance(page, Path) else str(page)


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    found: dict[str, int] = {}
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#+\s+(.+?)\s*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", plain).strip())
        found[slug] = found.get(slug, -1) + 1
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        meant = (page.parent / path).resolve() if path else page
        assert meant.exists(), f"{name(page)}: {target}"
        if anchor and meant.suffix == ".md":
            assert anchor in anchors(meant), f"{name(page)}: {target}"


@cache
def known() -> dict[str, set[str]]:
    """Return the options of each command, by its words."""
    options: dict[str, set[str]] = {}
    for entry in reference.commands():
        spelled = " ".join(option for option, _ in entry.options)
        options[entry.words] = {*re.findall(r"(?<![\w-])--?[a-z][\w-]*", spelled), "--help", "-h"}
    return options


def command_lines(text: str) -> Iterator[str]:
    """Yield each call of `hostler` in blocks of code, with what a backslash continues."""
    for block in _FENCE.finditer(text):
        if re.match(r"```(python|js|json|toml|yaml|ini|lua)", block.group(0)):
            continue
        for line in re.sub(r"\\\n\s*", "", block.group(0)).splitlines():
            found = re.match(r"(?:\$ )?(?:[A-Z_]+=\S* )*(hostler (?!=).*)", line.strip())
            if found:
                yield found.group(1).split("  #")[0].split(" # ")[0]


def words_of(line: str) -> list[str]:
    """Return the words of a command line up to where the shell, or `--`, goes on with something else."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        words = line.split()
    ends = [index for index, word in enumerate(words) if word in {"|", "&&", ";", ">", "&", "--", "||"}]
    return words[: ends[0]] if ends else words


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "cli-reference.md"], ids=name)
def test_every_command_in_it_exists_with_its_options(page: Path) -> None:
    for line in command_lines(page.read_text(encoding="utf-8")):
        words = words_of(line)
        called = max(
            (each for each in known() if words[: each.count(" ") + 1] == each.split()), key=len, default=""
        )
        assert called, f"{name(page)}: {line}"
        rest = words[called.count(" ") + 1 :]
        subcommands = [each for each in known() if each.startswith(f"{called} ")]
        assert not (subcommands and rest and not rest[0].startswith("-")), f"{name(page)}: {line}"
        given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert given <= known()[called], f"{name(page)}: {line}: {sorted(given - known()[called])}"


MANIFESTS = [
    (page, block)
    for page in PAGES
    for block in re.findall(
        r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    if block.startswith("id = ")
]


@pytest.mark.parametrize(("page", "block"), MANIFESTS, ids=lambda value: name(value)[:40].partition("\n")[0])
def test_every_manifest_in_it_is_one(page: Path, block: str) -> None:
    assert manifests.read(block.encode(), None).processes, name(page)


def test_the_reference_of_commands_and_the_man_page_are_up_to_date() -> None:
    assert reference.main(["--check"]) == 0


@pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="mkdocs, the extra `docs`, is not installed"
)
def test_the_site_is_whole_and_asks_nothing_of_another_origin(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path),
    ]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # noqa: TID251  a child's own
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, env=quiet
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img|iframe)[^>]+?(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert not loaded, (page, loaded)
    assert (tmp_path / "search" / "search_index.json").stat().st_size > 100_000
    assert (tmp_path / "api" / "jobs.html").is_file()
