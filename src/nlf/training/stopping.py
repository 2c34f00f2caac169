"""A clean stop: SIGTERM, which comes before preemption, ends a run at the next point from which it can resume."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator

EXIT_CODE = 143  # the exit code of a process that SIGTERM ends


@dataclass
class StopSignal:
    """Remembers that SIGTERM came.

    Attributes:
        asked: Whether SIGTERM came to this rank, or to any rank after `reached_any`.
    """

    asked: bool = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch SIGTERM inside the `with` block; in other threads than the main thread this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def remember(*_) -> None:
            self.asked = True

        previous = signal.signal(signal.SIGTERM, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def exit_if_asked(self) -> None:
        """End the run if SIGTERM came to this rank.

        Raises:
            SystemExit: SIGTERM came.
        """
        if self.asked:
            raise SystemExit(EXIT_CODE)

    def reached_any(self, accelerator: Accelerator) -> bool:
        """Whether SIGTERM came to any rank, so that all ranks stop at the same step; every rank calls this."""
        if accelerator.num_processes > 1:
            flag = torch.tensor(float(self.asked), device=accelerator.device)
            self.asked = bool(accelerator.reduce(flag, "sum") > 0)
        return self.asked
