"""Training steps on a device that is not the CPU, of tensors without numbers: what is not where it should be is an
error, and so is asking the device for a number, or for what CUDA refuses where bits must repeat. `python -m
tests.train.elsewhere` says which steps it followed. What a CUDA graph would record moves nothing between devices.

Matrix products, autocast and memory of a GPU it does not have; those are for test_gpu.py.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from minilm.batch import Batch, OnDevice, Tokens
from minilm.dropin.config import BertConfig
from minilm.dropin.models import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from minilm.machine.ranks import Applied, Ranks
from minilm.machine.runtime import Runtime
from minilm.model.encoder import bert_config, modern_config
from minilm.model.heads import LanguageModel
from minilm.tasks.choice import MultipleChoice
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.regression import Regression
from minilm.tasks.similarity import Similarity
from minilm.tasks.span import Span
from minilm.tasks.tagging import Tagging
from minilm.tasks.task import Features, GroupedFeatures, batch_of
from minilm.train.graphs import GraphedStep
from minilm.train.loop import train_step
from minilm.train.losses import language_model_loss, language_model_score
from minilm.train.optim import make_optimizers

DEVICE = "elsewhere:0"
T, WORDS = 16, 61
REFUSED = {  # on CUDA by torch.use_deterministic_algorithms, of what its documentation lists
    *("bincount", "cumsum", "histc", "kthvalue", "median", "nanmedian", "nll_loss2d_forward", "put_"),
    *("embedding_bag", "grid_sampler_2d", "max_pool3d_with_indices", "replication_pad1d", "reflection_pad1d"),
}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def language_models() -> Iterator[tuple[str, Callable[[], nn.Module], Callable[..., Any], Batch]]:
    """(name, model, loss, batch) of each architecture, pattern of attention, layout and backend."""
    ids = torch.randint(5, WORDS, (4, T), generator=torch.Generator().manual_seed(0))
    doc = torch.tensor([0] * 7 + [1] * 6 + [-1] * 3).expand(4, T).contiguous()
    where, target = torch.tensor([1, 5, 17, 20, 33, 35, 49, 52]), torch.arange(8) + 5
    architectures = (("bert", bert_config), ("modern", modern_config))
    backends = (("sdpa", 0.1, 0), ("explicit", 0.1, 2), ("varlen", 0.0, 0))  # dropout, targets of each row
    choices = map(enumerate, (("bidirectional", "causal", "prefix"), ("full", "packed"), backends))
    for each in itertools.product(*choices):
        attention, layout, (backend, dropout, per_row) = (choice for _, choice in each)
        name, config = architectures[sum(number for number, _ in each) % 2]  # both with each two of these
        prefix = torch.arange(T).expand(4, T) < 4 if attention == "prefix" else None
        packed = layout == "packed"
        tokens = Tokens.packed(ids, doc, attention, prefix) if packed else Tokens.full(ids, attention, prefix)
        cfg = config(WORDS, **SHAPE, max_position_embeddings=T, dropout=dropout)
        batch = Batch(tokens, where, target, 8, ids.numel(), per_row=per_row)
        yield f"{name}, {attention}, {layout}, {backend}", partial(LanguageModel, cfg, backend), _both, batch


def _both(model: nn.Module, batch: Batch) -> Any:
    """The loss that is learned from; and the score, whose numbers are thrown away."""
    with torch.no_grad():
        language_model_score(model, batch)
    return language_model_loss(model, batch)


def tasks() -> Iterator[tuple[str, Callable[[], nn.Module], Callable[..., Any], OnDevice]]:
    """The same of each task."""
    lengths = np.array([7, 5, 9, 3, 8, 6])
    n, total = len(lengths), lengths.sum()
    ids = np.random.default_rng(0).integers(5, WORDS, total).astype(np.int32)
    offsets, types, pairs = np.cumsum([0, *lengths]), np.zeros(total, np.int8), np.arange(n) // 2
    labels = ("a", "b", "c")

    def features(target: np.ndarray, **more: Any) -> Features:
        return Features(ids, types, offsets, target, np.arange(n), **more)

    grouped = replace(features(np.zeros(n)), example=pairs)
    weighted = Classification(labels, weights=(1.0, 2.0, 3.0), smoothing=0.1)
    of_words = features(np.where(np.arange(total) % 3, np.arange(total) % 3, -100), word=np.arange(total))
    for task, made, kind in (
        (Classification(labels), features(np.arange(n) % 3), BertForSequenceClassification),
        (weighted, features(np.arange(n) % 3), BertForSequenceClassification),
        (MultiLabel(labels), features(np.eye(n)[:, :3]), BertForSequenceClassification),
        (Regression(), features(np.linspace(0, 1, n)), BertForSequenceClassification),
        (Tagging(labels), of_words, BertForTokenClassification),
        (Span(), features(np.ones((n, 2), np.int64)), BertForQuestionAnswering),
        (MultipleChoice(), GroupedFeatures.of(grouped, np.arange(n) % 2), BertForMultipleChoice),
        (Similarity(0.0, 5.0), GroupedFeatures.of(grouped, np.linspace(0, 5, n)), BertModel),
    ):
        config = BertConfig(vocab_size=WORDS, **SHAPE, max_position_embeddings=T, **task.config())
        batch, _ = batch_of(made, np.arange(n), T)
        yield task.name, partial(kind, config), task.loss, batch


class Repeatable(TorchDispatchMode):
    """Raises AssertionError for what is REFUSED, of real numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func._schema.name.partition("::")[2]
        is_real = any(isinstance(each, Tensor) and each.is_floating_point() for each in args)
        assert name not in REFUSED or not is_real, name
        return func(*args, **(kwargs or {}))


