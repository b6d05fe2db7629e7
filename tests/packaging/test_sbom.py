"""The SBOM and the copyright file: from what is installed, complete, and the same bytes every time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATE = ROOT / "packaging/generate"
sys.path.insert(0, str(GENERATE))

import bundled  # noqa: E402
import copyright as copyright_file  # noqa: E402


def sbom(tmp_path, *options, **environment):
    file = tmp_path / "netd.cdx.json"
    environment = {"SOURCE_DATE_EPOCH": "1700000000", "PATH": "/usr/bin:/bin"} | environment
    subprocess.run([sys.executable, GENERATE / "sbom.py", file, *options], check=True, env=environment)
    return file.read_text(encoding="utf-8")


def test_it_is_cyclonedx_with_a_component_for_each_locked_distribution(tmp_path):
    document = json.loads(sbom(tmp_path))
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["serialNumber"])
    assert document["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert {each["name"]: each["version"] for each in document["components"]} == bundled.locked()
    for each in document["components"]:
        assert each["purl"] == each["bom-ref"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert each["licenses"], each["name"]


def test_dependencies_lead_to_components(tmp_path):
    document = json.loads(sbom(tmp_path))
    refs = {each["bom-ref"] for each in document["components"]}
    first, *others = document["dependencies"]
    assert first["ref"] == document["metadata"]["component"]["bom-ref"]
    assert set(first["dependsOn"]) == refs == {each["ref"] for each in others}
    assert all(set(each["dependsOn"]) <= refs for each in others)
    trio = next(each for each in others if "/trio@" in each["ref"])
    assert any("/outcome@" in ref for ref in trio["dependsOn"])


def test_what_is_compiled_in_stands_in_its_component_without_the_builders_paths(tmp_path):
    text = sbom(tmp_path)
    assert "file://" not in text
    assert str(ROOT) not in text
    inside = {part.name: part.compiled_in for part in bundled.bundled() if part.compiled_in}
    for each in json.loads(text)["components"]:
        assert each.get("components", []) == inside.get(each["name"], [])


def test_the_same_input_gives_the_same_bytes_in_any_locale_and_zone(tmp_path):
    assert sbom(tmp_path) == sbom(tmp_path, LC_ALL="C", TZ="Asia/Kolkata", PYTHONHASHSEED="7")


def test_hashes_are_those_of_the_files_that_were_installed(tmp_path):
    version = bundled.locked()["trio-websocket"]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / f"trio_websocket-{version}-py3-none-any.whl").write_bytes(b"")
    document = json.loads(sbom(tmp_path, "--wheels", str(wheels)))
    hashed = {each["name"]: each["hashes"] for each in document["components"] if "hashes" in each}
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hashed == {"trio-websocket": [{"alg": "SHA-256", "content": empty}]}


def test_a_distribution_that_is_not_the_locked_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^cannot list what is bundled: annotated-doc is missing, the lock says \S+$"):
        bundled.bundled(tmp_path)


def test_the_copyright_file_has_a_paragraph_with_holder_and_text_for_each():
    for part in bundled.bundled():
        fields = dict(copyright_file._paragraph(part))
        assert fields["Files"].startswith("usr/lib/netd/lib/*/"), part.name
        assert fields["Copyright"].strip(), part.name
        name, _, text = fields["License"].partition("\n")
        assert name, part.name
        assert text.strip(), part.name


def test_a_copyright_file_that_would_not_be_complete_is_not_written(tmp_path):
    done = subprocess.run([sys.executable, GENERATE / "copyright.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("cannot list what is bundled: ")


def test_holders_are_read_and_words_about_copyright_are_not():
    text = """\
    Copyright (c) 2014 Pallets. All rights reserved.
Copyright © 2019, [Encode OSS Ltd](https://www.example.org/).
   (c) You must retain, in the Source form of any Derivative Works
(c) 2015 Somebody
copyright notice that is included in or attached to the work
   Copyright [yyyy] [name of copyright owner]
The above copyright notice and this permission notice shall be included
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM
"""
    holders = ["2014 Pallets. All rights reserved", "2019, Encode OSS Ltd", "2015 Somebody"]
    assert copyright_file.holders(text) == holders
