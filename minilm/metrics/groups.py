"""How differently a classifier treats groups: rates of each, the gaps between them, and how scores rank across them.

Rates        of the positive label against all others; accuracy is that of all labels, and so the only rate where no
             label is named as positive.
Gaps         between the highest and the lowest of the groups, as fairlearn defines them: demographic parity (selection
             rate), equal opportunity (true-positive rate), equalized odds (the wider of the gaps in true- and in
             false-positive rate), accuracy. A rate of fewer than `fewest` examples takes no part in a gap. A rate of no
             examples is undefined; fairlearn says 0, so that groups without positives or negatives widen its gaps.
AUCs         within and across the border of a group: `group_ranking`.

An undefined metric is None, with a reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minilm.errors import DataError, printable
from minilm.metrics.group_gaps import Compared, Metric, compared, difference, ratio, undefined, worst
from minilm.metrics.group_ranking import AUCS, rankings
from minilm.metrics.intervals import FEWEST, share, weighted_counts, with_intervals
from minilm.metrics.scores import not_empty
from minilm.metrics.slices import name_of

MOST = 1000  # groups; a column of more is no column of groups
SHOWN = 30  # on the console
COLUMNS = {
    "positive": "positive",
    "selection_rate": "selected",
    "true_positive_rate": "TPR",
    "false_positive_rate": "FPR",
    "accuracy": "accuracy",
    "f1": "F1",
    "subgroup_auc": "subgroup AUC",
    "bpsn_auc": "BPSN AUC",
    "bnsp_auc": "BNSP AUC",
}
CAVEATS = (
    "groups are looked at one by one: what happens where two of them meet is not covered",
    "a gap between a highest and a lowest is biased upwards, the more so the more groups: its p is how often it is as "
    "wide where no group differs, and its interval covers the gaps of all pairs at once",
    "labels may be biased themselves: rates and AUCs tell how predictions agree with them, not what is just",
)


def group_scores(
    gold: Sequence[Any],
    predicted: Sequence[Any],
    score: Sequence[float] | None,
    groups: Sequence[Any] | Mapping[str, Sequence[Any]],
    positive: Any = None,
    fewest: int = FEWEST,
    seed: int = 0,
) -> dict[str, Any]:
    """{"metrics": over all groups, "groups": rates and AUCs of each, "notes": lines}, ready for JSON. Raises DataError.

    gold, predicted (n,): labels. positive: the label that rates are of; None leaves only accuracy. score (n,): higher
    for a surer `positive`; None leaves out the AUCs. groups: as in `memberships`. fewest: examples that a rate, or
    either side of an AUC, must have to take part in a gap or a mean over groups.
    """
    gold, predicted = np.asarray(not_empty(gold)), np.asarray(predicted)
    member = memberships(groups)
    names, inside = [*member], np.stack([*member.values()], axis=1)
    if not len(gold) == len(predicted) == len(inside):
        raise DataError(f"{len(gold):,} labels, {len(predicted):,} predictions and {len(inside):,} rows of groups")
    rng, right, everyone = np.random.default_rng(seed), gold == predicted, np.ones(len(gold), bool)
    shares = {"accuracy": (right, everyone)}  # which examples count, and among which
    if positive is not None:
        true, said = gold == positive, predicted == positive
        if not (true | said).any():
            raise DataError(f"positive label {positive!r} is neither in gold nor predicted")
        shares = {"positive": (true, everyone), "selection_rate": (said, everyone)}
        shares |= {"true_positive_rate": (said, true), "false_positive_rate": (said, ~true)}
        shares |= {"accuracy": (right, everyone)}
    rows: dict[str, dict[str, Any]] = {name: {"n": int(own.sum())} for name, own in member.items()}
    for name, own in member.items():
        for rate, (hit, among) in shares.items():
            rows[name][rate] = _explained(share(hit[own & among]))
        if positive is not None:
            rows[name]["f1"] = _f1(true[own], said[own])
    kinds, kind = np.unique(inside, axis=0, return_inverse=True)
    kind = kind.reshape(-1)  # numpy 2.0 has it in two dimensions
    gap = {rate: compared(*shares[rate], kinds, kind, fewest, rng) for rate in shares if rate != "positive"}
    metrics = {}
    if positive is not None:
        odds = gap["true_positive_rate"], gap["false_positive_rate"]
        metrics["demographic_parity_difference"] = difference(names, gap["selection_rate"])
        metrics["demographic_parity_ratio"] = ratio(names, gap["selection_rate"])
        metrics["equal_opportunity_difference"] = difference(names, odds[0])
        metrics["equalized_odds_difference"] = difference(names, *odds)
    metrics["accuracy_difference"] = difference(names, gap["accuracy"])
    metrics["worst_group_accuracy"] = worst(names, gap["accuracy"])
    notes = _notes(rows, inside, gap, fewest)
    if positive is not None and score is not None:
        metrics |= rankings(true, np.asarray(score, np.float64), member, rows, fewest)
    return {"metrics": metrics, "groups": rows, "notes": notes}


def memberships(groups: Sequence[Any] | Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """The members of each group, (n,) bool. groups: the group of each example, empty for none; or, for groups that may
    overlap, a column of 0 and 1 for each. Raises DataError."""
    if isinstance(groups, Mapping):
        found = {}
        for name, column in groups.items():
            values = np.asarray(column)
            no, yes = ((0,), (1,)) if values.dtype.kind in "biuf" else (("0", "0.0", "False"), ("1", "1.0", "True"))
            found[str(name)] = inside = np.isin(values, yes)
            other = ~(inside | np.isin(values, no))
            if other.any():
                at = int(other.argmax())
                raise DataError(f"group column {name!r} holds {str(values[at])!r} in row {at + 1}; give 0 or 1")
    else:
        column = np.array([name_of(value) for value in groups], str)
        values = [value for value in np.unique(column).tolist() if value]
        if len(values) > MOST:
            raise DataError(f"{len(values):,} different groups; give a column of at most {MOST:,}")
        found = {value: column == value for value in values}
    if not any(own.any() for own in found.values()):
        raise DataError("no example is in a group")
    return found


# -- of one group ---------------------------------------------------------------------------------------


def _explained(own: Metric) -> Metric:
    """The metric, with a reason if value or interval is missing; the value over no examples is None."""
    if own["n"] == 0:
        return own | {"value": None, "reason": "of no examples"}
    if own["low"] is not None:
        return own
    return own | {"reason": "too few" if own["n"] < FEWEST else "resamples all equal, or too few defined"}


def _weighted_f1(records: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    return {"f1": weighted_counts(records, weights)["f1"]}


def _f1(true: np.ndarray, said: np.ndarray) -> Metric:
    """F1 of a group; undefined where the label is neither in gold nor predicted."""
    if not (true | said).any():
        return undefined(len(true), "the label neither occurs nor is predicted")
    records = np.stack([true & said, said, true], axis=1)
    return _explained(with_intervals(records, _weighted_f1, len(true))["f1"])


# -- in words -------------------------------------------------------------------------------------------


def _notes(
    rows: Mapping[str, Mapping[str, Any]], inside: np.ndarray, gap: Mapping[str, Compared | None], fewest: int
) -> list[str]:
    """Notes that a reader of the figures must know: caveats, base rates, examples and rates that are left out."""
    notes, counts = [*CAVEATS], inside.sum(axis=1)
    bases = {name: row["positive"]["value"] for name, row in rows.items() if "positive" in row and row["n"] >= fewest}
    if bases and min(bases.values()) < max(bases.values()):
        low, high = min(bases, key=bases.__getitem__), max(bases, key=bases.__getitem__)
        notes.append(
            f"{bases[low]:.1%} of {_short(low)} have the label, {bases[high]:.1%} of {_short(high)}: where such shares "
            "differ demographic parity and equalized odds exclude each other, except for a classifier that guesses "
            "(Barocas et al. 2023, ch. 3), as do equalized odds and equal precision, except for a perfect one "
            "(Kleinberg et al. 2016, Chouldechova 2017)"
        )
    for rate, own in gap.items():
        if left := [] if own is None else [name for i, name in enumerate(rows) if i not in own.group]:
            shown = ", ".join(map(_short, left[:5])) + (", ..." if len(left) > 5 else "")
            why = f"as the rate is over fewer than {fewest} examples"
            notes.append(f"left out of gaps in {_words(rate)}, {why}: {len(left)} ({shown})")
    if (none := int((counts == 0).sum())) > 0:
        notes.append(f"in no group: {none:,} of {len(counts):,} examples")
    if (several := int((counts > 1).sum())) > 0:
        notes.append(
            f"in several groups: {several:,} examples; the intervals of gaps treat groups as if they shared no "
            "example, p does not"
        )
    return notes


def group_lines(found: Mapping[str, Any]) -> list[str]:
    """The result of `group_scores` for the console: a line for each gap and mean; a table of the groups, from the
    lowest accuracy, with shares and AUCs in percent and the ends of their intervals."""
    lines = []
    for name, own in found["metrics"].items():
        if own["value"] is None:
            lines.append(f"{_words(name):32}      -  {own['reason']}")
            continue
        ends = own.get("reason", "") if own["low"] is None else f"{own['low']:.3f} to {own['high']:.3f}"
        line = f"{_words(name):32} {own['value']:6.3f}  {ends:14}"
        if "p" in own:
            line += f"  p {own['p']:.4f}  lowest {_short(own['lowest'])}, highest {_short(own['highest'])}"
        line += f"  {_short(own['group'])}" if "group" in own else ""
        lines.append((line + (f"  {own['groups']} groups" if "groups" in own else "")).rstrip())
    columns = [name for name in COLUMNS if name in next(iter(found["groups"].values()))]
    width = max(len("group"), *(len(_short(name)) for name in found["groups"]))
    met = [(name, row) for name, row in found["groups"].items() if row["n"]]
    order = sorted(met, key=lambda each: each[1]["accuracy"]["value"])[:SHOWN]
    for part in ([name for name in columns if name not in AUCS], [name for name in columns if name in AUCS]):
        if part:
            heads = "".join(f"  {COLUMNS[name]:14}" for name in part)
            lines += ["", f"{'group':{width}} {'n':>7}{heads}".rstrip()]
            for name, row in order:
                cells = "".join(f"  {_cell(row[column]):14}" for column in part)
                lines.append(f"{_short(name):{width}} {row['n']:7,}{cells}".rstrip())
    if left := len(met) - len(order):
        lines.append(f"and {left:,} more groups with no lower accuracy")
    if none := len(found["groups"]) - len(met):
        lines.append(f"and {none:,} more groups without examples")
    return [*lines, *(f"note       {printable(note)}" for note in found["notes"])]


def _cell(own: Metric) -> str:
    if own["value"] is None:
        return "-"
    value = f"{100 * own['value']:.1f}"
    if own["low"] is None:
        return f"{value} too few" if own.get("reason") == "too few" else value
    return f"{value} ({100 * own['low']:.0f}-{100 * own['high']:.0f})"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("auc", "AUC").replace("bpsn", "BPSN").replace("bnsp", "BNSP")


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 20 else f"{name[:19]}…"
