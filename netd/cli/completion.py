"""`netctl completion`: what a shell needs to complete netctl's words."""

from __future__ import annotations

import click

from netd.cli.options import common_options, invocation

HOW = {
    "bash": "netctl completion bash > /etc/bash_completion.d/netctl",
    "zsh": "netctl completion zsh > /usr/local/share/zsh/site-functions/_netctl",
    "fish": "netctl completion fish > ~/.config/fish/completions/netctl.fish",
}


@click.command(short_help="Print a completion script for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(tuple(HOW)))
@common_options
def completion(shell: str) -> None:
    """Print a completion script for bash, zsh or fish.

    \b
    netctl completion bash > /etc/bash_completion.d/netctl
    netctl completion zsh > /usr/local/share/zsh/site-functions/_netctl
    netctl completion fish > ~/.config/fish/completions/netctl.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    # the template itself, not .source(): that one asks the machine for its bash, which may not be where this is read
    names = {"complete_func": "_netctl_completion", "complete_var": "_NETCTL_COMPLETE", "prog_name": "netctl"}
    script = found.source_template % names
    if shell == "fish":
        # click's script keeps what stands before the second comma, and descriptions have commas of their own
        script = script.replace('string split ","', 'string split --max 1 ","')
    if invocation().json:
        from netd.cli.output import print_json

        print_json({"shell": shell, "script": script})
        return
    click.echo(script)
