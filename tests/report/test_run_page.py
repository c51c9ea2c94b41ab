"""The report: self-contained, nothing of a model's text is obeyed, numbers are those given."""

from __future__ import annotations

import base64
import hashlib
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

import alignkit.report
from alignkit.report.charts import Chart, Curve, interval, line_chart, number, short, ticks
from alignkit.report.run_page import ReportData, render, write_report
from alignkit.store.visible import visible

PAYLOADS = (
    "<script>window.PWN=1</script>",
    "<img src=x onerror=window.PWN=1>",
    "</textarea></style></title></script><svg onload=window.PWN=1>",
    '"\' onmouseover="window.PWN=1" x=\'',
    "{title} {0} {body.__class__} %s &lt;script&gt;",
    "javascript:window.PWN=1",
)
ROWS = [
    {"policy": "base", "temperature": 1.0, "gold": -1.8123456, "reward": -0.5, "kl": 0.0,
     "length": 20.25, "eos_rate": 0.99609375, "distinct": 256, "win_rate": 0.107421875,
     "low": 0.0751, "high": 0.1513, "n": 256},
    {"policy": "sft", "temperature": 1.0, "gold": 1.2, "reward": 0.5, "kl": 0.0, "length": 18.5,
     "eos_rate": 1.0, "distinct": 255, "win_rate": None, "low": None, "high": None, "n": 256},
    {"policy": "dpo", "temperature": 0.0, "gold": 4.9, "reward": 2.5, "kl": 2.625, "length": 24.0,
     "eos_rate": 1.0, "distinct": 253, "win_rate": 0.984375, "low": 0.9605, "high": 0.9939,
     "n": 256},
]  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page, read as a browser would."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def everywhere(text: str) -> ReportData:
    """A report that shows the text in every place that holds text."""
    return ReportData(
        title=text,
        subtitle=text,
        stages={text: [{"step": 1, text: 0.5, "note": text}, {"step": 2, text: 0.25}]},
        summary=[{"policy": text, "temperature": 1.0, "gold": 1.0, text: text, "win_rate": 0.5,
                  "low": 0.4, "high": 0.6}],
        samples=[{"prompt": text, "replies": {text: text}, "scores": {text: 1.5}}],
        frontier={text: [{"kl": 0.0, "gold": 1.0}, {"kl": 1.0, "gold": 2.0}]},
        settings={text: text, "stage": {text: text}},
        versions={text: text},
        notes=[text],
        warnings=[text],
    )  # fmt: skip


def tags_of(data: ReportData) -> list[str]:
    return Page(render(data)).tags


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_adds_no_tag_and_no_attribute_anywhere(payload: str) -> None:
    page, harmless = Page(render(everywhere(payload))), Page(render(everywhere("harmless")))
    assert page.tags == harmless.tags
    assert [(tag, name) for tag, name, _ in page.attributes] == [
        (tag, name) for tag, name, _ in harmless.attributes
    ]
    assert page.text.count(payload) == harmless.text.count("harmless") > 10


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_no_text_changes_the_structure(text: str) -> None:
    data = ReportData(title="t", samples=[{"prompt": "p", "replies": {"sft": f"x{text}"}}])
    marks = tags_of(ReportData(title="t", samples=[{"prompt": "p", "replies": {"sft": "x"}}]))
    assert [tag for tag in tags_of(data) if tag != "span"] == [t for t in marks if t != "span"]


def test_control_and_bidirectional_characters_are_shown_not_obeyed() -> None:
    text = "pay\u202egnp\x1b[31m\u2066\ufeff\u200b\U000e0041\u2028end\x00"
    shown = render(ReportData(title=text, samples=[{"prompt": text, "replies": {"sft": text}}]))
    for character in "\u202e\x1b\u2066\ufeff\u200b\U000e0041\u2028\x00":
        assert character not in shown
    page = Page(shown)
    marked = "payU+202EgnpU+001B[31mU+2066U+FEFFU+200BU+E0041U+2028endU+0000"
    assert page.text.count(marked) == 3  # heading, prompt, reply
    assert visible(text) in page.text  # the title of the window holds no markup
    assert page.attributes.count(("span", "class", "ctl")) == 3 * 8
    kept = "ok\n\tسلام‌ها 👩\u200d🔬"
    assert kept in render(ReportData(title="t", notes=[kept]))


def test_lone_surrogates_of_a_broken_reply_do_not_break_the_file(tmp_path: Path) -> None:
    data = ReportData(title="t", samples=[{"prompt": "p", "replies": {"sft": "a\ud800b"}}])
    text = write_report(tmp_path / "r.html", data).read_text(encoding="utf-8")
    assert ">aU+D800b<" in re.sub(r"</?span[^>]*>", "", text)


