"""An explanation of a model's output, and its display: in a terminal, as HTML, as a picture.

Colour is never the only sign: a word has up to three marks, + or -, by its share of the largest value; below a tenth of
that it has none.
"""

import html
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from minilm.errors import cut, library, printable

SHARES = ("rollout", "attention")  # methods whose values are shares, and not signed
MARKS = (0.1, 0.4, 0.7)  # shares of the largest value from which a word gets one more mark
FOR, AGAINST = (223, 215, 208), (153, 111, 69)  # of a terminal's 256 colours: oranges, blues
FOR_HTML, AGAINST_HTML = "230,120,0", "40,110,230"  # used see-through, for light and dark pages
PLOTTED = 60  # words of a picture, at most
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>:root{{color-scheme:light dark}} body{{font:16px/1.7 system-ui,sans-serif;max-width:45em;margin:2em auto;
padding:0 1em}} table{{border-collapse:collapse}} td,th{{padding:0 1em 0 0;text-align:left}}
td+td{{text-align:right;font-variant-numeric:tabular-nums}}</style></head>
<body><h1>{title}</h1>
{lines}
{words}
<details open><summary>values</summary><table><tr><th>word</th><th>value</th></tr>
{rows}
</table></details></body></html>
"""


class Word(NamedTuple):
    """A word as the tokenizer splits it, or a special token."""

    text: str
    value: float
    part: int | None  # 0: of the first text; 1: of the second; None: a special token
    start: int  # in characters of that text
    end: int


@dataclass(frozen=True)
class Explanation:
    """The explanation of a model's output for one text or pair."""

    method: str
    says: str  # the output in words: a label, an answer ("": none), a token
    score: float  # the number that is explained: a logit, a regression's number, an answer's two logits together
    texts: tuple[str, ...]
    words: tuple[Word, ...]
    cut: bool  # whether the texts are longer than the model reads
    probability: float | None = None  # of what it `says`, if the score is a logit
    baseline_score: float | None = None  # the score of the baseline of integrated gradients
    completeness_error: float | None = None  # as a share of the difference of both scores; None if they are equal
    map: np.ndarray | None = None  # (words, words) of attention: from the word of the row to that of the column

    @property
    def signed(self) -> bool:
        return self.method not in SHARES

    @property
    def largest(self) -> float:
        """The largest absolute value of a word, special tokens left out."""
        return max((abs(word.value) for word in self.words if word.part is not None), default=0.0)

    def value(self, word: Word) -> str:
        return f"{word.value:+.4f}" if self.signed else f"{word.value:.2%}"

    def as_json(self) -> dict[str, Any]:
        kept = {name: own for name, own in asdict(self).items() if name not in ("words", "map")}
        words = [word._asdict() for word in self.words]
        return kept | {"words": words} | ({} if self.map is None else {"map": self.map.tolist()})


def described(found: Explanation) -> list[str]:
    """Lines that say what is explained, and by which method."""
    says = printable(found.says) or "no answer"
    chance = "" if found.probability is None else f", probability {found.probability:.4f}"
    lines = [f"explained  {says}, score {found.score:.4f}{chance}", f"method     {found.method.replace('-', ' ')}"]
    if found.baseline_score is not None:
        differs, error = found.score - found.baseline_score, found.completeness_error
        off = "" if error is None else f", which the values sum to but for {error:.2%}"
        told = f"score {found.baseline_score:.4f} with [PAD] in place of each word"
        lines.append(f"baseline   {told}: a difference of {differs:+.4f}{off}")
    if not found.signed:
        lines.append("values     shares of attention: what is looked at, which need not be why")
    if found.cut:
        lines.append("cut        the text is longer than the model reads")
    return lines


def table_lines(found: Explanation) -> list[str]:
    """A line for each word and its value, special tokens included."""
    return [f"{cut(printable(word.text), 40):44}{found.value(word):>10}" for word in found.words]


