"""Fuzzes parsers: ``python -m tests.fuzz [TARGET …] [--runs N | --seconds S] [--seed S]``.

    corpus/TARGET ──▶ replayed ──▶ mutated, where that reaches new code kept and mutated again ──▶ inputs tried, crashes

Every target has a process of its own, for atheris never returns; they are forked from one that has imported the service
with atheris's counters in it. Without atheris the corpus is replayed, and nothing else. An input that breaks a promise
is written to a file, and the command that repeats it is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.target import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
INSTRUMENTED = ["deployments", "jwt", "ssrfguard", "tarfile", "zipfile"]
FOUND = Path(tempfile.gettempdir()) / "svd-serve-fuzz-found"
"""Where inputs are written that break a promise. They stay when all else is deleted."""

HANGS_SECONDS = 30
"""How long one input may take: far more than any does, on a busy machine too."""

LARGEST_MEGABYTES = 4096
"""Of a whole process, after which libFuzzer ends it though an input goes on."""


@dataclass(frozen=True)
class Outcome:
    """What became of a target.

    Attributes:
        target: Its name.
        inputs: How many inputs were tried, those of the corpus included.
        seconds: How long that took.
        peak_megabytes: By how much the memory of its process grew at the most.
        found: The file with the input that broke a promise, if one did.
        log: The end of what was printed then.
    """

    target: str
    inputs: int
    seconds: float
    peak_megabytes: int
    found: str | None = None
    log: str = ""

    def __str__(self) -> str:
        end = f"BROKEN by {self.found}" if self.found else "kept its promises"
        return f"{self.target:18} {self.inputs:>9} inputs {self.seconds:6.1f} s {self.peak_megabytes:4} MB  {end}"


def main() -> None:
    """Fuzz, print what was tried, and exit 1 where a promise was broken."""
    options = _options()
    has_atheris = importlib.util.find_spec("atheris") is not None
    with _instrumented() if has_atheris else nullcontext():
        importlib.import_module(options.module)
    if unknown := set(options.targets) - TARGETS.keys():
        sys.exit(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(sorted(TARGETS))}")
    FOUND.mkdir(exist_ok=True)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    chosen = [TARGETS[name] for name in options.targets or sorted(TARGETS)]
    if options.input:
        for each in chosen:
            each.check(options.input.read_bytes())
        return
    print(f"seed {options.seed}; {'atheris' if has_atheris else 'no atheris: the corpus only'}", flush=True)
    outcomes = []
    with _folder(options.keep) as folder:
        for outcome in _all(chosen, options, folder, has_atheris):
            print(outcome, flush=True)
            if outcome.found:
                print(f"{outcome.log}\nrepeat: python -m tests.fuzz {outcome.target} --input {outcome.found}")
            outcomes.append(outcome)
    print(f"inputs tried: {sum(each.inputs for each in outcomes)} by {len(outcomes)} targets")
    if options.report:
        options.report.write_text(json.dumps([asdict(each) for each in outcomes]))
    sys.exit(any(each.found for each in outcomes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them by default")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--runs", type=int, default=2000, help="inputs for each target beside its corpus")
    length.add_argument("--seconds", type=int, help="how long each target is fuzzed, instead")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 2**31, help="repeats a run that --runs limits")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once")
    parser.add_argument("--keep", type=Path, help="where inputs that reach new code are kept from run to run")
    parser.add_argument("--input", type=Path, help="call the targets with this file, and do nothing else")
    parser.add_argument("--report", type=Path, help="where the figures are written as JSON")
    parser.add_argument("--module", default="tests.fuzz.targets", help="the module that registers the targets")
    return parser.parse_args()


def _instrumented() -> AbstractContextManager[Any]:
    import atheris

    logging.getLogger().setLevel(logging.WARNING)
    return atheris.instrument_imports(include=INSTRUMENTED)  # type: ignore[no-any-return]


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Where inputs are written that reach new code."""
    if kept:
        yield kept
    else:
        with tempfile.TemporaryDirectory(prefix="svd-serve-fuzz-") as folder:
            yield Path(folder)