def test_the_file_loads_nothing_and_runs_nothing() -> None:
    data = ReportData(
        title="run", summary=ROWS, stages={"sft": [{"step": 1, "loss": 2.0}]}, settings={"a": 1}
    )
    text = render(data)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(
        page.tags
    )
    assert not [name for _, name, _ in page.attributes if name in ("src", "href", "style")]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?://|//[a-z]|url\(|@import", text)
    policies = [
        value for tag, name, value in page.attributes
        if tag == "meta" and name == "content" and "default-src" in value
    ]  # fmt: skip
    assert len(policies) == 1
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policies[0].startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    assert "script-src" not in policies[0]
    assert "unsafe" not in policies[0]


def test_every_number_of_the_summary_is_there_exactly_and_short() -> None:
    page = Page(render(ReportData(title="t", summary=ROWS)))
    exact = {value for _, name, value in page.attributes if name == "title"}
    for row in ROWS:
        for key, value in row.items():
            if isinstance(value, float) and key not in ("temperature", "low", "high"):
                assert repr(value) in exact, key
        if row["win_rate"] is not None:
            assert f"{row['low']!r} – {row['high']!r}" in exact
    for shown in ("−1.81", "10.7%", "7.5% – 15.1%", "98.4%", "99.6%", "256", "baseline"):
        assert shown in page.text
    assert page.text.index("Sampled at temperature 1") < page.text.index("Greedy (temperature 0)")


def test_every_logged_number_is_in_the_raw_table() -> None:
    rows = [{"step": step, "loss": 1 / (step + 3), "odd_metric": step * 0.1} for step in range(7)]
    page = Page(render(ReportData(title="t", stages={"sft": rows})))
    for row in rows:
        for value in row.values():
            assert repr(value) in page.text
    assert "1 more curve" in page.text


def test_held_out_metrics_share_the_chart_of_the_training_ones() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0, "rewards/margins": 0.1, "eval_loss": 2.5},
        {"step": 2, "loss": 1.0, "rewards/margins": 0.2, "eval_loss": 1.5},
    ]
    text = render(ReportData(title="t", stages={"dpo": rows}))
    assert text.count('<figure class="chart">') == 2
    assert "Loss: loss from 2 to 1; eval_loss from 2.5 to 1.5" in text


def test_reward_and_gold_against_kl_keep_a_policys_colour() -> None:
    dots = [{"kl": 0.0, "reward": 0.0, "gold": 1.0}, {"kl": 2.0, "reward": 1.0, "gold": 0.5}]
    text = render(ReportData(title="t", frontier={"dpo": dots, "ppo": dots}))
    assert text.count('<polyline class="line s1"') == 2  # dpo, in both charts
    assert text.count('<polyline class="line s2"') == 2  # ppo
    assert "Score against KL" not in render(ReportData(title="t", frontier={"dpo": [{"kl": 1.0}]}))


def test_warnings_come_before_the_results() -> None:
    text = render(ReportData(title="t", summary=ROWS, warnings=["reward up, win rate down"]))
    assert text.index("reward up, win rate down") < text.index("Results")
    assert 'role="alert"' in text


def test_secrets_in_settings_and_texts_are_not_written() -> None:
    data = ReportData(
        title="t",
        settings={"api_key": "abc123", "sft": {"hf_token": "plain", "max_new_tokens": 64}},
        notes=["export HF_TOKEN=hf_abcdefghijklmnop", "key sk-abcdefghijklmnop"],
    )
    text = render(data)
    for secret in ("abc123", "plain<", "hf_abcdef", "sk-abcdef"):
        assert secret not in text
    assert "max_new_tokens</th><td>64</td>" in text


def test_redaction_hides_prompts_and_replies_and_keeps_scores() -> None:
    data = ReportData(
        title="t",
        samples=[{"prompt": "my address", "replies": {"sft": "a reply"}, "scores": {"sft": 2.5}}],
    )
    text = render(data, redact=True)
    assert "my address" not in text
    assert "a reply" not in text
    assert "[10 characters hidden]" in text
    assert ">2.5<" in text


