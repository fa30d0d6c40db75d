"""What a user writes: an ``Agent``, its handlers, and the context that a handler may ask for.

A handler is ``handler(state, request)`` or ``handler(state, request, ctx)``, plain or ``async``. Plain
handlers run one at a time; async handlers may overlap, and one that committed after another had read
the same blocks is run again on the new state. ``state`` is atomic: kept when the handler returns,
dropped when it raises.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, final, overload

from orun.errors import UsageError
from orun.settings import Durability

Function = TypeVar("Function", bound=Callable[..., Any])
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")


@final
@dataclass(frozen=True, slots=True)
class Handler:
    """One kind of request that an agent serves, and how."""

    name: str
    function: Callable[..., Any]
    readonly: bool
    retry: bool
    timeout_s: float | None
    durability: Durability | None
    is_async: bool
    takes_context: bool


@final
class Agent:
    """A named set of handlers over one durable state. Raises UsageError for a name that cannot be used."""

    def __init__(self, name: str, *, durability: Durability | None = None) -> None:
        _check_name("an agent", name)
        if durability not in (None, "disk", "process"):
            raise UsageError(f"agent {name}: durability is 'disk' or 'process', not {durability!r}")
        self.name = name
        self.durability: Durability | None = durability
        self.handlers: dict[str, Handler] = {}

    @overload
    def handler(self, function: Function, /) -> Function: ...

    @overload
    def handler(
        self,
        /,
        *,
        name: str | None = None,
        readonly: bool = False,
        retry: bool = True,
        timeout: float | None = None,
        durability: Durability | None = None,
    ) -> Callable[[Function], Function]: ...

    def handler(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        readonly: bool = False,
        retry: bool = True,
        timeout: float | None = None,
        durability: Durability | None = None,
    ) -> Any:
        """Register a handler under its own name, or under ``name``.

        ``readonly``: may not change the state, and writes no effect to the log. ``retry=False``: when its
        worker dies under it, the caller gets an error instead of a second run. ``timeout``: seconds
        until it counts as hung. ``durability``: for this handler's replies. Raises UsageError for a
        second handler of the same name or a function with the wrong number of arguments.
        """

        def register(function: Function) -> Function:
            title = name or function.__name__
            _check_name("a handler", title)
            if title in self.handlers:
                raise UsageError(f"agent {self.name}: two handlers are named {title!r}")
            if timeout is not None and (not isinstance(timeout, int | float) or timeout <= 0):
                raise UsageError(f"handler {title}: timeout is a number of seconds above 0, not {timeout!r}")
            self.handlers[title] = Handler(
                name=title,
                function=function,
                readonly=readonly,
                retry=retry,
                timeout_s=timeout,
                durability=durability,
                is_async=inspect.iscoroutinefunction(function),
                takes_context=_takes_context(title, function),
            )
            return function

        return register if function is None else register(function)


@final
class Context:
    """What a handler may know about its request beside the payload."""

    __slots__ = ("_record", "_steps", "_used", "attempt", "deadline_ms", "key", "lsn", "request_id")

    def __init__(
        self,
        *,
        attempt: int,
        lsn: int,
        request_id: bytes,
        key: str | None,
        deadline_ms: int | None,
        steps: dict[str, Any],
        record: Callable[[str, Any], Any],
    ) -> None:
        self.attempt = attempt
        """1 for the first delivery; raised when a worker died under the request."""
        self.lsn = lsn
        """Where the log holds the request's first delivery."""
        self.request_id = request_id
        self.key = key
        self.deadline_ms = deadline_ms
        self._steps = steps
        self._record = record
        self._used: set[str] = set()

    def step(self, name: str, function: Callable[[], Any]) -> Any:
        """Run ``function`` once for this request, however often the request is delivered.

        Its result goes into the log before it is returned; a later delivery gets that result and
        ``function`` is not called. A function that returns an awaitable gives an awaitable. The
        result comes back as MessagePack gives it (a tuple is a list). Raises ValueError when the
        same name is used twice in one run.
        """
        if name in self._used:
            raise ValueError(f"step {name!r} is used twice in one request")
        self._used.add(name)
        if name in self._steps:
            return self._steps[name] if not inspect.iscoroutinefunction(function) else _ready(self._steps[name])
        result = function()
        if inspect.isawaitable(result):
            return self._later(name, result)
        return self._keep(name, result)

    async def _later(self, name: str, result: Awaitable[Any]) -> Any:
        return self._keep(name, await result)

    def _keep(self, name: str, result: Any) -> Any:
        kept = self._record(name, result)
        self._steps[name] = kept
        return kept


async def _ready(value: Any) -> Any:
    return value


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.match(name):
        raise UsageError(
            f"{name!r} cannot name {what}",
            hint="a letter, then letters, digits, '_', '-' or '.', 64 characters at most",
        )


def _takes_context(title: str, function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(positional) < 2 or len(required) > 3 or keyword_only:
        raise UsageError(
            f"handler {title}: takes {len(positional)} positional arguments",
            hint="a handler is (state, request) or (state, request, ctx)",
        )
    return len(positional) >= 3
