"""transformers' model classes: one encoder and one head each, with its call, outputs, losses, loading and saving.

The classes are named after BERT, but open every family of `checkpoint.families`; the config says which one a model is.

The base model is called `bert` in every family, and its parameters have our names; files have transformers'.

Shape letters: B rows, T tokens per row, D width, E width of the word table (D, but for ELECTRA), V vocabulary,
C labels.
"""

import copy
import inspect
import logging
import os
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.batch import IGNORE, Tokens
from minilm.checkpoint.families import Built
from minilm.checkpoint.hf import HEAD, entry_of, to_hf
from minilm.checkpoint.model import check_version, find_model, read_weights, shapes_only, version_of
from minilm.checkpoint.pooling import MODULES, Pooling, check_place, read_pooling, write_pooling
from minilm.checkpoint.weights import INDEX, PICKLE, SHARD_NAME, WHOLE, save_tensors
from minilm.dropin.config import PreTrainedConfig, dtype_of
from minilm.dropin.inputs import beyond_tables, tokens_of
from minilm.dropin.outputs import ModelOutput
from minilm.errors import CheckpointError, ConfigError, DataError, first_line
from minilm.files import alone, remove, sync, sync_entry
from minilm.model.encoder import Encoder, Trace, initialise
from minilm.model.heads import LMHead, Pooler, Transform, pooled
from minilm.train.losses import cross_entropy_sum

log = logging.getLogger("minilm")
TARGETS = ("labels", "next_sentence_label", "start_positions", "end_positions")


