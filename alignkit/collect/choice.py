"""Choose which items to vote on next, and decide when there are enough votes.

Scores come from the candidates records: `score`, or for an ensemble `extra.scores`, which maps each
reward model to scores by cid (`collect.scores` fills it in). The probability that i beats j is
Bradley–Terry's sigmoid(score_i - score_j).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

from alignkit.collect.items import Item
from alignkit.errors import DataError

# Below this entropy the scores are as good as certain (0.29 bits: 95 to 5): a vote adds little.
WORTH_BITS = 0.29


def uncertainty(item: Item) -> float:
    """Return the entropy of the winner in bits, averaged over pairs; 1 is a coin toss."""
    return _mean_over_pairs(item, lambda chances: entropy(_mean(chances)))


def disagreement(item: Item) -> float:
    """Return the disagreement of the ensemble in bits, averaged over pairs (BALD).

    It is the mutual information of the vote and the model, eq. 2 of arXiv:1112.5745.
    """
    if len(_score_sets(item)) < 2:
        raise DataError(
            f"item {item.id!r} has scores of fewer than two reward models",
            hint="Name several: --reward-model RUN --reward-model RUN",
        )
    return _mean_over_pairs(
        item, lambda chances: entropy(_mean(chances)) - _mean([entropy(p) for p in chances])
    )


def entropy(p: float) -> float:
    """Return the entropy of a coin with this probability, in bits."""
    if p <= 0.0 or p >= 1.0:
        return 0.0
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def worth_asking(items: Iterable[Item], *, bits: float = WORTH_BITS) -> int:
    """Count the items whose order the scores leave uncertain by at least `bits`."""
    return sum(uncertainty(item) >= bits for item in items)


def has_scores(item: Item) -> bool:
    """Return whether some reward model scored every completion of the item."""
    return bool(_score_sets(item))


def _mean_over_pairs(item: Item, measure: Callable[[list[float]], float]) -> float:
    score_sets = _score_sets(item)
    if not score_sets:
        raise DataError(
            f"item {item.id!r} has completions without a score",
            hint="Score them with --reward-model RUN, or use --order random",
        )
    pairs = list(combinations([cids[0] for cids in item.slots], 2))
    values = [measure([_chance(s[x] - s[y]) for s in score_sets]) for x, y in pairs]
    return _mean(values)


def _score_sets(item: Item) -> list[Mapping[str, float]]:
    """Return the scores by cid, one mapping per reward model that scored every completion."""
    single = {c.cid: c.score for c in item.record.candidates if c.score is not None}
    ensemble = item.record.extra.get("scores")
    members = ensemble.values() if isinstance(ensemble, dict) else ()
    needed = {cids[0] for cids in item.slots}
    complete: list[Mapping[str, float]] = [
        member for member in members if isinstance(member, dict) and needed <= set(member)
    ]
    return complete or ([single] if needed <= set(single) else [])


def _chance(gap: float) -> float:
    """Return the sigmoid of a score difference, without overflow."""
    return 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# Stakes of up to 1.8; a stake of 2 could lose everything on one vote.
STAKES = tuple(sign * step / 10 for step in range(1, 19) for sign in (1, -1))


class SequentialTest:
    """An anytime-valid test of two models: checking after every vote does not inflate the error.

    The statistic is the wealth of a gambler who bets on mean != 1/2, averaged over fixed stakes.
    Between equal models it ever reaches 1/alpha with probability at most alpha (Ville's inequality;
    the bets are those of section 4 of arXiv:2010.09686). That needs independent draws: one outcome
    per item, in an order that does not depend on outcomes or scores.
    """

    def __init__(self, first: str, second: str, alpha: float = 0.05) -> None:
        self.first, self.second, self.alpha = first, second, alpha
        self.restart()

    def restart(self) -> None:
        """Forget all outcomes."""
        self.n = 0
        self.total = 0.0
        self._log_wealths = [0.0] * len(STAKES)

    def add(self, outcome: float) -> None:
        """Add the outcome of one item: 1 if `first` won it, 0 if `second` did, 0.5 for a tie."""
        self.n += 1
        self.total += outcome
        for index, stake in enumerate(STAKES):
            self._log_wealths[index] += math.log1p(stake * (outcome - 0.5))

    @property
    def mean(self) -> float:
        """Return the win rate of `first`, ties as half; 0.5 before the first item."""
        return self.total / self.n if self.n else 0.5

    @property
    def log_wealth(self) -> float:
        """Return the log of the wealth that 1 has become: the evidence against equal models."""
        top = max(self._log_wealths)
        total = sum(math.exp(value - top) for value in self._log_wealths)
        return top + math.log(total / len(STAKES))

    @property
    def decided(self) -> bool:
        """Return whether the models differ, at error rate alpha over all checks together."""
        return self.log_wealth >= math.log(1 / self.alpha)

    def more_votes(self) -> int | None:
        """Estimate how many more items decide the test at the present rate; None without a rate."""
        if self.decided:
            return 0
        growth = max(self._log_wealths) / self.n if self.n else 0.0
        if growth <= 0:
            return None
        needed = math.log(len(STAKES) / self.alpha) / growth
        return max(1, math.ceil(needed) - self.n)


def sequential_test_of(items: Iterable[Item], *, alpha: float = 0.05) -> SequentialTest:
    """Return a test of the two models being ranked; DataError unless there are exactly two."""
    models = sorted({c.model or "?" for item in items for c in item.record.candidates})
    if len(models) != 2:
        raise DataError(
            f"stopping early needs exactly two models; the candidates have {len(models)}",
            hint=f"They are {', '.join(models)}",
        )
    return SequentialTest(models[0], models[1], alpha)


def outcome(item: Item, ranks: Mapping[str, int], test: SequentialTest) -> float | None:
    """Return the share of pairs that the first model wins in one vote; None without pairs."""
    wins = [
        0.5 if ranks[x] == ranks[y] else float(ranks[x] < ranks[y])
        for x in ranks
        for y in ranks
        if item.by_cid[x].model == test.first and item.by_cid[y].model == test.second
    ]
    return _mean(wins) if wins else None
