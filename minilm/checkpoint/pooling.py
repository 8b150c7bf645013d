"""Pooling a text's states into one vector, as sentence-transformers' files in a model directory describe it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm.errors import CheckpointError, ConfigError
from minilm.files import read_json, write_json

POOLINGS = ("cls", "max", "mean")
MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"  # used for other models than BERT, too
OF_OLD = ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # older names in LENGTH's place
# settings that would change the vectors, and those among them that would not
ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
OTHER = (
    "processing_kwargs",
    "truncate_dim",
    "tokenizer_name_or_path",
    "query_length",
    "document_length",
    "query_expansion",
)
HARMLESS = ("trust_remote_code", "attn_implementation", "use_fast", "low_cpu_mem_usage")
OWN = "sentence_transformers.models"  # the module path that every version knows


@dataclass(frozen=True)
class Pooling:
    """How to pool a text's states: the first token's, the maximum or the mean over tokens, or several, concatenated."""

    how: tuple[str, ...] = ("mean",)
    normalize: bool = False  # the vector to length 1
    max_length: int | None = None  # tokens read of a text, if fewer than the model's positions
    prompt: str = ""  # put before every text
    query: str = ""  # put before a query of a search
    document: str = ""  # put before a document that is searched
    lowercase: bool = False  # lower-case the text before the tokenizer

    def __post_init__(self) -> None:
        if not self.how or (odd := [each for each in self.how if each not in POOLINGS]):
            raise ConfigError(f"pooling {', '.join(odd) if self.how else '()'}: give {', '.join(POOLINGS)}")


def read_pooling(directory: Path) -> Pooling | None:
    """Pooling that a directory describes; None if it describes none. Raises CheckpointError naming the file and the
    module or key that is not supported, rather than compute another vector."""
    file = directory / MODULES
    if not os.path.lexists(file):
        return None
    modules = read_json(file, list)
    if not all(isinstance(each, dict) and isinstance(each.get("path", ""), str) for each in modules):
        raise CheckpointError(f"{file}: holds something else than modules")
    types = [str(each.get("type")) for each in modules]
    kinds = [each.rpartition(".")[2] if each.startswith("sentence_transformers.") else each for each in types]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{file}: modules {', '.join(kinds)}; only a Transformer, a Pooling and then perhaps a Normalize are read"
        )
    inside, below = (each.get("path", "") for each in modules[:2])
    if inside or not below or below in (".", "..") or Path(below).name != below:
        raise CheckpointError(f"{file}: a Transformer in {inside!r} and a Pooling in {below!r}; expected '' and a name")
    names = (LENGTH, *(f"sentence_{kind}_config.json" for kind in OF_OLD))
    source = next((each for name in names if os.path.lexists(each := directory / name)), directory / LENGTH)
    reading = _optional(source)
    for key in (*ARGUMENTS, *OTHER):
        value = reading.get(key)
        if isinstance(value, dict) and key in ARGUMENTS:
            value = {name: each for name, each in value.items() if name not in HARMLESS and each != "auto"}
        if value:
            raise CheckpointError(f"{source}: {key} is {value!r}, which is not supported")
    if (task := reading.get("transformer_task", "feature-extraction")) != "feature-extraction":
        raise CheckpointError(f"{source}: transformer_task is {task!r}; only feature-extraction is supported")
    length = reading.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 3):
        raise CheckpointError(f"{source}: max_seq_length is {length!r}; expected a number of tokens")
    prompts, lowercase = _prompts(directory / PROMPTS), reading.get("do_lower_case") or False
    if not isinstance(lowercase, bool):
        raise CheckpointError(f"{source}: do_lower_case is {lowercase!r}; expected true or false")
    how = _how(directory, below, any(prompts.values()))
    return Pooling(how, len(kinds) == 3, length, lowercase=lowercase, **prompts)


def _how(directory: Path, below: str, prompted: bool) -> tuple[str, ...]:
    file = directory / below / "config.json"
    config = read_json(file, directory=directory)
    if prompted and not config.get("include_prompt", True):
        raise CheckpointError(f"{file}: include_prompt false is not supported")
    how = config.get("pooling_mode")
    if how is None:  # before sentence-transformers 6
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        how = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in chosen]
        how = sorted(how) or ["mean"]
    how = tuple(how) if isinstance(how, list) else (how,)
    if odd := [each for each in how if each not in POOLINGS]:
        raise CheckpointError(f"{file}: pooling {odd[0]!r} is not supported, only {', '.join(POOLINGS)}")
    if not how or len({*how}) < len(how):
        raise CheckpointError(f"{file}: pooling_mode is {[*how]!r}; each of {', '.join(POOLINGS)} may be there once")
    return how


def _prompts(file: Path) -> dict[str, str]:
    """Prompts, by the names of Pooling's fields."""
    config = _optional(file)
    if config.get("truncate_dim"):
        raise CheckpointError(f"{file}: truncate_dim is {config['truncate_dim']!r}, which is not supported")
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(each, str | None) for each in prompts.values()):
        raise CheckpointError(f"{file}: prompts holds something else than texts")
    if name is not None and (not isinstance(name, str) or name not in prompts):
        raise CheckpointError(f"{file}: default_prompt_name is {name!r}, and prompts has none of that name")
    names = {"prompt": name, "query": "query", "document": "document"}  # no others, as in sentence-transformers 6
    return {field: prompts.get(each) or "" for field, each in names.items()}


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if os.path.lexists(file) else {}


def check_place(directory: Path) -> None:
    """Raises CheckpointError if `write_pooling` could not make its directory."""
    place = directory / "1_Pooling"
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise CheckpointError(f"{place}: a link or a file, not a directory; remove it")


def write_pooling(directory: Path, pooling: Pooling, width: int) -> None:
    """Write the files that `read_pooling` and every version of sentence-transformers read. width: of the states."""
    names = {"": "Transformer", "1_Pooling": "Pooling"} | ({"2_Normalize": "Normalize"} if pooling.normalize else {})
    (directory / "1_Pooling").mkdir(exist_ok=True)
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
    chosen = {key: how in pooling.how for key, how in modes.items()}
    if sorted(pooling.how) != [*pooling.how]:  # the flags say no order, "pooling_mode" of sentence-transformers 6 does
        chosen = {"pooling_mode": list(pooling.how)}
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | chosen)
    write_json(directory / LENGTH, {"max_seq_length": pooling.max_length, "do_lower_case": pooling.lowercase})
    named = {"query": pooling.query, "document": pooling.document, "default": pooling.prompt}
    prompts = {name: prompt for name, prompt in named.items() if prompt}
    default = {"default_prompt_name": "default"} if pooling.prompt else {}
    write_json(directory / PROMPTS, {"prompts": prompts} | default if prompts else {})
    numbered = enumerate(names.items())
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"{OWN}.{kind}"} for i, (path, kind) in numbered]
    write_json(directory / MODULES, modules)
