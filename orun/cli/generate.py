"""``orun generate``: manual, completions, schema, unit and Dockerfile, all from what the program itself knows."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import output
from orun.cli.options import Quiet, examples

Check = Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 when a file is stale.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    group = typer.Typer(no_args_is_help=True, help="Write manual, completions, schema, unit or Dockerfile.")
    group.command("man", epilog=examples("orun generate man ~/.local/share/man", "man orun-run"))(_man)
    group.command("completion", epilog=_COMPLETION)(_completion)
    group.command("schema", epilog=examples("orun generate schema > orun.schema.json"))(_schema)
    group.command("unit", epilog=examples("orun generate unit agent.py > ~/.config/systemd/user/my-agent.service"))(
        _unit
    )
    group.command("dockerfile", epilog=examples("orun generate dockerfile agent.py > Dockerfile"))(_dockerfile)
    group.command("all", hidden=True)(_all)
    app.add_typer(group, name="generate")


_COMPLETION = examples(
    "source <(orun generate completion bash)",
    "orun generate completion zsh > ~/.zfunc/_orun",
    "orun generate completion fish > ~/.config/fish/completions/orun.fish",
)


def _man(
    folder: Annotated[
        str | None, typer.Argument(metavar="[DIR]", help="Write all pages below it, as DIR/man1/orun.1.")
    ] = None,
    check: Check = False,
    quiet: Quiet = False,
) -> int:
    """Write the manual pages below a folder, or print orun(1)."""
    from orun.cli.generators import files, man

    pages = man.pages()
    if folder is None:
        output.raw(pages["man1/orun.1"])
        return 0
    return files.settle(pages, folder, check=check, quiet=quiet)


def _completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="The shell.")],
) -> None:
    """Print a completion script.

    It knows commands and options by itself, and asks orun for names and ids.
    """
    from orun.cli.generators import completion

    output.raw(completion.script(shell))


def _schema() -> None:
    """Print the JSON Schema of orun.toml, for editors."""
    from orun.cli.generators import schema

    output.raw(schema.text())


def _unit(
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="The agent file.")] = "agent.py",
    state_dir: Annotated[
        str | None, typer.Option("--state-dir", metavar="DIR", help="State directory of the service.")
    ] = None,
    http: Annotated[str | None, typer.Option("--http", metavar="HOST:PORT", help="Serve HTTP there.")] = None,
) -> None:
    """Print a systemd unit that runs an agent.

    Of type notify: systemd is told when the agent answers, and that it still does.
    """
    from orun.cli.generators import deploy

    output.raw(deploy.unit(file, state_dir=state_dir, http=http))


def _dockerfile(
    file: Annotated[
        str, typer.Argument(metavar="[FILE]", help="The agent file, relative to the build folder.")
    ] = "agent.py",
    http: Annotated[str | None, typer.Option("--http", metavar="HOST:PORT", help="Serve HTTP there.")] = None,
) -> None:
    """Print a Dockerfile that runs an agent.

    The engine is built into the image, and the state lies on a volume.
    """
    from orun.cli.generators import deploy

    output.raw(deploy.dockerfile(file, http=http))


def _all(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="The project's folder.")] = ".",
    check: Check = False,
    quiet: Quiet = False,
) -> int:
    """Bring every generated file of orun's own repository up to date."""
    from orun.cli.generators import files

    return files.settle(files.everything(folder), folder, check=check, quiet=quiet)
