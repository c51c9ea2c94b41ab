"""What a run did, as one HTML file that needs nothing else: curves, win rates, replies, settings.

The page holds no script and may load nothing (its own content security policy says so). Every
text goes through `Markup.format`, which escapes; text of models and data also goes through
`visible`, which shows control and bidirectional characters instead of obeying them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from alignkit.report.charts import WIDE, Series, interval, line_chart, number
from alignkit.store.whole_files import write_whole

STYLE_SHEET = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# A policy keeps its colour in every chart and table.
POLICY_STYLES = {"base": 7, "sft": 0, "dpo": 1, "ppo": 2, "rloo": 3, "reward": 4}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows, in plain values.

    `stages`: stage name → rows of its metrics.jsonl. `summary`: one row a policy and temperature.
    `samples`: {"prompt", "replies": {policy: text}, "scores"?: {policy: number}, "judged"?: the
    same of a judge}. `frontier`: policy → rows with "kl" and "reward" or "gold", one a checkpoint.
    `warnings` are shown first.
    """

    title: str
    subtitle: str = ""
    stages: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    summary: Sequence[Row] = ()
    samples: Sequence[Row] = ()
    frontier: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One chart of a stage: its title and the metrics that belong on it."""

    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """One column of the summary table: its key, its heading, what it means, how it is shown."""

    key: str
    heading: str
    meaning: str
    form: str = ""


def write_report(path: Path, data: ReportData, *, redact: bool = False) -> Path:
    """Write the report to `path` at once or not at all; `redact` hides prompts and replies."""
    text = render(data, redact=redact)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode(), mode=0o600)
    return path


def render(data: ReportData, *, redact: bool = False) -> str:
    """The whole page as text."""
    sections = [
        header(data),
        warnings(data.warnings),
        summary(data.summary),
        frontier(data.frontier),
        curves(data.stages),
        samples(data.samples, redact=redact),
        notes(data.notes),
        settings(data.settings),
        versions(data.versions),
    ]
    page = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">'
        "<title>{title}</title><style>{style}</style></head>"
        "<body><main>{body}</main></body></html>\n"
    ).format(
        policy=POLICY,
        title=plain(data.title),
        style=Markup(STYLE_SHEET.read_text(encoding="utf-8")),
        body=joined(sections, "\n"),
    )
    return str(page)


# Text ----------------------------------------------------------------------------------------

KEPT = {"\n", "\t", "\u200c", "\u200d"}  # joiners are part of writing Persian, Hindi and emoji
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
SECRET_KEY = re.compile(
    r"(^|[._-])(api_?key|secret|password|passwd|authorization|(hf|access|auth|api)_token)$", re.I
)
SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{8,}|gh[pousr]_[A-Za-z0-9]{16,})")


def hidden(character: str) -> bool:
    """Whether a reader would not see this character, or see others in another order."""
    return character not in KEPT and unicodedata.category(character) in HIDDEN


def visible(text: str) -> Markup:
    """Escaped text in which characters that hide or reorder are shown by their number."""
    mark = Markup('<span class="ctl">U+{code:04X}</span>')
    pieces: list[Markup] = []
    kept: list[str] = []
    for character in SECRET_VALUE.sub("[secret]", text):
        if not hidden(character):
            kept.append(character)
            continue
        pieces += [escape("".join(kept)), mark.format(code=ord(character))]
        kept = []
    return joined([*pieces, escape("".join(kept))])


def plain(text: str) -> str:
    """Text for places that hold no markup: a title, a label."""
    shown = SECRET_VALUE.sub("[secret]", text)
    return "".join(f"⟨U+{ord(char):04X}⟩" if hidden(char) else char for char in shown)


def joined(pieces: Iterable[Markup], separator: str = "") -> Markup:
    return Markup(separator).join(pieces)


def cell(value: Any, form: str = "") -> Markup:
    """A value for a table: short for people, exact in the tooltip."""
    if value is None:
        return Markup('<span class="none">–</span>')
    if isinstance(value, float) or (form and is_number(value)):
        short = format(value, form) if form and math.isfinite(value) else number(value)
        return Markup('<span title="{exact}">{short}</span>').format(
            exact=repr(value), short=short.replace("-", "−")
        )
    return visible(str(value))


# Sections ------------------------------------------------------------------------------------


def header(data: ReportData) -> Markup:
    subtitle = Markup("<p>{text}</p>").format(text=visible(data.subtitle)) if data.subtitle else ""
    return Markup("<header><h1>{title}</h1>{subtitle}</header>").format(
        title=visible(data.title), subtitle=subtitle
    )


def warnings(lines: Sequence[str]) -> Markup:
    """What went wrong or may mislead, before anything that looks like success."""
    item = Markup('<p class="warning" role="alert"><b>Warning</b> {text}</p>')
    return joined(item.format(text=visible(line)) for line in lines)


def summary(rows: Sequence[Row]) -> Markup:
    """One table a temperature: every policy's numbers and its win rate drawn with its interval."""
    if not rows:
        return Markup("")
    temperatures = list(dict.fromkeys(row.get("temperature") for row in rows))
    tables = [
        summary_table(temperature, [row for row in rows if row.get("temperature") == temperature])
        for temperature in temperatures
    ]
    return section("Results", joined(tables))


