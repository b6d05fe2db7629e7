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
    from netd.cli.completion_scripts import of_click, script
    from netd.cli.root import root

    text = script(shell, of_click(root, "netctl"))
    if invocation().json:
        from netd.cli.output import print_json

        print_json({"shell": shell, "script": text})
        return
    click.echo(text, nl=False)
