"""Words swapped for their counterparts: which words, and the arithmetic, written out here with plain loops."""

import math
import re

import numpy as np
import pytest

from minilm.errors import DataError
from minilm.labelled.examples import Example
from minilm.labelled.tables import read_table, table_of
from minilm.language.bias import CrowsPair, crows_log_probabilities
from minilm.language.swaps import crows_pairs, label_scores, language_scores, read_swaps, swap, swapped_texts

ROWS = [
    ("he", "she"),
    ("his", "her"),
    ("John", "Mary"),
    ("step father", "step mother"),
    ("father", "mother"),
    ("é", "è"),
]


def listed(*rows):
    return read_swaps(table_of([{"a": one, "b": other} for one, other in rows], "words.csv"))


@pytest.fixture
def swaps():
    return listed(*ROWS)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("he said that she ran.", "she said that he ran."),  # both ways
        ("He ran. HE RAN! She ran.", "She ran. SHE RAN! He ran."),  # case kept
        ("the theme, shed, he_s, he2, 2he", "the theme, shed, he_s, he2, 2he"),  # whole words
        ("he's her-self, (his) 'her'", "she's his-self, (her) 'his'"),
        ("John met MARY; john and mary", "Mary met JOHN; john and mary"),  # a name in small letters may be a word
        ("a Step father, a father", "a Step mother, a mother"),  # the longer one first
        ("É é cafés", "È è cafés"),
        ("", ""),
    ],
)
def test_what_is_swapped(swaps, text, wanted):
    assert swap(text, swaps)[0] == wanted
    assert swap(wanted, swaps)[0] == text


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("he,she\nhim,her\nhis,her\n", "words.csv:3: 'her' appears twice (also words.csv:2)"),
        ("he,she\nman,He\n", "words.csv:2: 'He' appears twice (also words.csv:1)"),
        ("he,she\nshe,he\n", "words.csv:2: 'she' appears twice"),
        ("he,she\nman,man\n", "words.csv:2: 'man' appears twice (also words.csv:2)"),
        ("he,she\nman,\n", "words.csv:2: no word in column 2; give a word and its counterpart"),
        ("he,she\n ,woman\n", "words.csv:2: no word in column 1"),
        ("he,she,it\na,b,c\n", "has 3 columns; give two, a word and its counterpart"),
        ("he\nshe\n", "has 1 columns; give two"),
        ("", "words.csv"),
    ],
)
def test_bad_lists(tmp_path, monkeypatch, lines, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text(lines)
    with pytest.raises(DataError, match=re.escape(said)):
        read_swaps(read_table("words.csv", header=False))


def test_a_comparison_counts_once(swaps):
    texts = ["he ran", "a dog ran", "she ran", "he met her", "she met his", "his father ran", "he ran"]
    found, counts = swapped_texts([Example(text, where=f"f:{i}") for i, text in enumerate(texts)], swaps)
    assert [each.texts[0] for each in found] == ["he ran", "he met her", "his father ran"]
    assert counts == {"texts": 7, "without": 1, "repeated": 3}
    assert [each.column for each in found] == [0, None, 0]
    assert [each.pairs for each in found] == [(0,), (0, 1), (1, 4)]
    assert found[2].versions == (("his father ran",), ("her mother ran",))
    found, _ = swapped_texts([Example("she ran", "the father", where="f:1"), Example("x", "Her", where="f:2")], swaps)
    assert [each.column for each in found] == [None, 1]
    assert found[1].versions == (("x", "His"), ("x", "Her"))
    with pytest.raises(DataError, match="none of 1 texts holds a listed word"):
        swapped_texts([Example("a dog")], swaps)


def test_of_a_language_model(tmp_path, made, in_float64, sentences):
    """The metric of CrowS-Pairs, of the first column's version and the second's, whichever the text is."""
    scorer, swaps = in_float64(made("bert", tmp_path)[0]), listed(("cat", "dog"), ("mats", "home"))
    texts = [text for text in sentences(200) if swap(text, swaps)[1]]
    found, _ = swapped_texts([Example(text, where=f"f:{i}") for i, text in enumerate(texts)], swaps)
    found = [each for each in found if each.column is not None]
    assert {each.column for each in found} == {0, 1}
    nats = np.array([*crows_log_probabilities(scorer, crows_pairs(found))])
    by_hand = []
    for each in found:
        other = each.texts[0]
        for one, two in (("cat", "dog"), ("mats", "home")):
            other = re.sub(rf"\b({one}|{two})\b", lambda m, one=one, two=two: two if m[0] == one else one, other)
        first, second = (
            (other, each.texts[0]) if re.search(r"\b(dog|home)\b", each.texts[0]) else (each.texts[0], other)
        )
        by_hand += crows_log_probabilities(scorer, [CrowsPair(first, second, True, "", "f")])
    assert np.abs(nats - np.array(by_hand)).max() < 2e-3  # rounded to three decimals
    scores = language_scores(nats, found, swaps)
    difference = [one - two for one, two in nats]
    n = len(found)
    assert scores["metrics"]["first"]["value"] == pytest.approx(100 * sum(each > 0 for each in difference) / n)
    own = scores["metrics"]["nats"]
    assert own["value"] == pytest.approx(sum(difference) / n)
    assert own["low"] < own["value"] < own["high"]
    assert own["n"] == n
    assert {*scores["by"]} == {"cat / dog", "mats / home"}
    cats = [each for each, one in zip(difference, found, strict=True) if 0 in one.pairs]
    assert scores["by"]["cat / dog"]["nats"]["value"] == pytest.approx(sum(cats) / len(cats))
    assert scores["by"]["cat / dog"]["first"]["n"] == len(cats)
    assert [abs(each["nats"]) for each in scores["most"]] == sorted(map(abs, difference), reverse=True)[:5]


def test_counts_of_a_classifier(swaps):
    """On 300 random tables of probabilities; of few texts there is no interval, of undirected ones no sign."""
    rng, words = np.random.default_rng(0), ["he", "she", "his", "father", "mother", "he met her"]
    for case in range(300):
        n = int(rng.integers(1, 60))
        texts = [f"{rng.choice(words)} ran {i}" for i in range(n)]
        if case % 10 == 0:
            texts = [f"he met her {i}" for i in range(n)]
        found, _ = swapped_texts([Example(text, where=f"f:{i}") for i, text in enumerate(texts)], swaps)
        chances = rng.dirichlet([1, 1, 1], size=(n, 2))
        said = [tuple("abc"[i] for i in both) for both in chances.argmax(axis=2)]
        scores = label_scores(chances, said, "abc", found, swaps)
        flips, largest, signed, by = 0, [], {label: [] for label in "abc"}, {}
        for (one, two), each in zip(chances, found, strict=True):
            flips += max(range(3), key=lambda i: one[i]) != max(range(3), key=lambda i: two[i])
            largest.append(max(abs(one[i] - two[i]) for i in range(3)))
            for number in each.pairs:
                by.setdefault(" / ".join(swaps.pairs[number]), []).append(largest[-1])
            for i, label in enumerate("abc"):
                if "met" not in each.texts[0]:
                    signed[label].append(one[i] - two[i])
        assert scores["metrics"]["flips"]["value"] == pytest.approx(100 * flips / n)
        assert scores["metrics"]["change"]["value"] == pytest.approx(sum(largest) / n)
        assert (scores["metrics"]["change"]["low"] is None) == (n < 20)
        for i, label in enumerate("abc"):
            own = scores["labels"][label]
            assert own["absolute"]["value"] == pytest.approx(np.abs(chances[:, 0, i] - chances[:, 1, i]).mean())
            assert own["signed"]["n"] == len(signed[label])
            if signed[label]:
                assert own["signed"]["value"] == pytest.approx(np.mean(signed[label]))
            else:
                assert math.isnan(own["signed"]["value"])
        assert {name: own["change"]["value"] for name, own in scores["by"].items()} == pytest.approx(
            {name: np.mean(own) for name, own in by.items()}
        )
        assert scores["most"][0]["change"] == max(largest)
