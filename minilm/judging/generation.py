"""Scores of generated texts against references: BLEU, chrF, ROUGE, exact match; as by sacrebleu and rouge-score.

BLEU (Papineni et al. 2002) and chrF (Popovic 2015), from 0 to 100, are of all segments together: functions of n-gram
counts, summed over segments, and so is each draw of their intervals. (sacrebleu's own intervals are a half width
around the mean of draws, in fp32.) If all texts are shorter than four tokens, BLEU is 0 there and NaN here.

ROUGE (Lin 2004), from 0 to 1, is the mean over segments of an F measure, the best over a segment's references. It knows
only the letters a to z and digits; ROUGE-Lsum takes lines for sentences.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from minilm.errors import DataError, library
from minilm.labelled.examples import as_text
from minilm.labelled.tables import values_of
from minilm.metrics.intervals import share, with_intervals

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TOKENISED = 100  # predictions that end in " .", from which sacrebleu warns, too
OTHER_LETTERS = 0.005  # share of letters outside of a to z from which a note says so
References = Sequence[Sequence[str]]  # one or more for each segment


def read_predictions(file: Path, field: str) -> list[str]:
    """Predicted texts of a file, one a line, blank ones included; of a .jsonl those in `field`. Raises DataError."""
    found = [as_text(value, where, field) or "" for where, value in values_of(file, field, "--prediction-field")]
    if not found:
        raise DataError(f"{file}: holds no text")
    return found


def read_references(files: Sequence[Path], field: str, segments: int) -> list[list[str]]:
    """The references of each segment: from each file a line, unless it is blank; of a .jsonl the text, or the list of
    texts, in `field`. Raises DataError, also for a segment without one, and for a file of other than `segments`."""
    found: list[list[str]] = [[] for _ in range(segments)]
    for file in files:
        number = 0
        for number, (where, value) in enumerate(values_of(file, field, "--reference-field"), start=1):
            texts = [as_text(each, where, field) or "" for each in (value if isinstance(value, list) else [value])]
            if number <= segments:
                found[number - 1] += [text for text in texts if text.strip()]
        if number != segments:
            raise DataError(f"{file}: {number:,} references for {segments:,} predictions; give one for each, in order")
    if (without := next((i for i, each in enumerate(found, start=1) if not each), None)) is not None:
        raise DataError(f"{files[0]}: segment {without} has no reference; give one, or leave its prediction out")
    return found


def rouge_rows(predictions: Sequence[str], references: References, stemmer: bool = False) -> Iterator[list[float]]:
    """F of each of ROUGE, for each segment. stemmer: of words without their English endings (Porter 1980)."""
    scorer = library("rouge_score.rouge_scorer").RougeScorer(ROUGE, use_stemmer=stemmer)
    best = (scorer.score_multi(own, text) for text, own in zip(predictions, references, strict=True))
    return ([each[name].fmeasure for name in ROUGE] for each in best)


def ngram_counts(predictions: Sequence[str], references: References) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(sacrebleu's metrics by name, the counts (n, r) of each metric by segment)."""
    sacrebleu = library("sacrebleu.metrics")
    metrics = {"bleu": sacrebleu.BLEU(force=True), "chrf": sacrebleu.CHRF()}  # force: it prints no warning
    streams = [*zip_longest(*references)]
    # its public functions give no counts by segment
    return metrics, [np.array(each._extract_corpus_statistics(predictions, streams)) for each in metrics.values()]


def generation_scores(
    predictions: Sequence[str], references: References, rouge: Sequence[Sequence[float]], stemmer: bool = False
) -> dict[str, Any]:
    """bleu, chrf, ROUGE and exact_match, the share of texts that equal a reference but for white space at the ends: as
    {value, low, high, n}, over segments. Also `signatures`, which say how scores were computed, and `notes`. rouge: of
    `rouge_rows`."""
    metrics, counts = ngram_counts(predictions, references)
    ends = np.cumsum([each.shape[1] for each in counts]).tolist()
    of_records = partial(weighted, metrics=metrics, ends=ends)
    scores = with_intervals(np.concatenate([*counts, rouge], axis=1), of_records, len(predictions))
    exact = [text.strip() in {each.strip() for each in own} for text, own in zip(predictions, references, strict=True)]
    signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    signatures["rouge"] = f"stemmer:{'yes' if stemmer else 'no'}|version:{version('rouge-score')}"
    return {
        "metrics": scores | {"exact_match": share(np.array(exact))},
        "signatures": signatures,
        "notes": _notes(predictions, references, bool(np.isnan(scores["bleu"]["value"]))),
    }


def weighted(
    records: np.ndarray, weights: np.ndarray, metrics: Mapping[str, Any], ends: Sequence[int]
) -> dict[str, np.ndarray]:
    """bleu, chrf and ROUGE, (B,) each, of segments taken as often as weights (B, n) say. records (n, r): the counts of
    each metric, up to its one of `ends`, and ROUGE."""
    *totals, rouge = np.split(weights @ records, ends, axis=1)
    found = {}
    for (name, metric), own in zip(metrics.items(), totals, strict=True):
        found[name] = np.array([metric._compute_score_from_stats(row).score for row in own.astype(np.int64).tolist()])
    found["bleu"][totals[0][:, -1] == 0] = np.nan  # no 4-gram is predicted
    return found | dict(zip(ROUGE, rouge.T / weights.sum(axis=1), strict=True))


def _notes(predictions: Sequence[str], references: References, without_bleu: bool) -> list[str]:
    """Notes on the texts that a reader of the scores should know."""
    found = []
    if empty := sum(not text.strip() for text in predictions):
        found.append(f"{empty:,} predictions are empty, and count")
    if without_bleu:
        found.append("no prediction has four tokens, so that BLEU is not defined")
    if (tokenised := sum(text.endswith(" .") for text in predictions)) >= TOKENISED:
        found.append(f"{tokenised:,} predictions end in ' .', as tokens do that were not joined: BLEU takes plain text")
    letters = [letter for own in references for text in own for letter in text if letter.isalpha()]
    if (others := sum(not letter.isascii() for letter in letters)) > OTHER_LETTERS * len(letters):
        part = others / len(letters)
        found.append(f"{part:.1%} of the references' letters are none of a to z: ROUGE splits words there")
    if not any("\n" in text.strip() for own in references for text in own):
        found.append("every reference is one line, and so ROUGE-Lsum is of whole texts, as ROUGE-L")
    return found
