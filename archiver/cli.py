"""The program `archiver` (contract: "Commands"). Standard output is the answer, standard error the talk.

Exit codes: 0 done and complete · 1 not complete · 2 usage or config error · 3 something needed can't be reached ·
130 and 143 ended by SIGINT and SIGTERM.
"""

from __future__ import annotations

import errno
import io
import sys

import click

from . import __version__
from .commands import (
    archiving,
    bundling,
    certifying,
    completing,
    first_config,
    getting,
    identity,
    proving,
    reading,
    running,
    serving,
    setting_up,
)
from .commands.common import INCOMPLETE, UNREACHABLE, USAGE
from .errors import ArchiverError, CatalogDown, ConfigError, SourceError, StoreError, with_advice

#: Every command, as `--help` shows them.
COMMANDS: dict[str, tuple[click.Command, ...]] = {
    "Set up": (first_config.init, setting_up.check, setting_up.migrate, setting_up.demo, completing.completion),
    "Archive": (archiving.run_daemon, archiving.sync, archiving.backfill, archiving.retry, running.reload),
    "Look": (
        reading.status,
        reading.list_recordings,
        reading.show,
        reading.why,
        reading.report,
        reading.rejected,
        getting.get,
    ),
    "Let people in": (serving.serve, serving.user, serving.token, serving.audit),
    "Tell who is who": (identity.source, identity.store, identity.rename),
    "Prove and repair": (
        proving.verify,
        proving.reconcile,
        proving.rebuild,
        proving.copy,
        certifying.certify,
        certifying.proof,
        bundling.bundle,
    ),
}


class Sections(click.Group):
    """A group whose help tells its commands in sections."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(62)) for command in commands])


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    help="The config; else $ARCHIVER_CONFIG, ./archiver.toml, /etc/archiver/archiver.toml.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="How much to log to standard error."
)
@click.version_option(__version__, "-V", "--version", prog_name="archiver")
@click.pass_context
def cli(context: click.Context, config_path: str | None, log_level: str | None) -> None:
    """Keep phone call recordings safe outside the recorder that made them, and prove that none is missing."""
    context.obj = {"config": config_path, "level": log_level}


cli.add_command(completing.manual)
for _section in COMMANDS.values():
    for _command in _section:
        cli.add_command(_command)


def main() -> None:
    """The console script: every error is one clear line, and the contract's exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="archiver")
    except BaseExceptionGroup as group:
        _fail(_first(group))
    except (ArchiverError, OSError) as error:
        _fail(error)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


_TO_DO = {
    errno.ENOENT: "make it, or name another place",
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EISDIR: "name a file",
    errno.ENOSPC: "make room on that disk",
    errno.EROFS: "name a place that can be written",
}


def _fail(error: BaseException) -> None:
    from .common.log import redact
    from .common.words import plain, reason_of

    if isinstance(error, ConfigError):
        click.echo(str(error), err=True)
        sys.exit(USAGE)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        todo = f" → {_TO_DO[error.errno]}" if error.errno in _TO_DO else ""
        click.echo(plain(redact(f"archiver: {reason_of(error)}{where}{todo}")), err=True)
        sys.exit(INCOMPLETE)
    if isinstance(error, ArchiverError):
        click.echo(plain(redact(f"archiver: {with_advice(error)}")), err=True)
        if isinstance(error, CatalogDown):
            # What waiting does not mend is as good as a wrong config: systemd is not to start it again.
            sys.exit(USAGE if error.lasting else INCOMPLETE if error.lost else UNREACHABLE)
        sys.exit(UNREACHABLE if isinstance(error, StoreError | SourceError) else INCOMPLETE)
    raise error
