"""orun: a supervised, durable runtime for programs that improve their own code."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for it would cost each command 8 ms
if TYPE_CHECKING:
    from typing import Any

    from orun.worker.agent import Agent, Context
    from orun.worker.client import Client, connect

__version__ = "0.1.0"
__all__ = ["Agent", "Client", "Context", "__version__", "connect"]

_HOMES = {
    "Agent": "orun.worker.agent",
    "Context": "orun.worker.agent",
    "Client": "orun.worker.client",
    "connect": "orun.worker.client",
}


def __getattr__(name: str) -> Any:
    """Load a public name where it lives: ``import orun`` alone stays free of cost."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'orun' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)
