"""What a worker is doing, as a number in its shared page."""

from __future__ import annotations

from typing import Final

PHASE_STARTING: Final = 0
"""Standing by, or told to activate and not yet at it."""
PHASE_REPLAYING: Final = 1
PHASE_SERVING: Final = 2
PHASE_DRAINING: Final = 3
