"""How long ``ovd benchmark`` takes: by what its rows took before."""

import textwrap
from collections.abc import Iterable, Mapping


def hours(seconds: float | None) -> str:
    """ "2:05 h" for 7500 seconds, "12 min" below an hour, "?" for None."""
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"


class Estimate:
    """What is done of a list of runs, and how long the rest takes."""

    def __init__(
        self, seconds: Mapping[str, float], runs: Iterable[tuple[str, int]], at_once: int
    ) -> None:
        """
        Args:
            seconds: of a run of each row, where known.
            runs: (row, seed) of all that is to be done.
            at_once: how many run side by side.
        """
        self._recorded = dict(seconds)
        self._measured: dict[str, list[float]] = {}
        self._waiting = list(runs)
        self._total = len(self._waiting)
        self._at_once = at_once

    def ended(self, row: str, seed: int, seconds: float) -> None:
        """Notes that a run has ended, after so many seconds of its own."""
        if (row, seed) in self._waiting:
            self._waiting.remove((row, seed))
        if seconds:
            self._measured.setdefault(row, []).append(seconds)

    def left(self) -> float | None:
        """Seconds until all is done; rows that nobody has timed count as the mean of the others.
        None where nothing is known."""
        if not self._waiting:
            return 0.0
        every = {*self._recorded, *self._measured}
        if not every:
            return None
        usual = sum(self._of(row) or 0.0 for row in every) / len(every)
        total = sum(self._of(row) or usual for row, _ in self._waiting)
        return total / min(self._at_once, len(self._waiting))

    def line(self, elapsed: float) -> str:
        """ "7 of 30 runs in 41 min, about 2:05 h left"."""
        done = self._total - len(self._waiting)
        return f"{done} of {self._total} runs in {hours(elapsed)}, about {hours(self.left())} left"

    def plan(self) -> str:
        """What is going to be done, and the minutes of each row."""
        rows = list(dict.fromkeys(row for row, _ in self._waiting))
        times = {row: self._of(row) for row in rows}
        minutes = [f"{row} {time / 60:.0f}" if time else f"{row} ?" for row, time in times.items()]
        text = (
            f"{self._total} runs, {self._at_once} at once, about {hours(self.left())}. Minutes of "
            f"a run, by runs that were kept (? where nobody has noted them): {', '.join(minutes)}."
        )
        return textwrap.fill(text, 100, break_on_hyphens=False)

    def _of(self, row: str) -> float | None:
        """Seconds of a run; what this machine has needed counts more than what was noted before."""
        measured = self._measured.get(row)
        return sum(measured) / len(measured) if measured else self._recorded.get(row)
