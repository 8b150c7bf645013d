"""A tiny language model, batches with unequal numbers of targets, and comparison bit for bit."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from minilm.batch import IGNORE, Batch, Tokens
from minilm.model.encoder import bert_config, initialise, modern_config
from minilm.model.heads import LanguageModel
from minilm.train.runtime import Runtime

VOCAB, LENGTH, SLOTS, MASK_ID = 61, 16, 6, 4


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices gain nothing from more, and lose twentyfold where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny():
    """tiny(architecture, dropout, dtype, backend): 2 x 32, a window that 16 tokens exceed, weights N(0, 0.1)."""

    def make(architecture, dropout=0.0, dtype=torch.float32, backend="sdpa", seed=0):
        torch.manual_seed(seed)
        shape = {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": LENGTH,
            "dropout": dropout,
        }
        modern = architecture == "modern"
        cfg = modern_config(**shape, window=3, global_every=2) if modern else bert_config(**shape)
        model = LanguageModel(cfg, backend)
        initialise(model, std=0.1)
        return model.to(dtype)

    return make


@pytest.fixture
def masked():
    """masked(counts, first=0): row b (numbered from `first`) has counts[b] targets in SLOTS slots, the rest IGNORE.

    A row depends on its number alone, so masked([2, 5]) holds the rows of masked([2]) and masked([5], first=1).
    """

    def make(counts, first=0):
        inputs, where, target = [], [], []
        for b, count in enumerate(counts):
            generator = torch.Generator().manual_seed(1000 + first + b)
            ids = torch.randint(5, VOCAB, (LENGTH,), generator=generator)
            place = torch.randperm(LENGTH, generator=generator)[:SLOTS]
            real = torch.arange(SLOTS) < count
            target.append(torch.where(real, ids[place], IGNORE))
            inputs.append(ids.scatter(0, place[:count], MASK_ID))
            where.append(place + b * LENGTH)
        tokens = Tokens.full(torch.stack(inputs))
        return Batch(tokens, torch.cat(where), torch.cat(target), sum(counts), len(counts) * LENGTH)

    return make


@pytest.fixture
def cpu():
    """cpu(precision): a Runtime as `choose` would make it, of its own (each has its own GradScaler)."""
    return lambda precision="fp32": Runtime(torch.device("cpu"), precision, "test", torch.get_num_threads())


@pytest.fixture
def bits():
    """bits.of(model, optimizers): every weight and every optimizer tensor by name; bits.same(a, b) to the last one."""

    def of(model: nn.Module, optimizers=()) -> dict[str, Tensor]:
        found = {name: p.detach().clone() for name, p in model.named_parameters()}
        names = {p: name for name, p in model.named_parameters()}
        for optimizer in optimizers:
            kind = type(optimizer).__name__
            for p, state in optimizer.state.items():
                found |= {f"{kind} {key} of {names[p]}": v.clone() for key, v in state.items()}
        return found

    def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
        assert a.keys() == b.keys()
        changed = [k for k in a if not torch.equal(a[k].view(torch.int32), b[k].view(torch.int32))]
        assert changed == []

    return SimpleNamespace(of=of, same=same)
