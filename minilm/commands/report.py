"""report: what score finds, with the surest mistakes explained, as one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm.commands.labelled import Judgement
from minilm.commands.of_model import check_output, counted, tell
from minilm.commands.score import Score, lines_of, scores_of
from minilm.errors import ConfigError
from minilm.explanation.explain import explain
from minilm.files import finite, read_json, write_whole
from minilm.judging.page import page
from minilm.tasks.scores import library
from minilm.train.log import say


@dataclass(frozen=True, kw_only=True)
class Report(Score):
    """What score finds, with the surest mistakes explained, as a web page that needs no network."""

    html: Path
    """The page to write."""
    result: Path | None = None
    """In place of a model: the --json of an earlier report, to make its page again."""


def run_report(args: Report) -> None:
    """The JSON first, and the page from it."""
    library("jinja2")  # before the work
    inputs = [file for file in (args.data, args.predictions, args.dev, args.result) if file is not None]
    for file in inputs:
        check_output(args.html, file, "--html")
    if args.result is not None:
        if args.model or args.predictions or args.data:
            raise ConfigError(f"--result {args.result}: is a result already; leave out the model and its examples")
        result = read_json(args.result)
        if "metrics" not in result or "task" not in result:
            raise ConfigError(f"--result {args.result}: holds no result of score or report")
    else:
        result, judgement = scores_of(args)
        result = finite(result | explained(args, result, judgement))
        tell(args.json, result, lines_of(result))
    write_whole(args.html, page(result))
    say(f"report -> {args.html}")


def explained(args: Report, result: dict[str, Any], judgement: Judgement) -> dict[str, Any]:
    """The mistakes, each with what every word of it did for the label that was said."""
    judged, _, tuned = judgement
    if tuned is None or not result.get("mistakes"):
        return {}
    at = {each.where: each for each in judged.examples}
    rows = [at[each["where"]] for each in result["mistakes"]]
    found = [
        explain(tuned.model, tuned.task, tuned.tokenizer, [each], length=tuned.length)[0]
        for each in counted(rows, len(rows), "mistakes explained")
    ]
    told = zip(result["mistakes"], found, strict=True)
    method = "Integrated gradients (Sundararajan et al. 2017): what each word did for (+) or against (-) what was said."
    return {"mistakes": [each | {"explanation": own.as_json()} for each, own in told], "explained": method}
