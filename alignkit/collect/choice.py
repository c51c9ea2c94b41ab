"""Which vote teaches most, when enough were cast, and how many more are worth it.

Scores come from the candidates records: `score`, and for an ensemble `extra.scores`, by reward
model a mapping of cid to score (`collect.scores` fills it in). The probability that i beats j is
Bradley-Terry's sigmoid(score_i - score_j).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

from alignkit.collect.items import Item
from alignkit.errors import DataError

# Below this many bits the models are as good as sure (0.29 bits: 95 to 5) and asking is a waste.
WORTH_BITS = 0.29


def uncertainty(item: Item) -> float:
    """Mean over pairs of answers of the entropy, in bits, of who wins; 1 is a coin toss."""
    return _mean_over_pairs(item, lambda chances: entropy(_mean(chances)))


def disagreement(item: Item) -> float:
    """Mean over pairs of the bits that the ensemble's members disagree by (BALD).

    Mutual information of the vote and the model, eq. 2 of arXiv:1112.5745.
    """
    if len(_score_sets(item)) < 2:
        raise DataError(
            f"item {item.id!r} has the scores of fewer than two reward models",
            hint="Name several: --reward-model RUN --reward-model RUN",
        )
    return _mean_over_pairs(
        item, lambda chances: entropy(_mean(chances)) - _mean([entropy(p) for p in chances])
    )


def entropy(p: float) -> float:
    """Of a coin with this chance, in bits."""
    if p <= 0.0 or p >= 1.0:
        return 0.0
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def worth_asking(items: Iterable[Item], *, bits: float = WORTH_BITS) -> int:
    """How many of the items the scores leave open by at least `bits`."""
    return sum(uncertainty(item) >= bits for item in items)


def has_scores(item: Item) -> bool:
    """Whether some reward model scored every answer of the item."""
    return bool(_score_sets(item))


def _mean_over_pairs(item: Item, measure: Callable[[list[float]], float]) -> float:
    score_sets = _score_sets(item)
    if not score_sets:
        raise DataError(
            f"item {item.id!r} has answers without a score",
            hint="Score them: --reward-model RUN, or use --order random",
        )
    pairs = list(combinations([cids[0] for cids in item.slots], 2))
    values = [measure([_chance(s[x] - s[y]) for s in score_sets]) for x, y in pairs]
    return _mean(values)


def _score_sets(item: Item) -> list[Mapping[str, float]]:
    """One mapping of cid to score a reward model, those that cover every answer."""
    single = {c.cid: c.score for c in item.record.candidates if c.score is not None}
    ensemble = item.record.extra.get("scores")
    members = ensemble.values() if isinstance(ensemble, dict) else ()
    needed = {cids[0] for cids in item.slots}
    complete: list[Mapping[str, float]] = [
        member for member in members if isinstance(member, dict) and needed <= set(member)
    ]
    return complete or ([single] if needed <= set(single) else [])


def _chance(gap: float) -> float:
    """Bradley-Terry's sigmoid of a score gap, without overflow."""
    return 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# Stakes up to 1.8 of the 2 that could lose everything on one vote.
STAKES = tuple(sign * step / 10 for step in range(1, 19) for sign in (1, -1))


class Duel:
    """An anytime-valid test of two models: looking after every vote does not inflate the error.

    The wealth of a gambler who bets on mean != 1/2, averaged over fixed stakes. Between models
    that are level it ever reaches 1/alpha with probability alpha at most (Ville's inequality; the
    bets are those of section 4 of arXiv:2010.09686). One outcome an item, in an order that does
    not depend on outcomes or scores, is what makes the votes fair draws.
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
        """One more item: 1 when `first` won it, 0 when `second` did, 0.5 when neither."""
        self.n += 1
        self.total += outcome
        for index, stake in enumerate(STAKES):
            self._log_wealths[index] += math.log1p(stake * (outcome - 0.5))

    @property
    def mean(self) -> float:
        """The share won by `first`, ties as half; 0.5 before the first item."""
        return self.total / self.n if self.n else 0.5

    @property
    def log_wealth(self) -> float:
        """The evidence against an even match, as the logarithm of what one coin became."""
        top = max(self._log_wealths)
        spread = sum(math.exp(value - top) for value in self._log_wealths)
        return top + math.log(spread / len(STAKES))

    @property
    def decided(self) -> bool:
        """Whether the models differ, at error rate alpha whenever one looks."""
        return self.log_wealth >= math.log(1 / self.alpha)

    def more_votes(self) -> int | None:
        """About how many more items decide it if the rate stays; None: no rate to go by."""
        if self.decided:
            return 0
        growth = max(self._log_wealths) / self.n if self.n else 0.0
        if growth <= 0:
            return None
        needed = math.log(len(STAKES) / self.alpha) / growth
        return max(1, math.ceil(needed) - self.n)


def duel_of(items: Iterable[Item], *, alpha: float = 0.05) -> Duel:
    """A duel of the two models whose answers are ranked; more or fewer than two is an error."""
    models = sorted({c.model or "?" for item in items for c in item.record.candidates})
    if len(models) != 2:
        raise DataError(
            f"stopping early compares two models; the candidates name {len(models)}",
            hint=f"Found: {', '.join(models)}",
        )
    return Duel(models[0], models[1], alpha)


def outcome(item: Item, ranks: Mapping[str, int], duel: Duel) -> float | None:
    """The share of pairs that the first model's answers win in one vote; None: none compared."""
    wins = [
        0.5 if ranks[x] == ranks[y] else float(ranks[x] < ranks[y])
        for x in ranks
        for y in ranks
        if item.by_cid[x].model == duel.first and item.by_cid[y].model == duel.second
    ]
    return _mean(wins) if wins else None
