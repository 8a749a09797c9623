"""How long an attempt may take, and what a run may cost over all its attempts.

It adds up what the attempts recorded and looks at the clock. It stops nothing itself, and does not know what is made.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from segdatagen.costs import Prices
from segdatagen.run_folder import Attempt

TIME_OVER = "time limit reached"
COST_OVER = "cost limit reached"
RECORD_SECONDS = 30.0
"""An attempt records at least this often what it spent, so that a kill hides no more from the ones that follow."""


@dataclass
class Budget:
    """What is left to an attempt: hours of its own, and money together with all attempts before it.

    `spent` was paid for earlier attempts; an hour of this one costs `per_hour`. What an attempt costs is the time
    between its start and its end, for all its actors, whether they are busy or not.
    """

    max_hours: float | None
    max_cost: float | None
    spent: float
    per_hour: float
    began: float = field(default_factory=time.monotonic)
    has_made: bool = False

    @property
    def seconds(self) -> float:
        """Seconds since the attempt began."""
        return time.monotonic() - self.began

    @property
    def cost(self) -> float:
        """What the run has cost so far."""
        return self.spent + self.per_hour * self.seconds / 3600

    def reached(self) -> str | None:
        """Which limit is reached, if any. Time is not over before something was made: every attempt gets on."""
        if self.max_cost is not None and self.cost >= self.max_cost:
            return COST_OVER
        if self.max_hours is not None and self.has_made and self.seconds >= self.max_hours * 3600:
            return TIME_OVER
        return None


def cost_of(attempts: Iterable[Attempt], prices: Prices) -> float:
    """What attempts have cost by the seconds that they recorded. Without a price for their actors, nothing."""
    return sum(attempt.seconds.get("wall", 0.0) / 3600 * pool_price(attempt.execution, prices) for attempt in attempts)


def pool_price(execution: dict[str, Any], prices: Prices) -> float:
    """An hour of all actors of an execution as it was recorded, 0 where they have no price."""
    actor = prices.per_actor_hour(execution.get("gpus_per_actor", 0.0), execution.get("cpus_per_actor", 1.0))
    return float(execution["actors"] * (actor or 0.0))