def test_writing_leaves_one_private_file_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write_report(path, ReportData(title="first"))
    write_report(path, ReportData(title="second"))
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    assert "second" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_value_that_cannot_be_shown_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, ReportData(title="kept"))
    with pytest.raises(UndefinedError, match="prompt"):
        write_report(path, ReportData(title="x", samples=[{"replies": {}}]))
    assert "kept" in path.read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_report_is_a_page() -> None:
    assert Page(render(ReportData(title="nothing yet"))).text.strip().endswith("nothing yet")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1.0, "1"), (-1.8123456, "-1.812"), (0.99609375, "0.9961"), (256, "256"),
     (1234.5678, "1235"), (0.0005, "5.00e-04"), (1e6, "1.00e+06"), (100.0, "100"),
     (float("nan"), "nan"), (True, "True"), ("word", "word")],
)  # fmt: skip
def test_numbers_as_people_read_them(value: object, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [(-1.5, ".2f", "−1.50"), (-0.0, ".2f", "0.00"), (-4e-4, ".2f", "0.00"), (-0.06, ".1f", "−0.1"),
     (0.996, ".1%", "99.6%"), (float("-inf"), ".2f", "−inf"), (-4e-4, "", "−4.00e−04"),
     (3, ".2f", "3.00")],
)  # fmt: skip
def test_a_minus_sign_stands_before_what_is_shown_as_negative(
    value: float, form: str, shown: str
) -> None:
    assert short(value, form) == shown


def test_settings_read_as_people_write_them() -> None:
    values = {"data": ["a.jsonl", "b.jsonl"], "seed": None, "gate": {}, "rate": 5e-6, "pack": True}
    page = Page(render(ReportData(title="t", settings={"sft": values})))
    cells = re.findall(r"<td>(?:<span[^>]*>)?([^<]*)", render(ReportData("t", settings=values)))
    assert cells == ["a.jsonl, b.jsonl", "–", "5e-06", "True"]
    assert "['a.jsonl'" not in page.text


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-6, 1e6),
)
def test_ticks_cover_the_range_in_few_even_steps(low: float, width: float) -> None:
    marks = ticks(low, low + width)
    assert marks[0] <= low + 1e-6 * width + 1e-9
    assert marks[-1] >= low + width - 1e-6 * width - 1e-9
    assert 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))


def drawn(title: str, points: list[tuple[float, float]]) -> Chart:
    chart = line_chart(title, [Curve("loss", points)])
    assert chart is not None
    return chart


def test_a_chart_puts_points_where_they_belong() -> None:
    (line,) = drawn("Loss", [(0, 0.0), (5, 1.0), (10, 2.0)]).lines
    points = [tuple(map(float, place.split(","))) for place in line.points.split()]
    assert points == [(50.0, 182.0), (208.0, 97.0), (366.0, 12.0)]


def test_a_chart_of_thousands_of_points_keeps_them_all_but_few_tooltips() -> None:
    chart = drawn("Loss", [(float(step), step % 7 / 7) for step in range(5000)])
    assert len(chart.lines[0].points.split()) == 5000
    assert len(chart.tips) <= 121


def test_values_that_cannot_be_drawn_leave_the_rest() -> None:
    chart = drawn("Loss", [(0.0, 1.0), (1.0, float("nan")), (2.0, float("inf")), (3.0, 2.0)])
    assert chart.lines[0].points == "50.0,182.0 366.0,12.0"
    assert line_chart("Loss", [Curve("loss", [(0.0, float("nan"))])]) is None
    assert drawn("Flat", [(1.0, 3.0), (1.0, 3.0)]).lines[0].points == "208.0,97.0 208.0,97.0"


def test_a_tooltip_stays_inside_its_chart() -> None:
    chart = drawn("Loss", [(0.0, 0.0), (10.0, 1.0)])
    for tip in chart.tips:
        assert tip["left"] >= 2
        assert tip["left"] + tip["width"] <= chart.width
        assert tip["top"] >= 0
        assert tip["top"] + 34 <= chart.height


def test_an_interval_is_drawn_to_scale() -> None:
    shown = interval(0.75, {"low": 0.5, "high": 1.0})
    assert (shown.value, shown.limits, shown.rule) == (75.0, (50.0, 100.0), 50.0)
    wide = interval(1200.0, {"low": -1e9, "high": 1250.0}, (900.0, 1300.0), 1000.0)
    assert (wide.value, wide.limits, wide.rule) == (75.0, (0.0, 87.5), 25.0)
    assert interval(0.5, None).limits is None
    text = render(ReportData(title="t", summary=[ROWS[0] | {"low": 0.0, "high": 1.0}]))
    assert 'class="range" x1="0.0%" x2="100.0%"' in text
    assert 'cx="10.74%"' in text


# --- templates -----------------------------------------------------------------------------------

REPORT = Path(alignkit.report.__file__).parent


def test_tags_are_written_in_templates_alone() -> None:
    for file in REPORT.glob("*.py"):
        assert not re.search(r"</?[a-z]+[ >]", file.read_text(encoding="utf-8")), file.name
    for file in (REPORT / "templates").glob("*.html"):
        assert not re.search(r"\|\s*safe\b|autoescape", file.read_text(encoding="utf-8")), file.name
