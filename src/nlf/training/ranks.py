"""The ranks of a run: which parts each rank samples, and how the first rank passes a result to the other ranks.

The first rank calls remote rewards for all ranks. The other ranks wait for its files, because a collective operation
would time out while the service answers.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nlf.data.files import write_text

POLL = 0.5  # seconds between two looks for another rank's file


class Share(NamedTuple):
    """The share of an iteration's parts that one rank samples: the parts `rank`, `rank + of`, `rank + 2 of`, …"""

    rank: int | None = 0  # None: another rank samples on this rank's GPU, so this rank has no parts
    of: int = 1

    @property
    def has_parts(self) -> bool:
        """Whether this rank samples parts at all."""
        return self.rank is not None

    def has(self, part: int) -> bool:
        """Whether this rank samples the part with this number."""
        return part % self.of == self.rank


def _nothing() -> None:
    """The default barrier and stop check of a run with one rank."""


@dataclass(frozen=True)
class Ranks:
    """One rank's place among the ranks of a run; the default is a run with one rank.

    Attributes:
        share: This rank's share of the parts.
        first: Whether this is the first rank.
        barrier: Returns once every rank has called it.
        stop_if_asked: Raises SystemExit when the run is asked to stop.
    """

    share: Share = Share()
    first: bool = True
    barrier: Callable[[], None] = _nothing
    stop_if_asked: Callable[[], None] = _nothing

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Wait until another rank has done its work.

        Raises:
            SystemExit: the run is asked to stop.
        """
        self.stop_if_asked()
        while not done():
            time.sleep(POLL)
            self.stop_if_asked()

    def from_first(self, path: Path, make: Callable[[], Any]) -> Any:
        """The JSON value that the first rank makes; the other ranks read it from the file `path`, which is removed.

        Raises:
            SystemExit: the run is asked to stop.
            UserError: the file cannot be written.
        """
        if self.first:
            path.unlink(missing_ok=True)  # left by a run that was killed
        self.barrier()
        if self.first:
            write_text(path, json.dumps(make()))
        self.wait_for(path.is_file)
        value = json.loads(path.read_text(encoding="utf-8"))
        self.barrier()
        if self.first:
            path.unlink()
        return value
