"""Attributions: equal to captum's, complete, and true where the truth is planted."""

import random
from dataclasses import replace

import captum.attr
import numpy as np
import pytest
import scipy.stats
import torch
import transformers

import minilm
from minilm.batch import Tokens
from minilm.dropin.config import PreTrainedConfig
from minilm.explanation.attribution import Output, gradient_x_input, integrated_gradients, occlusion
from minilm.explanation.explain import Method, explain
from minilm.finetuning.tuned import Tuned
from minilm.labelled.examples import Example
from minilm.machine.runtime import Runtime
from minilm.tasks.classification import Classification

PLAIN = [f"w{letter}" for letter in "abcdefghijklmnopqrst"]
SAID = ["good", "bad"]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SAID, *PLAIN]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
FAMILIES = ["bert", "modernbert"]


def config_of(family, **more):
    made = {"model_type": family, "vocab_size": len(VOCAB), "max_position_embeddings": 32, **SIZES, **SPECIAL}
    return PreTrainedConfig.from_dict(made | more)


HEADS = {  # class, and the number that is read off its output
    "label": ("ForSequenceClassification", lambda out: out["logits"][:, 1]),
    "span": ("ForQuestionAnswering", lambda out: out["start_logits"][:, 7] + out["end_logits"][:, 8]),
    "mask": ("ForMaskedLM", lambda out: out["logits"][:, 3, 6]),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("family", "theirs"), [("bert", "Bert"), ("modernbert", "ModernBert")])
def test_equal_to_captum_on_transformers(family, theirs, head, tmp_path, exact_float64, monkeypatch):
    """Same baseline, same points of the same rule, for two texts; in one batch, and in several."""
    exact_float64()
    name, read = HEADS[head]
    torch.manual_seed(0)
    config = config_of(family, initializer_range=0.3)
    getattr(minilm, f"Bert{name}")(config).save_pretrained(tmp_path)
    model = getattr(minilm, f"Bert{name}").from_pretrained(tmp_path).double()
    reference = getattr(transformers, theirs + name).from_pretrained(tmp_path, attn_implementation="eager").double()
    ids, types = torch.tensor([[2, 7, 8, 9, 10, 3, 11, 12, 6, 3]]), torch.tensor([[0] * 6 + [1] * 4])
    baseline = torch.where((ids == 2) | (ids == 3), ids, 0)
    typed = {"token_type_ids": types} if family == "bert" else {}

    def forward(ids):
        more = {name: own.expand(len(ids), -1) for name, own in typed.items()}
        return read(reference(ids, attention_mask=torch.ones_like(ids), **more))

    layer = reference.base_model.embeddings
    ig = captum.attr.LayerIntegratedGradients(forward, layer).attribute(
        ids, baseline, n_steps=50, method="gausslegendre"
    )
    gxi = captum.attr.LayerGradientXActivation(forward, layer).attribute(ids)
    group = torch.tensor([[0, 1, 1, 2, 3, 4, 5, 6, 6, 7]])  # tokens of a word, hidden together
    ablated = captum.attr.FeatureAblation(forward).attribute(ids, baselines=4, feature_mask=group)
    wanted_ig, wanted_gxi, wanted = (
        each.detach().double().numpy() for each in (ig[0].sum(dim=-1), gxi[0].sum(dim=-1), ablated[0])
    )
    output, tokens = Output(model, lambda *states: read(model.outputs_of(*states))), Tokens.full(ids, **typed)
    hidden = group[0] == torch.arange(8)[:, None]
    for at_once in (1 << 11, 30):
        monkeypatch.setattr("minilm.explanation.attribution.AT_ONCE", at_once)
        assert (
            np.abs(integrated_gradients(output, tokens, baseline, 50) - wanted_ig).max() < 1e-6
        )  # captum rounds its points
        assert np.abs(gradient_x_input(output, tokens) - wanted_gxi).max() < 1e-9
        assert np.abs(occlusion(output, tokens, hidden, 4)[group[0].numpy()] - wanted).max() < 1e-9
    assert min(np.abs(each).max() for each in (wanted_ig, wanted_gxi, wanted)) > 0.01
    assert [own.grad for own in model.parameters() if own.grad is not None] == []


def texts(n, seed):
    """n examples; the one word of SAID is their label, and without one it is "neither"."""
    rng, found = random.Random(seed), []
    for i in range(n):
        words, label = rng.choices(PLAIN, k=rng.randint(4, 10)), (*SAID, "neither")[i % 3]
        if label in SAID:
            words.insert(rng.randint(0, len(words)), label)
        found.append(Example(" ".join(words), None, label))
    return found


def random_model(family, seed):
    torch.manual_seed(seed)
    return minilm.BertForSequenceClassification(config_of(family, num_labels=3, initializer_range=0.1)).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def planted(request, tmp_path_factory):
    """A model that has learned to read that word, in fp32."""
    file = tmp_path_factory.mktemp("planted") / "vocab.txt"
    file.write_text("\n".join(VOCAB) + "\n")
    tokenizer, task = minilm.BertTokenizer(file, model_max_length=32), Classification((*SAID, "neither"))
    torch.set_num_threads(1)
    model = random_model(request.param, 0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(80):
        rows = texts(24, step)
        inputs = tokenizer([each.text for each in rows], padding=True, return_tensors="pt")
        labels = torch.tensor([task.labels.index(each.label) for each in rows])
        model(**inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    cpu = Runtime(torch.device("cpu"), "fp32", "test", 1)
    return Tuned(model.eval(), tokenizer, task, cpu, 32, {"family": request.param})


@pytest.fixture(scope="module")
def held_out():
    return [each for each in texts(45, seed=1_000_000) if each.label in SAID]


METHODS = ["integrated-gradients", "occlusion"]


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_word_is_found(planted, held_out, method):
    """It is first in 95 % of texts; values of integrated gradients sum to what the output differs by."""
    found = explain(planted, [each.text for each in held_out], method=Method(method))
    assert [each.says for each in found] == [each.label for each in held_out]
    first = [max(each.words, key=lambda word: word.value).text for each in found]
    assert np.mean([word == each.label for word, each in zip(first, held_out, strict=True)]) >= 0.95
    for each in found if method == "integrated-gradients" else ():
        assert each.completeness_error < 0.01
        total = sum(word.value for word in each.words)
        assert total == pytest.approx(each.score - each.baseline_score, rel=0.01)
        assert abs(total) > 0.5  # so that this says something


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_say_something_else(planted, held_out, method):
    """Adebayo et al. 2018: what is explained is the model. The mean over texts, each with a random model of its own."""
    related, family = [], planted.result["family"]
    for seed, each in enumerate(held_out[:24]):
        sides = []
        for model in (planted.model, random_model(family, 100 + seed)):
            found = explain(replace(planted, model=model), [each.text], method=Method(method, 10), target=each.label)
            sides.append([word.value for word in found[0].words if word.part == 0])
        related.append(scipy.stats.spearmanr(*sides).statistic)
    assert abs(np.mean(related)) < 0.2
