"""``python -m tests.bench [NAME...] [--quick]``: measure, print, and exit with 1 when a bound is missed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from tests.bench.figures import Report

NAMES = ("cli", "requests", "recovery", "tree", "checkpoint", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    arguments = parser.parse_args()
    report = Report()
    load = os.getloadavg()[0]
    sys.stdout.write(f"{os.cpu_count()} cores, load {load:.2f}, Python {sys.version.split()[0]}\n")
    for name in arguments.names or NAMES:
        importlib.import_module(f"tests.bench.bench_{name}").run(report, arguments.quick)
    missed = report.missed
    sys.stdout.write(f"\n{len(report.figures)} figures, {len(missed)} over their bounds\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
