"""The ``orun`` command: the quick commands at once, everything else through Typer."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments in (["--version"], ["-V"]):
        from orun import __version__
        from orun.cli import output

        output.result(f"orun {__version__}")
        return 0
    from orun.errors import OrunError

    try:
        from orun.cli import quick

        code: int | None
        if arguments[:1] == ["__names"]:
            from orun.cli import names

            code = names.show(arguments[1:])
        else:
            code = quick.shortcut(arguments)
        if code is None:
            from orun.cli.app import run

            code = run(arguments)
    except OrunError as error:
        from orun.cli import output

        own = arguments[: arguments.index("--")] if "--" in arguments else arguments
        output.failure(error, as_json="--json" in own)
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