class PreTrainedModel(nn.Module):
    """Base of all classes: the call, loading and saving. A subclass makes outputs and loss from the states."""

    kind: ClassVar[str]  # its key in `Family.classes` of checkpoint.families
    head_prefixes: ClassVar[tuple[str, ...]] = ()  # of the head's parameters; a family may have fewer such parts
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    dimensions: ClassVar[int] = 2  # of input_ids
    base_model_prefix: ClassVar[str] = "bert"  # the name of the base model, in every family
    config: PreTrainedConfig
    untrained: tuple[str, ...] = ()  # the parts that `from_pretrained` found no weights for
    pooling: Pooling | None = None  # of sentence-transformers' files beside an encoder; saved with it

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = _ours(config, type(self))
        self.num_labels, self.name_or_path = config.num_labels, config.name_or_path
        classes = config.family.classes
        if self.kind not in classes:
            there = ", ".join(each.architecture for each in classes.values())
            raise ConfigError(f"{type(self).__name__}: a {config.model_type} has no such class; it has {there}")

    def __init_subclass__(cls) -> None:
        """Make a `forward` whose signature has only this class's targets: transformers' Trainer reads which to pass."""
        super().__init_subclass__()
        if "kind" not in cls.__dict__ or "forward" in cls.__dict__:  # it keeps its parent's, or its own
            return
        whole, foreign = inspect.signature(PreTrainedModel.forward), {*TARGETS} - {*cls.targets}
        kept = [each for each in whole.parameters.values() if each.name not in foreign]
        places = [each.name for each in kept[1:] if each.kind is each.POSITIONAL_OR_KEYWORD]

        @wraps(PreTrainedModel.forward)
        def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> ModelOutput | tuple[Tensor, ...]:
            own = places
            if "type_vocab_size" not in self.config.family.defaults:  # in transformers its order is not BERT's
                own = places[:2]
            elif (self.config.model_type, self.kind) == ("roberta", "choice"):  # token_type_ids stand second there
                own = places[:1]
            elif self.kind in ("mlm", "clm") and self.config.model_type != "electra":  # encoder_hidden_states follow
                own = [place for place in places if place not in TARGETS]
            if len(args) > len(own):
                raise TypeError(f"{type(self).__name__} of a {self.config.model_type}: use keywords after {own[-1]}")
            return super(cls, self).forward(**dict(zip(own, args, strict=False)), **kwargs)

        forward.__signature__ = whole.replace(parameters=kept)
        cls.forward = forward

    @property
    def built(self) -> Built:
        """How this family builds this class."""
        return self.config.family.classes[self.kind]

    @property
    def base_model(self) -> "BertModel":
        """The encoder and its pooler, a model that can be called by itself."""
        return self.bert

    def outputs_of(self, states: Tensor, tokens: Tokens) -> dict[str, Tensor | None]:
        """The outputs of this class, by transformers' names, from states (B, T, D)."""
        raise NotImplementedError

    def loss(self, outputs: dict[str, Tensor], tokens: Tokens, **targets: Tensor) -> Tensor:
        """The loss as in transformers: a mean over the targets of this call; in nats, if the targets are labels."""
        return cross_entropy(outputs["logits"], targets["labels"])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """transformers' forward. All inputs are (B, T), inputs_embeds (B, T, E); for multiple choice (B, choices, T).

        The result has a loss if all targets of the class are given. By position, targets follow inputs_embeds; but most
        language models take them by name only, and a family without token_type_ids takes only input_ids and
        attention_mask by position, since its order in transformers is another one. use_cache is accepted as in
        transformers, but nothing is cached. Raises TypeError for targets of another class.
        """
        given = dict(zip(TARGETS, (labels, next_sentence_label, start_positions, end_positions), strict=True))
        if self.kind == "next" and labels is None:  # its name until transformers 4
            given = {"labels": next_sentence_label}
        given = {name: target for name, target in given.items() if target is not None}
        if foreign := given.keys() - set(self.targets):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self.targets) or 'no labels'}, not {min(foreign)}")
        inputs = (input_ids, attention_mask, token_type_ids, position_ids)
        if self.dimensions > 2:
            named = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
            for name, each in named.items():
                if each is not None and not isinstance(each, Tensor):
                    raise TypeError(f"{name} is a {type(each).__name__}; give a tensor: return_tensors='pt' makes one")
                if each is not None and each.ndim != self.dimensions + (name == "inputs_embeds"):
                    raise ValueError(f"{name} has shape {tuple(each.shape)}; give (rows, choices, tokens)")
            choices = next((each.shape[1] for each in named.values() if each is not None), 0)
            inputs = tuple(None if each is None else each.flatten(0, -2) for each in inputs)
            inputs_embeds = None if inputs_embeds is None else inputs_embeds.flatten(0, -3)
        encoder, config = self.base_model.encoder, self.config
        attention = "causal" if config.is_causal else "bidirectional"
        tokens = tokens_of(encoder.cfg, attention, *inputs, inputs_embeds)
        wants_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        wants_weights = config.output_attentions if output_attentions is None else output_attentions
        trace = Trace(attentions=[] if wants_weights else None) if wants_states or wants_weights else None
        try:
            states = encoder(tokens, inputs_embeds, trace)
        except IndexError as error:  # from a CPU; a GPU fails with an assertion of its own
            raise DataError(beyond_tables(encoder.cfg, tokens) or str(error)) from error
        outputs = self.outputs_of(states, tokens)
        if self.dimensions > 2:
            outputs = {name: each.view(-1, choices) for name, each in outputs.items()}
        loss = {"loss": self.loss(outputs, tokens, **given)} if given and len(given) == len(self.targets) else {}
        result = ModelOutput(
            **loss,
            **outputs,
            hidden_states=tuple(trace.states) if wants_states else None,
            attentions=tuple(trace.attentions) if wants_weights else None,
        )
        return result if (config.return_dict if return_dict is None else return_dict) else result.to_tuple()

    # -- loading and saving -------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        *,
        config: PreTrainedConfig | Path | str | None = None,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        low_cpu_mem_usage: bool = True,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        use_safetensors: bool | None = None,
        ignore_mismatched_sizes: bool = False,
        attn_implementation: str | None = None,
        add_pooling_layer: bool = True,
        device_map: str | int | torch.device | dict[str, Any] | None = None,
        **changes: Any,
    ) -> Self:
        """The model of a directory or of a name on the hub, in eval mode, every tensor of its file accounted for.

        Parts of this class's head that the file lacks are initialised at random, from torch's random state, with a
        warning; another warning names tensors of another class, which are left out. dtype: None or "auto" is
        config.json's, or, if it has none, the file's. use_safetensors: False reads pytorch_model.bin, a pickle, by
        torch's unpickler that makes only tensors. ignore_mismatched_sizes: a head whose sizes differ from the file's is
        initialised, too. device_map: one device, or "auto" for a GPU if there is one; a model is not parted among
        several. changes: to the config, as num_labels and id2label. trust_remote_code and low_cpu_mem_usage
        are accepted as in transformers: no code of a directory is run, and no weights are made before the file's.

        Raises CheckpointError naming the file and the tensor or key that does not fit, ConfigError for `changes`.
        """
        name, device = pretrained_model_name_or_path, None if device_map is None else _one_device(device_map)
        directory = find_model(
            name, revision, cache_dir, local_files_only, allow_pickle=use_safetensors is False, token=token
        )
        before = version_of(directory)
        if config is None:
            config = PreTrainedConfig.of_directory(directory)
        else:
            where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
            is_name = isinstance(config, Path | str)
            config = PreTrainedConfig.from_pretrained(config, **where) if is_name else copy.deepcopy(_ours(config, cls))
        config._name_or_path = str(name)
        config.change(changes | ({} if attn_implementation is None else {"attn_implementation": attn_implementation}))
        chosen = dtype or torch_dtype or "auto"
        try:
            config.dtype = config.dtype if chosen == "auto" else chosen  # None: the file's
        except ConfigError as error:
            raise ConfigError(f"{directory}: {error}") from error
        with shapes_only():
            model = cls(config, **({} if add_pooling_layer else {"add_pooling_layer": False}))
        if config.dtype is not None:
            model.to(config.dtype)
        expected = {_bare(name): own for name, own in model.state_dict().items()}
        state, dropped = read_weights(
            expected,
            directory,
            config.model_type,
            cls.kind,
            new=cls.head_prefixes,
            allow_pickle=use_safetensors is False,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            as_stored=config.dtype is None,
        )
        model.to(next(iter(state.values())).dtype)
        config.dtype = model.dtype
        if dropped:
            why = "has no such head, or a new one" if ignore_mismatched_sizes else "has no such head"
            log.warning("%s: ignored, as %s %s: %s", directory, cls.__name__, why, ", ".join(dropped))
        model._load(state, f"{directory}: {cls.__name__}")
        if cls.kind == "model":
            try:
                model.pooling = read_pooling(directory)
            except CheckpointError as error:
                log.warning("%s; ignored, and not saved with the model", error)
        check_version(directory, before)
        return model.eval() if device is None else model.eval().to(device)

    @classmethod
    def from_config(
        cls,
        config: PreTrainedConfig,
        *,
        attn_implementation: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """A model with random weights. dtype: None or "auto" is the config's, or, if it has none, float32.
        trust_remote_code is accepted as in transformers."""
        chosen = dtype or torch_dtype or "auto"
        if attn_implementation is not None or chosen != "auto":
            config = copy.deepcopy(config)
            config.update({} if attn_implementation is None else {"attn_implementation": attn_implementation})
            config.dtype = config.dtype if chosen == "auto" else chosen
        model = cls(config)
        return model if config.dtype is None else model.to(dtype_of(config.dtype))

    def _load(self, state: dict[str, Tensor], what: str) -> None:
        """Load the tensors of `state`, named without the base model's prefix, and initialise parts of the head that it
        has no tensor for, with a warning."""
        new = []
        for name, part in self._parts().items():
            if not any(key.startswith(f"{name}.") for key in state) and any(True for _ in part.parameters()):
                part.to_empty(device="cpu")
                for parameter in part.parameters():
                    parameter.data.zero_()
                initialise(part, self.config.initializer_range)
                state |= {f"{name}.{key}": own for key, own in part.state_dict().items()}
                new.append(name)
        self.untrained = tuple(new)
        if new:
            log.warning("%s: not in the file, so newly initialized; train before use: %s", what, ", ".join(new))
        full = {_bare(name): name for name in self.state_dict()}
        self.load_state_dict({full[name]: own for name, own in state.items()}, assign=True)

    def _parts(self) -> dict[str, nn.Module]:
        """The modules of this class's own head."""
        named = {_bare(name): part for name, part in self.named_modules()}
        return {prefix[:-1]: named[prefix[:-1]] for prefix in self.head_prefixes if prefix[:-1] in named}

    def save_pretrained(
        self,
        save_directory: Path | str,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *,
        save_function: Any = None,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write model.safetensors and, last, config.json, as transformers' Auto classes open them.

        is_main_process: if false, nothing is written. state_dict: in place of the model's own, if its tensors are
        sharded or are to be others. save_function and max_shard_size are accepted as in transformers: one file is
        written, by safetensors. Raises ConfigError for safe_serialization=False, which would be a pickle.
        """
        if not is_main_process:
            return
        directory = save_directory
        if not safe_serialization:
            raise ConfigError("safe_serialization=False would be a pickle; none is written here")
        if str(directory) == "":
            raise ConfigError("save_pretrained: give the name of a directory")
        directory = Path(directory)
        try:
            with alone(directory, lambda: log.warning("%s: another save is under way there; waiting", directory)):
                self._save(directory, self.state_dict() if state_dict is None else state_dict)
        except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:
            raise CheckpointError(f"{directory}: the model cannot be written: {first_line(error)}") from error

    def _save(self, directory: Path, state: dict[str, Tensor]) -> None:
        config = self.config
        config.architectures, config.dtype = [self.built.architecture], self.dtype
        if self.kind == "span" and config.num_labels != 2:  # of a start and an end; transformers makes num_labels
            config.update({"num_labels": 2})
        entry = entry_of(config.to_dict(), self.kind)
        config.__dict__.pop("minilm", None)
        if entry is not None:
            config.minilm = entry
        if odd := [name for name, own in state.items() if not isinstance(own, Tensor)]:
            raise CheckpointError(f"{odd[0]} is a {type(state[odd[0]]).__name__}, not a tensor; nothing is written")
        self._check_loadable(state)
        tensors = {_bare(name): own.detach() if own.is_meta else own.detach().cpu() for name, own in state.items()}
        named = to_hf(tensors, config.model_type, self.kind)
        for stale in directory.glob(".tmp-save-*"):  # left by dead processes, for nobody else writes here now
            remove(stale)
        aside = directory / f".tmp-save-{os.getpid()}"
        try:
            aside.mkdir()
            save_tensors(named, aside / WHOLE)
            if self.pooling is not None:
                check_place(directory)
                write_pooling(aside, self.pooling, config.hidden_size)
            config.save_pretrained(aside)
            sync(aside)
            for name in ("config.json", "MANIFEST.json", MODULES, INDEX, PICKLE, f"{PICKLE}.index.json"):
                (directory / name).unlink(missing_ok=True)  # of an old model, config.json first: then it is none
            for shard in filter(SHARD_NAME.fullmatch, os.listdir(directory)):
                (directory / shard).unlink(missing_ok=True)
            written = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
            for file in sorted(written, key=lambda file: file.name == "config.json" and len(file.parts) == 1):
                (directory / file).parent.mkdir(exist_ok=True)
                (aside / file).replace(directory / file)
            sync_entry(directory)
        finally:
            with suppress(OSError):
                remove(aside)

    def _check_loadable(self, state: dict[str, Tensor]) -> None:
        """Raises CheckpointError where config.json would make a model of other parameters than these."""
        own = next(each for each in type(self).__mro__ if "kind" in each.__dict__)
        with shapes_only():
            made = own(copy.deepcopy(self.config))
        wanted = {_bare(name): tuple(each.shape) for name, each in made.state_dict().items()}
        if self.base_model.pooler is None:
            wanted = {name: shape for name, shape in wanted.items() if not name.startswith("pooler.")}
        have = {_bare(name): tuple(each.shape) for name, each in state.items()}
        for name in sorted({*wanted, *have}):
            if wanted.get(name) != have.get(name):
                raise CheckpointError(
                    f"parameter {name} has shape {have.get(name)}; config makes it {wanted.get(name)}"
                )

    # -- what a user of transformers reaches for ----------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.get_input_embeddings().weight.dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        tables = {id(each.weight) for each in self.modules() if isinstance(each, nn.Embedding) and exclude_embeddings}
        counted = [own for own in self.parameters() if id(own) not in tables]
        return sum(own.numel() for own in counted if own.requires_grad or not only_trainable)

    def get_input_embeddings(self) -> nn.Embedding:
        """The word table (V, E), which a language model also decodes with."""
        return self.base_model.encoder.embedding.word

    def get_output_embeddings(self) -> nn.Embedding | None:
        """The word table of a language model, which is tied to its head; None for other classes."""
        return self.get_input_embeddings() if isinstance(getattr(self, "head", None), LMHead) else None

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word table by one of the same shape; `resize_token_embeddings` makes a longer one. Raises
        ConfigError for another shape."""
        old, new = self.get_input_embeddings().weight.shape, value.weight.shape
        if old != new:
            raise ConfigError(f"embeddings of shape {tuple(new)}, and the model's are {tuple(old)}")
        self.base_model.encoder.embedding.word = value

    def enable_input_require_grads(self) -> None:
        """Let the embedding's output require gradients, without which frozen weights and checkpointed layers have
        adapters learn nothing (peft asks for it)."""
        self.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers."""
        held = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(each.nbytes for each in held)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Checkpoint every layer, without reentrant autograd; transformers' Trainer passes the arguments. Raises
        ConfigError for other `every_n_layers` or `offload`."""
        if every_n_layers != 1 or offload:
            raise ConfigError("gradient checkpointing is for all layers here, without offloading")
        self.base_model.encoder.gradient_checkpointing = True

    def activation_checkpointing_disable(self) -> None:
        self.base_model.encoder.gradient_checkpointing = False

    @property
    def is_activation_checkpointing(self) -> bool:
        return self.base_model.encoder.gradient_checkpointing

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """`activation_checkpointing_enable`, by its name until transformers 5."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    gradient_checkpointing_disable = activation_checkpointing_disable
    is_gradient_checkpointing = is_activation_checkpointing

    def tie_weights(self) -> None:
        """Nothing to do: a language model decodes with the word table itself."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Compute attention as "sdpa" or as "eager" from now on. Raises ConfigError for others."""
        self.config.update({"attn_implementation": attn_implementation})
        self.base_model.encoder.backend = self.config.backend

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Make the word table longer or shorter at its end, and return it. New words begin as the mean of the old ones,
        whatever `mean_resizing`, which is accepted as in transformers. new_num_tokens: None keeps the length, or
        rounds it up to pad_to_multiple_of."""
        encoder = self.base_model.encoder
        if new_num_tokens is None and pad_to_multiple_of is None:
            return encoder.embedding.word
        multiple = pad_to_multiple_of or 1
        V = -(-(encoder.cfg.vocab_size if new_num_tokens is None else new_num_tokens) // multiple) * multiple
        encoder.cfg = replace(encoder.cfg, vocab_size=V)  # refuses an impossible size
        old = encoder.embedding.word
        word = nn.Embedding(V, old.embedding_dim, old.padding_idx, device=old.weight.device, dtype=old.weight.dtype)
        kept = min(V, old.num_embeddings)
        word.weight[:kept] = old.weight[:kept]
        word.weight[kept:] = old.weight.mean(dim=0)
        word.weight.requires_grad_(old.weight.requires_grad)
        encoder.embedding.word = word
        if isinstance(getattr(self, "head", None), LMHead):
            bias = self.head.bias.new_zeros(V)
            bias[:kept] = self.head.bias[:kept]
            self.head.bias = nn.Parameter(bias, requires_grad=self.head.bias.requires_grad)
        self.config.vocab_size = V
        return word

    def _initialise_head(self) -> None:
        """Random weights for what this class adds to its base model."""
        for part in self.children():
            if not isinstance(part, PreTrainedModel):
                initialise(part, self.config.initializer_range)


class BertModel(PreTrainedModel):
    """The encoder, and its pooler if the family and the file have one."""

    kind = "model"
    head_prefixes = ("pooler.",)
    targets = ()

    def __init__(self, config: PreTrainedConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        cfg = config.encoder()
        self.encoder = Encoder(cfg, config.backend)
        self.pooler = Pooler(cfg) if add_pooling_layer and self.built.pooler else None
        self._initialise_head()

    @property
    def base_model(self) -> "BertModel":
        return self

    @property
    def embeddings(self) -> nn.Module:
        """The tables and their norm, by transformers' name."""
        return self.encoder.embedding

    def outputs_of(self, states: Tensor, tokens: Tokens) -> dict[str, Tensor | None]:
        """last_hidden_state (B, T, D) and pooler_output (B, D), None without a pooler."""
        return {
            "last_hidden_state": states,
            "pooler_output": None if self.pooler is None else self.pooler(states, tokens),
        }

    def _load(self, state: dict[str, Tensor], what: str) -> None:
        """A file without a pooler makes a model without one, never a random one."""
        if not any(key.startswith("pooler.") for key in state):
            self.pooler = None
        super()._load(state, what)


class _LanguageModel(PreTrainedModel):
    """Logits over the vocabulary at every token, by the tied head."""

    head_prefixes = (HEAD,)

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=self.built.pooler)
        self.head = LMHead(self.bert.encoder.cfg, self.built.activation)
        self._initialise_head()

    def logits(self, states: Tensor) -> Tensor:
        """Logits over the vocabulary: (B, T, D) -> (B, T, V)."""
        return self.head.logits(states, self.get_input_embeddings().weight)

    def outputs_of(self, states: Tensor, tokens: Tokens) -> dict[str, Tensor | None]:
        return {"logits": self.logits(states)}


class BertForMaskedLM(_LanguageModel):
    """Masked language model (Devlin et al. 2018, sec. 3.1, task 1); labels (B, T), -100 for tokens not to predict."""

    kind = "mlm"


class BertLMHeadModel(_LanguageModel):
    """Causal language model, if the config says is_decoder; labels (B, T) are the input_ids, shifted here."""

    kind = "clm"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if not config.is_causal:
            log.warning("BertLMHeadModel: config.is_decoder is False, so attention is bidirectional")

    def loss(self, outputs: dict[str, Tensor], tokens: Tokens, labels: Tensor) -> Tensor:
        return cross_entropy(outputs["logits"][:, :-1], labels[:, 1:])


class BertForPreTraining(_LanguageModel):
    """Both pretraining tasks of Devlin et al. 2018, sec. 3.1: masked words, and whether a text follows another."""

    kind = "pretraining"
    head_prefixes = (HEAD, "pooler.", "classifier.")
    targets = ("labels", "next_sentence_label")

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(self.bert.encoder.cfg.hidden_size, 2)
        initialise(self.classifier, config.initializer_range)

    def outputs_of(self, states: Tensor, tokens: Tokens) -> dict[str, Tensor | None]:
        """prediction_logits (B, T, V) and seq_relationship_logits (B, 2): it follows, it does not."""
        return {
            "prediction_logits": self.logits(states),
            "seq_relationship_logits": self.classifier(self.bert.pooler(states, tokens)),
        }

    def loss(self, outputs: dict[str, Tensor], tokens: Tokens, labels: Tensor, next_sentence_label: Tensor) -> Tensor:
        of_words = cross_entropy(outputs["prediction_logits"], labels)
        return of_words + cross_entropy(outputs["seq_relationship_logits"], next_sentence_label)


class _Classifier(PreTrainedModel):
    """classifier(drop(transform(x))) of each token's state, or of a pooled one; a family may have no transform."""

    head_prefixes = ("pooler.", "transform.", "classifier.")
    num_outputs: ClassVar[int | None] = None  # None: one a label

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if self.num_outputs is None:
            config.check_labels()
        built, D = self.built, config.hidden_size
        dropout = config.dropout_of(built.dropout)
        self.bert = BertModel(config, add_pooling_layer=built.pooler)
        self.transform = nn.Identity()
        if built.activation is not None:
            activation = config.meant_by(built.activation)
            before = dropout if built.drop_first else 0.0
            self.transform = Transform(self.bert.encoder.cfg, activation, built.norm, before)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(D, self.num_outputs or config.num_labels)
        self._initialise_head()

    def outputs_of(self, states: Tensor, tokens: Tokens) -> dict[str, Tensor | None]:
        """logits (B, C), or (B, T, C)."""
        pooling = self.built.pooling
        if pooling == "pooler":
            states = self.bert.pooler(states, tokens)
        elif pooling is not None:
            how = self.config.meant_by(pooling)
            states = pooled(states, tokens, "first" if how == "cls" and self.built.after_padding else how)
        return {"logits": self.classifier(self.dropout(self.transform(states)))}


class BertForSequenceClassification(_Classifier):
    """A label, several labels or a number for a text or pair, as config.problem_type says, or the labels' dtype."""

    kind = "sequence"

    def loss(self, outputs: dict[str, Tensor], tokens: Tokens, labels: Tensor) -> Tensor:
        logits, config = outputs["logits"], self.config
        if config.problem_type is None:  # kept, so that it is saved with the model
            several = "single_label_classification" if not labels.is_floating_point() else "multi_label_classification"
            config.problem_type = "regression" if config.num_labels == 1 else several
        wide = torch.promote_types(logits.dtype, torch.float32)
        if config.problem_type == "regression":
            if config.num_labels == 1:
                logits, labels = logits.squeeze(), labels.squeeze()
            return F.mse_loss(logits.to(wide), labels.to(wide))
        if config.problem_type == "single_label_classification":
            return cross_entropy(logits, labels)
        return F.binary_cross_entropy_with_logits(logits.to(wide), labels.to(wide))


class BertForTokenClassification(_Classifier):
    """A label for each token; labels (B, T), -100 for none."""

    kind = "token"


class BertForQuestionAnswering(_Classifier):
    """Where an answer starts and ends; positions (B,), those outside of the text are ignored."""

    kind = "span"
    num_outputs = 2
    targets = ("start_positions", "end_positions")

    def outputs_of(self, states: Tensor, tokens: Tokens) -> dict[str, Tensor | None]:
        """start_logits and end_logits, (B, T) each."""
        start, end = super().outputs_of(states, tokens)["logits"].unbind(dim=-1)
        return {"start_logits": start.contiguous(), "end_logits": end.contiguous()}

    def loss(
        self, outputs: dict[str, Tensor], tokens: Tokens, start_positions: Tensor, end_positions: Tensor
    ) -> Tensor:
        T = outputs["start_logits"].shape[1]
        start, end = (
            cross_entropy(outputs[name], at.clamp(min=0).masked_fill(at >= T, IGNORE))
            for name, at in (("start_logits", start_positions), ("end_logits", end_positions))
        )
        return (start + end) / 2


class BertForNextSentencePrediction(_Classifier):
    """Next-sentence prediction (Devlin et al. 2018, sec. 3.1, task 2); labels (B,): 0 if the second text follows the
    first, 1 if it does not."""

    kind = "next"
    num_outputs = 2


class BertForMultipleChoice(_Classifier):
    """Which of several texts is right: input_ids (B, choices, T), labels (B,)."""

    kind = "choice"
    num_outputs = 1
    dimensions = 3


class ElectraForPreTraining(_Classifier):
    """ELECTRA's discriminator (Clark et al. 2020, sec. 2): logits (B, T), labels (B, T), 1 for a replaced token."""

    kind = "discriminator"
    num_outputs = 1

    def outputs_of(self, states: Tensor, tokens: Tokens) -> dict[str, Tensor | None]:
        return {"logits": super().outputs_of(states, tokens)["logits"].squeeze(-1)}

    def loss(self, outputs: dict[str, Tensor], tokens: Tokens, labels: Tensor) -> Tensor:
        logits = outputs["logits"][tokens.key]
        return F.binary_cross_entropy_with_logits(logits, labels[tokens.key].to(logits.dtype))


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats over the targets (...) that are not -100, for logits (..., C); NaN if there
    are none, as in torch."""
    if target.is_floating_point():
        raise TypeError(f"labels of {target.dtype}; give whole numbers")
    nats, count = cross_entropy_sum(logits.flatten(0, -2), target.flatten().long())
    return nats / count


def _bare(name: str) -> str:
    """A parameter's name without the base model's prefix, as in checkpoint.families."""
    return name.removeprefix("bert.")


def _ours(config: Any, of: type) -> PreTrainedConfig:
    """`config`, if it is one of minilm's. Raises ConfigError."""
    if not isinstance(config, PreTrainedConfig):
        kind = f"{type(config).__module__}.{type(config).__name__}"
        raise ConfigError(f"{of.__name__}: {kind} is no config of minilm; to open a model: from_pretrained")
    return config


def _one_device(device_map: str | int | torch.device | dict[str, Any]) -> torch.device:
    """The device of a device_map. Raises ConfigError for several, or an unknown one."""
    places = [*device_map.values()] if isinstance(device_map, dict) else [device_map]
    if len(places) != 1 or (isinstance(device_map, dict) and [*device_map] != [""]):
        raise ConfigError(f"device_map {device_map!r}: a model is on one device here; give that")
    if places[0] in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(places[0])
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device_map {device_map!r}: {first_line(error)}") from error
