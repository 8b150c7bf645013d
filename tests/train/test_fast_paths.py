"""All that makes a step fast, at once, beside a step without any of it: its logits in bf16, and where 50 steps lead."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minilm.batch import IGNORE, Batch, Tokens
from minilm.machine.ranks import Applied
from minilm.model.attention import fastest_backend
from minilm.train.cheap import cheapen
from minilm.train.loop import train_step
from minilm.train.losses import language_model_loss
from minilm.train.optim import make_optimizers

MASK, T = 4, 16


def documents(seed, step, n=12):
    """Texts of 4 to 16 tokens, each counting up by ones or twos, and which of them are to be predicted."""
    rng, found = np.random.default_rng([seed, step]), []
    for _ in range(n):
        length, start, by = rng.integers(4, T + 1), rng.integers(50), rng.integers(1, 3)
        ids = 5 + (start + by * np.arange(length)) % 50
        found.append((ids, np.sort(rng.permutation(length)[: max(1, length // 5)])))
    return found


def batch_of(texts, packed):
    """One text a row, padded; or two where they fit, and equally many places to predict at in each row, so that the
    last layer computes these alone."""
    rows = []
    for text in texts:
        last = rows[-1] if rows else []
        fits = packed and last and sum(len(ids) for ids, _ in last) + len(text[0]) <= T
        last.append(text) if fits else rows.append([text])
    per_row = max(sum(len(picks) for _, picks in row) for row in rows)
    ids, doc = torch.zeros(len(rows), T, dtype=torch.int64), torch.full((len(rows), T), -1)
    where, target = torch.arange(len(rows))[:, None].repeat(1, per_row) * T, torch.full((len(rows), per_row), IGNORE)
    number = 0
    for at, row in enumerate(rows):
        begin = filled = 0
        for own, picks in row:
            here = torch.from_numpy(own)
            shown = here.clone()
            shown[picks] = MASK
            ids[at, begin : begin + len(own)], doc[at, begin : begin + len(own)] = shown, number
            places = slice(filled, filled + len(picks))
            where[at, places], target[at, places] = at * T + begin + torch.from_numpy(picks), here[picks]
            begin, filled, number = begin + len(own), filled + len(picks), number + 1
    count, size = int((target >= 0).sum()), int((doc >= 0).sum())
    tokens = Tokens.packed(ids, doc)
    return Batch(tokens, where.flatten(), target.flatten(), count, size, per_row=per_row if packed else 0)


def plain_logits(model, batch):
    """Of all targets, from the states of all tokens."""
    states = model.encoder(batch.tokens).flatten(0, 1)[batch.where[batch.target >= 0]]
    return model.head.logits(states, model.table)


def plain_loss(model, batch):
    target = batch.target[batch.target >= 0]
    return F.cross_entropy(plain_logits(model, batch).float(), target, reduction="sum"), target.new_tensor(len(target))


def fast(tiny, architecture, runtime, seed=0):
    model = tiny(architecture, seed=seed)
    model.encoder.backend = fastest_backend(runtime.device, runtime.dtype, T, 0.0, model.cfg.head_width)
    cheapen(model)
    return model


@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_logits_in_bf16(tiny, cpu, architecture):
    """To 2 % of their norm, and not to none: the two do round differently."""
    runtime, texts = cpu("bf16"), documents(0, 0, 40)
    model, plain = fast(tiny, architecture, runtime), tiny(architecture)
    batch, padded = batch_of(texts, True), batch_of(texts, False)
    assert len(batch.tokens.input_ids) < len(padded.tokens.input_ids)
    assert model.encoder.backend != plain.encoder.backend
    with torch.no_grad(), runtime.autocast():
        read = model.encoder(batch.tokens, read=batch.where.view(-1, batch.per_row)).flatten(0, 1)
        found = model.head.logits(read, model.table)[batch.target >= 0].double()
        reference = plain_logits(plain, padded).double()
    with torch.no_grad():
        exact = plain_logits(plain.double(), padded)
    off = (found - reference).norm(dim=1) / reference.norm(dim=1)
    assert 0 < off.max() <= 2e-2
    assert (found - exact).norm() <= 1.5 * (reference - exact).norm()


def test_50_steps_lead_where_plain_ones_lead(tiny, cpu):
    """The loss of the last ten is nearer to that of plain steps in fp32 than these are to one another with other
    seeds."""

    def last_losses(model, loss, packed, seed, runtime):
        optimizers = make_optimizers(model, "adamw", lr=5e-3, weight_decay=0.01)
        found = []
        for step in range(50):
            batch = batch_of(documents(seed, step), packed)
            nats, _, bad = train_step(Applied(model), loss, optimizers, [batch], runtime, 1.0)
            assert not bad
            found.append(float(nats) / batch.count)
        assert np.mean(found[-10:]) < 0.8 * np.mean(found[:10])  # it learns
        return np.mean(found[-10:])

    seeds = range(3)
    plain = [last_losses(tiny("modern", seed=seed), plain_loss, False, seed, cpu()) for seed in seeds]
    for runtime in (cpu(), cpu("bf16")):
        for seed in seeds:
            found = last_losses(fast(tiny, "modern", runtime, seed), language_model_loss, True, seed, runtime)
            assert abs(found - plain[seed]) < np.std(plain, ddof=1)
