"""A model's config.json as an object with transformers' attributes."""

import copy
import difflib
import json
import os
from pathlib import Path
from typing import Any, Self

from minilm.checkpoint.families import FAMILIES, Family
from minilm.checkpoint.hf import config_from_hf
from minilm.checkpoint.hf_config import config_fraction
from minilm.checkpoint.model import find_model, read_config
from minilm.errors import CheckpointError, ConfigError
from minilm.files import write_json
from minilm.model.encoder import EncoderConfig

# what every family has beside its own keys
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
UNSAVED = ("output_attentions", "output_hidden_states", "return_dict")  # said by a call, not by a model
MAX_LABELS = 1 << 16  # that are named by their number
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


class PreTrainedConfig:
    """The keys of a config.json as attributes, those it leaves out at transformers' defaults.

    Unknown keys are kept, as transformers keeps them. Raises ConfigError for one that is a known key misspelled, and
    for labels or a problem type that cannot be.
    """

    def __init__(self, model_type: str, **values: Any) -> None:
        if model_type not in FAMILIES:
            raise ConfigError(f"model_type {model_type!r} is unknown; known: {', '.join(FAMILIES)}")
        self.__dict__["_family"] = FAMILIES[model_type]
        self.__dict__.update(copy.deepcopy(COMMON | self._family.defaults), model_type=model_type)
        self._attn_implementation = "sdpa"
        self.update(values)

    def change(self, values: dict[str, Any]) -> None:
        """`update`, but raises ConfigError for a key that there is none of."""
        known = [*self.__dict__, *self._family.aliases, "num_labels", "torch_dtype", "attn_implementation"]
        for key in values.keys() - set(known):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{key}: neither an argument nor a key of a {self.model_type} config{hint}")
        self.update(values)

    def update(self, values: dict[str, Any]) -> None:
        """Set several at once; `num_labels` makes labels of that number where none are given."""
        if "attn_implementation" in values:  # eager or sdpa; of a machine, not of a model, so it is not saved
            self._attn_implementation = values["attn_implementation"]
            values = {key: value for key, value in values.items() if key != "attn_implementation"}
        values = {self._family.aliases.get(key, key): value for key, value in values.items()}
        if "torch_dtype" in values:  # transformers 4
            values = {"dtype": values["torch_dtype"]} | {k: v for k, v in values.items() if k != "torch_dtype"}
        known = [*COMMON, *self._family.defaults, *self._family.aliases, "num_labels"]
        for key in values:
            if key == "_family" or (hasattr(PreTrainedConfig, key) and key not in known):  # it would hide ours
                raise ConfigError(f"config: {key} is no key of a {self.model_type}")
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.9)
            if near and key not in self.__dict__ and key not in known:
                raise ConfigError(f"config: {key} is no key of a {self.model_type}; did you mean {near[0]}?")
        labels, ids, number = (values.pop(key, None) for key in ("id2label", "label2id", "num_labels"))
        for key, value in values.items():
            setattr(self, key, str(value).removeprefix("torch.") if key == "dtype" and value is not None else value)
        if labels is None and ids is not None:
            labels = {_number(id): label for label, id in _whole(ids, "label2id").items()}
        if labels is not None:
            given = _whole(labels, "id2label")
            labels = {_number(id): str(label) for id, label in given.items()}
            if sorted(labels) != list(range(len(given))) or len(set(labels.values())) < len(given):
                raise ConfigError(f"config: id2label {given!r} does not give each of 0, 1, ... a label of its own")
            if number is not None and (type(number) is not int or number != len(labels)):
                raise ConfigError(f"config: num_labels is {number}, and id2label names {len(labels)}")
            self.id2label = labels
            self.label2id = {label: id for id, label in labels.items()}
            if ids is not None and ids != self.label2id:
                raise ConfigError(f"config: label2id {ids!r} is not id2label {labels!r} the other way round")
        elif number is not None:
            self.num_labels = number
        if self.problem_type not in (None, *PROBLEMS):
            raise ConfigError(f"config: problem_type is {self.problem_type!r}; give one of {', '.join(PROBLEMS)}")

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("_family") and self._family.aliases.get(name)
        if own is None:
            raise AttributeError(f"a {self.__dict__.get('model_type')} config has no {name!r}")
        return getattr(self, own)

    def __setattr__(self, name: str, value: Any) -> None:
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
        """What kind of Hugging Face's models this one is."""
        return self._family

    @property
    def backend(self) -> str:
        """What computes attention, by our name."""
        return "explicit" if self._attn_implementation == "eager" else self._attn_implementation

    def first_of(self, keys: tuple[str, ...], default: float) -> float:
        """The value of the first of `keys` that has one. Raises CheckpointError for one that is no fraction."""
        for key in keys:
            if getattr(self, key, None) is not None:
                return config_fraction(self.__dict__, key)
        return default

    def meant_by(self, name: str) -> str:
        """The value of a key of this name, or, where it is none, the name itself."""
        return getattr(self, name, name)

    def encoder(self) -> EncoderConfig:
        """The shape of the encoder. Raises CheckpointError naming the key that does not fit."""
        return config_from_hf(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Every key with its value."""
        return {key: copy.deepcopy(value) for key, value in self.__dict__.items() if not key.startswith("_")}

    def to_json_string(self) -> str:
        return json.dumps(self._saved(), indent=2) + "\n"

    def _saved(self) -> dict[str, Any]:
        values = {key: value for key, value in self.to_dict().items() if key not in UNSAVED}
        values["id2label"] = {str(id): label for id, label in self.id2label.items()}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], **changes: Any) -> Self:
        """Of what a config.json holds, with `changes`. Raises CheckpointError or ConfigError."""
        config_from_hf(values)  # which misses sizes that are not there; the defaults below would stand in for them
        config = cls.__new__(cls)
        PreTrainedConfig.__init__(config, values["model_type"])
        unread = ("model_type", "label2id") if "id2label" in values else ("model_type",)  # ids are what a model gives
        config.update({key: value for key, value in values.items() if key not in unread})
        config.change(changes)
        return config

    @classmethod
    def for_model(cls, model_type: str, **values: Any) -> "PreTrainedConfig":
        """Of a family, at its defaults but for `values`."""
        return PreTrainedConfig(model_type, **values)

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        *,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **changes: Any,
    ) -> Self:
        """Of a model's directory or its name on the hub, with `changes`. Raises CheckpointError or ConfigError."""
        directory = find_model(name, revision, cache_dir, local_files_only, token=token, weights=False)
        values = read_config(directory)
        try:
            config = cls.from_dict(values, **changes)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{directory}: {error}") from error
        expected = cls.__dict__.get("model_type")
        if expected not in (None, config.model_type):
            raise CheckpointError(f"{directory}: a {config.model_type}, not a {expected}; AutoConfig opens any")
        return config

    def save_pretrained(self, directory: Path | str) -> None:
        """config.json, as transformers reads it."""
        os.makedirs(directory, exist_ok=True)
        write_json(Path(directory) / "config.json", self._saved())

    def __getstate__(self) -> dict[str, Any]:
        """To be pickled: all but the family, whose readers cannot be."""
        return {key: value for key, value in self.__dict__.items() if key != "_family"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _family=FAMILIES[state["model_type"]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreTrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class BertConfig(PreTrainedConfig):
    """Devlin et al. 2018; the defaults are BERT-base."""

    model_type = "bert"

    def __init__(self, **values: Any) -> None:
        super().__init__("bert", **values)


def _whole(value: Any, key: str) -> dict[Any, Any]:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"config: {key} is {value!r}; give each label its number")
    return value


def _number(id: Any) -> int:
    try:
        return int(id)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"config: id2label has a label number {id!r}") from None
