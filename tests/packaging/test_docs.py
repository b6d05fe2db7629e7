"""The documentation in HTML: it holds what the code knows, its links lead somewhere, it loads nothing from outside."""

import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import netd

GENERATE = Path(__file__).parents[2] / "packaging" / "generate"
if str(GENERATE) not in sys.path:
    sys.path.append(str(GENERATE))

import client_page  # noqa: E402
import docs  # noqa: E402
import document  # noqa: E402
import man  # noqa: E402

needs_pdoc = pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="no pdoc here (make setup)")

LOADING = {"src", "srcset", "poster", "data", "background"}
"""Attributes that load what they name, on whatever element; `href` does on <link> alone."""


class Look(HTMLParser):
    """What a page loads, links to and can be linked to, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.style = ""
        self.script = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        for name, value in attrs:
            if name in LOADING or (name == "href" and tag == "link"):
                self.loads.append(value)
            elif name == "href" and tag == "a":
                self.links.append(value)
            elif name == "id":
                self.ids.append(value)
            elif name == "style":
                self.style += value

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if "style" in self.open:
            self.style += data
        elif "script" in self.open:
            self.script += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Everything but the Python reference."""
    directory = tmp_path_factory.mktemp("docs")
    docs.write(directory, python=False)
    return directory


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-I", "-W", "error::UserWarning:pdoc", GENERATE / "docs.py", directory]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return directory


def pages_of(directory: Path) -> dict[Path, Look]:
    return {file: Look(file) for file in sorted(directory.rglob("*.html"))}


def outside(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def check_loads(directory: Path) -> None:
    for file, look in pages_of(directory).items():
        assert not list(filter(outside, look.loads)), file
        for address in look.loads:
            if not address.startswith("data:"):
                assert (file.parent / unquote(urlsplit(address).path)).is_file(), (file, address)
        for style in [look.style, *(sheet.read_text() for sheet in directory.rglob("*.css"))]:
            assert "@import" not in style
            assert [url for url in re.findall(r"url\(\s*['\"]?([^'\")]*)", style) if outside(url)] == []
        assert not re.search(r"(?:fetch|import|importScripts|open)\(\s*['\"`](?:https?:)?//", look.script), file


def check_links(directory: Path) -> None:
    pages = pages_of(directory)
    for file, look in pages.items():
        for address in look.links:
            if outside(address):
                continue  # a person may follow it
            parts = urlsplit(address)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert target.is_file(), (file.name, address)
            private = "._" in f".{parts.fragment}"  # pdoc links to some of these, and shows none of them
            if parts.fragment and not private:
                assert unquote(parts.fragment) in pages[target].ids, (file.name, address)


# --- the manual and the REST API --------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_outside(site):
    check_loads(site)


def test_no_page_says_an_id_twice(site):
    for file, look in pages_of(site).items():
        twice = {name for name in look.ids if look.ids.count(name) > 1}
        assert not twice, (file, twice)


def test_links_lead_somewhere(site, tmp_path):
    for name in docs.MODULES:  # stand-ins for the Python reference
        file = site / "python" / f"{name.replace('.', '/')}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    check_links(site)


def test_the_manual_pages_say_the_same_in_html(site):
    for page in man.pages():
        text = Look(site / f"{page.file}.html").text
        assert page.brief in text
        for section in page.sections:
            assert section.title.capitalize() in text
    text = Look(site / "netd.toml.5.html").text
    assert "max_frame = 4_194_304" in text
    text = Look(site / "netctl.1.html").text
    for noun in client_page.NOUNS:
        for command in client_page.commands(noun):
            assert " ".join(command.words) in text


def test_every_operation_and_schema_is_there_with_the_access_it_needs(site):
    described = json.loads((site / "openapi.json").read_text())
    look = Look(site / "rest.html")
    source = (site / "rest.html").read_text()
    count = 0
    for path, item in described["paths"].items():
        for method in item:
            count += 1
            name = document.anchor(method + path)
            assert name in look.ids
            section = source.partition(f'id="{name}">')[2].partition("</section>")[0]
            assert re.search(r"Needs (read|content|write) access", section), (method, path)
            if method != "get" and path != "/v1/config/check":  # which asks, though by POST
                assert "Needs read access" not in section, (method, path)
    assert count > 30
    for name in described["components"]["schemas"]:
        assert document.anchor(name) in look.ids
    assert described["info"]["version"] == netd.__version__


def test_hostile_text_is_text(tmp_path):
    nasty = "<script>alert('x')</script> & \"'`</dd>`"
    entry = document.Entry((document.bold(nasty),), (document.Paragraph(nasty), document.Code((nasty,))), facts=nasty)
    section = document.Section(nasty, (document.Heading((document.Span(nasty),)), document.Entries((entry,))))
    file = tmp_path / "page.html"
    file.write_text(document.to_html(document.Page("x", 1, nasty, (section,), "1"), ["x.1"]))
    look = Look(file)
    assert look.script == ""
    assert look.text.count("<script>alert('x')</script>") >= 5


# --- with the Python API ----------------------------------------------------------------------------------------------


@needs_pdoc
def test_the_python_reference_is_whole_and_loads_nothing(whole_site):
    check_loads(whole_site)
    check_links(whole_site)
    for name in docs.MODULES:
        look = Look(whole_site / "python" / f"{name.replace('.', '/')}.html")
        public = getattr(importlib.import_module(name), "__all__", ())
        assert {word for word in public if not word.startswith("__")} <= set(look.ids), name
    inside = {file.relative_to(whole_site / "python").as_posix() for file in (whole_site / "python").rglob("*.html")}
    assert inside == {f"{name.replace('.', '/')}.html" for name in docs.MODULES} | {"index.html"}
