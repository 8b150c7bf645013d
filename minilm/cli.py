"""Command-line code that all scripts share: flags from a dataclass, one-line errors, exit statuses, output files."""

import ast
import dataclasses
import inspect
import io
import math
import os
import re
import signal
import sys
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro

from minilm.errors import ConfigError, LoadingError, UserError, cut, did_you_mean
from minilm.files import encoded, finite, json_text, write_whole
from minilm.machine.memory import is_out_of_memory
from minilm.machine.ranks import have_met, is_first, leave, lost_contact
from minilm.machine.runtime import is_of_compiler
from minilm.machine.signals import STOPPING, exit_status
from minilm.train.loop import OutOfMemory

Args = TypeVar("Args")
Ranges = dict[str, tuple[float, float]]  # of flags, both ends included
BEGAN = time.monotonic()  # about when this process began
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MODEL_FILES = (  # files of a model's or run's directory, which an output must not overwrite
    *("state.json", "tensors.safetensors", "adapter.safetensors", "metrics.jsonl", "lock", "META.json", "README.md"),
    *("predictions.csv", "predictions.conll", "predictions.json"),
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("model.safetensors.index.json", "modules.json", "MANIFEST.json", "run.json", "results.json", "added_tokens.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json", "vocab.txt", "merges.txt", *WEIGHTS),
)
SHOWN = 200  # letters of a file's name, in a message
VALUES = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}  # of flags, in --help
STOPPED = "stopped; the same command resumes from what was saved"


def run_one_of(commands: dict[str, tuple[Callable[[Any], int | None], type]], argv: list[str] | None = None) -> None:
    """`run` the command that the first argument names. commands: name -> (main, args_type)."""
    argv = sys.argv[1:] if argv is None else argv
    name, script = argv[0] if argv else "", Path(sys.argv[0]).name
    if name in ("-h", "--help"):
        first = {each: " ".join((kind.__doc__ or "").split()).split(". ")[0] for each, (_, kind) in commands.items()}
        about = [f"  {each:12}{said.removesuffix('.')}" for each, said in first.items()]
        print("\n".join([f"usage: {script} COMMAND ...; {script} COMMAND --help lists its flags", "", *about]))
        sys.exit(0)
    if name not in commands:
        what = f"{name}: no such command" if name else "no command given"
        sys.exit(_fail(what + (did_you_mean(name, commands) or f"; give one of {', '.join(commands)}")))
    run(*commands[name], argv[1:], f"{script} {name}", getattr(commands[name][1], "goes_on", False))


