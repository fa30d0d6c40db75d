"""Shared pages: what an agent's worker shows of itself, read by the runtime at any moment.

One page of 64-bit slots per agent, each with a single writer, and a latency histogram. It lives in a
memfd whose descriptor is handed to the worker, and is sealed against a change of its size, so that no
worker can make the runtime fault.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from typing import Any, final

from orun.engine.load import engine
from orun.errors import Damaged

PAGE_BYTES = 16384
_SLOTS_AT = 64
_SLOTS_END = 1024
_BUCKETS_AT = 1024
_SUB_BITS = 5

SLOTS = {
    name: index
    for index, name in enumerate(
        (
            "native_ns",
            "loop_ns",
            "handler_start_ns",
            "handler_lsn",
            "handler_deadline_ns",
            "phase",
            "progress_done",
            "progress_total",
            "pid",
            "requests",
            "errors",
            "queue_depth",
            "in_flight",
            "last_lsn",
            "busy",
        )
    )
}
"""Each slot's place in ``AgentPage.slots``. Times are those of the monotonic clock, in ns."""


class _Slot:
    """An attribute that is a slot of the page."""

    __slots__ = ("_index",)

    def __init__(self, name: str) -> None:
        self._index = SLOTS[name]

    def __get__(self, page: AgentPage, owner: type) -> int:
        return page.slots[self._index]

    def __set__(self, page: AgentPage, value: int) -> None:
        page.slots[self._index] = value


@final
class AgentPage:
    """One agent's page. Slots are attributes; a hot path indexes ``slots`` by ``SLOTS`` itself."""

    native_ns = _Slot("native_ns")
    loop_ns = _Slot("loop_ns")
    handler_start_ns = _Slot("handler_start_ns")
    handler_lsn = _Slot("handler_lsn")
    handler_deadline_ns = _Slot("handler_deadline_ns")
    phase = _Slot("phase")
    progress_done = _Slot("progress_done")
    progress_total = _Slot("progress_total")
    pid = _Slot("pid")
    requests = _Slot("requests")
    errors = _Slot("errors")
    queue_depth = _Slot("queue_depth")
    in_flight = _Slot("in_flight")
    last_lsn = _Slot("last_lsn")
    busy = _Slot("busy")

    def __init__(self, descriptor: int, owned: bool) -> None:
        loaded = engine()
        self._lib = loaded.lib
        self._ffi = loaded.ffi
        self._owned = owned
        self.fd = descriptor
        """To be handed to another process."""
        self._file = mmap.mmap(descriptor, PAGE_BYTES)
        self._page: Any = loaded.ffi.from_buffer("Page *", self._file, require_writable=True)
        self._words = memoryview(self._file)
        self.slots = self._words[_SLOTS_AT:_SLOTS_END].cast("Q")
        """All slots, as numbers."""
        self._ticker: threading.Thread | None = None
        self._record = loaded.lib.orun_record_latency

    @classmethod
    def create(cls) -> AgentPage:
        """A new page, all slots 0; its descriptor is inheritable by those it is passed to only."""
        descriptor = os.memfd_create("orun-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, PAGE_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        page = cls(descriptor, owned=True)
        page.reset()
        return page

    @classmethod
    def attach(cls, fd: int) -> AgentPage:
        """Map a page that another process made. The descriptor stays the caller's."""
        if os.fstat(fd).st_size < PAGE_BYTES:
            raise Damaged(f"descriptor {fd} is not an agent's page")
        page = cls(fd, owned=False)
        if page._lib.orun_page_check(page._page, PAGE_BYTES):
            page.close()
            raise Damaged(f"descriptor {fd} is not an agent's page")
        return page

    def reset(self) -> None:
        """All slots and the histogram to 0; only while nobody else writes."""
        self._lib.orun_page_init(self._page, PAGE_BYTES)

    def record_latency(self, ns: int) -> None:
        """Count one latency."""
        self._record(self._page, ns)

    def quantile(self, q: float) -> int:
        """The latency in ns that a share of ``q`` does not exceed, at most 3 % too high; 0: none recorded."""
        return self._lib.orun_quantile(self._page, round(q * 1_000_000))  # type: ignore[no-any-return]

    @property
    def latency_count(self) -> int:
        """Latencies recorded."""
        return self._page.latency_count  # type: ignore[no-any-return]

    @property
    def latency_sum(self) -> int:
        """Their sum in ns."""
        return self._page.latency_sum  # type: ignore[no-any-return]

    @property
    def latency_max(self) -> int:
        """The largest, in ns."""
        return self._page.latency_max  # type: ignore[no-any-return]

    def buckets(self) -> list[tuple[int, int]]:
        """The histogram: (largest ns of the bucket, count), without empty ones."""
        counts = self._words[_BUCKETS_AT:].cast("Q")
        return [(_bucket_max(index), count) for index, count in enumerate(counts) if count]

    def start_ticker(self, interval_ms: int = 250) -> None:
        """Keep ``native_ns`` fresh from a thread that needs no GIL, until ``close``."""
        self._stop = self._ffi.new("uint32_t *")
        self._ticker = threading.Thread(
            target=self._lib.orun_ticker_run,
            args=(self._page, self._stop, interval_ms),
            name="orun-ticker",
            daemon=True,
        )
        self._ticker.start()

    def close(self) -> None:
        """Stop the ticker and unmap the page."""
        if self._ticker is not None:
            self._lib.orun_ticker_stop(self._stop)
            self._ticker.join()
        self._ffi.release(self._page)
        self.slots.release()
        self._words.release()
        self._file.close()
        if self._owned:
            os.close(self.fd)


def _bucket_max(index: int) -> int:
    sub = 1 << _SUB_BITS
    if index < sub:
        return index
    shift = index // sub - 1
    return ((sub + index % sub + 1) << shift) - 1
