"""CPU time of the command line, beside that of the interpreter and of Typer alone."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from tests.bench import programs
from tests.bench.figures import Figure, Report, median
from tests.bench.processes import cpu_ms, orun_agent


def run(report: Report, quick: bool) -> None:
    repeat = 7 if quick else 25
    report.title(f"Command line: CPU time, median of {repeat}")
    with orun_agent(programs.AGENT) as orun:

        def measure(*command: str) -> float:
            return median(cpu_ms(list(command), orun.environment, orun.folder, repeat))

        program = str(Path(sysconfig.get_path("scripts")) / "orun")
        measure(program, "--help")
        bare = measure(sys.executable, "-c", "pass")
        typer = measure(sys.executable, "-c", "import typer; typer.Typer()")
        for bound, *arguments in (
            (15, "--version"),
            (40, "status"),
            (40, "status", "--json"),
            (40, "call", "add", '{"data": "x"}'),
            (80, "--help"),
            (80, "run", "--help"),
        ):
            value = measure(program, *map(str, arguments))
            name = f"orun {' '.join(map(str, arguments))}"
            report.add(Figure(name, value, "ms", bound, True, {"python -c pass": bare, "import typer": typer}))
