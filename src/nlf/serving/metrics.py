"""Numbers of a server in Prometheus' text format, version 0.0.4."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds


class Histogram:
    """Counts of durations in seconds, up to each of `BOUNDS`."""

    def __init__(self) -> None:
        self.counts, self.total = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> list[str]:
        so_far, lines = 0, []
        for bound, count in zip((*BOUNDS, "+Inf"), self.counts, strict=True):
            so_far += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {so_far}"]


class Metrics:
    """What a server has done."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()  # by path and status
        self.tokens: Counter[str] = Counter()  # "prompt", "completion"
        self.first_token, self.request = Histogram(), Histogram()

    def text(self, gauges: Mapping[str, tuple[str, int]]) -> str:
        """The page of all metrics. `gauges`: for each name a line of help and the value now."""
        answers = [
            f'nlf_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.answers.items())
        ]
        tokens = [f'nlf_tokens_total{{kind="{kind}"}} {self.tokens[kind]}' for kind in ("prompt", "completion")]
        first, whole = "nlf_time_to_first_token_seconds", "nlf_request_seconds"
        families = [
            ("nlf_requests_total", "counter", "Requests answered, by path and status.", answers),
            ("nlf_tokens_total", "counter", "Tokens read and written for requests.", tokens),
            (first, "histogram", "From a request to its first token.", self.first_token.lines(first)),
            (whole, "histogram", "From a request to its last token.", self.request.lines(whole)),
            *((name, "gauge", help, [f"{name} {value}"]) for name, (help, value) in gauges.items()),
        ]
        return "".join(
            "\n".join([f"# HELP {name} {help}", f"# TYPE {name} {kind}", *lines]) + "\n"
            for name, kind, help, lines in families
        )
