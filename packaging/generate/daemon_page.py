"""netd(8): the daemon, from its argparse, its settings and its errors; what systemd does with it is told here."""

from __future__ import annotations

import os
import re
import typing
from pathlib import Path

import settings_page
from common import MEANINGS, every_error, rows_of, sentence, statuses
from document import Block, Code, Entries, Entry, Page, Paragraph, Section, Span, Synopsis, bold, italic

import netd
from netd import __main__ as daemon_main
from netd import errors
from netd.client.control import SOCKET_VARIABLE
from netd.messaging import HUB_FILE
from netd.section import OVERRIDE_FILE
from netd.settings import DEFAULT_FILE, DEFAULT_STATE_DIRECTORY, Settings
from netd.settings.problems import DIRECTORY_PREFIX, variable_of

if typing.TYPE_CHECKING:
    import argparse


def page() -> Page:
    """netd(8)."""
    parser = daemon_main._parser()
    defaults = Settings()
    socket = defaults.control.socket
    services = [table for table in settings_page.tables() if settings_page.is_service(table)]
    kinds: dict[int, list[str]] = {}
    for error in every_error(errors.NetdError):
        # these are a client's, a request's, a connection's: none ends the daemon
        if not issubclass(error, errors.ClientError | errors.ControlError | errors.ProtocolError):
            kinds.setdefault(error.exit_code, [])
    of_services = []
    for table in services:
        first = re.split(r"(?<=\.)\s", " ".join(settings_page.about(table.model).split()), maxsplit=1)[0]
        of_services.append((table.path, first))
    return Page(
        "netd",
        8,
        "network daemon for real-time clients and the paths to them",
        (
            Section("SYNOPSIS", (Synopsis(_synopsis(parser)),)),
            Section(
                "DESCRIPTION",
                (
                    Paragraph(
                        "`netd` serves a host's real-time clients and tells what the network between is doing. It "
                        "runs as one service under systemd, is configured by netd.toml(5), and is looked at and "
                        "changed with netctl(1), which speaks REST on a Unix socket."
                    ),
                    Paragraph(
                        "It validates all of its configuration before it begins, says everything that is wrong with "
                        "it, and starts either wholly or not at all. It runs as the account `netd`, needs no root, and "
                        "listens on loopback only until it is configured otherwise. Its services:"
                    ),
                    rows_of(of_services, dense=True),
                ),
            ),
            Section("OPTIONS", (_options(parser),)),
            Section("SYSTEMD", _SYSTEMD),
            Section("CREDENTIALS", _credentials()),
            Section("SIGNALS", (rows_of(_SIGNALS),)),
            Section("ACCESS", _access(str(socket))),
            Section("FILES", (_files(str(socket)),)),
            Section("ENVIRONMENT", (rows_of(_environment()),)),
            Section(
                "EXIT STATUS",
                (
                    statuses(kinds, (os.EX_OK, 1, os.EX_USAGE), MEANINGS | _HERE),
                    Paragraph(
                        f"systemd does not start the daemon again after {' and '.join(not_started_again())}, which "
                        "trying again does not cure."
                    ),
                ),
            ),
            Section("EXAMPLES", _examples()),
        ),
        netd.__version__,
        ("netctl(1)", "netd.toml(5)", "systemd(1)", "systemd.exec(5)", "capabilities(7)"),
    )


_HERE = {
    os.EX_OK: "Stopped in order, or `--check` found nothing wrong.",
    1: "A defect of netd; there is a traceback.",
    os.EX_USAGE: "Wrong usage: no such option or argument.",
    os.EX_UNAVAILABLE: "Something that a service needs is not to be had: an address, a certificate, a permission.",
}

UNITS = Path(__file__).resolve().parents[2] / "systemd"


def drop_ins() -> list[tuple[str, str]]:
    """Each drop-in and the first sentence of the comment that it begins with."""
    found = []
    for file in sorted((UNITS / "drop-ins").glob("*.conf")):
        comment = re.match(r"(?:#[^\n]*\n)+", file.read_text(encoding="utf-8"))
        text = " ".join(re.sub(r"^#", "", comment[0] if comment else "", flags=re.MULTILINE).split())
        found.append((file.name, re.split(r"(?<=[.!?]) ", text, maxsplit=1)[0]))
    return found


def not_started_again() -> list[str]:
    """Exit statuses after which systemd leaves the daemon alone."""
    unit = (UNITS / "netd.service").read_text(encoding="utf-8")
    return " ".join(re.findall(r"^RestartPreventExitStatus=(.*)$", unit, flags=re.MULTILINE)).split()


_SYSTEMD: tuple[Block, ...] = (
    Paragraph(
        "`netd.service` starts the daemon and waits until every service that is enabled was started once. The start "
        "fails if one cannot have what it needs (its address is taken, its certificate cannot be read); one that ended "
        "in another way is tried again or given up, and the daemon counts as started: `netctl status` tells whether "
        "all of them serve. `netd.socket` holds the control "
        "socket, so that a command given while the daemon starts waits for it. Listeners are kept by systemd while the "
        "daemon restarts: clients queue, and none is refused. A daemon whose event loop hangs is aborted and restarted "
        "by the watchdog."
    ),
    Paragraph(
        "`systemctl reload netd` waits for the outcome, and fails when the reload is refused. The log is the journal: "
        "`journalctl -u netd`."
    ),
    Paragraph(
        "The service is confined to what it needs; `systemctl cat netd` says why of each line. Changes of your own: "
        "`systemctl edit netd`. Some are there, in `/usr/share/netd/drop-ins`: link one into "
        "`/etc/systemd/system/netd.service.d`, then `systemctl daemon-reload` and `systemctl restart netd`."
    ),
    rows_of(drop_ins()),
)

