"""The manual pages: all that the code knows is in them, and the programs that show them have nothing to complain of."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

import netd
from netd.cli.main import NOUNS
from netd.section import Listen, Section, fixed, live, replace
from netd.settings import Settings

GENERATE = Path(__file__).parents[2] / "packaging" / "generate"
if str(GENERATE) not in sys.path:
    sys.path.append(str(GENERATE))

import client_page  # noqa: E402
import daemon_page  # noqa: E402
import document  # noqa: E402
import man  # noqa: E402
import settings_page  # noqa: E402

NAMES = ["netd.8", "netctl.1", "netd.toml.5"]
DATED = {"SOURCE_DATE_EPOCH": "1700000000"}
needs_man = pytest.mark.skipif(shutil.which("man") is None, reason="no man here (apt-get install man-db)")
needs_mandoc = pytest.mark.skipif(shutil.which("mandoc") is None, reason="no mandoc here (apt-get install mandoc)")


def generate(directory: Path, **environ: str) -> dict[str, bytes]:
    command = [sys.executable, "-I", GENERATE / "man.py", directory]
    subprocess.run(command, env={**os.environ, **DATED, **environ}, check=True, timeout=60)
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("man")
    generate(directory)
    return directory


def shown(file: Path, columns: int = 80) -> str:
    """A page as its reader has it, and without a warning of groff."""
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": str(columns), "MANROFFOPT": "", "GROFF_NO_SGR": "1"}
    command = ["man", "--warnings=w", "-l", file]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return re.sub(r".\x08", "", ended.stdout)


def flat(text: str) -> str:
    return " ".join(text.split())


# --- what stands in them ----------------------------------------------------------------------------------------------


def entries(page):
    """Every entry of a page, inner ones too."""

    def within(blocks):
        for block in blocks:
            if isinstance(block, document.Entries):
                for entry in block.entries:
                    yield entry
                    yield from within(entry.blocks)

    for section in page.sections:
        yield from within(section.blocks)


def headings(page):
    return [
        "".join(span.text for span in block.tag)
        for section in page.sections
        for block in section.blocks
        if isinstance(block, document.Heading)
    ]


def keys_of_schema(schema, table="", root=None):
    """(table, key) for every key of a JSON schema that is no table; the table of a reference is told by its name."""
    root = schema if root is None else root
    for name, key in schema.get("properties", {}).items():
        parts = [key, key.get("items", {}), *key.get("anyOf", ())]
        inner = next((part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part), None)
        if inner is None:
            yield table, name
        else:
            yield from keys_of_schema(root["$defs"][inner], f"{table}.{name}".lstrip("."), root)


def test_every_key_of_the_schema_is_described():
    page = settings_page.page()
    described = {entry.anchor for entry in entries(page) if entry.anchor}
    titles = headings(page)
    whole = document.roff(page)
    for table, name in keys_of_schema(Settings.model_json_schema()):
        if table:
            heading = f"[{table}]" if f"[{table}]" in titles else f"[[{table}]]"
            is_listeners = table.endswith(".tls") or (table.endswith(".listen") and name in Listen.model_fields)
            assert is_listeners or heading in titles, table
        places = [
            document.anchor(place) for place in (f"{table}.{name}", f"listen.{name}", f"SECTION.listen.tls.{name}")
        ]
        shared = table.endswith(".limits")  # described where the model stands first
        assert described.intersection(places) or (shared and f"control.limits.{name}" in described), (table, name)
        assert f"\\fB{document.escaped(name)}\\fR" in whole


def test_what_is_said_of_a_key():
    entry = {entry.anchor: entry for entry in entries(settings_page.page())}

    def tag(anchor):
        return "".join(span.text for span in entry[anchor].tag)

    assert tag("supervisor.drain") == "drain = 10.0"
    assert entry["supervisor.drain"].facts == "Seconds, 0 to 3600; live."
    assert tag("framed.max_frame") == "max_frame = 4_194_304  (4 MiB)"
    assert entry["framed.max_frame"].facts == "Bytes, 64 to 256 MiB; live."
    assert tag("control.mode") == "mode = 0o660"
    assert entry["control.mode"].facts.endswith("fixed.")
    assert entry["listen.address"].facts == "Text; required; replaces the service."
    assert "worker" in entry["framed.listen.mode"].facts


def test_every_command_and_option_is_described():
    whole = document.roff(client_page.page())
    for noun in NOUNS:
        for command in client_page.commands(noun):
            words = command.words if len(command.words) > 1 else ("netctl", *command.words)
            assert "\\fB" + document.escaped(" ".join(words)).replace(" ", "\\~") + "\\fR" in whole, words
            for option in client_page.options(command.command):
                assert all(f"\\fB{document.escaped(name)}\\fR" in whole for name in option.opts), (words, option.opts)


def test_every_option_of_the_daemon_is_described():
    whole = document.roff(daemon_page.page())
    for option in ("--config", "--log-level", "-v", "--verbose", "--check", "--print-schema", "--version"):
        assert f"\\fB{document.escaped(option)}\\fR" in whole


def test_what_the_daemon_s_page_says_of_starts_and_credentials():
    whole = flat(document.roff(daemon_page.page()))
    # READY=1 is sent too while a unit waits for its next try, or was given up
    assert "waits until every service is serving" not in whole
    assert "waits until every service that is enabled was started once" in whole
    check = next(
        entry for entry in entries(daemon_page.page()) if "--check" in "".join(span.text for span in entry.tag)
    )
    assert "credentials are those that the running netd.service was started with" in check.blocks[0].text


def test_each_status_has_a_meaning():
    for page in (daemon_page.page(), client_page.page()):
        section = next(section for section in page.sections if section.title == "EXIT STATUS")
        listed = next(block for block in section.blocks if isinstance(block, document.Entries))
        for entry in listed.entries:
            assert re.match(r"[A-Z]", entry.blocks[0].text), entry.tag
            assert not entry.blocks[0].text.startswith("Kinds:"), entry.tag


# --- a later service --------------------------------------------------------------------------------------------------


class SemaphoreConfig(Section):
    """The `[semaphore]` section: flags, waved. Times are in seconds."""

    enabled: bool = live(True)
    """Run the service."""
    listen: list[Listen] = replace(default_factory=lambda: [Listen(address="127.0.0.1:7000")])
    """Where flags are seen."""
    wave_interval: float = live(1.5, gt=0, le=9)
    """.so /etc/passwd
    'br \\n[.l] \\\\fBnot bold\\fR `x` -- "quoted" ~ ^ 'single' \u2010 é."""
    port: int = fixed(7, ge=1)
    """.TH is no macro here."""


