"""Minimal pairs: which columns they are read from, and what is counted."""

import numpy as np
import pytest
from scipy.stats import binomtest

from minilm.errors import DataError
from minilm.labelled.tables import table_of
from minilm.language.pairs import Pair, pair_scores, read_pairs

ROW = {"sentence_good": "the cats sit", "sentence_bad": "the cats sits", "field": "syntax", "UID": "agreement_1"}


def test_columns():
    pairs, kinds = read_pairs(table_of([ROW]))
    assert kinds == ("field", "UID")
    assert pairs == [Pair("the cats sit", "the cats sits", ("syntax", "agreement_1"), "row 1")]
    table = table_of([{"yes": "a", "no": "b", "kind": 7}])
    assert read_pairs(table, "yes", "2", ["kind"]) == ([Pair("a", "b", ("7",), "row 1")], ("kind",))
    assert read_pairs(table_of([{"good": "a", "bad": "b"}]))[1] == ()
    odd = [{"good": "a", "bad": "b", "field": field} for field in ("syntax ", " ", None)]
    assert [pair.kinds for pair in read_pairs(table_of(odd))[0]] == [("syntax",), ("(empty)",), ("(empty)",)]


@pytest.mark.parametrize(
    ("rows", "named", "said"),
    [
        (
            [{"good": "a", "worse": "b"}],
            {},
            r"no column sentence_bad or bad or ungrammatical \(it has .*\); give --bad",
        ),
        ([{"good": "a", "bad": "b"}], {"by": ["kind"]}, "no column 'kind'"),
        ([ROW, ROW | {"sentence_bad": "  "}], {}, "row 2: no sentence in column 'sentence_bad'; give it one"),
        ([ROW | {"sentence_good": None}], {}, "row 1: no sentence in column 'sentence_good'; give it one"),
        ([ROW | {"sentence_good": float("nan")}], {}, "row 1: "),
        ([], {}, "the rows"),
    ],
)
def test_what_is_no_pair(rows, named, said):
    with pytest.raises(DataError, match=said):
        read_pairs(table_of(rows), **named)


def test_counts():
    """Against scipy's interval; a tie is no hit, and few pairs have no interval."""
    rng = np.random.default_rng(0)
    pairs = [Pair("a", "b", ("x" if i < 180 else "y", str(i % 9)), f"f:{i}") for i in range(190)]
    nats = rng.integers(-9, 0, (190, 2)).astype(float)
    found = pair_scores(nats, pairs, ("kind", "number"))
    hit = nats[:, 0] > nats[:, 1]
    assert found["ties"] == (nats[:, 0] == nats[:, 1]).sum() > 5
    whole = found["metrics"]["accuracy"]
    assert (whole["value"], whole["n"]) == (hit.mean(), 190)
    assert (whole["low"], whole["high"]) == pytest.approx(
        tuple(binomtest(int(hit.sum()), 190).proportion_ci(method="wilson"))
    )
    assert found["by"]["kind"]["x"]["value"] == hit[:180].mean()
    assert found["by"]["kind"]["y"] == {"value": hit[180:].mean(), "low": None, "high": None, "n": 10}
    assert [*found["by"]["number"]] == [*map(str, range(9))]
    assert sum(own["n"] for own in found["by"]["number"].values()) == 190
