"""Train a task: examples and a model in, a tuned model out, by the loop of pretraining."""

import hashlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minilm.checkpoint.model import weights_fingerprint
from minilm.checkpoint.store import Store, manifest_fault
from minilm.checkpoint.weights import load_tensors, save_tensors
from minilm.data.ahead import made_ahead
from minilm.data.draws import order
from minilm.data.examples import Data
from minilm.dropin.inputs import max_tokens
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError, some
from minilm.metrics.scores import check_installed
from minilm.partial import Partial
from minilm.tasks.task import Features, Predictions, Task, TaskBatch, TaskScore, batch_of, outputs_of
from minilm.train.cheap import as_before, cheapen
from minilm.train.job import Job, begin, finish, runtime_of, train, worth
from minilm.train.log import say
from minilm.train.loop import Optimizers, Plan
from minilm.train.lora import adapt, merge, merged_state
from minilm.train.optim import lr_fraction, make_optimizers
from minilm.train.ranks import Applied
from minilm.train.runtime import Runtime, peak_memory_mb

RATES = ((10e6, 2e-4), (60e6, 5e-5), (200e6, 3e-5), (math.inf, 2e-5))  # parameters below -> peak learning rate
ADAPTER = "adapter.safetensors"
FASTER_LORA = 10  # than where the whole encoder learns
LONGEST = 512  # tokens of an example, unless more are asked for
EPOCHS, FEWEST_STEPS = 3, 200  # unless asked for: so many epochs, and at least so many steps (Mosbach et al. 2021)
EVALUATIONS = 20  # at most, unless asked for

RANGES = {  # of a Tuning's fields, both ends included
    "epochs": (1e-3, 1e4),
    "steps": (1, 10**9),
    "batch_size": (1, 10**5),
    "lr": (1e-9, 1.0),
    "weight_decay": (0.0, 10.0),
    "warmup_frac": (0.0, 0.9),
    "length": (4, 2**16),
    "evaluate_every": (1, 10**9),
    "patience": (1, 10**6),
    "max_norm": (1e-9, 1e9),
    "frozen_layers": (0, 1000),
    "layer_decay": (0.1, 1.0),
    "lora_rank": (0, 1024),
    "lora_alpha": (1e-3, 1e4),
    "tokens_at_once": (1, 1 << 24),
    "seed": (0, 2**58),
}


@dataclass(frozen=True)
class Tuning:
    """How a task is trained. Raises ConfigError for what is outside RANGES."""

    epochs: float | None = None  # None: 3, and of few examples as many as make 200 steps
    steps: int | None = None  # instead of epochs
    batch_size: int = 32  # examples of a step
    lr: float | None = None  # peak; None: by the model's size
    weight_decay: float = 0.01  # of matrices and tables, decoupled
    warmup_frac: float = 0.1  # of the steps; then linearly to 0
    max_norm: float = 1.0
    length: int | None = None  # tokens read of an example; None: as many as the model reads, and at most LONGEST
    evaluate_every: int | None = None  # steps; None: an epoch, or a twentieth of the run where that is longer
    patience: int = 3  # evaluations, none better and none of a lower loss, that end the run; the best model is kept
    frozen_layers: int = 0  # the embedding and so many layers, from the first on, stay as they are; 0: nothing does
    layer_decay: float = 1.0  # of the learning rate, from a layer to the one below (Clark et al. 2020, app. B)
    lora_rank: int = 0  # of small matrices that learn in place of the encoder (Hu et al. 2021); 0: the encoder learns
    lora_alpha: float = 16.0  # what they add is alpha / rank times their product
    gradient_checkpointing: bool = False
    tokens_at_once: int = 1 << 14  # of a step, more are computed one after the other
    seed: int = 0  # of the head, the order of examples, and dropout

    def __post_init__(self) -> None:
        types = {field.name: field.type for field in fields(self)}
        for name, (low, high) in RANGES.items():
            value, number = getattr(self, name), Integral if types[name] in (int, int | None) else Real
            if value is None and getattr(Tuning, name) is None:
                continue
            if not isinstance(value, number) or isinstance(value, bool) or not low <= value <= high:
                what = "whole number" if number is Integral else "value"
                raise ConfigError(f"{name} is {value!r}; give a {what} from {low:g} to {high:g}")

    def rate(self, model: nn.Module) -> float:
        """The peak learning rate."""
        parameters = sum(each.numel() for each in model.parameters())
        usual = next(rate for below, rate in RATES if parameters < below)
        return self.lr or usual * (FASTER_LORA if self.lora_rank else 1)