def _all(chosen: Iterable[Target], options: argparse.Namespace, folder: Path, fuzz: bool) -> Iterator[Outcome]:
    """Run the targets, so many at once; answer each as it ends."""
    waiting, running = list(chosen), dict[int, tuple[Target, Path, float]]()
    while waiting or running:
        while waiting and len(running) < options.jobs:
            each = waiting.pop(0)
            place = folder / each.name
            for made in (place, place.with_suffix(".tmp")):
                made.mkdir(parents=True, exist_ok=True)
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                _child(each, options, place, fuzz)
            running[pid] = (each, place, time.monotonic())
        pid, status = os.wait()
        yield _outcome(*running.pop(pid), os.waitstatus_to_exitcode(status))


def _child(each: Target, options: argparse.Namespace, place: Path, fuzz: bool) -> None:
    """Run one target, and end this process."""
    log = os.open(place.with_suffix(".log"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    tempfile.tempdir = str(place.with_suffix(".tmp"))  # nothing is tidied up where libFuzzer ends a process
    try:
        if fuzz:
            _fuzz(each, options, place)
        code = _replay(each)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


def _fuzz(each: Target, options: argparse.Namespace, place: Path) -> None:
    """Hand this process to libFuzzer, which ends it."""
    import atheris

    corpus, dictionary = CORPUS / each.name, place.with_suffix(".words")
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in ("\n", *each.words)))
    known = [str(folder) for folder in (place, corpus) if folder.is_dir()]
    count = sum(len(os.listdir(folder)) for folder in known)
    length = f"-max_total_time={options.seconds}" if options.seconds else f"-runs={count + options.runs}"
    flags = [
        length,
        f"-seed={options.seed or 1}",  # 0 means any to libFuzzer
        f"-max_len={each.longest}",
        f"-dict={dictionary}",
        f"-timeout={HANGS_SECONDS}",
        f"-rss_limit_mb={LARGEST_MEGABYTES}",
        f"-artifact_prefix={FOUND}/{each.name}-",  # of what hangs; other inputs are ours to write
        "-print_final_stats=1",
    ]
    atheris.Setup([each.name, *flags, *known], _bounded(each))
    atheris.Fuzz()


def _replay(each: Target) -> int:
    check, count = _bounded(each), 0
    for count, path in enumerate(sorted((CORPUS / each.name).glob("*")), 1):  # noqa: B007
        check(path.read_bytes())
    print(f"stat::number_of_executed_units: {count}")
    return 0


def _bounded(each: Target) -> Any:
    """The target's check, and one of the memory that it took. An input that breaks a promise is written to a file."""
    start = _peak_megabytes()
    most = 0

    def check(data: bytes) -> None:
        nonlocal most
        try:
            each.check(data)
            grown = _peak_megabytes() - start
            if grown > most:
                most = grown
                print(f"peak: {most} MB", flush=True)
            assert grown <= each.megabytes, f"an input of {len(data)} bytes took {grown} MB"
        except BaseException:
            path = FOUND / f"{each.name}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"Test unit written to {path}", flush=True)
            raise

    return check


def _peak_megabytes() -> int:
    """The most memory that this process has had. Not ``getrusage``'s, which a process inherits from its parent."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) // 1024 if found else 0


def _outcome(each: Target, place: Path, began: float, code: int) -> Outcome:
    shutil.rmtree(place.with_suffix(".tmp"))
    log = place.with_suffix(".log").read_text(errors="replace")
    count = re.search(r"number_of_executed_units: (\d+)", log) or re.search(r"(?s:.*)^#(\d+)\s", log, re.MULTILINE)
    written = re.search(r"Test unit written to (\S+)", log)
    found = (written[1] if written else "an input that was not written") if code else None
    return Outcome(
        target=each.name,
        inputs=int(count[1]) if count else 0,
        seconds=round(time.monotonic() - began, 1),
        peak_megabytes=int((["0", *re.findall(r"^peak: (\d+) MB", log, re.MULTILINE)])[-1]),
        found=found,
        log=log[-6000:] if code else "",
    )


def _escaped(word: str) -> str:
    return "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\x{byte:02x}" for byte in word.encode()
    )


if __name__ == "__main__":
    main()
