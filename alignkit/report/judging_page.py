"""Win-rate and agreement reports as one self-contained page: nothing is fetched, nothing runs
that a model wrote.

The page forbids itself everything but its own style and script, named by their hashes. Text from
models, prompts and annotators is escaped, and its control characters are made visible.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignkit.evaluation.agreement import agreement_lines
from alignkit.evaluation.judgements import Judgements, Texts
from alignkit.evaluation.text_report import percent, visible, winrate_lines
from alignkit.evaluation.winrate import Pair, pair_of
from alignkit.statistics.intervals import Floats, Ints

# A page of more prompts than this is slow to open; the most one-sided ones are shown.
MOST_PROMPTS = 2000


def safe(value: object) -> str:
    """Any value as text that a page shows and never obeys."""
    return html.escape(visible(str(value)), quote=True)


# --- drawing -------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """One interval to draw: a label, a value and its limits."""

    label: str
    value: float | None
    ci: Mapping[str, Any] | None
    shown: str


def intervals_svg(bars: Sequence[Bar], low: float, high: float, line: float, title: str) -> str:
    """Values with their intervals on one axis from `low` to `high`, a rule at `line`."""
    known = [bar for bar in bars if bar.value is not None]
    if not known:
        return ""
    height, left, width = 30 * len(known) + 34, 190, 420

    def at(x: float) -> float:
        return left + width * (min(max(x, low), high) - low) / (high - low)

    parts = [
        f'<svg role="img" viewBox="0 0 760 {height}" aria-label="{safe(title)}">',
        f'<line class="rule" x1="{at(line):.1f}" x2="{at(line):.1f}" y1="4" y2="{height - 24}"/>',
    ]
    for row, bar in enumerate(known):
        y = 20 + 30 * row
        value = at(bar.value or 0.0)
        parts.append(
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{safe(bar.label)}</text>'
        )
        if bar.ci is not None:
            x1, x2 = at(bar.ci["low"]), at(bar.ci["high"])
            parts.append(f'<line class="reach" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle cx="{value:.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text x="{left + width + 12}" y="{y + 4}">{safe(bar.shown)}</text>')
    for tick in np.linspace(low, high, 5):
        label = f"{100 * tick:.0f} %" if high <= 1 else f"{tick:.0f}"
        parts.append(
            f'<text class="tick" x="{at(float(tick)):.1f}" y="{height - 6}" '
            f'text-anchor="middle">{label}</text>'
        )
    return "".join([*parts, "</svg>"])


def _limits(ci: Mapping[str, Any] | None) -> str:
    return "" if ci is None else f" [{100 * ci['low']:.1f}, {100 * ci['high']:.1f}]"


def _winrate_bars(report: Mapping[str, Any]) -> list[Bar]:
    rows = [("win rate", report["win_rate"], report["ci"])]
    length = report["length"]
    rows.append(("length-controlled", length["lc_win_rate"], length["lc_ci"]))
    rows += [(row["name"], row["win_rate"], row["ci"]) for row in report["per_category"]]
    return [Bar(name, rate, ci, percent(rate) + _limits(ci)) for name, rate, ci in rows]


def _rating_svg(matrix: Mapping[str, Any]) -> str:
    order = sorted(range(len(matrix["models"])), key=lambda i: -matrix["rating"][i])
    bars = []
    for i in order:
        ci, rating = matrix["ci"][i], matrix["rating"][i]
        limits = "" if ci is None else f" [{ci['low']:.0f}, {ci['high']:.0f}]"
        bars.append(Bar(matrix["models"][i], rating, ci, f"{rating:.0f}{limits}"))
    ends = [bar.value or 0.0 for bar in bars]
    ends += [bar.ci[end] for bar in bars if bar.ci is not None for end in ("low", "high")]
    # A model that only won has an interval without a useful end: the axis follows the ratings.
    ratings = [bar.value or 0.0 for bar in bars]
    span = max(100.0, 1.5 * (max(ratings) - min(ratings)))
    low = max(min(ends), min(ratings) - span)
    high = min(max(ends), max(ratings) + span)
    return intervals_svg(bars, low, max(high, low + 1), 1000, "ratings of all models")


# --- pages ---------------------------------------------------------------------------------------


def winrate_page(report: Mapping[str, Any], judgements: Judgements) -> str:
    """The page of a win-rate report; `judgements` were read with their texts."""
    a, b = report["a"], report["b"]
    two = a is not None and b is not None
    parts = [f"<pre>{safe(chr(10).join(winrate_lines(dict(report))))}</pre>"]
    if two:
        parts.append(intervals_svg(_winrate_bars(report), 0, 1, 0.5, f"win rates of {a} over {b}"))
    if report["matrix"] is not None and len(report["matrix"]["models"]) > 2:
        parts.append(_rating_svg(report["matrix"]))
    if report["against_baseline"] is not None:
        bars = _baseline_bars(report["against_baseline"])
        parts.append(intervals_svg(bars, 0, 1, 0.5, f"win rates over {b}"))
    parts.append(_prompt_table([pair_of(judgements, a, b)] if two else _pairs_that_met(judgements)))
    parts.append(_colophon(report))
    return page(f"{a} vs {b}" if two else "ratings of all models", parts)


def _baseline_bars(found: Mapping[str, Any]) -> list[Bar]:
    return [
        Bar(row["model"], row["win_rate"], row["ci"], percent(row["win_rate"]) + _limits(row["ci"]))
        for row in found["models"]
    ]


def _pairs_that_met(judgements: Judgements) -> list[Pair]:
    """Every two models that were judged against each other, named as their first row names them."""
    met: dict[frozenset[int], tuple[int, int]] = {}
    sides = np.unique(np.stack([judgements.left, judgements.right]), axis=1, return_index=True)
    for x, y in sides[0].T[np.argsort(sides[1])].tolist():
        met.setdefault(frozenset((x, y)), (x, y))
    names = judgements.models
    pairs = (pair_of(judgements, names[x], names[y]) for x, y in met.values())
    return [pair for pair in pairs if len(pair.scores)]


def agreement_page(report: Mapping[str, Any]) -> str:
    """The page of an agreement report."""
    bars = [
        Bar(
            f"alpha ({report['alpha']['metric']})",
            report["alpha"]["value"],
            report["alpha"]["ci"],
            _plain(report["alpha"]["value"], report["alpha"]["ci"]),
        )
    ]
    fleiss = report["fleiss"]
    bars.append(
        Bar("Fleiss' kappa", fleiss["value"], fleiss["ci"], _plain(fleiss["value"], fleiss["ci"]))
    )
    bars += [
        Bar(" and ".join(p["annotators"]), p["kappa"], p["ci"], _plain(p["kappa"], p["ci"]))
        for p in report["pairs"]
    ]
    drawn = intervals_svg(bars, -0.5, 1, 0, "agreement beyond chance")
    parts = [f"<pre>{safe(chr(10).join(agreement_lines(report)))}</pre>", drawn]
    return page("agreement of annotators", [*parts, _colophon(report)])


def _plain(value: float | None, ci: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if ci is None else f" [{ci['low']:.2f}, {ci['high']:.2f}]")


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page that may use its own style and script and nothing else."""
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(STYLE)}'; "
        f"script-src 'sha256-{_digest(SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{safe(title)}</h1>{''.join(parts)}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _colophon(report: Mapping[str, Any]) -> str:
    inputs = "".join(
        f"<li>{safe(file['path'])}, {file['rows']} rows, sha256 <code>{safe(file['sha256'])}</code>"
        for file in report["inputs"]
    )
    return (
        f"<footer><p>Every number comes from these files: <ul>{inputs}</ul>"
        f"<p><code>{safe(report['command'])}</code>, seed {report['seed']}, "
        f"alignkit {safe(report['version'])}</footer>"
    )


