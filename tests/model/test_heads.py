"""The head of pairs against transformers' BertForPreTraining, in float64."""

import pytest
import torch
from torch.nn import functional as F

from minilm.batch import Batch, Tokens
from minilm.errors import ConfigError
from minilm.model.encoder import bert_config
from minilm.model.heads import LanguageModel, pooled
from minilm.train.losses import cross_entropy_sum, language_model_loss

LABEL = torch.tensor([1, 0, 1])


@pytest.fixture
def both(pair, ids, masks):
    """both(regime) -> ours and theirs, .tokens, and .theirs_of(**labels): their output for the same rows. The second
    text of each begins elsewhere; padding is on the right."""

    def make(regime="wild"):
        made = pair("bert", "mlm", regime, pairs="next")
        mask = masks["right"]
        types = (torch.arange(24) >= torch.tensor([[4], [11], [17]])).long() * mask
        made.tokens = Tokens.padded(ids, mask, token_type_ids=types)
        made.theirs_of = lambda **more: made.theirs(ids, attention_mask=mask, token_type_ids=types, **more)
        return made

    return make


@pytest.mark.parametrize("regime", ["initial", "wild"])
def test_parity_of_pretraining(both, assert_close, regime):
    """States, both logits, and every gradient of the sum of both losses."""
    made = both(regime)
    theirs = made.theirs_of(output_hidden_states=True)
    states = made.ours.encoder(made.tokens)
    assert_close(states[made.tokens.key], theirs.hidden_states[-1][made.tokens.key], "states")
    assert_close(made.ours(made.tokens)[made.tokens.key], theirs.prediction_logits[made.tokens.key], "predictions")
    assert_close(made.ours.pair(states, made.tokens), theirs.seq_relationship_logits, "relationship")
    where = torch.tensor([[1, 5, 9], [2, 12, 20], [0, 4, 23]]) + torch.arange(3)[:, None] * 24
    target = made.tokens.input_ids.flatten()[where.flatten()]
    labels = torch.full((72,), -100)
    labels[where.flatten()] = target
    reference = made.theirs_of(labels=labels.view(3, 24), next_sentence_label=LABEL).loss
    nats, count = language_model_loss(made.ours, Batch(made.tokens, where.flatten(), target, 9, 57, LABEL))
    assert_close(nats / count, reference, "loss")
    (nats / count).backward()
    reference.backward()
    gradients = made.gradients()
    assert {"cls.seq_relationship.weight", "bert.pooler.dense.bias", "cls.predictions.bias"} < gradients.keys()
    for name, (own, other) in gradients.items():
        assert_close(own, other, f"gradient of {name}")


@pytest.mark.parametrize("regime", ["initial", "wild"])
def test_parity_of_the_loss_of_pairs_alone(both, assert_close, regime):
    made = both(regime)
    nats, count = cross_entropy_sum(made.ours.pair(made.ours.encoder(made.tokens), made.tokens), LABEL)
    reference = F.cross_entropy(made.theirs_of().seq_relationship_logits, LABEL)
    assert_close(nats / count, reference, "loss")
    (nats / count).backward()
    reference.backward()
    for name, (own, other) in made.gradients().items():
        assert_close(own, other, f"gradient of {name}")


def test_which_text_a_token_is_of_counts(both):
    made = both()
    other = Tokens.padded(made.tokens.input_ids, made.tokens.key.long())
    found = [made.ours.pair(made.ours.encoder(tokens), tokens) for tokens in (made.tokens, other)]
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_each_pair_is_read_where_its_row_begins(both, ids, assert_close):
    """Packed rows, as training makes them, are the padded ones of before: padding begins no pair."""
    made = both()
    doc = torch.where(made.tokens.key, 0, -1)
    packed = Tokens.packed(ids, doc, token_type_ids=made.tokens.token_type_ids)
    own = made.ours.pair(made.ours.encoder(packed), packed)
    assert_close(own, made.theirs_of().seq_relationship_logits)


def test_a_model_without_pairs_has_no_such_head():
    cfg = bert_config(99, 32, 2, 4)
    plain, with_pairs = LanguageModel(cfg), LanguageModel(cfg, pairs=True)
    assert plain.pair is None
    assert {name for name, _ in with_pairs.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        f"pair.{name}.{leaf}" for name in ("pooler.dense", "classifier") for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize(("architecture", "objective"), [("modern", "mlm"), ("bert", "clm"), ("modern", "clm")])
def test_pairs_of_another_model_are_refused(pair, architecture, objective):
    with pytest.raises(ConfigError, match="--pairs order: only a masked BERT has a head for pairs"):
        pair(architecture, objective, pairs="order")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_mean_of_a_long_document_is_its_mean(dtype):
    """Its tokens are more than the whole numbers of half precision."""
    doc = torch.zeros(1, 4096).long()
    found = [
        pooled(torch.ones(1, 4096, 3, dtype=dtype), tokens, "mean")
        for tokens in (Tokens.packed(torch.ones_like(doc), doc), Tokens.full(torch.ones_like(doc)))
    ]
    assert [each.tolist() for each in found] == [[[1.0] * 3]] * 2
    assert [each.dtype for each in found] == [dtype] * 2


@pytest.mark.parametrize("how", ["cls", "mean", "max"])
def test_documents_of_packed_rows_are_pooled_as_if_alone(how):
    """Also where padding follows, and after a document of one token; with its gradient."""
    torch.manual_seed(0)
    doc = torch.tensor([[0, 0, 0, 1, 2, 2, -1, -1], [0, 0, 0, 0, 0, 1, 1, 1]])
    tokens = Tokens.packed(torch.ones_like(doc), doc)
    states = torch.randn(2, 8, 5, dtype=torch.float64, requires_grad=True)
    found = pooled(states, tokens, how)
    runs = [states[0, :3], states[0, 3:4], states[0, 4:6], states[1, :5], states[1, 5:]]
    alone = {"cls": lambda run: run[0], "mean": lambda run: run.mean(dim=0), "max": lambda run: run.amax(dim=0)}[how]
    expected = torch.stack([alone(run) for run in runs])
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (mine,) = torch.autograd.grad((found * weight).sum(), states)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), states)
    torch.testing.assert_close(mine, theirs)
