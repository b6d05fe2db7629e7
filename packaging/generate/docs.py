#!/usr/bin/env python3
"""Write the documentation as HTML into a directory: `packaging/generate/docs.py DIR` (`make docs`).

    DIR/index.html                   where everything is
    DIR/{netd.8,...}.html            the manual pages (man.py's, from the same data)
    DIR/rest.html, openapi.json      the control API, from the application's own OpenAPI document
    DIR/python/                      the Python API of those who embed netd or talk to it (pdoc)

Rules:
- nothing is loaded from anywhere else: one stylesheet, no fonts, no scripts but the search that pdoc brings along;
- the modules of the Python API are named here; all that is said about them stands in the code.

Needs pdoc (a development dependency).
"""

from __future__ import annotations

import argparse
import html
import importlib
import inspect
import json
import re
import shutil
import sys
import typing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves it out

import man
import trio
from document import Heading, Page, anchor, to_html

import netd
from netd.net.rest import Content, Read, Write

if typing.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WEB = Path(__file__).resolve().parent / "web"

MODULES = (
    "netd",
    "netd.client",
    "netd.worker",
    "netd.framed",
    "netd.wire.messages",
    "netd.wire.codecs",
    "netd.wire.handshake",
    "netd.hub.seams",
    "netd.errors",
)
"""What programs outside of netd import. The first is the package itself."""


def first_sentence(text: str | None) -> str:
    paragraph = inspect.cleandoc(text or "").partition("\n\n")[0]
    return re.split(r"(?<=[.?!]) ", " ".join(paragraph.split()), maxsplit=1)[0]


def typed(text: str) -> str:
    """A line of a docstring as HTML: `this` is typed."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


# --- pages ------------------------------------------------------------------------------------------------------------


class Contents(typing.NamedTuple):
    """A line of a page's contents."""

    anchor: str
    text: str
    inner: bool = False


def whole(title: str, body: str, here: str, contents: Iterable[Contents] = ()) -> str:
    """A page of its own around `body`."""
    places = [("index.html", "netd"), *((f"{page.file}.html", f"{page.name}({page.volume})") for page in man.pages())]
    places += [("rest.html", "REST API"), ("python/netd.html", "Python API")]
    links = "\n".join(
        f'<a href="{file}"{" aria-current=page" if file == here else ""}>{html.escape(text)}</a>'
        for file, text in places
    )
    listed = "\n".join(
        f'<li{" class=inner" if inner else ""}><a href="#{html.escape(name)}">{html.escape(text)}</a></li>'
        for name, text, inner in contents
    )
    toc = f'<nav class="toc" aria-label="Contents"><ul>\n{listed}\n</ul></nav>\n' if listed else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="stylesheet" href="style.css">