def summary_table(temperature: float | None, rows: Sequence[Row]) -> Markup:
    columns = summary_columns(rows)
    head = Markup('<th scope="col" title="{meaning}"{kind}>{heading}</th>')
    heads = joined(
        head.format(
            meaning=plain(column.meaning),
            heading=plain(column.heading),
            kind=Markup(' class="text"') if column.key in ("policy", "win_rate") else "",
        )
        for column in columns
    )
    body = joined(summary_row(row, columns) for row in rows)
    return Markup(
        '<h3>{name}</h3><div class="wide"><table class="summary"><thead><tr>{heads}'
        "</tr></thead><tbody>{body}</tbody></table></div>"
    ).format(name=temperature_name(temperature), heads=heads, body=body)


def temperature_name(temperature: float | None) -> str:
    if temperature is None:
        return "All replies"
    return (
        "Greedy (temperature 0)" if temperature == 0 else f"Sampled at temperature {temperature:g}"
    )


def summary_columns(rows: Sequence[Row]) -> list[Column]:
    """The known columns that some row has, then whatever else the rows hold."""
    present = list(dict.fromkeys(key for row in rows for key in row))
    known = [column for column in COLUMNS if column.key in present]
    own = {column.key for column in COLUMNS} | INTERVAL_KEYS
    return known + [Column(key, key, key) for key in present if key not in own]


def summary_row(row: Row, columns: Sequence[Column]) -> Markup:
    cells = joined(summary_cell(row, column) for column in columns)
    return Markup("<tr>{cells}</tr>").format(cells=cells)


def summary_cell(row: Row, column: Column) -> Markup:
    value = row.get(column.key)
    if column.key == "policy":
        return Markup('<th scope="row"><i class="s{style}"></i>{name}</th>').format(
            style=style_of(str(value)), name=visible(str(value))
        )
    if column.key == "win_rate":
        return Markup('<td class="text">{win}</td>').format(win=win_rate(row))
    return Markup('<td class="number">{value}</td>').format(value=cell(value, column.form))


def win_rate(row: Row) -> Markup:
    """The drawn interval and its numbers, or that this row is what the others are compared to."""
    value, low, high = (row.get(key) for key in ("win_rate", "low", "high"))
    if value is None or low is None or high is None:
        return Markup('<span class="none">baseline</span>')
    drawn = interval(value, low, high, style=style_of(str(row.get("policy"))))
    return Markup(
        '<span class="win">{drawn}<b title="{exact}">{value:.1%}</b>'
        '<span class="bounds" title="{exact_low} – {exact_high}">'
        "{low:.1%} – {high:.1%}</span></span>"
    ).format(
        drawn=drawn,
        exact=repr(value),
        exact_low=repr(low),
        exact_high=repr(high),
        value=value,
        low=low,
        high=high,
    )


def style_of(policy: str) -> int:
    """A policy's colour: fixed for the usual names, by its letters for others."""
    known = next((POLICY_STYLES[name] for name in POLICY_STYLES if policy == name), None)
    return known if known is not None else 3 + sum(policy.encode(errors="replace")) % 4


def frontier(policies: Mapping[str, Sequence[Row]]) -> Markup:
    """Gold and reward-model score against KL: where they part, the reward model is being gamed."""
    charts = [
        line_chart(
            title, frontier_series(policies, key), x_label="KL to the reference, nats", width=WIDE
        )
        for key, title in (("reward", "Reward-model score"), ("gold", "Gold score"))
    ]
    drawn = [chart for chart in charts if chart]
    if not drawn:
        return Markup("")
    note = Markup(
        "<p>Each dot is a checkpoint. A reward that keeps rising while gold falls is "
        "over-optimisation.</p>"
    )
    return section("Score against KL", note + grid(drawn, "grid two"))


