"""Asking before something is lost. Without a terminal nothing is asked: then --yes has to be there."""

from __future__ import annotations

from orun.cli import output
from orun.errors import OrunError, UsageError


def confirm(question: str, *, yes: bool) -> None:
    """Return when the answer is yes. Raises UsageError when nobody can be asked, OrunError on a no."""
    if yes:
        return
    if not output.can_ask():
        raise UsageError(
            "this needs a confirmation, and there is no terminal to ask on",
            hint="add --yes; --dry-run where offered shows what would happen",
        )
    if not output.ask(question):
        raise OrunError("not confirmed; nothing was changed")