VERDICTS = {1: "won", 0: "tied", -1: "lost"}


class Row(NamedTuple):
    """One prompt of one pair of models, as the table shows it."""

    pair: int
    i: int
    lean: float


def _prompt_table(pairs: Sequence[Pair]) -> str:
    """All prompts, the most one-sided first; of several pairs of models, each pair's."""
    every = [
        Row(number, i, abs(float(score) - 0.5))
        for number, pair in enumerate(pairs)
        for i, score in enumerate(pair.scores)
    ]
    shown = sorted(every, key=lambda row: -row.lean)[:MOST_PROMPTS]
    facts = [_facts(pair) for pair in pairs]
    rows = "".join(
        _prompt_row(pairs[row.pair], row, *facts[row.pair], named=len(pairs) > 1) for row in shown
    )
    hidden = len(every) - len(shown)
    note = f"<p>The {len(shown)} most one-sided; {hidden} more are in the file." if hidden else ""
    buttons = "".join(
        f'<button type="button" data-show="{name}" aria-pressed="{str(not name).lower()}">'
        f"{name or 'all'}</button>"
        for name in ("", "won", "tied", "lost")
    )
    sides = f"{safe(pairs[0].a)} and {safe(pairs[0].b)}" if len(pairs) == 1 else "both answers"
    return (
        f"<h2>Prompts</h2>{note}"
        f'<div class="bar" role="group" aria-label="filter">{_pair_choice(pairs)}{buttons}'
        '<input type="search" placeholder="find in texts" aria-label="find in texts">'
        '<span role="status" class="count"></span></div>'
        "<table><thead><tr>"
        '<th><button type="button" data-sort="index">prompt</button>'
        f"{'<th>models' if len(pairs) > 1 else ''}"
        '<th><button type="button" data-sort="score">score</button>'
        '<th><button type="button" data-sort="lean">|s − ½|</button>'
        '<th><button type="button" data-sort="spread">disagreement</button>'
        f"<th>verdict<th>judged<th>{sides}"
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _pair_choice(pairs: Sequence[Pair]) -> str:
    if len(pairs) < 2:
        return ""
    options = "".join(
        f'<option value="{number}">{safe(pair.a)} vs {safe(pair.b)}</option>'
        for number, pair in enumerate(pairs)
    )
    return f'<select aria-label="models"><option value="">all models</option>{options}</select>'


def _facts(pair: Pair) -> tuple[Ints, Floats]:
    """How often each prompt was judged, and how far its judgements lie apart; by its number."""
    own, n = pair.judgements, len(pair.judgements.prompts)
    known = ~np.isnan(own.score)
    low, high = np.ones(n), np.zeros(n)
    np.minimum.at(low, own.prompt[known], own.score[known])
    np.maximum.at(high, own.prompt[known], own.score[known])
    return np.bincount(own.prompt, minlength=n), np.maximum(high - low, 0.0)


def _prompt_row(pair: Pair, row: Row, asked: Ints, spread: Floats, *, named: bool) -> str:
    prompt, score = int(pair.prompts[row.i]), float(pair.scores[row.i])
    verdict = VERDICTS[int(np.sign(round(score - 0.5, 12)))]
    apart = float(spread[prompt])
    kept = pair.judgements.texts[prompt] if pair.judgements.texts else Texts()
    sides = (
        ("prompt", kept.prompt),
        (pair.a, kept.outputs.get(pair.a)),
        (pair.b, kept.outputs.get(pair.b)),
    )
    shown = "".join(
        f"<div><h3>{safe(name)}</h3><pre>{safe(text)}</pre></div>"
        for name, text in sides
        if text is not None
    )
    texts = f'<details><summary>show</summary><div class="sides">{shown}</div></details>'
    models = f"<td>{safe(pair.a)} vs {safe(pair.b)}" if named else ""
    return (
        f'<tr data-index="{prompt}" data-score="{score:.6f}" data-lean="{row.lean:.6f}" '
        f'data-spread="{apart:.6f}" data-pair="{row.pair}" data-verdict="{verdict}">'
        f"<td>{safe(pair.judgements.prompts[prompt])}{models}"
        f"<td>{score:.3f}<td>{row.lean:.3f}<td>{apart:.3f}<td>{verdict}<td>{asked[prompt]}"
        f"<td>{texts if shown else 'no texts in the file'}"
    )


STYLE = """
:root{color-scheme:light dark;--ink:#16202c;--dim:#5b6878;--line:#d7dee6;--paper:#fff;
--card:#f4f7fa;--mark:#0b6bcb}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9aa7b4;--line:#33404d;--paper:#10161c;
--card:#18212a;--mark:#5aa9f7}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:70rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;margin:.2rem 0 1rem}h2{font-size:1.2rem;margin-top:2rem}
h3{font-size:.8rem;margin:0;color:var(--dim);font-weight:600}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);padding:.8rem;
border-radius:.5rem;font:.85rem/1.5 ui-monospace,monospace;margin:.3rem 0}
svg{width:100%;max-width:48rem;height:auto;font-size:13px}svg text{fill:var(--ink)}
svg .tick{fill:var(--dim);font-size:11px}svg .rule{stroke:var(--dim);stroke-dasharray:3 3}
svg .reach{stroke:var(--mark);stroke-width:4;stroke-linecap:round;opacity:.45}
svg circle{fill:var(--mark)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th button{white-space:nowrap}
th,td{text-align:left;vertical-align:top;padding:.4rem .6rem;border-bottom:1px solid var(--line)}
td:last-child{width:50%}
.bar{display:flex;gap:.5rem;flex-wrap:wrap;align-items:center;margin:.6rem 0}
button,input,select{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);
border-radius:.4rem;padding:.2rem .7rem}
button[aria-pressed=true]{border-color:var(--mark);color:var(--mark)}
button:focus-visible,input:focus-visible,select:focus-visible,
summary:focus-visible{outline:3px solid var(--mark)}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:.6rem}
.sides>div:first-child:nth-last-child(3){grid-column:1/-1}
@media(max-width:45rem){.sides{grid-template-columns:1fr}}
.count,footer{color:var(--dim);font-size:.85rem}footer{margin-top:2rem}code{overflow-wrap:anywhere}
"""

SCRIPT = """
(() => {
  const body = document.querySelector('tbody');
  if (!body) return;
  const rows = [...body.rows];
  const search = document.querySelector('input[type=search]');
  const models = document.querySelector('select');
  const count = document.querySelector('.count');
  let wanted = '', key = 'lean', down = true;
  const show = () => {
    const word = search.value.toLowerCase();
    let left = 0;
    for (const row of rows) {
      const fits = (!wanted || row.dataset.verdict === wanted) &&
        (!models || !models.value || row.dataset.pair === models.value) &&
        (!word || row.textContent.toLowerCase().includes(word));
      row.hidden = !fits;
      left += fits;
    }
    count.textContent = left + ' of ' + rows.length + ' rows';
  };
  const all = name => document.querySelectorAll(name);
  all('[data-show]').forEach(button => button.addEventListener('click', () => {
    wanted = button.dataset.show;
    all('[data-show]').forEach(
      other => other.setAttribute('aria-pressed', String(other === button)));
    show();
  }));
  all('[data-sort]').forEach(button => button.addEventListener('click', () => {
    down = key === button.dataset.sort ? !down : button.dataset.sort !== 'index';
    key = button.dataset.sort;
    rows.sort((x, y) => (x.dataset[key] - y.dataset[key]) * (down ? -1 : 1));
    body.append(...rows);
  }));
  search.addEventListener('input', show);
  if (models) models.addEventListener('change', show);
  show();
})();
"""
