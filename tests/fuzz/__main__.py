"""Fuzz what parses for a bounded time: `python -m tests.fuzz --seconds 60`.

Each target gets its share of the time, in a process of its own (libFuzzer ends the process it runs in). With atheris
where this Python has it, otherwise with our own mutations. What fails is printed, is left as a file in the directory
that is named, and makes the exit code 1; `--repeat FILE --target NAME` runs it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = (
    *("framing", "messages", "codecs", "plain", "handshake", "websocket", "deflate", "upgrade", "gateway"),
    *("http", "rows", "workers", "envelopes", "tracing", "scores", "sse", "proxy", "packets"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--target", choices=NAMES, action="append", help="only this one (may be repeated)")
    parser.add_argument("--engine", choices=("atheris", "own"), help="default: atheris where it is installed")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices; 0: another one each time")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="run one input and nothing else")
    parser.add_argument("--inside", metavar="DIRECTORY", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "own")
    targets = options.target or list(NAMES)
    if options.repeat is not None:
        from tests.fuzz.targets import TARGETS

        for name in targets:
            TARGETS[name](options.repeat.read_bytes())
        return 0
    if options.inside is not None:
        inside = _atheris if engine == "atheris" else _own
        return inside(targets[0], options.seconds, options.seed, options.inside)
    failed = []
    for name in targets:
        directory = Path(tempfile.mkdtemp(prefix=f"netd-fuzz-{name}-"))
        print(f"fuzzing {name} with {engine} for {options.seconds / len(targets):.0f} s, in {directory}", flush=True)
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--target",
            name,
            "--engine",
            engine,
            "--seed",
            str(options.seed),
        ]
        command += ["--seconds", str(options.seconds / len(targets)), "--inside", str(directory)]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(f"{name}: python -m tests.fuzz --target {name} --repeat {directory}/crash-*")
        else:
            shutil.rmtree(directory)
    print("\n".join(["failed:", *failed]) if failed else "nothing failed")
    return 1 if failed else 0


def _atheris(name: str, seconds: float, seed: int, directory: Path) -> int:
    import atheris

    with atheris.instrument_imports(include=["netd.wire", "netd.net", "netd.backplane", "h11", "tests.fuzz"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    corpus = directory / "corpus"
    corpus.mkdir()
    for number, data in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(data)
    limits = [f"-max_total_time={max(1, round(seconds))}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=1024"]
    arguments = [*limits, f"-seed={seed}", f"-artifact_prefix={directory}/", "-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()  # does not return
    return 0


def _own(name: str, seconds: float, seed: int, directory: Path) -> int:
    from tests.fuzz.mutation import mutations
    from tests.fuzz.targets import SEEDS, TARGETS

    end = time.monotonic() + seconds
    runs = 0
    for data in mutations(SEEDS[name], random.Random(seed or None)):
        try:
            TARGETS[name](data)
        except BaseException:
            (directory / "crash-own").write_bytes(data)
            raise
        runs += 1
        if time.monotonic() > end:
            break
    print(f"{name}: {runs} inputs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
