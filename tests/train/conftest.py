"""A tiny language model, batches with unequal numbers of targets, and comparison bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minilm.batch import IGNORE, Batch, Tokens
from minilm.checkpoint.model import read_state, write_model
from minilm.checkpoint.store import Store
from minilm.data.loader import Loader, Stretch
from minilm.data.objectives import CausalLM
from minilm.data.packing import Rows, Taken
from minilm.data.tokenizer import SPECIALS, Tokenizer
from minilm.machine.ranks import Applied
from minilm.model.encoder import bert_config, initialise, modern_config
from minilm.model.heads import LanguageModel
from minilm.train.job import Job
from minilm.train.loop import Score
from minilm.train.losses import language_model_loss
from minilm.train.optim import make_optimizers

VOCAB, LENGTH, SLOTS, MASK_ID = 61, 16, 6, 4
STRETCHES = Stretch(5, LENGTH, 8, 4), Stretch(3, LENGTH, 12, 4)  # of a job: steps, length, rows, rows at once


@pytest.fixture
def tiny():
    """tiny(architecture, dropout, dtype, backend, seed, pairs): 2 x 32, a window that 16 tokens exceed, weights
    N(0, 0.1)."""

    def make(architecture, dropout=0.0, dtype=torch.float32, backend="sdpa", seed=0, pairs=False):
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
        model = LanguageModel(cfg, backend, pairs)
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
def pair_rows(masked):
    """pair_rows(counts, first=0): the rows of masked(counts, first), each a pair of texts, a third of them padded; the
    label too depends on the row's number alone, and both occur."""

    def make(counts, first=0):
        batch = masked(counts, first)
        number = torch.arange(first, first + len(counts))[:, None]
        column = torch.arange(LENGTH)
        types = (column > 4 + number % 7).long()
        doc = torch.zeros_like(types).masked_fill((number % 3 == 0) & (column > LENGTH - 3), -1)
        real = (doc >= 0).flatten()[batch.where]
        target = torch.where(real, batch.target, IGNORE)
        tokens = Tokens.packed(batch.tokens.input_ids, doc, token_type_ids=types)
        count, size = int((target != IGNORE).sum()), int(tokens.key.sum())
        return Batch(tokens, batch.where, target, count, size, number.flatten() % 5 % 2)

    return make


@pytest.fixture
def words(tmp_path):
    """A tokenizer of VOCAB tokens: the specials, [MASK] at MASK_ID, and words."""
    file = tmp_path / "words.txt"
    file.write_text("".join(word + "\n" for word in (*SPECIALS, *(f"w{i}" for i in range(5, VOCAB)))))
    return Tokenizer.load(file)


class RandomRows(Rows):
    """`n` rows of random words."""

    fill = 1.0

    def __init__(self, n, T):
        self.T = T
        self.ids = torch.randint(5, VOCAB, (n, T), generator=torch.Generator().manual_seed(T))

    def __len__(self):
        return len(self.ids)

    def take(self, rows, epoch, short_rows=1):
        return Taken(self.ids[torch.from_numpy(np.asarray(rows))])


@pytest.fixture
def random_rows():
    """random_rows(n, T): `n` rows of T words without specials, alike for one T."""
    return RandomRows


@pytest.fixture
def make_job(tiny, cpu, words, random_rows, tmp_path):
    """make_job(optimizer, precision, loss, stretches, out, seed) -> a Job of 8 steps in tmp_path/out: a causal modern
    model with dropout, on 40 rows."""

    def job(optimizer="muon", precision="fp32", loss=language_model_loss, stretches=STRETCHES, out="run", seed=0):
        model = tiny("modern", dropout=0.1, seed=seed)
        optimizers = make_optimizers(model, optimizer, lr=1e-3, weight_decay=0.1, muon_dtype=torch.float32)
        loader = Loader(stretches, {LENGTH: random_rows(40, LENGTH)}, CausalLM(), seed=0)
        (tmp_path / out).mkdir(exist_ok=True)
        return Job(
            {"lr": 1e-3, "data": "these"},
            Applied(model),
            loss,
            optimizers,
            loader,
            cpu(precision),
            Store(tmp_path / out),
            evaluate=lambda: Score(1.0, 0.0, 1),
            write_model=lambda directory, state: write_model(directory, model, words, "clm", state=state),
            read_state=lambda directory: read_state(directory, model),
        )

    return job


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