def run(
    main: Callable[[Any], int | None],
    args_type: type,
    argv: list[str] | None = None,
    prog: str | None = None,
    goes_on: bool = True,
) -> None:
    """Parse the command line, call `main`, and exit with 0, 2 after an error that the user can mend, 130 after Ctrl-C,
    or what `main` returned. prog: the program's name in `--help`. goes_on: whether the same command resumes from
    saves."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter is no error
    before = {number: signal.getsignal(number) for number in STOPPING}
    came: list[int] = []
    status, returned, lost = None, False, False

    def end(number: int, frame: object = None) -> NoReturn:
        came.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a second signal ends this at once
        sys.exit(exit_status(number) if goes_on else 128 + number)

    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)  # by default most signals would end this without tidying up
    try:
        try:
            status = main(parse(args_type, sys.argv[1:] if argv is None else argv, prog))
            returned = True
        except Exception:
            if came:  # a C library may turn what the signal handler raised into an error of its own
                end(came[0])
            raise
    except UserError as error:
        alone = isinstance(error, OutOfMemory | LoadingError) or not have_met()  # others: raised by all
        status = _fail(str(error)) if is_first() or alone else 2
    except BrokenPipeError:  # nobody reads what is printed, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        status = 128 + signal.SIGPIPE
    except OSError as error:
        status = _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if lost_contact(error):
            why, lost = str(error).splitlines()[0][:100], True
            status = _fail(f"another process of this run is gone; the same command resumes from the last save ({why})")
        elif is_out_of_memory(error):
            advice = (
                "lower --batch-tokens" if hasattr(args_type, "batch_tokens") else "give it more, or a smaller model"
            )
            status = _fail(f"out of memory; {advice}")
        else:
            status = _fail_of_compiler(error)
    except Exception as error:
        status = _fail_of_compiler(error)
    except KeyboardInterrupt:
        print(STOPPED if goes_on else "stopped; nothing was written", file=sys.stderr)
        status = 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        error = sys.exc_info()[1]  # one that no branch above is for
        if isinstance(error, SystemExit):
            returned, status = not came, error.code  # without a signal to this process all have agreed to end
        elif error is not None and have_met():
            with suppress(OSError, ValueError, AttributeError):
                traceback.print_exc()
        if lost or (have_met() and not returned):
            # at once: to leave the group on a GPU waits for the others, who may wait for this process
            with suppress(OSError, ValueError, AttributeError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)
        leave()
    sys.exit(status or 0)


def parse(args_type: type[Args], argv: list[str], prog: str | None = None) -> Args:
    """An `args_type` (a dataclass) filled from flags, which must be in its `ranges`, if it has such. Raises ConfigError
    in one line; `--help` prints and exits."""
    known = {flag(field.name) for field in fields(args_type)} | {"--help"}
    for word in argv:
        name = word.split("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known and "--" + name.removeprefix("--no-") not in known:
            raise ConfigError(f"{name}: no such flag" + (did_you_mean(name, known, 0.75) or "; see --help"))
    given = Counter(word.split("=")[0].replace("_", "-") for word in argv)
    asks = bool(given.keys() & {"-h", "--help"})
    options = [field for field in fields(args_type) if "Positional" not in str(field.type)]
    needed = [flag(field.name) for field in options if field.default is MISSING and field.default_factory is MISSING]
    if (lacks := [name for name in needed if name not in given]) and not asks:
        raise ConfigError(f"{', '.join(lacks)}: missing; see --help")
    words = [word.replace("_", "-") for word in argv]
    for name in (flag(field.name) for field in options if "Path" in str(field.type)):
        if f"{name}=" in words or (name, "") in pairwise(words):
            raise ConfigError(f"{name}: is empty; give a path")
    for name in (flag(field.name) for field in fields(args_type) if "tuple" in str(field.type)):
        if given[name] > 1:
            raise ConfigError(f"{name}: given twice; list all values after one {name}")
    boxes = io.StringIO()
    try:
        with redirect_stderr(boxes):
            args = tyro.cli(_described(args_type) if asks else args_type, prog=prog, args=_spelled_out(argv, args_type))
    except SystemExit as stop:
        if stop.code != 2:  # after --help, or by a signal
            raise
        said = _one_line(boxes.getvalue())
        unknown = said.removeprefix("Unrecognized options: ")
        raise ConfigError(said if unknown == said else f"{unknown}: which flag is it for? See --help") from stop
    for field in fields(args_type):
        value = getattr(args, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{flag(field.name)} {value}: not a finite number")
    check_ranges(args, getattr(args_type, "ranges", {}))
    return args


def time_up(limit: float | None) -> float | None:
    """The time.monotonic() at which this process has run for `limit` minutes; None if there is no limit."""
    return None if limit is None else BEGAN + 60 * limit


def flag(name: str) -> str:
    """Flag of a dataclass field: "batch_size" -> "--batch-size"."""
    return f"--{name.replace('_', '-')}"


def check_ranges(args: Any, ranges: Ranges) -> None:
    """Raises ConfigError for a value outside its range, whose ends are allowed."""
    for name, (low, high) in ranges.items():
        if (value := getattr(args, name)) is not None and not low <= value <= high:
            raise ConfigError(f"{flag(name)} {value}: give a value from {low:g} to {high:g}")


def check_result(target: str | None, **files: Path | Sequence[Path] | None) -> None:
    """`check_output` for --json, whose value is a file, "-" or None. Raises ConfigError."""
    if target == "-" and sys.stdout is None:
        raise ConfigError("--json: standard output is closed; name a file")
    if target not in (None, "-"):
        check_output("--json", Path(target), **files)


def check_output(name: str, output: Path, /, **files: Path | Sequence[Path] | None) -> None:
    """Raises ConfigError, before hours of work, if the flag `name`'s file cannot be written, or would overwrite part of
    a model or one of `files`, which are named after their flags."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            output.stat()
    except OSError as error:  # too long a name, a loop of links
        raise ConfigError(f"{name} {cut(str(output), SHOWN)}: cannot be written ({error.strerror})") from error
    file = where_written(output)
    for other_name, others in files.items():
        others = [others] if isinstance(others, Path) else others or []
        if any(where_written(other) == file for other in others):
            raise ConfigError(f"{name} {output}: is the file of {flag(other_name)}; give another")
    if is_stream(output):
        if not output.exists():
            raise ConfigError(f"{name} {output}: is not open; give a file")
        return
    beside = ("model.safetensors.index.json", "tensors.safetensors", "run.json", *WEIGHTS)
    if file.name in MODEL_FILES and file.exists() and any(file.with_name(each).exists() for each in beside):
        raise ConfigError(f"{name} {output}: is part of a model; give another file")
    can = os.access(file.parent, os.W_OK | os.X_OK) and (not file.exists() or os.access(file, os.W_OK))
    if file.is_dir() or not file.parent.is_dir() or not can:
        raise ConfigError(f"{name} {output}: cannot be written; give a file in a directory that is there and writable")