_SIGNALS = (
    ("SIGHUP", "Reload the configuration. What is refused is logged, and changes nothing; `netctl reload` waits for "
     "the outcome."),
    ("SIGTERM, SIGINT", "Stop: no new clients, those who are there are told and have the drain deadline to finish. A "
     "second one does not wait for them."),
)  # fmt: skip


def _credentials() -> tuple[Block, ...]:
    directory, prefix = settings_page.CREDENTIALS, DIRECTORY_PREFIX
    loaded = f"{settings_page.LOADED_CREDENTIALS}/{prefix}"
    return (
        Paragraph(
            "Keys and tokens need not be readable by the daemon's account on disk. systemd reads every file of "
            f"`{directory}` as root and shows it to the daemon alone:"
        ),
        Entries(
            (
                Entry(
                    (bold(f"{directory}/"), italic("SECTION"), bold("."), italic("KEY")),
                    (Paragraph("The file's content becomes this key of the configuration."),),
                ),
                Entry(
                    (bold(f"{directory}/"), italic("FILENAME")),
                    (Paragraph(f"Any other file is for settings that name one, as `{loaded}FILENAME`."),),
                ),
            )
        ),
        Paragraph(
            "They have to be files, not symbolic links, with names in ASCII and without a colon. systemd reads them "
            "when the service starts: after a change, a renewed certificate for example, `systemctl restart netd`."
        ),
        Paragraph(
            "`netd --check` as root looks at those that the running service was started with; without the service, or "
            f"as somebody else, it says that it did not look at any. What has changed in `{directory}` since, nothing "
            "checks before the next start."
        ),
        Paragraph("An encrypted one takes a line in a drop-in of your own, and is then used in the same way:"),
        Code(
            (
                f"systemd-creds encrypt --name={prefix}tls.key tls.key /etc/netd/tls.cred",
                "systemctl edit netd       # and there:",
                "    [Service]",
                f"    LoadCredentialEncrypted={prefix}tls.key:/etc/netd/tls.cred",
            )
        ),
    )


def _access(socket: str) -> tuple[Block, ...]:
    control = {key.name: key for key in settings_page.keys(type(Settings().control))}
    group = control["group"].default
    return (
        Paragraph(
            f"Members of the group `{group}` may connect to `{socket}` and read everything but content. To read "
            "messages as well, an account has to be named in `control.content_users`; to change anything, in "
            "`control.users`. Root may do everything."
        ),
        Code((f"adduser alice {group}",)),
    )


def _files(socket: str) -> Entries:
    state = DEFAULT_STATE_DIRECTORY
    return rows_of(
        (
            (str(DEFAULT_FILE), "The configuration, see netd.toml(5)."),
            (f"{DEFAULT_FILE}.d/*.toml", "Read after it, in the order of their names. Upgrades leave them alone."),
            (f"{settings_page.CREDENTIALS}/", "Secrets; see CREDENTIALS."),
            (socket, "The control socket."),
            (str(state / OVERRIDE_FILE), "What `netctl config set` changed. It wins over every other source."),
            (str(state / "netd.sqlite"), "History."),
            (str(state / HUB_FILE), "What channels remember, between a clean stop and the next start."),
            ("/usr/share/netd/drop-ins/", "Drop-ins for the systemd unit."),
            (
                "/etc/netd/workers/NAME.env",
                "What netd-worker@NAME.service runs: the unit's file says what to write there.",
            ),
            ("/usr/share/doc/netd/README.Debian", "How the package is laid out."),
        )
    )


def _environment() -> list[tuple[str, str]]:
    example = next(settings_page.plain_keys())
    return [
        (
            variable_of(("section", "key")),
            f"Sets a key of the configuration: `{variable_of(example)}` is `{'.'.join(example)}`. Lists and tables are "
            "JSON. It wins over every file but " + OVERRIDE_FILE + ".",
        ),
        ("NO_COLOR", "If set, log lines on a terminal have no colour."),
        ("STATE_DIRECTORY", "The default of `state_directory`; set by systemd."),
        ("CREDENTIALS_DIRECTORY", "Where credentials are; set by systemd."),
        (
            "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS, LISTEN_FDNAMES",
            "systemd's own, see sd_notify(3) and sd_listen_fds(3).",
        ),
    ]


def _examples() -> tuple[Block, ...]:
    return (
        Paragraph("Say what is wrong with the configuration, if anything; as root, for the credentials' sake:"),
        Code(("netd --check",)),
        Paragraph("Try a configuration by hand, with its state and socket elsewhere:"),
        Code(
            (
                f"export {SOCKET_VARIABLE}=/tmp/netd/control.sock",
                f"{variable_of(('control', 'group'))}= {variable_of(('state_directory',))}=/tmp/netd/state \\",
                "    netd --config ./netd.toml -v",
                "netctl status      # in another terminal, with the same variable",
            )
        ),
        Paragraph("Put a change in force, then look at the daemon:"),
        Code(("netctl config check && netctl reload", "netctl status")),
    )


def _options(parser: argparse.ArgumentParser) -> Entries:
    entries = []
    for action in parser._actions:  # argparse has no public way to them
        tag: list[Span] = []
        for name in action.option_strings:
            tag += [Span(", "), bold(name)]
        if action.nargs != 0:
            tag += [Span(" "), italic(str(action.metavar or action.dest.upper()))]
        entries.append(Entry(tuple(tag[1:]), (Paragraph(sentence(action.help or "", action.choices or ())),)))
    return Entries(tuple(entries))


def _synopsis(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    words = re.findall(r"\[[^\]]*\]|\S+", usage)
    lines, line = [], words[0]
    for word in words[1:]:
        if len(line) + 1 + len(word) > 68:
            lines.append(line)
            line = " " * len(words[0])
        line += f" {word}"
    return (*lines, line)
