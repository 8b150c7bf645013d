"""Small language models of transformers' on disk, and texts for them."""

import random

import pytest
import torch
import transformers

import minilm
from minilm.evaluation.likelihood import read_scorer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "##s", "##ing", "##ed", "."]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
STEMS, ENDS = [word for word in WORDS if word[0] not in "#."], ["", "s", "ing", "ed", "inged"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="session")
def vocab():
    return VOCAB


@pytest.fixture(scope="session")
def sentences():
    """sentences(n, seed): n of them, of words of one piece and of several."""

    def make(n, seed=0):
        rng = random.Random(seed)
        return [
            " ".join(rng.choice(STEMS) + rng.choice(ENDS) for _ in range(rng.randint(1, 9))) + rng.choice(["", "."])
            for _ in range(n)
        ]

    return make


@pytest.fixture
def made():
    """made(family, directory) -> (directory, transformers' model of it in float64), random weights."""
    return _made


def _made(family, directory, **more):
    torch.manual_seed(0)
    common = {"vocab_size": len(VOCAB), "max_position_embeddings": 48, "pad_token_id": 0, "initializer_range": 0.3}
    special = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    named = {
        "bert": (transformers.BertConfig, transformers.BertForMaskedLM, SIZES),
        "causal": (transformers.BertConfig, transformers.BertLMHeadModel, SIZES | {"is_decoder": True}),
        "modernbert": (transformers.ModernBertConfig, transformers.ModernBertForMaskedLM, SIZES | special),
        "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, SIZES | {"type_vocab_size": 1}),
        "distilbert": (
            transformers.DistilBertConfig,
            transformers.DistilBertForMaskedLM,
            {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
        ),
    }
    config, model, own = named[family]
    reference = model(config(**common | own | more))
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    reference.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    minilm.BertTokenizer(str(directory / "vocab.txt"), model_max_length=32).save_pretrained(directory)
    reference = model.from_pretrained(directory, attn_implementation="eager")
    return directory, reference.double().eval()


@pytest.fixture
def in_float64():
    """in_float64(directory): what scores texts by its model."""

    def make(directory):
        scorer = read_scorer(directory)
        scorer.model.double()
        return scorer

    return make
