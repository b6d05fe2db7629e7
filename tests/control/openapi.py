"""What clients may rely on in the control API's OpenAPI document, and the snapshot of it.

    .venv/bin/python -m tests.control.openapi [--breaking]    write tests/control/openapi.json anew

Within /v1 things are only added: what would vanish or change is listed, and written only with --breaking.
The snapshot holds names and types and leaves prose out, so that it changes when the API does and not when the web
framework phrases its document differently.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from netd.control.app import create_app
from tests.support.host import FakeHost

SNAPSHOT = Path(__file__).with_name("openapi.json")


def document() -> dict[str, Any]:
    """The OpenAPI document of the control API without any service's router."""
    return create_app(FakeHost(), cast("Any", None)).openapi()


def surface(document: dict[str, Any]) -> dict[str, Any]:
    """The document as a flat table: place -> what stands there."""
    table: dict[str, Any] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            place = f"{method.upper()} {path}"
            table[place] = sorted(operation["responses"])
            for parameter in operation.get("parameters", ()):
                kind = "required" if parameter["required"] else "optional"
                table[f"{place} {parameter['in']} {parameter['name']}"] = f"{kind} {_type(parameter['schema'])}"
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                table[f"{place} body {media}"] = _type(content["schema"])
            for status, response in operation["responses"].items():
                for media, content in response.get("content", {}).items():
                    table[f"{place} {status} {media}"] = _type(content.get("schema", {}))
    for name, schema in document["components"]["schemas"].items():
        for key, value in schema.get("properties", {}).items():
            kind = "required" if key in schema.get("required", ()) else "optional"
            table[f"{name}.{key}"] = f"{kind} {_type(value)}"
    return dict(sorted(table.items()))


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return "|".join(map(repr, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"[{_type(schema.get('items', {}))}]"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"{{{_type(schema['additionalProperties'])}}}"
    return str(schema.get("type", "any"))


def main(arguments: list[str]) -> int:
    old = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    new = surface(document())
    broken = [f"{place}: {what} -> {new.get(place)}" for place, what in old.items() if new.get(place) != what]
    print("\n".join(broken), end="\n" if broken else "")
    if broken and "--breaking" not in arguments:
        return 1
    SNAPSHOT.write_text(json.dumps(new, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
