"""fill_mask and continue_text on a vocabulary of whole words."""

import pytest
import torch

from minilm.batch import Tokens
from minilm.checkpoint.model import Pretrained
from minilm.data.tokenizer import SPECIALS, Tokenizer
from minilm.errors import ConfigError, DataError
from minilm.model.encoder import bert_config, initialise, modern_config
from minilm.model.generate import sample
from minilm.model.heads import LanguageModel
from minilm.use.complete import continue_text, fill_mask

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "##s", "##ing", "."]
VOCAB = [*SPECIALS, *WORDS]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return Tokenizer.load(tmp_path)


@pytest.fixture(params=["bert", "modern"])
def model(request):
    torch.manual_seed(2)
    preset = {"bert": bert_config, "modern": modern_config}[request.param]
    made = LanguageModel(preset(len(VOCAB), 16, 2, 2, 24, max_position_embeddings=12))
    initialise(made, std=0.5)
    return made.eval()


def ids_of(words):
    return [VOCAB.index(word) for word in words.split()]


@pytest.mark.parametrize(
    ("text", "pieces", "place"),
    [
        ("the [MASK] sat.", "[CLS] the [MASK] sat . [SEP]", 2),
        ("[MASK] dogs ran", "[CLS] [MASK] dog ##s ran [SEP]", 1),
        ("The cat sat on [MASK]", "[CLS] the cat sat on [MASK] [SEP]", 5),
    ],
)
def test_fillings_by_hand(model, tokenizer, text, pieces, place):
    ids = ids_of(pieces)
    with torch.no_grad():
        logits = model(Tokens.full(torch.tensor([ids])))[0, place].double()
    p = (logits.exp() / logits.exp().sum()).tolist()
    order = sorted(range(len(VOCAB)), key=lambda i: -p[i])
    fillings = fill_mask(Pretrained(model, tokenizer, "mlm"), text, top_k=4)
    assert [f.token for f in fillings] == [VOCAB[i] for i in order[:4]]
    assert [f.probability for f in fillings] == pytest.approx([p[i] for i in order[:4]], rel=1e-5)  # fp32
    every = fill_mask(Pretrained(model, tokenizer, "mlm"), text, top_k=len(VOCAB))
    assert sum(f.probability for f in every) == pytest.approx(1, abs=1e-6)
    words = {f.token: f.text for f in every}
    filled = pieces.replace("[MASK]", "home")
    assert words["home"] == tokenizer.decode(ids_of(filled))
    assert "home" in words["home"]
    assert "cat" in words["cat"]


def test_five_fillings_by_default(model, tokenizer):
    assert len(fill_mask(Pretrained(model, tokenizer, "mlm"), "a [MASK]")) == 5


def test_a_filling_can_join_the_word_before(model, tokenizer):
    texts = {
        f.token: f.text for f in fill_mask(Pretrained(model, tokenizer, "mlm"), "the cat [MASK]", top_k=len(VOCAB))
    }
    assert texts["##s"] == "the cats"
    assert texts["dog"] == "the cat dog"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("the cat sat", 0),
        ("", 0),
        ("the [MASK] sat on a [MASK]", 2),
        ("the [mask] sat", 0),  # only as it is written
        ("the cat sat on a mat and a dog ran home [MASK]", 0),  # 12 tokens end before it
    ],
)
def test_none_or_two_masks_are_refused(model, tokenizer, text, count):
    with pytest.raises(DataError, match=rf"holds {count} \[MASK\]") as caught:
        fill_mask(Pretrained(model, tokenizer, "mlm"), text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("objective", "attention"), [("clm", "causal"), ("prefix", "prefix")])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_continuation_is_the_sample_after_cls_and_text(model, tokenizer, objective, attention, temperature):
    prompt = ids_of("[CLS] the cat")
    new = sample(model, prompt, 6, attention, VOCAB.index("[SEP]"), temperature, seed=3)
    text = continue_text(Pretrained(model, tokenizer, objective), "the cat", 6, temperature, seed=3)
    assert text == tokenizer.decode(new)


def test_sep_ends_a_continuation(model, tokenizer):
    with torch.no_grad():
        model.head.bias[VOCAB.index("dog")] = 1e4
    assert continue_text(Pretrained(model, tokenizer, "clm"), "the cat", max_new=3) == "dog dog dog"
    with torch.no_grad():
        model.head.bias[VOCAB.index("[SEP]")] = 2e4
    assert continue_text(Pretrained(model, tokenizer, "clm"), "the cat", max_new=3) == ""


def test_markup_in_a_prompt_is_text(model, tokenizer):
    """[SEP] typed by a user is no end of anything: only fill_mask reads markup."""
    prompt = tokenizer.encode("the [SEP] cat").input_ids[:-1]
    assert VOCAB.index("[SEP]") not in prompt
    with torch.no_grad():
        model.head.bias[VOCAB.index("mat")] = 1e4
    assert continue_text(Pretrained(model, tokenizer, "clm"), "the [SEP] cat", max_new=2) == "mat mat"


def test_a_text_that_fills_the_model_is_refused(model, tokenizer):
    with pytest.raises(DataError, match="reads 12; shorten it"):
        continue_text(Pretrained(model, tokenizer, "clm"), "the cat sat on a mat and a dog ran home home")


def test_a_model_does_what_it_was_trained_for(model, tokenizer):
    for objective in ("clm", "prefix"):
        with pytest.raises(ConfigError, match=f"a {objective} model does not fill in masks"):
            fill_mask(Pretrained(model, tokenizer, objective), "the [MASK] sat")
    with pytest.raises(ConfigError, match="an mlm model does not continue a text"):
        continue_text(Pretrained(model, tokenizer, "mlm"), "the cat")


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), 1e-45, float("inf")])
def test_numbers_that_cannot_be_are_refused(model, tokenizer, temperature):
    with pytest.raises(ConfigError, match="temperature is"):
        continue_text(Pretrained(model, tokenizer, "clm"), "the cat", temperature=temperature)
    with pytest.raises(ConfigError, match="top_k is 0"):
        fill_mask(Pretrained(model, tokenizer, "mlm"), "the [MASK]", top_k=0)
