"""The network of the months: it fails as that of the random histories does, and somebody may act before a meter event gets through."""

from collections.abc import Callable
from urllib.parse import parse_qs

from crash.network import Exchange, Network, Request
from crash.workers import Worker


class Wire(Network):
    """`before_event`: by customer, what happens before the next event of theirs is sent on; it is given the event's time."""

    def __init__(self, *way: object) -> None:
        super().__init__(*way)  # type: ignore[arg-type]
        self.before_event: dict[str, Callable[[int], None]] = {}

    def exchange(self, worker: Worker, request: Request) -> Exchange:
        if request.reports_usage and request.customer in self.before_event:
            self.before_event[request.customer](int(parse_qs(str(request.body))["timestamp"][0]))
        return (yield from super().exchange(worker, request))
