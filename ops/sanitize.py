"""Runs the kernel tests (tests/ops) over a library that is built with sanitizers.

    python ops/sanitize.py                    # AddressSanitizer and UBSan, then ThreadSanitizer
    python ops/sanitize.py thread -- -x -k GroupNorm   # one of them; what follows -- goes to pytest
    python ops/sanitize.py --brief            # what every run of the tests does: the scalar level, a few hundred cases
    python ops/sanitize.py aarch64            # no sanitizer: the NEON level under qemu, with a cross compiler

ONNX Runtime has no sanitizers in it, so a small program takes its place (ops/testing); it also lays tensors right at
pages that cannot be touched, runs each node from several threads at once, and in place of its inputs where it may.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
ROOT = SOURCES.parent
VARIABLE = "ONNXNORM_TEST_HOST"

#: Slow for a reason that has nothing to do with memory or threads, or a test of the process and not of the kernels.
_LEFT_OUT = ("-m", "not slow", "--ignore", "tests/ops/test_trust.py")
#: Tests that look at the installed library's file.
_DESELECTED = "only_two_symbols or nothing_but_libc or older_runtime"
#: Every op in its samples, in float32 and on the scalar level, and its errors; hard data; a few tensors large enough to
#: be split among threads.
_BRIEF = (
    "(scalar and float32 and (Switchable or not any_number_of_threads)) "
    "or outlier or huge or error or missing_attribute or unknown"
)


@dataclass(frozen=True)
class Kind:
    """One build: its options of CMake, and what the host is started with."""

    name: str
    options: dict[str, str]
    start: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


_SANITIZED = {"CMAKE_BUILD_TYPE": "Sanitize", "CMAKE_CXX_FLAGS": "-O1"}
KINDS = {
    "address": Kind("address", {**_SANITIZED, "ONNXNORM_SANITIZE": "address,undefined"}),
    "thread": Kind("thread", {**_SANITIZED, "ONNXNORM_SANITIZE": "thread"}),
    "aarch64": Kind(
        "aarch64",
        {
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": "aarch64",
            "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
            "CMAKE_CXX_FLAGS": "-O2",
            "CMAKE_EXE_LINKER_FLAGS": "-static-libstdc++ -static-libgcc",
        },
        ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"),
    ),
}
#: In brief the compiler is what takes the time: the scalar level holds all that is not vector instructions.
_BRIEF_OPTIONS = {"CMAKE_BUILD_TYPE": "Sanitize", "CMAKE_CXX_FLAGS": "-O0", "ONNXNORM_SIMD": "OFF"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: address thread")
    parser.add_argument("--brief", action="store_true", help="the scalar level alone, on a few hundred cases")
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build" / "sanitize", help="where to build")
    parsed = parser.parse_args(given[:cut])
    unknown = [name for name in parsed.kinds if name not in KINDS]
    if unknown:
        parser.error(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    status = 0
    for name in parsed.kinds or ["address", "thread"]:
        command = host_command(KINDS[name], parsed.build_dir, brief=parsed.brief)
        status |= run_tests(KINDS[name], command, given[cut + 1 :], brief=parsed.brief)
    return status


def host_command(kind: Kind, build_dir: Path, *, brief: bool = False) -> str:
    """Builds the library and the host; the command that starts the host."""
    for tool in ("cmake", kind.options.get("CMAKE_CXX_COMPILER", "cmake"), *kind.start[:1]):
        if shutil.which(tool) is None:
            raise SystemExit(f"ops/sanitize.py: {tool} is not on PATH; install it")
    folder = build_dir / (f"{kind.name}-brief" if brief else kind.name)
    options = {**kind.options, **(_BRIEF_OPTIONS if brief else {}), "ONNXNORM_HOST": "ON"}
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    settings = [f"-D{name}={value}" for name, value in options.items()]
    _run(["cmake", *generator, "-S", str(SOURCES), "-B", str(folder), *settings])
    _run(["cmake", "--build", str(folder), "--target", "onnxnorm", "onnxnorm_host", "--parallel", str(_cpus())])
    return shlex.join([*kind.start, str(folder / "onnxnorm_host"), str(folder / "libonnxnorm.so")])


def run_tests(kind: Kind, command: str, extra: Sequence[str], *, brief: bool = False) -> int:
    """Runs tests/ops in the host; pytest's exit status."""
    chosen = f"({_BRIEF}) and not ({_DESELECTED})" if brief else f"not ({_DESELECTED})"
    call = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *_LEFT_OUT,
        "-k",
        chosen,
        "tests/ops",
        *extra,
    ]
    print(f"{kind.name}: {shlex.join(call)}", flush=True)
    environment = {**os.environ, **kind.environment, VARIABLE: command}
    return subprocess.run(call, cwd=ROOT, env=environment, check=False).returncode


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-10_000:]}{done.stderr[-10_000:]}")


if __name__ == "__main__":
    sys.exit(main())
