"""Commands that are imported once they are called, so that none waits for what only others need."""

import importlib
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group


@dataclass(frozen=True, slots=True)
class Later:
    """A command before its module is imported: what the list of commands says of it, and where it is.

    The `app` of `module` is the group called `name`, or has the one command called that, when `single`.
    """

    name: str
    module: str
    help: str
    panel: str
    single: bool = False

    def stand_in(self) -> TyperCommand:
        """Return what lists and completions show in its place."""
        return TyperCommand(self.name, help=self.help, rich_help_panel=self.panel)

    def load(self) -> Any:
        """Import the module and return the command itself."""
        around = typer.Typer(rich_markup_mode="markdown")
        around.add_typer(importlib.import_module(self.module).app, name=self.name, rich_help_panel=self.panel)
        around.callback()(lambda: None)
        group: Any = get_group(around).commands[self.name]
        return group.commands[self.name] if self.single else group


class LaterGroup(TyperGroup):
    """A group whose commands are the rows of a table; `of` makes one for a table."""

    rows: tuple[Later, ...] = ()

    @classmethod
    def of(cls, *rows: Later) -> "type[LaterGroup]":
        """Return the class of the group that has these commands, in this order."""
        return type("LaterGroup", (cls,), {"rows": rows})

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._waiting = {row.name: row for row in self.rows}
        self.commands.update({row.name: row.stand_in() for row in self.rows})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is called, importing it if that is still to do."""
        if args:
            self.loaded(args[0])
        return super().resolve_command(ctx, args)

    def loaded(self, name: str) -> Any:
        """Return a command as it is, not its stand-in; None when there is none of that name."""
        row = self._waiting.pop(name, None)
        if row is not None:
            self.commands[name] = row.load()
        return self.commands.get(name)