</head>
<body class="netd">
<header>
{links}
</header>
<div class="frame{" with-toc" if toc else ""}">
{toc}<main>
{body}
</main>
</div>
</body>
</html>
"""


def manual(page: Page, names: list[str]) -> str:
    contents: list[Contents] = []
    for section in page.sections:
        contents.append(Contents(anchor(section.title), section.title.capitalize()))
        for block in section.blocks:
            if isinstance(block, Heading):
                text = block.tag[0].text
                contents.append(Contents(block.anchor or anchor(text), text, inner=True))
    return whole(f"{page.name}({page.volume})", to_html(page, names), f"{page.file}.html", contents)


# --- the REST API -----------------------------------------------------------------------------------------------------

_LEVELS = {
    typing.get_args(level)[1].dependency: name
    for level, name in ((Read, "read"), (Content, "content"), (Write, "write"))
}
"""What a route depends on -> the access it needs."""


def openapi() -> tuple[dict[str, typing.Any], dict[tuple[str, str], str]]:
    """The OpenAPI document of a daemon that runs in this process and serves nothing, and the access that each
    (method, path) needs.
    """
    from netd.control.app import create_app

    async def ask() -> tuple[dict[str, typing.Any], dict[tuple[str, str], str]]:
        async with netd.open() as daemon, trio.open_nursery() as nursery:
            app = create_app(daemon, nursery)
            document = app.openapi()
            return document, dict(_access(document, list(_routes(app.routes))))

    return trio.run(ask)


def _routes(routes: Iterable[typing.Any]) -> Iterator[typing.Any]:
    for route in routes:
        if (inner := getattr(route, "original_router", None)) is not None:
            yield from _routes(inner.routes)
        elif hasattr(route, "dependant"):
            yield route


def _access(document: dict[str, typing.Any], routes: list[typing.Any]) -> Iterator[tuple[tuple[str, str], str]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for route in routes:
                same = path.endswith(route.path) and operation["operationId"].startswith(f"{route.name}_")
                if same and method.upper() in route.methods:
                    levels = [_LEVELS[inner.call] for inner in route.dependant.dependencies if inner.call in _LEVELS]
                    yield from (((method, path), level) for level in levels)


def schema_type(schema: dict[str, typing.Any]) -> str:
    """A JSON schema in a few words, as HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{anchor(name)}">{html.escape(name)}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(schema_type, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{html.escape(json.dumps(value))}</code>" for value in values)
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {schema_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {schema_type(schema['additionalProperties'])}"
    if kind == "object" and schema.get("patternProperties"):
        return f"object of {' or '.join(map(schema_type, schema['patternProperties'].values()))}"
    return html.escape({"null": "null", "integer": "integer", "string": "text"}.get(kind, str(kind)))


def _bounds(schema: dict[str, typing.Any]) -> str:
    words = (
        ("minimum", "at least {}"),
        ("exclusiveMinimum", "more than {}"),
        ("maximum", "at most {}"),
        ("maxLength", "at most {} characters"),
        ("maxItems", "at most {} entries"),
    )
    return ", ".join(form.format(schema[word]) for word, form in words if word in schema)


def _row(name: str, schema: dict[str, typing.Any], description: str, *more: str) -> str:
    facts = [schema_type(schema), _bounds(schema), *more]
    if schema.get("default") not in (None, "", [], {}):
        facts.append(f"default <code>{html.escape(json.dumps(schema['default']))}</code>")
    said = f"<p>{typed(description)}</p>" if description else ""
    told = "; ".join(filter(None, facts))
    return f"<dt><code>{html.escape(name)}</code></dt>\n<dd><p class=facts>{told}</p>{said}</dd>\n"


def operation(method: str, path: str, item: dict[str, typing.Any], access: str) -> str:
    """One operation as HTML."""
    out = [
        f'<section class=operation id="{anchor(method + path)}">',
        f'<h3><span class="method {method}">{method.upper()}</span><span class=path>{html.escape(path)}</span></h3>',
        *(
            f"<p>{typed(' '.join(part.split()))}</p>"
            for part in item.get("description", "").split("\n\n")
            if part.strip()
        ),
    ]
    if access:
        out.append(f"<p class=facts>Needs {access} access.</p>")
    if parameters := item.get("parameters"):
        rows = [
            _row(
                parameter["name"],
                parameter["schema"],
                parameter.get("description", ""),
                f"in the {parameter['in']}",
                "required" if parameter.get("required") and parameter["in"] != "path" else "",
            )
            for parameter in parameters
        ]
        out.append(f"<dl class=dense>\n{''.join(rows)}</dl>")
    if body := item.get("requestBody"):
        for kind, content in body["content"].items():
            out.append(f"<p>Body: {schema_type(content['schema'])} <span class=note>({html.escape(kind)})</span></p>")
            if text := content["schema"].get("description"):
                out.append(f"<p>{typed(text)}</p>")
            for example in content["schema"].get("examples", ()):
                out.append(f"<pre>{html.escape(json.dumps(example, indent=2))}</pre>")
    for status, answer in item["responses"].items():
        if not status.isdigit() or int(status) >= 400:
            continue  # errors have one shape, told once
        kinds = []
        for kind, content in answer.get("content", {}).items():
            shape = schema_type(content["schema"]) if content.get("schema") else ""
            kinds.append(f"{shape} <span class=note>({html.escape(kind)})</span>")
        said = answer.get("description", "")
        said = "" if said == "Successful Response" else f" {typed(said)}"
        out.append(f"<p><b>{status}</b>{said} {' or '.join(kinds)}</p>")
    return "\n".join([*out, "</section>"])


def schema_section(name: str, schema: dict[str, typing.Any]) -> str:
    required = schema.get("required", ())
    rows = [
        _row(key, value, value.get("description", ""), "" if key in required else "may be missing")
        for key, value in schema.get("properties", {}).items()
    ]
    said = [f"<p>{typed(' '.join(part.split()))}</p>" for part in schema.get("description", "").split("\n\n") if part]
    shape = [f"<dl class=dense>\n{''.join(rows)}</dl>"] if rows else [f"<p class=facts>{schema_type(schema)}</p>"]
    return "\n".join([f'<h3 id="{anchor(name)}">{html.escape(name)}</h3>', *said, *shape])


def rest(document: dict[str, typing.Any], access: dict[tuple[str, str], str]) -> str:
    """The whole of the REST API."""
    tags: dict[str, list[tuple[Contents, str]]] = {}
    for path, item in document["paths"].items():
        for method, described in item.items():
            tag = (described.get("tags") or [path.split("/")[2]])[0]
            line = Contents(anchor(method + path), f"{method.upper()} {path.removeprefix('/v1')}", inner=True)
            text = operation(method, path, described, access.get((method, path), ""))
            tags.setdefault(tag, []).append((line, text))
    out = [
        "<h1>REST API</h1>",
        "<p class=brief>What the control socket speaks, and netctl uses.</p>",
        "<p>HTTP/1.1 on a Unix socket. Answers are JSON, and every answer carries the headers "
        "<code>Netd-Version</code> and <code>Netd-Api</code>. Within <code>/v1</code> things are only added. "
        "For programs this page "
        'is <a href="openapi.json">openapi.json</a>; a running daemon has it at <code>/v1/openapi.json</code>.</p>',
        "<pre>curl --unix-socket /run/netd/control.sock http://netd/v1/status</pre>",
        '<p>Who may open the socket has read access; see <a href="netd.8.html#access">netd(8)</a>. Every answer of 400 '
        f'and above is an <a href="#{anchor("ErrorBody")}">ErrorBody</a>. An unknown query parameter, and an unknown '
        "field of a body, are refused.</p>",
    ]
    for tag, operations in tags.items():
        out += [f'<h2 id="tag-{anchor(tag)}">{html.escape(tag)}</h2>', *(text for _, text in operations)]
    schemas = sorted(document["components"]["schemas"].items())
    out += ['<h2 id="schemas">Schemas</h2>', *(schema_section(name, schema) for name, schema in schemas)]
    contents = []
    for tag, operations in tags.items():
        contents += [Contents(f"tag-{anchor(tag)}", tag), *(line for line, _ in operations)]
    contents += [Contents("schemas", "Schemas"), *(Contents(anchor(name), name, inner=True) for name, _ in schemas)]
    return whole("REST API of netd", "\n".join(out), "rest.html", contents)


# --- the Python API ---------------------------------------------------------------------------------------------------


def python_reference(directory: Path) -> None:
    """pdoc's pages for MODULES and nothing else."""
    import pdoc

    pdoc.render.configure(
        docformat="markdown", show_source=False, template_directory=WEB, footer_text=f"netd {netd.__version__}"
    )
    for name in MODULES:  # what a package imports when it is first asked for, pdoc would not find
        module = importlib.import_module(name)
        names = {public: getattr(module, public) for public in getattr(module, "__all__", ())}
        vars(module).update(names)
        for one in filter(inspect.isclass, names.values()):
            _take_in(one, set(names.values()))
    specs = [spec for name in MODULES for spec in (name, f"!{re.escape(name)}\\.(?!{_kept(name)})")]
    pdoc.pdoc(*specs, output_directory=directory)
    for file in (*directory.rglob("*.html"), *directory.rglob("*.js")):
        text = file.read_text(encoding="utf-8")  # where a function lies in memory is another thing every time
        file.write_text(re.sub(r" at 0x[0-9a-f]{6,}", "", text), encoding="utf-8")


def _take_in(one: type, shown: Iterable[object]) -> None:
    """Make what a class has from a base that is not shown its own, or pdoc would leave it out."""
    for base in one.__mro__[1:]:
        if base in shown or not base.__module__.startswith("netd."):
            continue
        for name, value in vars(base).items():
            method = inspect.isfunction(value) or isinstance(value, property)
            if method and not name.startswith("_") and inspect.getattr_static(one, name) is value:
                setattr(one, name, value)


def _kept(name: str) -> str:
    """A pattern of what stays of a package's modules."""
    inner = [re.escape(other.removeprefix(f"{name}.")) for other in MODULES if other.startswith(f"{name}.")]
    return f"(?:{'|'.join(inner)})$" if inner else "$"


# --- all of it --------------------------------------------------------------------------------------------------------


def _cards(rows: Iterable[tuple[str, str, str]]) -> str:
    items = [
        f'<li><a href="{file}"><b>{html.escape(name)}</b><span>{typed(text)}</span></a></li>'
        for file, name, text in rows
    ]
    return "<ul class=cards>\n" + "\n".join(items) + "\n</ul>"


def index(pages: list[Page]) -> str:
    described = first_sentence(netd.__doc__).partition(": ")[2]
    rows = [
        (f"python/{name.replace('.', '/')}.html", name, first_sentence(importlib.import_module(name).__doc__))
        for name in MODULES
    ]
    body = [
        f"<h1>netd {html.escape(netd.__version__)}</h1>",
        f"<p class=brief>{typed(described[:1].upper() + described[1:])}</p>",
        '<h2 id="manual">Manual</h2>',
        _cards((f"{page.file}.html", f"{page.name}({page.volume})", page.brief) for page in pages),
        '<h2 id="rest">REST API</h2>',
        _cards(
            [
                ("rest.html", "The control API", "Every operation and schema."),
                ("openapi.json", "openapi.json", "The same for programs."),
            ]
        ),
        '<h2 id="python">Python API</h2>',
        _cards(rows),
    ]
    return whole("netd", "\n".join(body), "index.html")


def write(directory: Path, *, python: bool = True) -> None:
    """All of it into `directory`; without `python` its reference, which takes some seconds."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = man.pages()
    names = [page.file for page in pages]
    document, access = openapi()
    shutil.copyfile(WEB / "style.css", directory / "style.css")
    (directory / "openapi.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    texts = {f"{page.file}.html": manual(page, names) for page in pages}
    texts |= {"rest.html": rest(document, access), "index.html": index(pages)}
    for file, text in texts.items():
        (directory / file).write_text(text, encoding="utf-8")
    if python:
        python_reference(directory / "python")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write netd's documentation as HTML into a directory.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    write(parser.parse_args().directory)


if __name__ == "__main__":
    main()