class Later(Settings):
    semaphore: SemaphoreConfig = Field(default_factory=SemaphoreConfig, json_schema_extra={"x-service": True})


@needs_man
def test_a_new_section_appears_by_itself_and_its_descriptions_are_shown_as_they_are(tmp_path):
    page = settings_page.page(Later)
    assert {"[semaphore]", "[[semaphore.listen]]"} <= set(headings(page))
    file = tmp_path / page.file
    file.write_text(document.roff(page), encoding="ascii")
    text = flat(shown(file, columns=200))
    assert "[semaphore] Flags, waved." in text
    assert "wave_interval = 1.5 Seconds, more than 0, at most 9; live." in text
    assert ".so /etc/passwd 'br \\n[.l] \\\\fBnot bold\\fR x -- \"quoted\" ~ ^ 'single' \u2010 é." in text
    assert "port = 7 Whole number, at least 1; fixed. .TH is no macro here." in text


@needs_man
@pytest.mark.parametrize(
    "text", [".", "'", "...", "\\", "-", "\\&", '"', "'\"", '.\\"', "a\x1b[31mb\n.SH X", "\u2014\u2010\u2011", "😀"]
)
def test_hostile_text_anywhere(text, tmp_path):
    paragraph = document.Paragraph(f"{text} and {text}")
    entry = document.Entry(
        (document.bold(text), document.italic(text)), (paragraph, document.Code((text,))), facts=text
    )
    section = document.Section(text, (paragraph, document.Code((text, text)), document.Heading((document.Span(text),)),
                                      document.Entries((entry, entry))))  # fmt: skip
    page = document.Page("hostile", 1, text, (section,), text, ("netd(8)",))
    file = tmp_path / "hostile.1"
    file.write_text(document.roff(page), encoding="ascii")
    assert "\x1b" not in file.read_text()
    said = flat(shown(file))
    assert f"{document.plain(text)} and {document.plain(text)}" in said


# --- the programs that show them --------------------------------------------------------------------------------------


@needs_man
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_at_80_columns_loses_nothing(name, pages):
    text = shown(pages / name)
    assert f"netd {netd.__version__}" in text
    assert "2023-11-14" in text
    assert [line for line in text.splitlines() if len(line) > 80] == []
    for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "SEE ALSO"):
        assert f"\n{title}\n" in text


@needs_mandoc
@pytest.mark.parametrize("name", NAMES)
def test_mandoc_has_no_complaint(name, pages):
    command = ["mandoc", "-T", "lint", "-W", "style", pages / name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # what mandoc finds out about this machine's other pages is not our page's affair
    assert [line for line in ended.stdout.splitlines() if "referenced manual not found" not in line] == []


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first = generate(tmp_path / "a", PYTHONHASHSEED="1", TZ="Asia/Tokyo")
    second = generate(tmp_path / "b", PYTHONHASHSEED="2", TZ="America/Lima", LC_ALL="C", COLUMNS="40")
    assert sorted(first) == sorted(NAMES)
    assert first == second


def test_nothing_of_this_machine_is_in_them():
    text = "".join(document.roff(page) for page in man.pages())
    assert str(Path(netd.__file__).parents[1]) not in text
