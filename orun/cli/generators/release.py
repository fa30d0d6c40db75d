"""The date that generated pages carry. A literal, so that an installed orun writes the same bytes as its repository."""

from __future__ import annotations

DATE = "2026-11-21"
"""Of the latest release in CHANGELOG.md; a test compares the two."""
