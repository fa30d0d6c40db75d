"""Tasks that the runtime cannot go on without.

An exception in a task that nobody awaits is kept in the task and told to nobody: a supervisor would simply
stop supervising. A vital task tells it to the event loop instead, and the runtime then ends as a crashed
process does. Its guard starts it again, and everything durable is taken over by the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

VITAL = "vital"
"""The key that marks such a failure in what the loop's exception handler gets."""


def vital(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start ``work`` as a task whose failure is never overlooked."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_tell)
    return task


def _tell(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        context = {"message": f"{task.get_name()} failed", "exception": error, "task": task, VITAL: True}
        task.get_loop().call_exception_handler(context)
