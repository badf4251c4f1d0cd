"""Shell completion and the manual page, both made from the commands themselves."""

from __future__ import annotations

import contextlib
import inspect
import os
import tomllib
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from .. import __version__

#: click asks the program through this variable.
ASKED = "_ARCHIVER_COMPLETE"


class Named(click.ParamType[str]):
    """The name of a source or a store; completed from the config."""

    def __init__(self, section: str) -> None:
        self.name = section.removesuffix("s")
        self._section = section

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        tables = _config(ctx).get(self._section)
        names = tables if isinstance(tables, dict) else {}
        return [
            CompletionItem(name, help=str(table.get("kind", "")) if isinstance(table, dict) else "")
            for name, table in names.items()
            if name.startswith(incomplete)
        ]


SOURCE, STORE = Named("sources"), Named("stores")


def _config(ctx: click.Context) -> dict[str, Any]:
    """The config as it stands; nothing where it can't be read: a key press is no place for an error."""
    given = ctx.find_root().params.get("config_path") or os.environ.get("ARCHIVER_CONFIG")
    for place in [given] if given else ["archiver.toml", "/etc/archiver/archiver.toml"]:
        with contextlib.suppress(OSError, ValueError):
            return tomllib.loads(Path(place).read_text("utf-8-sig"))
    return {}


@click.command(short_help="Print what makes a shell complete commands and names.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and names.

    \b
    bash   eval "$(archiver completion bash)"              in ~/.bashrc
    zsh    eval "$(archiver completion zsh)"               in ~/.zshrc, after compinit
    fish   archiver completion fish > ~/.config/fish/completions/archiver.fish
    """
    cls = get_completion_class(shell)
    assert cls is not None
    made = cls(ctx.find_root().command, {}, "archiver", ASKED)
    # Not source(): it looks for a shell of that kind, which a build host need not have.
    click.echo(made.source_template % made.source_vars())


@click.command(hidden=True)
@click.pass_context
def manual(ctx: click.Context) -> None:
    """Print the manual page archiver(1)."""
    click.echo(page(ctx.find_root().command), nl=False)


def page(program: click.Command) -> str:
    """archiver(1) in roff, from the commands' own help."""
    assert isinstance(program, click.Group)
    top = click.Context(program, info_name="archiver", **program.context_settings)
    lines = [
        f'.TH ARCHIVER 1 "" "archiver {__version__}" "User Commands"',
        ".SH NAME",
        r"archiver \- keep phone call recordings safe outside the recorder that made them",
        ".SH SYNOPSIS",
        r".B archiver",
        r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGS\fR]...",
        ".SH DESCRIPTION",
        *_paragraphs(program.help),
        ".SH OPTIONS",
        *_options(program, top),
        ".SH COMMANDS",
    ]
    for name in program.list_commands(top):
        command = program.commands[name]
        if command.hidden:
            continue
        ctx = click.Context(command, info_name=name, parent=top)
        usage = " ".join(_escaped(piece) for piece in command.collect_usage_pieces(ctx))
        lines += [f".SS {name} {usage}", *_paragraphs(command.help), *_options(command, ctx)]
        if isinstance(command, click.Group):
            for sub in command.list_commands(ctx):
                lines += [".TP", rf".B {name} {sub}", *_paragraphs(command.commands[sub].help)]
    return "\n".join([*lines, *_END]) + "\n"


_END = (
    ".SH EXIT STATUS",
    *(".TP", "0", "Done and complete."),
    *(".TP", "1", "Done, but not complete: something failed, is still pending, or was lost on the way."),
    *(".TP", "2", "Usage or config error; also: the database refuses its role, or its tables are not this version's."),
    *(".TP", "3", "Something needed (database, store, source) can't be reached."),
    *(".TP", "130, 143", "Ended by SIGINT or SIGTERM; the same command goes on where it stopped."),
    ".SH ENVIRONMENT",
    *(".TP", "ARCHIVER_CONFIG", "The config, where \\-\\-config is not given."),
    *(".TP", "NO_COLOR", "Set to anything: no colours."),
    ".SH FILES",
    *(".TP", "./archiver.toml, /etc/archiver/archiver.toml", "The config; the first that exists."),
)


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in {".", "'"} else text


def _paragraphs(text: str | None) -> list[str]:
    lines: list[str] = []
    for number, paragraph in enumerate(inspect.cleandoc(text or "").split("\n\n")):
        lines += [".PP"] if number else []
        if paragraph.startswith("\b"):
            lines += [".nf", *(_escaped(line) for line in paragraph.split("\n")[1:]), ".fi"]
        else:
            lines.append(_escaped(" ".join(paragraph.split())))
    return lines


def _options(command: click.Command, ctx: click.Context) -> list[str]:
    options = [
        p for p in command.get_params(ctx) if isinstance(p, click.Option) and ("--help" not in p.opts or not ctx.parent)
    ]
    told = [record for option in options if (record := option.get_help_record(ctx)) is not None]
    return [line for names, text in told for line in (".TP", rf"\fB{_escaped(names)}\fR", *_paragraphs(text))]
