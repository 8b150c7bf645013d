"""Losses and scores of language models. Every loss returns (sum, count): a step divides by the count summed over
micro-batches and ranks, because a mean of means is a different loss.

Shape letters: N targets, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minilm.batch import IGNORE, Batch, are_few
from minilm.model.heads import LanguageModel

CHUNK = {"cpu": 512, "cuda": 8192}  # targets whose logits exist at once; on a CPU they should fit in its cache


def widened(x: Tensor) -> Tensor:
    """`x` in fp32, or wider if it is: the dtype for reductions."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy_sum(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood, in nats, and how many targets it sums.

    logits (N, V), any float dtype, reduced in fp32 at least; target (N,) int64 in [0, V), or IGNORE.
    """
    nats = F.cross_entropy(widened(logits), target, ignore_index=IGNORE, reduction="sum")
    return nats, (target != IGNORE).sum()


def linear_cross_entropy_sum(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """`cross_entropy_sum` of the logits x W^T + b, computed for `chunk` rows at a time.

    x (N, D), weight (V, D), bias (V,), target (N,). The forward pass computes the gradient softmax - onehot, too, while
    it has the logits: nothing is computed twice, and memory does not grow with N V (Hsu et al. 2024, Liger Kernel,
    sec. 3.2).
    """
    chunk = chunk or CHUNK.get(x.device.type, 512)
    return _LinearCrossEntropy.apply(x, weight, bias, target, chunk), (target != IGNORE).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, chunk: int) -> Tensor:
        kind = x.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):  # autocast would copy the table each time
            nats, *grads = _nats_and_gradients(x.to(narrow), weight.to(narrow), bias.to(narrow), target, chunk)
        ctx.save_for_backward(*(grad.to(of.dtype) for grad, of in zip(grads, (x, weight, bias), strict=True)))
        return nats

    @staticmethod
    def backward(ctx: Any, d_nats: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, grad_bias = (grad * d_nats for grad in ctx.saved_tensors)  # a scalar promotes nothing
        return grad_x, grad_weight, grad_bias, None, None


def _nats_and_gradients(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(summed nats, its gradients by x, weight and bias). Inputs of one dtype; reduced and summed in fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    nats = torch.zeros((), dtype=wide, device=x.device)
    grad_x, grad_weight, grad_bias = [], None, torch.zeros_like(bias, dtype=wide)
    parts = max(1, -(-len(x) // chunk))  # of about equal size: a small rest would cost as much as a whole one
    for x_part, t in zip(x.chunk(parts), target.chunk(parts), strict=True):
        log_p = F.linear(x_part, weight, bias).to(wide).log_softmax(dim=1)
        counts, t = (t != IGNORE)[:, None].to(wide), t.clamp(min=0)[:, None]
        nats = nats - (log_p.gather(1, t) * counts).sum()  # not in place: compiled, torch 2.11 lost all gradients
        d_logits = log_p.exp_().scatter_add_(1, t, torch.full_like(counts, -1.0)).mul_(counts)
        grad_bias += d_logits.sum(0)
        d_logits = d_logits.to(x.dtype)
        grad_x.append(d_logits @ weight)
        if grad_weight is None:
            grad_weight = (d_logits.T @ x_part).to(wide)
        elif wide == x.dtype:
            grad_weight.addmm_(d_logits.T, x_part)  # without a temporary of the table's size
        else:
            grad_weight += d_logits.T @ x_part
    return nats, torch.cat(grad_x), grad_weight, grad_bias


def _states(model: LanguageModel, batch: Batch) -> tuple[Tensor | None, Tensor]:
    """(states of all tokens (B, T, D), None if they are not needed; states of the targets (N, D))."""
    B, T = batch.tokens.input_ids.shape
    if batch.pair_label is None and are_few(batch.per_row, T):
        return None, model.encoder(batch.tokens, read=batch.where.view(B, -1)).flatten(0, 1)
    states = model.encoder(batch.tokens)
    return states, states.flatten(0, 1)[batch.where]


def language_model_loss(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of a masked, causal or prefix LM, whichever the batch is for. The vocabulary meets only the targets.

    Pairs of texts add the loss of PairHead, each pair weighted by the targets of a full row: in the mean over targets
    the two losses count alike, as in Devlin et al. 2018, app. A.2, unless rows have fewer targets or pairs no label.
    """
    states, of_targets = _states(model, batch)
    x = model.head(of_targets)
    nats, count = linear_cross_entropy_sum(x, model.table, model.head.bias, batch.target)
    if batch.pair_label is not None:
        pair_nats, _ = cross_entropy_sum(model.pair(states, batch.tokens), batch.pair_label)
        nats = nats + pair_nats * (len(batch.where) / len(batch.pair_label))
    return nats, count


@torch.no_grad()
def language_model_score(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(summed nats, targets predicted right, targets, pairs classified right, pairs) of one batch."""
    states, of_targets = _states(model, batch)
    x = model.head(of_targets)
    chunk = CHUNK.get(x.device.type, 512)
    nats, hits = torch.zeros((), device=x.device), torch.zeros((), dtype=torch.int64, device=x.device)
    for x_part, target in zip(x.split(chunk), batch.target.split(chunk), strict=True):
        logits = F.linear(x_part, model.table, model.head.bias)
        nats = nats + cross_entropy_sum(logits, target)[0]
        hits = hits + (logits.argmax(dim=1) == target).sum()
    right, pairs = torch.zeros_like(hits), torch.zeros_like(hits)
    if batch.pair_label is not None:
        right = (model.pair(states, batch.tokens).argmax(dim=1) == batch.pair_label).sum()
        pairs = (batch.pair_label != IGNORE).sum()
    return nats, hits, (batch.target != IGNORE).sum(), right, pairs