def frontier_series(policies: Mapping[str, Sequence[Row]], key: str) -> list[Series]:
    return [
        Series(plain(name), pairs_of(rows, "kl", key), style_of(name), dots=True)
        for name, rows in policies.items()
    ]


def pairs_of(rows: Sequence[Row], x: str, y: str) -> list[tuple[float, float]]:
    """The (x, y) of rows that have both as numbers."""
    return [
        (float(row[x]), float(row[y]))
        for row in rows
        if is_number(row.get(x)) and is_number(row.get(y))
    ]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curves(stages: Mapping[str, Sequence[Row]]) -> Markup:
    """Every stage's metrics: the ones that matter first, the rest folded, the raw numbers below."""
    blocks = [stage_curves(name, rows) for name, rows in stages.items() if rows]
    return section("Training", joined(blocks)) if blocks else Markup("")


def stage_curves(name: str, rows: Sequence[Row]) -> Markup:
    keys = metric_keys(rows)
    main = list(panels(rows, keys))
    shown = {key for panel in PANELS for key in keys if belongs(key, panel)}
    rest = [
        line_chart(plain(key), [Series(plain(key), pairs_of(rows, "step", key))])
        for key in keys
        if key not in shown and len(pairs_of(rows, "step", key)) > 1
    ]
    return Markup('<section class="stage"><h3>{name}</h3>{main}{rest}{table}</section>').format(
        name=visible(name),
        main=grid(main),
        rest=folded(f"{len(rest)} more curves", grid(rest)) if rest else "",
        table=folded("All logged numbers", metrics_table(rows)),
    )


def metric_keys(rows: Sequence[Row]) -> list[str]:
    """Every key that holds a number in some row, in the order first seen, but the step."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
    return [key for key in keys if key not in ("step", "epoch")]


def panels(rows: Sequence[Row], keys: Sequence[str]) -> Iterator[Markup]:
    for panel in PANELS:
        lines = [
            Series(plain(key), pairs_of(rows, "step", key), style)
            for style, key in enumerate(key for key in keys if belongs(key, panel))
        ]
        chart = line_chart(panel.title, lines)
        if chart:
            yield chart


def belongs(key: str, panel: Panel) -> bool:
    """Whether a metric is one of the panel's, on training or held-out data."""
    return key.removeprefix("eval_").removeprefix("train_") in panel.keys


def metrics_table(rows: Sequence[Row]) -> Markup:
    """The logged rows as they are, every digit."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    heads = joined(Markup('<th scope="col">{key}</th>').format(key=visible(key)) for key in keys)
    value = Markup('<td class="number">{value}</td>')
    body = joined(
        Markup("<tr>{cells}</tr>").format(
            cells=joined(value.format(value=exact(row.get(key, ""))) for key in keys)
        )
        for row in rows
    )
    return Markup(
        '<div class="wide"><table class="raw"><thead><tr>{heads}</tr></thead>'
        "<tbody>{body}</tbody></table></div>"
    ).format(heads=heads, body=body)


def samples(rows: Sequence[Row], *, redact: bool) -> Markup:
    """Prompts with every policy's reply side by side."""
    if not rows:
        return Markup("")
    return section("Replies side by side", joined(sample(row, redact=redact) for row in rows))


def sample(row: Row, *, redact: bool) -> Markup:
    scores, judged = row.get("scores") or {}, row.get("judged") or {}
    replies = joined(
        reply(name, text, scores.get(name), judged.get(name), redact=redact)
        for name, text in row["replies"].items()
    )
    return Markup(
        '<article class="sample"><p class="prompt">{prompt}</p>'
        '<div class="replies">{replies}</div></article>'
    ).format(prompt=model_text(str(row["prompt"]), redact=redact), replies=replies)


def reply(
    policy: str, text: str, score: float | None, judged: float | None, *, redact: bool
) -> Markup:
    badge = Markup("") if score is None else Markup('<b class="score">{}</b>').format(cell(score))
    if judged is not None:
        badge += Markup('<b class="score">judge {}</b>').format(cell(judged))
    return Markup(
        '<div class="reply"><h4><i class="s{style}"></i>{policy}{badge}</h4><p>{text}</p></div>'
    ).format(
        style=style_of(policy),
        policy=visible(policy),
        badge=badge,
        text=model_text(text, redact=redact),
    )


