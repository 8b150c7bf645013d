"""How a text's states become one vector: what sentence-transformers' files in a model directory say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm.errors import CheckpointError, ConfigError
from minilm.files import read_json, write_json

POOLINGS = ("cls", "max", "mean")  # in the order in which several are joined
MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"  # also of models that are no BERT
OWN = "sentence_transformers.models"  # where every version finds these modules


@dataclass(frozen=True)
class Pooling:
    """Of a text's states: its first token's, the largest or the mean over its tokens, or several of these, joined."""

    how: tuple[str, ...] = ("mean",)
    normalize: bool = False  # to length 1
    max_length: int | None = None  # tokens read of a text, where those are fewer than the model's positions
    prompt: str = ""  # stands before every text
    lowercase: bool = False  # the text, whatever the tokenizer does

    def __post_init__(self) -> None:
        if not self.how or (odd := [each for each in self.how if each not in POOLINGS]):
            raise ConfigError(f"pooling {', '.join(odd) if self.how else '()'}: give {', '.join(POOLINGS)}")


def read_pooling(directory: Path) -> Pooling | None:
    """None of a directory that says none. Raises CheckpointError naming the file and the module or key that is not
    supported, rather than compute another vector."""
    file = directory / MODULES
    if not file.exists():
        return None
    modules = read_json(file, list)
    if not all(isinstance(each, dict) and isinstance(each.get("path", ""), str) for each in modules):
        raise CheckpointError(f"{file}: holds something else than modules")
    kinds = [str(each.get("type")).rpartition(".")[2] for each in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{file}: modules {', '.join(kinds)}; only a Transformer, a Pooling and then perhaps a Normalize are read"
        )
    inside, below = (each.get("path", "") for each in modules[:2])
    if inside or not below or below in (".", "..") or Path(below).name != below:
        raise CheckpointError(f"{file}: a Transformer in {inside!r} and a Pooling in {below!r}; expected '' and a name")
    reading = _optional(directory / LENGTH)
    length = reading.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 3):
        raise CheckpointError(f"{directory / LENGTH}: max_seq_length is {length!r}; expected a number of tokens")
    prompt, lowercase = _prompt(directory / PROMPTS), bool(reading.get("do_lower_case", False))
    return Pooling(_how(directory, below, prompt), len(kinds) == 3, length, prompt, lowercase)


def _how(directory: Path, below: str, prompt: str) -> tuple[str, ...]:
    file = directory / below / "config.json"
    config = read_json(file, directory=directory)
    if prompt and not config.get("include_prompt", True):
        raise CheckpointError(f"{file}: include_prompt false is not supported")
    how = config.get("pooling_mode")
    if how is None:  # before sentence-transformers 6
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        how = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in chosen]
        how = sorted(how) or ["mean"]
    how = tuple(how) if isinstance(how, list) else (how,)
    if odd := [each for each in how if each not in POOLINGS]:
        raise CheckpointError(f"{file}: pooling {odd[0]!r} is not supported, only {', '.join(POOLINGS)}")
    return how


def _prompt(file: Path) -> str:
    """What stands before a text unless a call says otherwise."""
    config = _optional(file)
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(name, str) or not isinstance(prompts.get(name), str):
        raise CheckpointError(f"{file}: default_prompt_name is {name!r}, and prompts has none of that name")
    return prompts[name]


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def write_pooling(directory: Path, pooling: Pooling, width: int) -> None:
    """The files that `read_pooling` reads, as every version of sentence-transformers does; width: of the states."""
    names = {"": "Transformer", "1_Pooling": "Pooling"} | ({"2_Normalize": "Normalize"} if pooling.normalize else {})
    (directory / "1_Pooling").mkdir(exist_ok=True)
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
    chosen = {key: how in pooling.how for key, how in modes.items()}
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | chosen)
    write_json(directory / LENGTH, {"max_seq_length": pooling.max_length, "do_lower_case": pooling.lowercase})
    prompts = {"prompts": {"default": pooling.prompt}, "default_prompt_name": "default"} if pooling.prompt else {}
    write_json(directory / PROMPTS, prompts)
    numbered = enumerate(names.items())
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"{OWN}.{kind}"} for i, (path, kind) in numbered]
    write_json(directory / MODULES, modules)