def coloured_lines(found: Explanation) -> list[str]:
    """A line for each text, its words with marks and in colours of a terminal."""
    lines = []
    for part in range(len(found.texts)):
        line = ""
        for text, word in _pieces(found, part):
            marks = "" if word is None else _marks(found, word)
            shown = printable(text)
            colour = (AGAINST if marks.startswith("-") else FOR)[len(marks) - 1]
            line += f"\x1b[30;48;5;{colour}m{shown}{marks}\x1b[0m" if marks else shown
        lines.append(line)
    return lines


def html_fragment(found: Explanation) -> str:
    """The texts as paragraphs of HTML, escaped, with inline styles and no script."""
    paragraphs = []
    for part in range(len(found.texts)):
        made = ""
        for text, word in _pieces(found, part):
            shown = html.escape(printable(text))
            if word is None:
                made += shown
                continue
            colour = AGAINST_HTML if word.value < 0 else FOR_HTML
            depth = 0.55 * abs(word.value) / (found.largest or 1)
            marks = f"<sup>{marks}</sup>" if (marks := _marks(found, word).replace("-", "−")) else ""
            made += (
                f'<span style="background:rgba({colour},{depth:.2f})" title="{found.value(word)}">{shown}{marks}</span>'
            )
        paragraphs.append(f"<p>{made}</p>")
    return "\n".join(paragraphs)


def html_page(found: Explanation, title: str) -> str:
    """A whole HTML page with the explanation, which loads nothing else."""
    of = "+ for, − against what is explained" if found.signed else "+"
    about = [*described(found), f"marks      {of}; up to three, by the size of the value"]
    lines = "".join(f"<div>{html.escape(each)}</div>\n" for each in about)
    rows = "\n".join(
        f"<tr><td>{html.escape(printable(word.text))}</td><td>{found.value(word)}</td></tr>" for word in found.words
    )
    return PAGE.format(title=html.escape(printable(title)), lines=lines, words=html_fragment(found), rows=rows)


def picture(found: Explanation) -> bytes:
    """A PNG with a bar for each word, or the map of attention; of more than PLOTTED words those of the largest values.
    Raises ConfigError without matplotlib."""
    figure = library("matplotlib.figure").Figure(dpi=120, layout="constrained")
    values = np.array([word.value for word in found.words])
    shown = np.sort(np.argsort(-np.abs(values), kind="stable")[:PLOTTED])
    names = [printable(cut(found.words[i].text, 24)) for i in shown]
    axes, side = figure.subplots(), 1.5 + 0.22 * len(shown)
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    if found.map is None:
        figure.set_size_inches(6, side)
        bars = axes.barh(range(len(shown)), values[shown], color=np.where(values[shown] < 0, "#4477cc", "#dd7711"))
        axes.bar_label(bars, [found.value(found.words[i]) for i in shown], padding=3, fontsize=7)
        axes.margins(x=0.2)
        axes.axvline(0, color="#555", linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel("against (-), for (+)")
    else:
        figure.set_size_inches(side + 1.5, side)
        image = axes.imshow(found.map[np.ix_(shown, shown)], cmap="Blues", vmin=0)
        axes.set_xticks(range(len(shown)), names, rotation=90, parse_math=False)
        axes.set(ylabel="from", xlabel="to")
        figure.colorbar(image, ax=axes, shrink=0.7)
    more = "" if len(shown) == len(found.words) else f" ({len(shown)} of {len(found.words)} words)"
    axes.set_title(
        f"{cut(printable(found.says) or 'no answer', 40)}: {found.method}{more}", fontsize=9, parse_math=False
    )
    stream = BytesIO()
    with warnings.catch_warnings(action="ignore"):  # a letter that the font lacks
        figure.savefig(stream, format="png")
    return stream.getvalue()


def _pieces(found: Explanation, part: int) -> Iterator[tuple[str, Word | None]]:
    """Split a text into pieces: its words, and the characters between them (with None)."""
    text, at = found.texts[part], 0
    for word in (each for each in found.words if each.part == part):
        if word.start > at:
            yield text[at : word.start], None
        yield word.text, word
        at = max(at, word.end)
    if at < len(text):
        yield text[at:], None


def _marks(found: Explanation, word: Word) -> str:
    size = abs(word.value) / (found.largest or 1)
    return ("-" if word.value < 0 else "+") * sum(size >= each for each in MARKS)
