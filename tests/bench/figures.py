"""One figure: what was measured, what is asked for, and what the same machine does without orun in the same run."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: float
    unit: str
    bound: float | None = None
    at_most: bool = True
    """Whether the bound is a ceiling or a floor."""
    baselines: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.bound is None or (self.value <= self.bound if self.at_most else self.value >= self.bound)

    def line(self) -> str:
        limit = "" if self.bound is None else f"{'≤' if self.at_most else '≥'} {number(self.bound)}"
        verdict = "" if self.bound is None else "ok" if self.met else "MISSED"
        text = f"  {self.name:<66}{number(self.value):>9} {self.unit:<6}{limit:>10}  {verdict:<7}"
        for name, value in self.baselines.items():
            ratio = self.value / value if value else float("nan")
            text += f" {name} {number(value)} (x{ratio:.3g})"
        return text.rstrip()


class Report:
    """Prints figures as they come and remembers whether all bounds were met."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def title(self, text: str) -> None:
        sys.stdout.write(f"\n{text}\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        sys.stdout.write(f"  # {text}\n")
        sys.stdout.flush()

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        sys.stdout.write(figure.line() + "\n")
        sys.stdout.flush()

    @property
    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if not figure.met]


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which the share ``q`` lies, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
