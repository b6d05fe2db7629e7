"""`netctl tokens`: revoke signed tokens, and see which are revoked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from netd.cli.options import call, common_options, invocation, limit_option

if TYPE_CHECKING:
    from netd.client import shapes


@click.group(invoke_without_command=True, short_help="Signed tokens (JWT): list, revoke.")
@common_options
@click.pass_context
def tokens(ctx: click.Context) -> None:
    """Signed tokens (JWT) that count no more before they expire. Without a command: list."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_revoked)


@tokens.command("list")
@limit_option(1000)
@common_options
def list_revoked(limit: int = 100) -> None:
    """The tokens that are revoked."""
    found: shapes.RevokedTokens = call(lambda client: client.tokens_revoked(limit=limit))
    from netd.cli.output import Column, console, print_json, table

    if invocation().json:
        print_json(found)
        return
    if not found["revoked"]:
        click.echo("no tokens are revoked")
        return
    columns = [Column("CLAIM"), Column("VALUE", narrow="wrap", style="bold"), Column("SINCE"), Column("UNTIL", spare=1)]
    rows = [(each["kind"], each["value"], _when(each["since"]), _when(each["until"])) for each in found["revoked"]]
    out = console()
    out.print(table(columns, rows, width=out.width), crop=False)
    if (more := found["total"] - len(found["revoked"])) > 0:
        click.echo(f"and {more} more (--limit)")


@tokens.command()
@click.option("--sub", metavar="SUBJECT", help="All tokens for this subject that were issued until now.")
@click.option("--jti", metavar="ID", help="The token with this id.")
@click.option(
    "--days",
    type=click.FloatRange(0, 3650, min_open=True),
    default=30.0,
    show_default=True,
    metavar="N",
    help="Remember it for so long: until the last of these tokens will have expired.",
)
@common_options
def revoke(sub: str | None, jti: str | None, days: float) -> None:
    """Take tokens no more, and end the sessions that have them. Needs write access."""
    if (sub is None) == (jti is None):
        raise click.UsageError("cannot tell which tokens to revoke: give either --sub or --jti")
    done = call(lambda client: client.token_revoke(sub=sub, jti=jti, seconds=days * 86_400))
    from netd.cli.output import counted, print_json

    if invocation().json:
        print_json(done)
    else:
        click.echo(f"revoked {done['kind']} {done['value']!r} until {_when(done['until'])}")
        click.echo(f"ended {counted(done['ended'], 'session')}")


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
