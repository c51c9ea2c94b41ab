"""Find near-duplicate texts by MinHash over word triples, vectorized: microseconds per text.

One-permutation hashing (Li, Owen, Zhang 2012, arXiv:1208.1259) with rotation densification
(Shrivastava, Li 2014, arXiv:1406.4784): each text's triples are hashed once and fall into `BINS`
bins; the smallest hash of a bin is its signature there. Two texts agree in a bin with the
probability of their Jaccard similarity. Bands of `BAND` bins find candidate pairs, and the share
of agreeing bins decides. Hashes do not depend on the process, so neither does the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 64
BAND = 4
BATCH_BYTES = 1 << 19
MAX_TEXT = 1 << 16

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]

_PRIME = 0x9E3779B97F4A7C15
_EMPTY = np.uint32(0xFFFFFFFF)


def _powers(base: int, count: int) -> U64:
    """Return base**0 … base**(count-1) modulo 2**64."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


_SIZE = BATCH_BYTES + MAX_TEXT + 2
_FORWARD = _powers(_PRIME, _SIZE)
_BACKWARD = _powers(pow(_PRIME, -1, 1 << 64), _SIZE)


def _mixed(values: U64) -> U64:
    """Scramble 64-bit values bijectively (the finalizer of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _word_hashes(text: npt.NDArray[np.uint8]) -> tuple[U64, npt.NDArray[np.int64]]:
    """Return (hash, start) of each word, words being separated by white space.

    The hash of bytes s…e is (P[e] - P[s]) * base**-s for P the running polynomial, modulo 2**64.
    """
    is_space = text <= 32
    edges = np.flatnonzero(np.diff(is_space, prepend=True, append=True))
    starts, ends = edges[0::2], edges[1::2]
    running = np.zeros(len(text) + 1, dtype=np.uint64)
    np.cumsum((text.astype(np.uint64) + np.uint64(1)) * _FORWARD[: len(text)], out=running[1:])
    return _mixed((running[ends] - running[starts]) * _BACKWARD[starts]), starts


def _triples(words: U64, owner: npt.NDArray[np.int64]) -> tuple[U64, npt.NDArray[np.int64]]:
    """Return (hash, owner) per run of three words of one text; a shorter text gives one hash."""
    first, second, third = words.copy(), np.zeros_like(words), np.zeros_like(words)
    same_next = np.zeros(len(words), dtype=bool)
    same_next[:-1] = owner[1:] == owner[:-1]
    same_third = np.zeros(len(words), dtype=bool)
    same_third[:-2] = owner[2:] == owner[:-2]
    second[:-1] = words[1:]
    second[~same_next] = 0
    third[:-2] = words[2:]
    third[~same_third] = 0
    begins = np.ones(len(words), dtype=bool)
    begins[1:] = owner[1:] != owner[:-1]
    keep = same_third | begins
    hashes = first + second * np.uint64(3 * _PRIME & 0xFFFFFFFFFFFFFFFF)
    hashes = hashes + third * np.uint64(5 * _PRIME & 0xFFFFFFFFFFFFFFFF)
    return _mixed(hashes[keep]), owner[keep]


def signatures(texts: Sequence[bytes]) -> U32:
    """Return MinHash signatures, shape (texts, BINS); empty for a text without words."""
    lengths = np.fromiter((len(text) + 1 for text in texts), dtype=np.int64, count=len(texts))
    whole = np.frombuffer(b" ".join(texts) + b" ", dtype=np.uint8)
    words, starts = _word_hashes(whole)
    owner = np.searchsorted(np.cumsum(lengths), starts, side="right")
    hashes, owner = _triples(words, owner)
    table = np.full(len(texts) * BINS, _EMPTY, dtype=np.uint32)
    bins = owner * BINS + (hashes >> np.uint64(58)).astype(np.int64)
    np.minimum.at(table, bins, (hashes & np.uint64(0x7FFFFFFF)).astype(np.uint32))
    return _densified(table.reshape(len(texts), BINS))


def _densified(table: U32) -> U32:
    """Fill empty bins from the next filled bin to the right, marked by the distance."""
    for step in (1, 2, 4, 8, 16, 32):
        empty = table == _EMPTY
        if not empty.any():
            break
        borrowed = np.roll(table, -step, axis=1)
        # The distance must enter, or two texts with few triples would agree in every bin.
        usable = empty & (borrowed != _EMPTY)
        table[usable] = (borrowed[usable] * np.uint32(31) + np.uint32(step)) & np.uint32(0x7FFFFFFF)
    return table


def _bands(table: U32) -> U32:
    """Return one 32-bit hash per band, shape (texts, BINS / BAND)."""
    grouped = table.reshape(len(table), BINS // BAND, BAND).astype(np.uint64)
    value = np.zeros(grouped.shape[:2], dtype=np.uint64)
    for position in range(BAND):
        value = _mixed(value * np.uint64(_PRIME) + grouped[:, :, position])
    return (value >> np.uint64(32)).astype(np.uint32)


@dataclass
class NearIndex:
    """Signatures of a stream of texts, 128 bytes per text; `pairs` are found at the end."""

    threshold: float = 0.8
    _pending: list[bytes] = field(default_factory=list)
    _pending_size: int = 0
    _bins: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _bands: list[U32] = field(default_factory=list)
    _empty: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Add a text; its number is the count of texts before it."""
        data = text[:MAX_TEXT].lower().encode("utf-8", "surrogatepass")[:MAX_TEXT]
        self._pending.append(data)
        self._pending_size += len(data) + 1
        if self._pending_size >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = signatures(self._pending)
            self._bins.append((table & np.uint32(0xFF)).astype(np.uint8))
            self._bands.append(_bands(table))
            self._empty.append(table[:, 0] == _EMPTY)
            self._pending, self._pending_size = [], 0

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield (earlier, later) numbers of near-duplicates.

        Each text is paired with the first it resembles in a band, so that a cluster gives a
        chain, not all its pairs.
        """
        low, bands, usable = self._merged()
        firsts: dict[int, int] = {}
        for band in range(bands.shape[1]):
            for earlier, later in self._in_band(low, bands[:, band], usable):
                if earlier < firsts.get(later, later):
                    firsts[later] = earlier
        yield from sorted((earlier, later) for later, earlier in firsts.items())

    def _in_band(
        self, low: npt.NDArray[np.uint8], keys: U32, usable: npt.NDArray[np.int64]
    ) -> list[tuple[int, int]]:
        """Return pairs that share this band's hash and agree in enough bins."""
        order = usable[np.argsort(keys[usable], kind="stable")]
        same = keys[order][1:] == keys[order][:-1]
        if not same.any():
            return []
        # The head of each run of equal keys; every other member is paired with head and neighbor.
        starts = np.flatnonzero(np.concatenate([[True], ~same]))
        heads = order[np.repeat(starts, np.diff(np.append(starts, len(order))))]
        later = order[1:][same]
        pairs = []
        for earlier in (heads[1:][same], order[:-1][same]):
            close = self._alike(low, earlier, later)
            pairs += list(zip(earlier[close].tolist(), later[close].tolist(), strict=True))
        return pairs

    def matches(self, other: NearIndex) -> Iterator[tuple[int, int]]:
        """Yield (own, other) numbers of near-duplicates between two indexes, one per own text."""
        low, bands, usable = self._merged()
        other_low, other_bands, other_usable = other._merged()
        pairs: dict[int, int] = {}
        for band in range(BINS // BAND):
            order = other_usable[np.argsort(other_bands[other_usable, band], kind="stable")]
            keys = other_bands[order, band]
            if not len(keys):
                return
            place = np.searchsorted(keys, bands[usable, band]).clip(max=len(keys) - 1)
            hit = keys[place] == bands[usable, band]
            lefts, rights = usable[hit], order[place[hit]]
            agree = (low[lefts] == other_low[rights]).mean(axis=1)
            for left, right, share in zip(lefts.tolist(), rights.tolist(), agree, strict=True):
                if _similarity(share) >= self.threshold:
                    pairs.setdefault(left, right)
        yield from sorted(pairs.items())

    def _merged(
        self,
    ) -> tuple[npt.NDArray[np.uint8], U32, npt.NDArray[np.int64]]:
        """Return (low bits, bands, positions of texts that have words) of all texts so far."""
        self._flush()
        if not self._bins:
            nothing = np.zeros((0, BINS), dtype=np.uint8)
            return nothing, np.zeros((0, BINS // BAND), dtype=np.uint32), np.zeros(0, np.int64)
        self._bins = [np.concatenate(self._bins)]
        self._bands = [np.concatenate(self._bands)]
        self._empty = [np.concatenate(self._empty)]
        return self._bins[0], self._bands[0], np.flatnonzero(~self._empty[0])

    def _alike(
        self,
        low: npt.NDArray[np.uint8],
        left: npt.NDArray[np.int64],
        right: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Return whether the estimated similarity reaches the threshold."""
        result = np.empty(len(left), dtype=bool)
        for start in range(0, len(left), 65536):
            chunk = slice(start, start + 65536)
            agree = (low[left[chunk]] == low[right[chunk]]).mean(axis=1)
            result[chunk] = _similarity(agree) >= self.threshold
        return result


def _similarity(agree: Any) -> Any:
    """Estimate Jaccard similarity from the share of bins whose eight kept bits agree.

    Unequal hashes agree in these bits by chance once in 256 (b-bit minwise hashing, Li and König
    2010, arXiv:0910.3349, eq. 5).
    """
    return (agree - 1 / 256) / (1 - 1 / 256)
