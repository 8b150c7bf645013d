"""A result of `report` as one web page, which needs no network and no script."""

from importlib import resources
from typing import Any

from minilm.errors import library
from minilm.explanation.shown import Explanation, Word, html_fragment
from minilm.judging.metric_tables import ACCURACIES
from minilm.metrics.groups import COLUMNS
from minilm.metrics.intervals import FEWEST

SLICES = 10  # shown
ENDS = ("value", "low", "high")


def page(result: dict[str, Any]) -> str:
    """The HTML page of a result of `report`, as in its JSON. Raises ConfigError if jinja2 is not installed."""
    jinja2 = library("jinja2")
    source = resources.files("minilm.judging").joinpath("page.html").read_text(encoding="utf-8")
    bins = (result.get("calibration") or {}).get("bins", [])
    markup = library("markupsafe").Markup  # the fragment is escaped already
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        r=result,
        group_columns=COLUMNS,
        fewest=FEWEST,
        accuracies=ACCURACIES,
        happens="has the label" if result["task"] == "multilabel" else "is right",
        shown_slices=SLICES,
        cost=cost_lines(result.get("cost") or {}),
        most=max((each["n"] for each in bins), default=1),
        number=number,
        fragment=lambda told: markup(html_fragment(explanation_of(told))),
        count=lambda value: f"{value:,}",
        within=lambda own: own["value"] is not None and all(0 <= own[end] <= 1 for end in ENDS if own[end] is not None),
    )


def explanation_of(told: dict[str, Any]) -> Explanation:
    """An Explanation from its JSON."""
    words = tuple(Word(**word) for word in told["words"])
    return Explanation(**told | {"words": words, "texts": tuple(told["texts"])})


def number(value: float | None) -> str:
    """A number as text, a dash if it is undefined."""
    return "–" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def cost_lines(cost: dict[str, Any]) -> dict[str, str]:
    """The costs as text, each in its unit."""
    if not cost:
        return {}
    energy = "not measured" if cost["joules"] is None else f"{cost['joules'] / 3600:.3g} Wh"
    return {
        "time": f"{cost['seconds']:.1f} s",
        "tokens": f"{cost['tokens']:,}, {cost['tokens_per_s']:,.0f} a second",
        "compute": f"{cost['flops'] / 1e12:.3g} TFLOP, {cost['mfu']:.0%} of the {cost['peak_flops'] / 1e12:.3g} "
        "TFLOP/s that a matrix product reaches here",
        "peak memory": f"{cost['peak_mb']:,.0f} MB",
        "energy": energy,
        "machine": cost["machine"],
    }
