"""report: what score finds, with the surest mistakes explained, as one page."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minilm import cli
from minilm.commands.labelled import Judgement
from minilm.commands.of_model import counted, tell
from minilm.commands.score import Score, lines_of, scores_of
from minilm.errors import ConfigError, DataError, library
from minilm.explanation.explain import explain
from minilm.files import finite, read_json
from minilm.finetuning.tuned import Tuned
from minilm.judging.page import page
from minilm.labelled.examples import Example
from minilm.train.log import say


@dataclass(frozen=True, kw_only=True)
class Report(Score):
    """What score finds, with the surest mistakes explained, as a web page that needs no network."""

    html: Path
    """The page to write."""
    result: Path | None = None
    """In place of a model: the --json of an earlier report, to make its page again."""


def run_report(args: Report) -> None:
    """Write the JSON first, and the page from it."""
    library("jinja2")  # before the work
    json = None if args.json in (None, "-") else Path(args.json)
    inputs = {"data": args.data, "predictions": args.predictions, "dev": args.dev, "result": args.result}
    cli.check_output("--html", args.html, **inputs, json=json)
    if args.result is not None:
        given = [each.name for each in fields(Score) if getattr(args, each.name) != each.default]
        if given:
            raise ConfigError(f"{cli.flag(given[0])}: --result {args.result} is a result already; give only --html")
        result = read_json(args.result)
        if "metrics" not in result or "task" not in result:
            raise ConfigError(f"--result {args.result}: holds no result of score or report")
    else:
        result, judgement = scores_of(args)
        result = finite(result | explained(result, judgement))
        tell(args.json, result, lines_of(result))
    try:
        made = page(result)
    except (LookupError, TypeError, ValueError, AttributeError, library("jinja2").UndefinedError) as error:
        if args.result is None:
            raise  # a bug
        raise ConfigError(f"--result {args.result}: is no result of this version's score or report") from error
    cli.write_output("--html", args.html, made)
    say(f"report -> {args.html}")


def explained(result: dict[str, Any], judgement: Judgement) -> dict[str, Any]:
    """The mistakes, each with an explanation: the value of every word for the predicted label."""
    judged, _, tuned = judgement
    if tuned is None or not result.get("mistakes"):
        return {}
    at = {each.where: each for each in judged.examples}
    rows = [at[each["where"]] for each in result["mistakes"]]
    told = zip(result["mistakes"], counted(rows, len(rows), "mistakes explained"), strict=True)
    found = [each | _explanation(tuned, row) for each, row in told]
    method = "Integrated gradients (Sundararajan et al. 2017): what each word did for (+) or against (-) what was said."
    return {"mistakes": found, "explained": method}


def _explanation(tuned: Tuned, example: Example) -> dict[str, Any]:
    """The explanation of a mistake; nothing for a text without a word that the model reads."""
    try:
        found = explain(tuned, [example.text], None if example.pair is None else [example.pair])
    except DataError:
        return {}
    return {"explanation": found[0].as_json()}