def where_written(output: Path) -> Path:
    """The path with all links followed, as far as they exist."""
    return Path(os.path.realpath(output))


def is_stream(output: Path) -> bool:
    """Whether `output` is written in place, as a pipe or /dev/stdout; a regular file is written aside and renamed."""
    return descriptor_of(output) is not None or (output.exists() and not output.is_file() and not output.is_dir())


def descriptor_of(output: Path) -> int | None:
    """Descriptor that a name like /dev/stdout or /dev/fd/3 stands for, else None. Opening by name would start the file
    anew."""
    standard = {"/dev/stdout": 1, "/dev/stderr": 2}
    number = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(output))
    return int(number[1]) if number else standard.get(str(output))


def write_result(target: str, result: dict[str, Any]) -> None:
    """Write `result` as JSON into the file `target`, or to standard output for "-"."""
    text = json_text(finite(result))
    if target == "-":
        sys.stdout.write(text)
    else:
        write_output("--json", Path(target), text)


def write_output(name: str, output: Path, content: str | bytes) -> None:
    """Write the output file of the flag `name`; a link is followed. Raises ConfigError."""
    try:
        if (number := descriptor_of(output)) is not None:
            print(end="", flush=True)  # what was printed comes first
            with open(os.dup(number), "wb") as stream:
                stream.write(encoded(content))
        elif is_stream(output):
            output.write_bytes(encoded(content))
        else:
            write_whole(where_written(output), content)
    except OSError as error:
        raise ConfigError(f"{name} {output}: cannot be written ({error.strerror or error})") from error


def _described(args_type: type) -> type:
    """`args_type` as `--help` shows it: each flag's docstring as one paragraph, its values without None, and no default
    of None."""
    hints, docs, described = get_type_hints(args_type, include_extras=True), {}, []
    for kind in args_type.__mro__[-2::-1]:  # without `object`
        [made] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        for field, doc in pairwise(made.body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                docs[field.target.id] = " ".join(ast.literal_eval(doc.value).split())
    for field in fields(args_type):
        kinds = get_args(hints[field.name])
        said = tyro.conf.arg(
            help=docs.get(field.name),
            metavar=_values(field.name, *kinds[:-1]) if NoneType in kinds else None,
            help_behavior_hint=lambda default: "" if default in ("None", "") else f"(default: {default})",
        )
        default = dataclasses.field(default=field.default, default_factory=field.default_factory)
        described.append((field.name, Annotated[hints[field.name], said], default))
    made = dataclasses.make_dataclass(args_type.__name__, described, kw_only=True)
    made.__doc__ = " ".join((args_type.__doc__ or "").split())
    return made


def _values(name: str, kind: Any, *more: Any) -> str | None:
    """How `--help` shows the values of a flag that has no default; None: as tyro does."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(value for each in (kind, *more) for value in get_args(each)) + "}"
    if get_origin(kind) is tuple:
        own = _values(name, get_args(kind)[0])
        return f"{own} [{own} ...]"
    return f"| {flag(f'no_{name}')}" if kind is bool else VALUES.get(kind)


def _spelled_out(argv: list[str], args_type: type) -> list[str]:
    """`argv` with omitted values filled in: --json is standard output, --whole-words True, --no-whole-words False."""
    choices = {flag(field.name) for field in fields(args_type) if str(field.type) == "bool | None"}
    out = []
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        positive = word.replace("--no-", "--", 1).replace("_", "-")
        if positive in choices and (positive != word.replace("_", "-") or following not in ("True", "False", "None")):
            out += [positive, str(not word.startswith("--no-"))]
            continue
        out.append(word)
        if word == "--json" and following.startswith("--"):
            out.append("-")
    return out


def _one_line(boxes: str) -> str:
    """tyro's framed message as one line, without the frame and the pointer to --help."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─━┃┏┓┗┛]", " ", boxes)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^(Parsing error|Unrecognized options|Required options|Invalid choice)\s*:?\s*", "", text)
    text = re.sub(r"\s*(Argument helptext:.*)?For full helptext,? (run|see) .*$", "", text)
    return re.sub(r"\s*-{4,}\s*", " ", text).strip()


def _fail_of_compiler(error: Exception) -> int:
    """Print an error of torch's compiler and return exit status 2. Raises any other error, which is a bug."""
    if not is_of_compiler(error):
        raise error
    why = " ".join(str(error).split())[:200]  # the message may have very many lines
    return _fail(f"--compile: torch's compiler fails here ({why}); leave it out, in another --out")


def _fail(message: str) -> int:
    with suppress(OSError):  # nobody reads stderr
        print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