def model_text(text: str, *, redact: bool) -> Markup:
    if redact:
        return Markup('<span class="none">[{count} characters hidden]</span>').format(
            count=len(text)
        )
    return visible(text) if text else Markup('<span class="none">(empty)</span>')


def notes(lines: Sequence[str]) -> Markup:
    item = Markup("<li>{text}</li>")
    body = joined(item.format(text=visible(line)) for line in lines)
    return section("Notes", Markup("<ul>{body}</ul>").format(body=body)) if lines else Markup("")


def settings(values: Mapping[str, Any]) -> Markup:
    """Settings; a nested mapping (a stage) becomes a table of its own."""
    if not values:
        return Markup("")
    flat = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    general = [definitions(flat)] if flat else []
    stages = [folded(name, definitions(value), printed=True) for name, value in nested.items()]
    return section("Settings", joined([*general, *stages]))


def definitions(values: Mapping[str, Any]) -> Markup:
    row = Markup("<tr><th scope='row'>{key}</th><td>{value}</td></tr>")
    body = joined(
        row.format(
            key=visible(str(key)),
            value="[secret]" if SECRET_KEY.search(str(key)) and value else exact(value),
        )
        for key, value in values.items()
    )
    return Markup('<table class="settings"><tbody>{body}</tbody></table>').format(body=body)


def exact(value: Any) -> Markup:
    """A value with every digit."""
    return visible(repr(value) if isinstance(value, float) else str(value))


def versions(values: Mapping[str, Any]) -> Markup:
    if not values:
        return Markup("")
    item = Markup("<span><b>{name}</b> {version}</span>")
    body = joined(
        item.format(name=visible(str(name)), version=visible(str(version)))
        for name, version in values.items()
    )
    return Markup('<footer class="versions">{body}</footer>').format(body=body)


def section(title: str, body: Markup) -> Markup:
    return Markup("<section><h2>{title}</h2>{body}</section>").format(title=title, body=body)


def grid(charts: Sequence[Markup], layout: str = "grid") -> Markup:
    return Markup('<div class="{layout}">{charts}</div>').format(
        layout=layout, charts=joined(charts)
    )


def folded(title: str, body: Markup, *, printed: bool = False) -> Markup:
    """A block that opens on a click; on paper it is left out unless `printed`."""
    return Markup('<details class="{kind}"><summary>{title}</summary>{body}</details>').format(
        kind="printed" if printed else "more", title=visible(title), body=body
    )


INTERVAL_KEYS = {"policy", "temperature", "win_rate", "low", "high"}
COLUMNS = (
    Column("policy", "Policy", "which model replied"),
    Column("win_rate", "Win rate, 95 % interval", "share of prompts won, ties count half"),
    Column("gold", "Gold", "mean score by the true judge, which real projects do not have", ".2f"),
    Column("reward", "Reward", "mean score by the reward model", ".2f"),
    Column("kl", "KL", "divergence from the reference, nats a reply", ".2f"),
    Column("length", "Length", "mean reply length in tokens", ".1f"),
    Column("eos_rate", "EOS", "share of replies that ended by themselves", ".1%"),
    Column("distinct", "Distinct", "different replies", ".3f"),
    Column("n", "n", "prompts"),
)
PANELS = (
    Panel("Loss", ("loss", "loss/policy_avg", "loss/value_avg")),
    Panel("Accuracy", ("accuracy", "rewards/accuracies", "clean_accuracy", "mean_token_accuracy")),
    Panel("Margin", ("margin", "rewards/margins")),
    Panel("KL, nats", ("kl", "objective/kl", "objective/kl_k3", "eval/kl")),
    Panel("Reward", ("reward", "objective/scores", "score", "eval/score", "objective/rlhf_reward")),
    Panel("Gold score", ("gold", "eval/gold", "eval/greedy_gold")),
    Panel("Win rate against the start", ("eval/win_rate", "eval/judge_win_rate")),
    Panel("Reply length", ("length", "rollout/length", "eval/length")),
    Panel("Ended by themselves", ("eos_rate", "rollout/eos_rate", "eval/eos_rate")),
)
