"""What the server counts, as Prometheus reads it."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from nonpareil.serving.records import Drawn, Scored

MOST_REASONS = 64
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, named `nonpareil_...`; `process_...` are its process's (CPU seconds, memory)."""

    def __init__(self) -> None:
        """All at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        made: Any = {"registry": self.registry, "namespace": "nonpareil"}
        self.requests = Counter(
            "requests", "Requests answered, by endpoint and status.", ["endpoint", "status"], **made
        )
        self.disconnects = Counter("disconnects", "Requests whose clients left before the answer.", **made)
        self.running = Gauge("requests_running", "Requests under way or waiting.", **made)
        self.answers = Counter("answers_drawn", "Answers drawn.", **made)
        self.tokens = Counter("tokens", "Tokens: of prompts, of all drawn answers.", ["kind"], **made)
        self.nulls = Counter("rewards_null", "Answers without a reward.", **made)
        self.fallbacks = Counter("fallbacks", "Requests answered without any reward.", **made)
        self.stops = Counter("stops", "Requests drawn in rounds, by what ended them.", ["why"], **made)
        self.groups = Counter("groups", "Requests that left a group.", **made)
        self.not_stored = Counter("groups_not_stored", "Requests that left none, by why.", ["why"], **made)
        self._reasons: set[str] = set()
        self.upstream_requests = Counter(
            "upstream_requests", "Requests to the upstream, retries included.", **made
        )
        self.draw_seconds = Histogram(
            "draw_seconds", "From asking the upstream to its answer.", buckets=SECONDS, **made
        )
        self.score_seconds = Histogram(
            "score_seconds", "Of scoring a request's answers.", buckets=SECONDS, **made
        )
        self.request_seconds = Histogram(
            "request_seconds", "From arrival to answer.", buckets=SECONDS, **made
        )
        self.gain = Histogram(
            "reward_gain",
            "Reward of the first answer returned above the mean of those drawn, in standard deviations of them.",
            buckets=(0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
            **made,
        )

    def drew(self, drawn: Drawn, seconds: float) -> None:
        """A request's answers have come."""
        self.answers.inc(len(drawn.answers))
        self.tokens.labels("prompt").inc(drawn.prompt_tokens)
        self.tokens.labels("completion").inc(drawn.completion_tokens)
        self.upstream_requests.inc(drawn.upstream_requests)
        self.draw_seconds.observe(seconds)

    def scored(self, scored: Scored, seconds: float) -> None:
        """They have been scored."""
        self.nulls.inc(sum(reward is None for reward in scored.rewards))
        self.score_seconds.observe(seconds)

    def chose(self, scored: Scored, first: int) -> None:
        """One has been chosen."""
        known = [reward for reward in scored.rewards if reward is not None]
        mean = sum(known) / len(known)
        spread = (sum((reward - mean) ** 2 for reward in known) / len(known)) ** 0.5
        best = scored.rewards[first]
        if best is not None and spread > 0:
            self.gain.observe((best - mean) / spread)

    def kept(self, why_not: str | None) -> None:
        """A group was kept, or why not. There are so many reasons at most: others' words may be in them."""
        if why_not is None:
            self.groups.inc()
            return
        if len(self._reasons) < MOST_REASONS:
            self._reasons.add(why_not)
        self.not_stored.labels(why_not if why_not in self._reasons else "another").inc()

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)