class Recorded(TorchDispatchMode):
    """Raises AssertionError for what copies between devices, or reads a learning rate that is not on the device: a
    graph would read what the host held as it was made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        of = {each.device for each in (*args, *(kwargs or {}).values(), made) if isinstance(each, Tensor)}
        assert func._schema.name not in ("aten::_to_copy", "aten::copy_", "aten::_fused_adamw_") or len(of) <= 1, of
        assert func._schema.name != "aten::_fused_adamw_" or isinstance(kwargs["lr"], Tensor)
        return made


class Graphs:
    """What a graph would record, computed."""

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with Recorded():
            return (lambda: None), work()


@torch.library.impl("aten::_fused_adamw_.tensor_lr", "Meta")
def _(*args: Any, lr: Tensor, **more: Any) -> None:
    """Torch has none for a learning rate that is a tensor."""


def follow(name: str, make: Callable[[], nn.Module], loss: Callable[..., Any], batch: OnDevice, optimizer: str) -> None:
    """A step of two micro-batches, one of a single one, and one as a graph."""
    device = torch.device(DEVICE)
    with FakeTensorMode() as mode:

        def there(each: OnDevice) -> OnDevice:
            return each._each(lambda value: there(value) if isinstance(value, OnDevice) else mode.from_tensor(value))

        runtime, fake = Runtime(device, "fp32", "asked for", 1, Ranks()), there(batch)
        with device:
            model = make().train()
        optimizers = make_optimizers(model, optimizer, 1e-2, 0.1, muon_dtype=runtime.muon_dtype)
        graphed = GraphedStep(Graphs())
        for take_step, micro_batches in ((train_step, [fake, fake]), (graphed, [fake]), (graphed, [fake])):
            with Repeatable():
                found = take_step(Applied(model), loss, optimizers, micro_batches, runtime, 1.0)
            assert [each.device for each in found] == [device] * 3, (name, found)
        assert all(graphed.of_shape.values())
        assert all(own.device == device for own in model.state_dict().values()), name
    print(f"{name}, {optimizer}: followed", flush=True)


def notices() -> None:
    """That it would be noticed: two devices in one sum, a number that is asked for, what a graph would copy from the
    host, and a sum in any order."""
    with FakeTensorMode():
        number = torch.ones((), device=DEVICE)
        wrong = ((lambda: number + torch.ones(3), RuntimeError), (number.item, DataDependentOutputException))
        for each, error in wrong:
            with pytest.raises(error):
                each()
        with Recorded(), pytest.raises(AssertionError, match="cpu"):
            torch.ones(()).to(DEVICE)
    with Repeatable(), pytest.raises(AssertionError, match="nll_loss2d_forward"):
        nn.functional.cross_entropy(torch.zeros(2, 3, 2), torch.zeros(2, 2, dtype=torch.int64), reduction="sum")


class Module(backend_registration._DummyBackendModule):
    """What torch asks such a device's module for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


if __name__ == "__main__":
    backend_registration._setup_privateuseone_for_python_backend(DEVICE.partition(":")[0], Module())
    notices()
    for each, optimizer in zip(itertools.chain(tasks(), language_models()), itertools.cycle(("adamw", "muon"))):
        follow(*each, optimizer)
