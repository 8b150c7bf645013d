"""Fine-tuning a model on a task, by the training loop of pretraining."""

import math
import signal
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm.checkpoint.model import weights_fingerprint
from minilm.checkpoint.store import Store
from minilm.checkpoint.weights import load_tensors, save_tensors
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError
from minilm.finetuning.batches import ExampleBatches, row_length_of
from minilm.finetuning.settings import Tuning, length_of
from minilm.finetuning.tuned import Tuned, fingerprint
from minilm.machine.memory import peak_memory_mb
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.metrics.scores import check_installed
from minilm.model.attention import fastest_backend
from minilm.tasks.task import Features, Predictions, Task, TaskScore, outputs_of
from minilm.train.cheap import as_before, cheapen
from minilm.train.graphs import step_of
from minilm.train.job import Job, begin, finish, reopened, runtime_of, train, worth
from minilm.train.log import Log, say
from minilm.train.loop import Optimizers, Plan
from minilm.train.lora import adapt, merge, merged_state
from minilm.train.optim import lr_fraction, make_optimizers

ADAPTER = "adapter.safetensors"
EVALUATIONS = 20  # of a run at most, unless --evaluate-every is given


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
    cuda_graphs: bool = False,
) -> Tuned:
    """Train `model` in place, from its newest checkpoint in `store`, if there is one. The caller holds the store.

    about: further entries of the result, as the columns. until, auto_batch: as in `Job`; deterministic: as in
    `Runtime.choose`; compile: whether the loss is compiled (`Runtime.compiled`); cuda_graphs: whether steps are
    replayed (`GraphedStep`). Raises ConfigError, CheckpointError, OutOfMemory, and DataError if `examples` or `dev` is
    empty.
    """
    check_installed()  # now, rather than at the first evaluation
    if not len(examples) or not len(dev):
        raise DataError("no example to learn from" if not len(examples) else "no example to evaluate on")
    if cuda_graphs and (task.ragged or tuning.gradient_checkpointing):
        what = "--gradient-checkpointing" if tuning.gradient_checkpointing else f"--task {task.name}"
        raise ConfigError(f"--cuda-graphs: does not work with {what}; leave it out")
    length = length_of(tuning, model, tokenizer)
    if task.kind == "model":
        model.pooling = replace(model.pooling, max_length=length)
    features, dev_features = (task.features(each, tokenizer, length) for each in (examples, dev))
    asked = {"task": repr(task), "model": f"of weights {weights_fingerprint(model)}", **asdict(tuning)}
    asked |= {"deterministic": deterministic, "compile": compile, "cuda_graphs": cuda_graphs}
    data = fingerprint((examples, features), (dev, dev_features))
    choices = {} if precision == "auto" else {"precision": precision}
    run = store.earlier_run(asked, choices, resume)
    if run and run.settings["data"] != data:
        raise ConfigError(
            f"--out {store.out}: began with other examples, or with a version that read them otherwise; "
            "use the same, or another --out"
        )
    runtime = runtime_of(run, device, precision, threads, deterministic)
    tokenizer.split_special_tokens = not tokenizer.markers  # as `tokenized` reads, also in transformers
    run = reopened(run, store, runtime.ranks)
    trains = not (run and run.result)
    loss = runtime.compiled(task.loss, any_shape=True) if compile and trains else task.loss
    take_step = step_of(runtime, cuda_graphs and trains)
    on_gpu = runtime.device.type == "cuda"
    row_length = row_length_of(features, length) if on_gpu else None
    batches = ExampleBatches(
        features, tuning, row_length, on_gpu, few_sizes=cuda_graphs, where=lambda example: examples[example].where
    )
    encoder, longest = model.base_model.encoder, row_length or int(features.lengths.max())
    usual = fastest_backend(
        runtime.device, runtime.dtype, longest, encoder.cfg.attention_dropout, encoder.cfg.head_width
    )
    encoder.backend = backend = run.backend if run else usual
    if run and run.result:
        say(f"{store.out} is finished; for another run choose another --out")
        fitted = _load_finished(model, task, store.out, runtime)
        return Tuned(model, tokenizer, fitted, runtime, length, run.result)

    optimizers = _prepared(model, tuning, runtime)
    forward = Applied(model)
    say(_described(model, features, len(examples), tuning, runtime, backend, store))
    if features.cut:
        say(f"longer than {length} tokens, so truncated or read in windows: {features.cut:,} examples")

    best: list[tuple[Task, TaskScore]] = []  # the best evaluation, if this process made it

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
        run.settings if run else asked | {"data": data},
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
        take_step=take_step,
    )
    plan = _plan(tuning, batches)
    begun, run = run is not None, run or begin(job, plan.steps, backend)
    log = train(job, plan)
    if begun or log.best_is_lost:
        best.clear()
        evaluate()
    fitted, score = best[0]
    model.config.update(fitted.config())
    result = (about or {}) | {
        "dev": {"loss": score.loss, **score.metrics},
        "epochs": batches.epochs() * log.done / plan.steps,
        "examples": len(examples),
        "dev_examples": len(dev),
        "lr": tuning.rate(model),
        "seed": tuning.seed,
        "length": length,
        **_measured(log, runtime),
    }
    finish(job, run, model.state_dict(), "", result, log.best)
    merge(model)
    as_before(model)
    model.requires_grad_(True)
    encoder.gradient_checkpointing = False
    if log.signal is not None:  # meant for the process, not for this run alone
        signal.raise_signal(log.signal)
    return Tuned(model, tokenizer, fitted, runtime, length, result)


def _load_finished(model: PreTrainedModel, task: Task, out: Path, runtime: Runtime) -> Task:
    """Load the weights of a finished run into `model`: the task as it was saved with them."""
    saved = type(model).from_pretrained(out, dtype=torch.float32)
    model.load_state_dict(saved.state_dict())
    model.to(runtime.device).eval()
    fitted = task.as_saved(saved)
    model.config.update(fitted.config())
    return fitted


def _measured(log: Log, runtime: Runtime) -> dict[str, Any]:
    """What a run took, for its result."""
    return {
        "steps": log.done,  # fewer than planned, if nothing got better
        "best_step": log.best,  # the step that the saved model is of
        "tokens": log.spent.tokens,
        "seconds": log.spent.seconds,
        "tokens_per_s": log.spent.tokens / max(1e-9, log.spent.seconds),
        "precision": runtime.precision,
        "peak_mb": peak_memory_mb(runtime.device),
    }


def _prepared(model: PreTrainedModel, tuning: Tuning, runtime: Runtime) -> Optimizers:
    """Put the model on its device in fp32, freeze layers or add LoRA as `tuning` says, and make its optimizers."""
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
    stages = [encoder.embedding, *encoder.layers]  # from the input upwards
    if tuning.frozen_layers:
        for stage in stages[: tuning.frozen_layers + 1]:
            stage.requires_grad_(False)
    if not any(own.requires_grad for name, own in model.named_parameters() if not name.startswith("pooler.")):
        raise ConfigError(f"--frozen-layers {tuning.frozen_layers}: leaves nothing to train; freeze fewer")
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
        save_every=each,  # so that the best model is saved
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
    share = "" if learn == total else f" ({learn / 1e6:.2g} M trainable)"
    return (
        f"{total / 1e6:.1f} M parameters{share} on {runtime.describe()}, {backend} attention; "
        f"{int(features.lengths.sum()):,} tokens in {examples:,} examples; lr {tuning.rate(model):g}; "
        f"into {store.out}"
    )