class ExampleBatches:
    """The features of step after step, packed. Every epoch is another order, and a step may span two."""

    def __init__(
        self,
        features: Features,
        tuning: Tuning,
        row_length: int | None = None,
        pinned: bool = False,
        where: Callable[[int], str] = str,  # an example is, of its number
    ) -> None:
        self.features, self.tuning = features, tuning
        self.row_length, self.pinned, self.where = row_length, pinned, where
        begins = features.units[:-1]
        self.size_of = np.add.reduceat(features.lengths, begins)  # tokens of each unit
        of_epoch = len(begins) / tuning.batch_size
        usual = max(FEWEST_STEPS, math.ceil(EPOCHS * of_epoch))
        self.steps = tuning.steps or (max(1, math.ceil(tuning.epochs * of_epoch)) if tuning.epochs else usual)

    def epochs(self) -> float:
        return self.steps * self.tuning.batch_size / len(self.size_of)

    def order(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, unit of features) of a step; (batch_size,) int64 each."""
        size = self.tuning.batch_size
        return order(self.tuning.seed, step * size, (step + 1) * size, len(self.size_of))

    def read_in(self, step: int) -> str:
        """What is read in a step, for a message."""
        return f"examples {some(self.named(self.order(step)[1]), 8)}"

    def named(self, rows: np.ndarray) -> list[str]:
        """Units of features."""
        return [self.where(example) for example in self.features.example[self.features.units[rows]].tolist()]

    def micro_batches(self, step: int) -> list[TaskBatch]:
        """A pure function."""
        _, units = self.order(step)
        most = self.tuning.tokens_at_once
        fewest = min(len(units), math.ceil(int(self.size_of[units].sum()) / most))
        for count in range(fewest, len(units) + 1):
            parts = np.array_split(units, count)
            if all(len(part) < 2 or self.size_of[part].sum() <= most for part in parts):
                break
        rows = [self.features.of_units(part) for part in parts if len(part)]
        made = [batch_of(self.features, part, self.row_length)[0] for part in rows]
        return [each.pin_memory() for each in made] if self.pinned else made

    def steps_from(self, step: int) -> Iterator[list[TaskBatch]]:
        """Endless."""
        return made_ahead(self, step)

    def within(self, tokens: int) -> "ExampleBatches":
        """The same steps, in micro-batches of at most so many tokens, or of one unit of features."""
        fewer = replace(self.tuning, tokens_at_once=max(1, min(tokens, self.tuning.tokens_at_once)))
        return ExampleBatches(self.features, fewer, self.row_length, self.pinned, self.where)


@dataclass(frozen=True)
class Tuned:
    """What came of it."""

    model: PreTrainedModel
    tokenizer: BertTokenizer
    task: Task
    runtime: Runtime
    length: int  # tokens read of an example
    result: dict[str, Any]

    def predict(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Any]:
        """What it says of each text or pair: a label, several, or a number; of lists of words, a tag each; to a
        question on a context its answer; of choices the number, from 0. Raises DataError for a text in no list."""
        self.check_texts("predict", texts, pairs)
        examples = self.task.asked(texts, pairs)
        self.check_pairs(pairs)
        if not examples:
            return []
        return self.task.decode(self.predictions(examples))

    def check_texts(self, who: str, texts: Sequence[Any], pairs: Sequence[Any] | None) -> None:
        """Raises DataError for what is no list of texts, with a pair each, if any. who: is given them."""
        if isinstance(texts, str | dict) or hasattr(texts, "columns") or not hasattr(texts, "__len__"):
            raise DataError(f"{who} takes a list of texts; give one, [text], or a column of a frame")
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts):,} texts and {len(pairs):,} pairs; give each text its own")

    def check_pairs(self, pairs: Sequence[Any] | None) -> None:
        """Raises DataError where training read pairs, and here are none."""
        if pairs is None and "pair" in self.read_as.columns:
            raise DataError("training read two texts a row: give `pairs`, one for each text")

    @property
    def read_as(self) -> Data:
        """What is known of how its examples were read: the columns, where others have the same names."""
        return Data([], columns=self.result.get("columns", {}), separator=None)

    def features(self, examples: Sequence[Any]) -> Features:
        """As much of them as the model reads."""
        return self.task.features(examples, self.tokenizer, self.length)

    def predictions(
        self, examples: Sequence[Any], features: Features | None = None, kept: Partial | None = None
    ) -> Predictions:
        """What the model says of them. features: theirs; kept: as `outputs_of` has it."""
        features = features or self.features(examples)
        outputs, _ = outputs_of(self.task, Applied(self.model), features, self.runtime, wants_loss=False, kept=kept)
        return Predictions(outputs, features, examples)

    def decides(self, features: Features) -> dict[str, Any]:
        """What decides the bits of what the model says of them."""
        computed = {"precision": self.runtime.precision, "device": str(self.runtime.device)}
        computed |= {"threads": self.runtime.threads, "torch": torch.__version__}
        task = hashlib.sha256(repr(self.task).encode()).hexdigest()[:16]
        of = {"model": weights_fingerprint(self.model), "task": task, "features": _fingerprint(((), features))}
        return of | computed


def tune(
    task: Task,
    model: PreTrainedModel,
    tokenizer: BertTokenizer,
    examples: Sequence[Any],
    dev: Sequence[Any],
    tuning: Tuning,
    store: Store,
    about: dict[str, Any] | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    resume: str = "auto",
    until: float | None = None,
    auto_batch: bool = False,
    deterministic: bool = False,
    compile: bool = False,
) -> Tuned:
    """Train `model` in place, from its newest checkpoint in `store`, if there is one. The caller holds the store.

    about: what else the result tells, as the columns. until, auto_batch: as a `Job` has them; deterministic: as of
    `Runtime.choose`; compile: the loss is `Runtime.compiled`. Raises ConfigError, CheckpointError, OutOfMemory, and
    DataError where there is nothing to learn.
    """
    check_installed()  # before the work, and not after its first epoch
    length = length_of(tuning, model, tokenizer)
    features, dev_features = (task.features(each, tokenizer, length) for each in (examples, dev))
    if not len(features) or not len(dev_features):
        raise DataError("no example to learn from" if not len(features) else "no example to evaluate on")
    asked = {"task": repr(task), "model": f"of weights {weights_fingerprint(model)}", **asdict(tuning)}
    asked |= {name: True for name, on in (("deterministic", deterministic), ("compile", compile)) if on}
    data = _fingerprint((examples, features), (dev, dev_features))
    choices = {
        name: each for name, each in (("precision", precision), ("threads", threads)) if each not in ("auto", None)
    }
    run = store.earlier_run(asked, choices, resume)
    if run and run.settings["data"] != data:
        raise ConfigError(f"--out {store.out}: began with other examples; use the same, or another --out")
    runtime = runtime_of(run, device, precision, threads, deterministic)
    is_compiled = compile and not (run and run.result)
    loss = runtime.compiled(task.loss, any_shape=True) if is_compiled else task.loss
    on_gpu = runtime.device.type == "cuda"
    row_length = length if on_gpu else None
    batches = ExampleBatches(features, tuning, row_length, on_gpu, lambda example: examples[example].where)
    encoder = model.base_model.encoder
    encoder.backend = backend = run.backend if run else runtime.backend(length, encoder.cfg.attention_dropout)
    finished = run is not None and bool(run.result)
    if finished and (fault := manifest_fault(store.out)):
        say(f"{store.out} is finished, but {fault}: the model is written again")
        run, finished = replace(run, result=None), False
    if finished:
        say(f"{store.out} is finished; for another run choose another --out")
        saved = type(model).from_pretrained(store.out, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())
        model.to(runtime.device).eval()
        fitted = task.as_saved(saved)
        model.config.update(fitted.config())
        return Tuned(model, tokenizer, fitted, runtime, length, run.result)

    optimizers = _prepared(model, tuning, runtime)
    forward = Applied(model)
    say(_described(model, features, len(examples), tuning, runtime, backend, store))
    if features.cut:
        say(f"cut or read in parts, for they are longer than {length} tokens: {features.cut:,} examples")

    best: list[tuple[Task, TaskScore]] = []  # the one that is kept, if this process evaluated it

    def evaluate() -> TaskScore:
        outputs, loss = outputs_of(task, forward, dev_features, runtime)
        predictions = Predictions(outputs, dev_features, dev)
        fitted = task.fitted(predictions)
        score = TaskScore(loss, fitted.score(predictions))
        if not best or worth(score) >= worth(best[0][1]):
            best[:] = [(fitted, score)]
        return score

    def write_model(directory: Path, state: dict[str, Tensor]) -> None:
        plain, adapters = merged_state(model, state)
        model.save_pretrained(directory, state_dict=plain)
        tokenizer.save_pretrained(directory)
        if adapters:
            save_tensors({name: own.cpu() for name, own in adapters.items()}, directory / ADAPTER)

    def read_state(directory: Path) -> dict[str, Tensor]:
        plain = type(model).from_pretrained(directory, dtype=torch.float32).state_dict()
        kept = {name: own for name, own in model.state_dict().items() if name not in plain}  # the frozen matrices
        return plain | kept | (load_tensors(directory / ADAPTER) if tuning.lora_rank else {})

    job = Job(
        asked | {"data": data},
        forward,
        loss,
        optimizers,
        batches,
        runtime,
        store,
        evaluate=evaluate,
        write_model=write_model,
        read_state=read_state,
        patience=tuning.patience,
        until=until,
        auto_batch=auto_batch,
    )
    plan = _plan(tuning, batches)
    begun, run = run is not None, run or begin(job, plan.steps, backend)
    log = train(job, plan)
    if begun:
        best.clear()
        evaluate()
    fitted, score = best[0]
    model.config.update(fitted.config())
    result = (about or {}) | {
        "dev": {"loss": score.loss, **score.metrics},
        "steps": log.done,  # fewer than planned, where nothing got better
        "best_step": log.best,  # whose model this is
        "epochs": batches.epochs() * log.done / plan.steps,
        "examples": len(examples),
        "dev_examples": len(dev),
        "tokens": log.spent.tokens,
        "seconds": log.spent.seconds,
        "tokens_per_s": log.spent.tokens / max(1e-9, log.spent.seconds),
        "lr": tuning.rate(model),
        "seed": tuning.seed,
        "length": length,
        "precision": runtime.precision,
        "peak_mb": peak_memory_mb(runtime.device),
    }
    finish(job, run, model.state_dict(), "", result, log.best)
    merge(model)
    as_before(model)
    if log.signal is not None:  # which is not for this run alone
        signal.raise_signal(log.signal)
    return Tuned(model, tokenizer, fitted, runtime, length, result)


def length_of(tuning: Tuning, model: PreTrainedModel, tokenizer: BertTokenizer) -> int:
    """Tokens that are read of an example. Raises ConfigError for more than the model reads."""
    limit = max_tokens(model.base_model.encoder.cfg, tokenizer)
    if tuning.length is not None and tuning.length > limit:
        raise ConfigError(f"--length {tuning.length}: the model reads {limit} tokens")
    usual = model.pooling.max_length if model.pooling else None
    return tuning.length or min(limit, LONGEST, usual or LONGEST)


def _prepared(model: PreTrainedModel, tuning: Tuning, runtime: Runtime) -> Optimizers:
    """What updates the model, which is put on its device in fp32; what is frozen has no gradient."""
    encoder = model.base_model.encoder
    layers = len(encoder.layers)
    if not 0 <= tuning.frozen_layers <= layers:
        raise ConfigError(f"--frozen-layers {tuning.frozen_layers}: the model has {layers} layers")
    if tuning.lora_rank and tuning.frozen_layers:
        raise ConfigError("--lora-rank: freezes the whole encoder; leave out --frozen-layers")
    model.float().to(runtime.device).requires_grad_(True)
    encoder.gradient_checkpointing = tuning.gradient_checkpointing
    cheapen(model, encoder.embedding.word)
    if tuning.lora_rank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tuning.seed)
            adapt(model, encoder, tuning.lora_rank, tuning.lora_alpha)
    stages = [encoder.embedding, *encoder.layers]  # from below
    if tuning.frozen_layers:
        for stage in stages[: tuning.frozen_layers + 1]:
            stage.requires_grad_(False)
    rates = {}
    for above, stage in enumerate(reversed(stages), start=1):
        rates |= dict.fromkeys(stage.parameters(), tuning.layer_decay**above)
    return make_optimizers(model, "adamw", tuning.rate(model), tuning.weight_decay, rates=rates)


def _plan(tuning: Tuning, batches: ExampleBatches) -> Plan:
    steps, warmup = batches.steps, math.ceil(tuning.warmup_frac * batches.steps)
    usual = max(math.ceil(len(batches.size_of) / tuning.batch_size), math.ceil(steps / EVALUATIONS))
    each = tuning.evaluate_every or min(steps, usual)
    return Plan(
        steps=steps,
        schedule=lambda step: lr_fraction("linear", step, steps, warmup),
        max_norm=tuning.max_norm,
        seed=tuning.seed,
        evaluate_every=each,
        save_every=each,  # so that the best model is there
    )


def _described(
    model: PreTrainedModel,
    features: Features,
    examples: int,
    tuning: Tuning,
    runtime: Runtime,
    backend: str,
    store: Store,
) -> str:
    total = sum(own.numel() for own in model.parameters())
    learn = sum(own.numel() for own in model.parameters() if own.requires_grad)
    share = "" if learn == total else f", of which {learn / 1e6:.2g} M learn,"
    return (
        f"{total / 1e6:.1f} M parameters{share} on {runtime.describe()}, {backend} attention; "
        f"{int(features.lengths.sum()):,} tokens in {examples:,} examples; lr {tuning.rate(model):g}; "
        f"into {store.out}"
    )


def _fingerprint(*splits: tuple[Sequence[Any], Features]) -> str:
    """Of all that is learned from and evaluated on: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for examples, features in splits:
        for each in examples:
            digest.update(repr(each._replace(where="")).encode("utf-8", "surrogatepass"))
        for array in (features.ids, features.types, features.offsets, features.target):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]
