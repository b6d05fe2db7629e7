"""Completions in the shells themselves: every command is offered, and what strangers named is only ever a word."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from netd.cli.completion_scripts import SHELLS, Command, Option, Value, of_click, script
from netd.cli.root import root

GENERATE = Path(__file__).parents[2] / "packaging" / "generate"
TREE = of_click(root, "netctl")
GROUPS = [command for command in TREE.all() if command.commands]
FILES = {"bash": "bash/{}", "zsh": "zsh/_{}", "fish": "fish/{}.fish"}

LIMIT = 30  # seconds for a shell to answer; it takes milliseconds

# zsh may show a list or not, as it sees fit: what it would list is written to a file
SPY = """\
compadd() {
    local -a spied
    [[ ${@[1,(i)(-|--)]} == *-[OAD]\\ * ]] || { builtin compadd -O spied "$@"; print -rl -- $spied >>listed }
    builtin compadd "$@"
}
"""

# what a completion asks, and what is run in the end
FAKE = """\
#!/bin/sh
if [ -n "$_NETCTL_COMPLETE" ]; then
    printf '%s\\n' "$_NETCTL_COMPLETE $COMP_CWORD $COMP_WORDS" >>"$ASKED"
    cat "$ANSWERS"
    exit
fi
printf 'RAN'
printf ' <%s>' "$@"
echo
"""
HOSTILE = "name:$(touch ran);`touch ran`&* 'x' \"y\""


def has(shell):
    return pytest.param(
        shell,
        marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell} here (apt-get install {shell})"),
    )


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("completions")
    subprocess.run([sys.executable, "-I", GENERATE / "completions.py", directory], check=True, timeout=60)
    return directory


class Shell:
    """An interactive shell with the scripts, on a terminal of its own. Commands named netctl are FAKE."""

    def __init__(self, shell: str, scripts: Path, directory: Path) -> None:
        self.shell = shell
        self.answers = directory / "answers"
        self.asked = directory / "asked"
        (directory / "spy").write_text(SPY)
        self.answers.touch()
        self.asked.touch()
        program = directory / "bin" / "netctl"
        program.parent.mkdir()
        program.write_text(FAKE)
        program.chmod(0o755)
        environ = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HOME": str(directory),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
            "ASKED": str(self.asked),
            "ANSWERS": str(self.answers),
        }
        self.setup = {
            "bash": f"""bind 'set enable-bracketed-paste off'; bind 'set bell-style none'; PS1=
                source {scripts}/bash/netctl; source {scripts}/bash/netd""",
            "zsh": f"""PS1=; unsetopt prompt_cr prompt_sp; fpath=({scripts}/zsh $fpath); autoload -Uz compinit
                compinit -u -D; list() {{ zle list-choices; zle -I; print LISTED }}; zle -N list; bindkey '^X^L' list
                LISTMAX=10000; source {directory}/spy""",
        }[shell]
        arguments = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(directory)
                os.execvpe(arguments[0], arguments, environ)
            finally:
                os._exit(127)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 500, 250, 0, 0))
        for line in self.setup.split("\n"):
            os.write(self.terminal, line.strip().encode() + b"\n")
        self.say("echo RE''ADY\n", "READY")

    def say(self, text: str, until: str) -> str:
        """Type, and read until a line that begins so is there."""
        os.write(self.terminal, text.encode())
        said = ""
        pattern = re.compile(rf"(?:^|[\r\n]){re.escape(until)}[^\r\n]*[\r\n]")
        while not (found := pattern.search(said)):
            ready, _, _ = select.select([self.terminal], [], [], LIMIT)
            assert ready, f"{self.shell} does not go on: {said!r}"
            said += os.read(self.terminal, 65536).decode(errors="replace")
        self.last = found[0].strip()
        return said

    def runs(self, typed: str) -> str:
        """What is run when a line is typed, Tab being a tab in it."""
        self.say(typed + "\n", "RAN")
        return self.last.removeprefix("RAN ")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture(params=[has("bash"), has("zsh")])
def shell(request, scripts, tmp_path):
    opened = Shell(request.param, scripts, tmp_path)
    yield opened
    opened.close()


# --- every command, option and choice ---------------------------------------------------------------------------------


BASH = """\
source "$1"
compopt() { :; }
COMP_WORDBREAKS='=:'
while IFS= read -r line; do
    COMP_LINE=$line COMP_POINT=${#line}
    read -ra COMP_WORDS <<<"$line"
    [[ $line == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _netctl netctl
    printf '%s ' "${COMPREPLY[@]}"
    echo
done <"$2"
"""


FISH = """
source $argv[1]
for line in (cat $argv[2])
    echo (complete -C $line | string replace -r '\\t.*' '')
end
"""


def offered(shell: str, scripts: Path, lines: list[str], tmp_path: Path) -> list[list[str]]:
    """What bash or fish offers at the end of each line."""
    file = tmp_path / "lines"
    file.write_text("".join(f"{line}\n" for line in lines))
    command = {
        "bash": ["bash", "-c", BASH, "bash", scripts / "bash/netctl", file],
        "fish": ["fish", "--no-config", "-c", FISH, scripts / "fish/netctl.fish", file],
    }[shell]
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(tmp_path)}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return [line.split() for line in ended.stdout.splitlines()]


@pytest.mark.parametrize("name", ["bash", has("fish")])
def test_every_command_option_and_choice_is_offered(name, scripts, tmp_path):
    wanted: dict[str, set[str]] = {}
    for command in TREE.all():
        words = " ".join(command.words)
        if command.commands:
            wanted[f"{words} "] = {inner.name for inner in command.commands}
        wanted[f"{words} --"] = {name for option in command.options for name in option.names if name.startswith("--")}
        for option in command.options:
            if option.value and option.value.choices:
                wanted[f"{words} {option.names[0]} "] = set(option.value.choices)
        for argument in command.arguments[:1]:
            if argument.value.choices:
                wanted[f"{words} "] = set(argument.value.choices)
    assert len(wanted) > 60
    found = offered(name, scripts, list(wanted), tmp_path)
    for (line, words), offers in zip(wanted.items(), found, strict=True):
        assert set(offers) == words, line


@pytest.mark.parametrize("name", ["bash", has("fish")])
def test_which_place_a_word_is_in(name, scripts, tmp_path):
    wanted = {
        "netctl --socket /x services st": {"start", "stop"},  # an option's value is no command
        "netctl --socket=/x --json services st": {"start", "stop"},
        "netctl log level ": {"debug", "info", "warning", "error", "critical"},
        "netctl log level debug ": set(),
        "netctl --socket services log level d": {"debug"},
        "netctl framed send --framing length --framing ": {"length", "none"},
        "netctl nonsense ": set(),
        "netctl services nonsense ": set(),
    }
    found = offered(name, scripts, list(wanted), tmp_path)
    assert dict(zip(wanted, map(set, found), strict=True)) == wanted


@pytest.mark.parametrize("name", [has("zsh")])
def test_zsh_lists_every_command(name, scripts, tmp_path):
    shell = Shell(name, scripts, tmp_path)
    try:
        for group in GROUPS:
            listed = tmp_path / "listed"
            listed.unlink(missing_ok=True)
            shell.say(" ".join(group.words) + " \x18\x0c", "LISTED")
            assert {inner.name for inner in group.commands} == set(listed.read_text().split()), group.words
            shell.say("\n", "RAN")
    finally:
        shell.close()


def test_the_daemons_options_are_offered(scripts):
    for shell, names in (("bash", "--{}"), ("zsh", "--{}"), ("fish", "-l {}")):
        text = (scripts / FILES[shell].format("netd")).read_text()
        for option in ("config", "log-level", "check", "print-schema", "version", "verbose"):
            assert names.format(option) in text
        assert "critical" in text


def test_netctl_prints_the_same_scripts(scripts):
    for shell in SHELLS:
        assert (scripts / FILES[shell].format("netctl")).read_text() == script(shell, TREE)


# --- in a terminal ----------------------------------------------------------------------------------------------------


def test_words_are_completed_without_starting_anything(shell):
    assert shell.runs("netctl compl\tba\t") == "<completion> <bash>"
    assert shell.runs("netctl --js\tserv\tlis\t") == "<--json> <services> <list>"
    assert shell.runs("netctl framed send --as j\t x") == "<framed> <send> <--as> <json> <x>"
    assert shell.runs("netctl framed send --as=j\t x") == "<framed> <send> <--as=json> <x>"
    assert shell.asked.read_text() == ""


def test_files_are_completed(shell, tmp_path):
    (tmp_path / "one file").touch()
    assert shell.runs("netctl --socket on\tstatus") == "<--socket> <one file> <status>"
    assert shell.runs("netctl framed send --ca=on\t") == "<framed> <send> <--ca=one file>"


def test_netctl_is_asked_for_what_only_it_knows(shell):
    shell.answers.write_text("plain,public:room\n")
    assert shell.runs("netctl --json channels show pub\t") == "<--json> <channels> <show> <public:room>"
    assert shell.runs("netctl channels show public:r\t") == "<channels> <show> <public:room>"
    first, second = shell.asked.read_text().splitlines()
    assert first == "bash_complete 4 netctl --json channels show pub"
    assert second == "bash_complete 3 netctl channels show public:r"


def test_a_word_that_somebody_chose_is_only_a_word(shell, tmp_path):
    shell.answers.write_text(f"plain,{HOSTILE}\nplain,name:\x1b[31mred\n")
    assert shell.runs("netctl sessions show name\t") == f"<sessions> <show> <{HOSTILE}>"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [has("fish")])
def test_fish_asks_too(name, scripts, tmp_path):
    program = tmp_path / "netctl"
    program.write_text(FAKE)
    program.chmod(0o755)
    answers, asked = tmp_path / "answers", tmp_path / "asked"
    answers.write_text(f"plain,public:room\nplain,{HOSTILE}\nplain,na\x1b[31mred\n")
    code = "source $argv[1]; complete -C 'netctl --json channels show '; complete -C 'netctl channels show x '"
    environ = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    environ |= {"ANSWERS": str(answers), "ASKED": str(asked)}
    ended = subprocess.run(
        [name, "--no-config", "-c", code, scripts / "fish/netctl.fish"],
        env=environ, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert sorted(ended.stdout.splitlines()) == sorted(["public:room", HOSTILE])
    assert asked.read_text() == "bash_complete 4 netctl --json channels show \n"


# --- what cannot be written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_a_word_that_needs_quotes_is_refused(shell):
    for strange in ("a b", "$(x)", "x'y", ""):
        option = Option(("--x",), "", Value(choices=("fine", strange)))
        with pytest.raises(ValueError, match="cannot complete"):
            script(shell, Command(("netctl",), options=(option,)))


@pytest.mark.parametrize("shell", ["bash", has("zsh"), has("fish")])
def test_help_may_hold_anything(shell, tmp_path):
    nasty = 'it\'s [a] $(touch ran) `touch ran` "x" : \\ %s {a,b} *'
    inner = Command(("netctl", "inner"), nasty, (Option(("--x", "-y"), nasty, Value(), nasty),))
    file = tmp_path / FILES[shell].format("netctl").rpartition("/")[2]
    file.write_text(script(shell, Command(("netctl",), nasty, (Option(("--z",), nasty),), (), (inner,))))
    if shell == "zsh":
        opened = Shell("zsh", tmp_path, tmp_path)
        opened.say(f"fpath=({tmp_path} $fpath); compinit -u -D; echo RE''ADY\n", "READY")
        opened.say("netctl inner --\x18\x0c", "LISTED")
        opened.close()
        said = (tmp_path / "listed").read_text()
    else:
        if shell == "bash":
            command = ["bash", "-c", BASH, "bash", file, "/dev/stdin"]
        else:
            command = ["fish", "--no-config", "-c", "source $argv[1]; complete -C (cat $argv[2])", file, "/dev/stdin"]
        ended = subprocess.run(
            command, input="netctl inner --\n", capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
        )
        said = ended.stdout
        assert ended.stderr == ""
    assert "--x" in said
    assert not (tmp_path / "ran").exists()
