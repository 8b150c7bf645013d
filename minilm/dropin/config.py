"""A model's config.json as an object with transformers' attributes."""

import copy
import json
import logging
import os
from pathlib import Path
from typing import Any, Self

import torch

from minilm.checkpoint.families import FAMILIES, Family, Key
from minilm.checkpoint.hf import DTYPES, config_from_hf, is_causal
from minilm.checkpoint.hf_config import config_fraction
from minilm.checkpoint.model import find_model, read_config
from minilm.errors import CheckpointError, ConfigError, did_you_mean
from minilm.files import write_json
from minilm.model.encoder import EncoderConfig

log = logging.getLogger("minilm")
# keys of every family, beside its own
COMMON = {
    "architectures": None,
    "dtype": None,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}
# values of keys that a file lacks
UNSAID = {"is_encoder_decoder": False, "use_cache": True, "name_or_path": "", "_name_or_path": ""}
LABELS = ("id2label", "label2id", "num_labels")
OF_CALLS = ("output_attentions", "output_hidden_states", "return_dict")  # saved only if they are not the usual ones
MAX_LABELS = 1 << 16  # that num_labels may ask for
BACKEND = {"eager": "explicit", "sdpa": "sdpa"}  # transformers' name of an attention backend -> ours
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


class PreTrainedConfig:
    """The keys of a config.json as attributes, those it leaves out at transformers' defaults.

    Unknown keys are kept, as in transformers; a dtype is torch's. Raises ConfigError for a known key misspelled (in a
    file it is left out), for invalid labels (those of a file are refused by classifiers alone), and for an unknown
    problem_type.
    """

    _unfit: str | None = None  # what is wrong with the labels of a file

    def __init__(self, model_type: str, **values: Any) -> None:
        if model_type not in FAMILIES:
            raise ConfigError(f"model_type {model_type!r} is unknown; known: {', '.join(FAMILIES)}")
        self.__dict__["_family"] = FAMILIES[model_type]
        self.__dict__.update(copy.deepcopy(COMMON | self._family.defaults), model_type=model_type)
        self._attn_implementation = "sdpa"
        self.update(values)

    def change(self, values: dict[str, Any]) -> None:
        """`update`, but raises ConfigError for any unknown key."""
        known = self.known()
        for key in values.keys() - set(known):
            hint = did_you_mean(key, known)
            raise ConfigError(f"{key}: neither an argument nor a key of a {self.model_type} config{hint}")
        self.update(values)

    def known(self) -> list[str]:
        """The keys that `change` takes."""
        own = [key for key in self.__dict__ if not key.startswith("_") and key != "model_type"]
        return [*own, *self._family.aliases, *UNSAID, "num_labels", "torch_dtype", "attn_implementation"]

    def update(self, values: dict[str, Any]) -> None:
        """Set several keys at once; `num_labels` makes that many labels if none are given."""
        if "attn_implementation" in values:  # depends on the machine, not on the model, so it is not saved
            if (chosen := values["attn_implementation"]) not in list(BACKEND):  # a list, for it may be unhashable
                raise ConfigError(f"attn_implementation {chosen!r} is unknown; use one of {', '.join(BACKEND)}")
            self._attn_implementation = chosen
            values = {key: value for key, value in values.items() if key != "attn_implementation"}
        values = {self._family.aliases.get(key, key): value for key, value in values.items()}
        if "torch_dtype" in values:  # transformers 4
            values = {"dtype": values["torch_dtype"]} | {k: v for k, v in values.items() if k != "torch_dtype"}
        for key in values:
            self._check_key(key)
        labels, ids, number = (values.pop(key, None) for key in LABELS)
        for key, value in values.items():
            setattr(self, key, value)
        if (labels, ids, number) != (None, None, None):
            self._set_labels(labels, ids, number)
        if self.problem_type not in (None, *PROBLEMS):
            raise ConfigError(f"config: problem_type is {self.problem_type!r}; give one of {', '.join(PROBLEMS)}")

    def _set_labels(self, labels: Any, ids: Any, number: Any) -> None:
        """Set id2label, label2id and num_labels. Raises ConfigError if they contradict each other."""
        if ids is not None:
            ids = {label: _number(id, "label2id") for label, id in _whole(ids, "label2id").items()}
        if labels is None and ids is None:
            self.num_labels = number
        else:
            given = _whole({id: label for label, id in ids.items()} if labels is None else labels, "id2label")
            labels = {_number(id, "id2label"): str(label) for id, label in given.items()}
            if sorted(labels) != list(range(len(given))) or len(set(labels.values())) < len(given):
                raise ConfigError(f"config: id2label {given!r} does not give each of 0, 1, ... a label of its own")
            if number is not None and (type(number) is not int or number != len(labels)):
                raise ConfigError(f"config: num_labels is {number}, and id2label names {len(labels)}")
            numbers = {label: id for id, label in labels.items()}
            if ids not in (None, numbers):
                raise ConfigError(f"config: label2id {ids!r} is not id2label {labels!r} the other way round")
            self.id2label, self.label2id = labels, numbers
        self._unfit = None

    def check_labels(self) -> None:
        """Raises ConfigError if a file's labels are invalid and no others were given, or if one is to be chosen of one,
        for which the loss is always 0."""
        if self._unfit is not None:
            raise ConfigError(f"{self._unfit}; give others, or num_labels")
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                "config: one label, and problem_type single_label_classification; give two, or problem_type regression"
            )

    def _check_key(self, key: str) -> None:
        """Raises ConfigError for a key that would hide an attribute of ours, or is a known key misspelled."""
        known = [*COMMON, *self._family.defaults, *self._family.aliases, "num_labels"]
        ours = key in ("_family", "_attn_implementation") or hasattr(PreTrainedConfig, key)
        hint = "" if ours or key in self.__dict__ else did_you_mean(key, known, 0.9)
        if key not in known and (ours or hint):
            raise ConfigError(f"config: {key} is no key of a {self.model_type}{hint}")

    def __getattr__(self, name: str) -> Any:
        if name == "torch_dtype":  # transformers 4
            return self.dtype
        own = self.__dict__.get("_family") and self._family.aliases.get(name)
        if own is None and name in UNSAID:
            return self.__dict__.get(f"_{name}", UNSAID[name])
        if own is None:
            raise AttributeError(f"a {self.__dict__.get('model_type')} config has no {name!r}")
        return getattr(self, own)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("dtype", "torch_dtype"):
            name, value = "dtype", None if value is None else dtype_of(value)
        super().__setattr__(self._family.aliases.get(name, name), value)

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        if type(number) is not int or not 0 < number <= MAX_LABELS:
            raise ConfigError(f"config: num_labels is {number!r}; give a whole number from 1 to {MAX_LABELS}")
        if number != self.num_labels:
            self.id2label = {id: f"LABEL_{id}" for id in range(number)}
            self.label2id = {label: id for id, label in self.id2label.items()}

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict

    @property
    def family(self) -> Family:
        """The family of Hugging Face's models that this one belongs to."""
        return self._family

    @property
    def backend(self) -> str:
        """The attention backend, by our name. Raises ConfigError for an unknown attn_implementation."""
        self.update({"attn_implementation": self._attn_implementation})
        return BACKEND[self._attn_implementation]

    def dropout_of(self, keys: tuple[str, ...]) -> float:
        """The value of the first of `keys` that has one, or 0. Raises CheckpointError for one that is no fraction."""
        key = next((key for key in keys if getattr(self, key, None) is not None), None)
        return 0.0 if key is None else config_fraction(self.__dict__, key)

    def meant_by(self, value: str | Key) -> str:
        """This config's value of `value` if that is a Key; otherwise `value` itself."""
        return getattr(self, value) if isinstance(value, Key) else value

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it."""
        return is_causal(self.__dict__)

    def encoder(self) -> EncoderConfig:
        """The encoder's config. Raises CheckpointError naming the key that does not fit."""
        return config_from_hf(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Every key with its value, a dtype as its name."""
        values = {key: copy.deepcopy(value) for key, value in self.__dict__.items() if not key.startswith("_")}
        return values | {"dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch.")}

    def to_json_string(self) -> str:
        return json.dumps(self._saved(), indent=2) + "\n"

    def _saved(self) -> dict[str, Any]:
        values = {key: own for key, own in self.to_dict().items() if key not in OF_CALLS or own != COMMON[key]}
        values["id2label"] = {str(id): label for id, label in self.id2label.items()}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], **changes: Any) -> Self:
        """The config of a config.json's content, with `changes`. Raises CheckpointError or ConfigError."""
        config_from_hf(values)  # refuses a file without its sizes, before defaults stand in for them
        config = cls.__new__(cls)
        PreTrainedConfig.__init__(config, values["model_type"])
        # id2label wins, for files often hold a stale label2id
        unread = ["model_type", "label2id"] if "id2label" in values else ["model_type"]
        for key in values:
            try:
                config._check_key(key)
            except ConfigError as error:
                log.warning("%s; left out", error)
                unread.append(key)
        read = {key: value for key, value in values.items() if key not in unread}
        labels = [read.pop(key, None) for key in LABELS]
        named = read.pop("dtype", read.pop("torch_dtype", None))
        config.update(read)
        config.__dict__["dtype"] = _dtype_or_name(named)
        if labels != [None, None, None]:
            try:
                config._set_labels(*labels)
            except ConfigError as error:  # only a classifier reads them
                log.warning("%s; left out", error)
                config._unfit = str(error)
        config.change(changes)
        return config

    @classmethod
    def for_model(cls, model_type: str, **values: Any) -> "PreTrainedConfig":
        """The config of a family, at its defaults but for `values`."""
        return PreTrainedConfig(model_type, **values)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        *,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        return_unused_kwargs: bool = False,
        **changes: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """The config of a directory or a name on the hub, with `changes`; those that are no key of it are left out,
        with a warning, or given back beside it (return_unused_kwargs). trust_remote_code is accepted as in
        transformers. Raises CheckpointError, ConfigError for a key misspelled."""
        name = pretrained_model_name_or_path
        directory = find_model(name, revision, cache_dir, local_files_only, token=token, weights=False)
        config, unused = cls.of_directory(directory), {}
        known = config.known()
        for key in changes.keys() - {*known}:
            if key in ("subfolder", "gguf_file") and changes[key]:
                raise ConfigError(f"{key} {changes[key]!r}: not supported; give the directory of a config.json")
            if not did_you_mean(key, known):
                unused[key] = changes.pop(key)
        if unused and not return_unused_kwargs:
            log.warning("%s: left out, as no key of a %s config: %s", directory, config.model_type, ", ".join(unused))
        try:
            config.change(changes)
        except ConfigError as error:
            raise ConfigError(f"{directory}: {error}") from error
        config._name_or_path = str(name)
        expected = cls.__dict__.get("model_type")
        if expected not in (None, config.model_type):
            raise CheckpointError(f"{directory}: a {config.model_type}, not a {expected}; AutoConfig opens any")
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def of_directory(cls, directory: Path, **changes: Any) -> Self:
        """The config of a directory's config.json, with `changes`. Raises CheckpointError naming the directory."""
        values = read_config(directory)
        try:
            return cls.from_dict(values, **changes)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{directory}: {error}") from error

    def save_pretrained(self, save_directory: Path | str) -> None:
        """Write config.json, as transformers reads it."""
        os.makedirs(save_directory, exist_ok=True)
        write_json(Path(save_directory) / "config.json", self._saved())

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle: all but the family, whose readers cannot be pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "_family"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _family=FAMILIES[state["model_type"]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreTrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class BertConfig(PreTrainedConfig):
    """The config of a BERT (Devlin et al. 2018); the defaults are BERT-base."""

    model_type = "bert"

    def __init__(self, **values: Any) -> None:
        super().__init__("bert", **values)


def dtype_of(value: torch.dtype | str) -> torch.dtype:
    """torch.float32 for itself, "float32" and "torch.float32". Raises ConfigError for one that models cannot have."""
    found = getattr(torch, str(value).removeprefix("torch."), None)
    if found not in DTYPES:
        raise ConfigError(f"dtype {value!r}: give one of {', '.join(map(str, DTYPES))}")
    return found


def _dtype_or_name(value: Any) -> Any:
    """`dtype_of` what a file names, or its name, if models cannot have it: opening one then says so."""
    try:
        return None if value is None else dtype_of(value)
    except ConfigError:
        return value


def _whole(value: Any, key: str) -> dict[Any, Any]:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"config: {key} is {value!r}; give each label its number")
    return value


def _number(id: Any, key: str) -> int:
    try:
        return int(id)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"config: {key} has a label number {id!r}") from None
