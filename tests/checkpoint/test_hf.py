"""Names and configurations both ways, the accounting of every tensor, and what transformers makes of our files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm.batch import Tokens
from minilm.checkpoint.families import FAMILIES
from minilm.checkpoint.hf import config_from_hf, config_to_hf, from_hf, kind_of, objective_of, pairs_of, to_hf
from minilm.checkpoint.model import Pretrained, read_model, write_model
from minilm.data.objectives import ATTENTION
from minilm.data.tokenizer import Tokenizer
from minilm.errors import CheckpointError, ConfigError
from minilm.model.encoder import LayerSpec, bert_config, modern_config
from minilm.model.heads import LanguageModel
from minilm.use.complete import continue_text, fill_mask

SPECIALS = {"cls_token_id": 2, "sep_token_id": 3}
KINDS = [(architecture, objective) for architecture in ("bert", "modern") for objective in ("mlm", "clm", "prefix")]
TEXT = "the quick brown fox jumps over the lazy dog while seven wizards box with five dozen liquor jugs " * 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], vocab_size=64)


def model_of(architecture: str, vocab_size: int, seed: int = 0, pairs: bool = False) -> LanguageModel:
    """Random weights everywhere, a window of 4 that the texts below exceed more than twice."""
    make = bert_config if architecture == "bert" else modern_config
    extra = {} if architecture == "bert" else {"window": 4, "global_every": 2}
    model = LanguageModel(make(vocab_size, 32, 3, 4, 24, max_position_embeddings=64, dropout=0.0, **extra), pairs=pairs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture(params=KINDS, ids="-".join)
def saved(request, tmp_path, tokenizer):
    """(directory, model, objective) of every kind of language model."""
    architecture, objective = request.param
    model = model_of(architecture, tokenizer.vocab_size)
    write_model(tmp_path, model, tokenizer, objective)
    return tmp_path, model, objective


def test_transformers_opens_it_as_what_it_is(saved, tokenizer):
    """By the Auto class of its architecture, with empty loading_info, and with our logits: 40 tokens, windows of 4."""
    import transformers

    directory, model, objective = saved
    config = json.loads((directory / "config.json").read_text())
    auto = transformers.AutoModelForCausalLM if objective == "clm" else transformers.AutoModelForMaskedLM
    theirs, info = auto.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    assert type(theirs).__name__ == config["architectures"][0]
    assert not any(info.values()), info
    ids = torch.randint(5, tokenizer.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    reach = "bidirectional" if objective == "prefix" else ATTENTION[objective]  # they have no prefix mask
    with torch.no_grad():
        reference = theirs.eval()(ids).logits
        torch.testing.assert_close(model(Tokens.full(ids, reach)), reference, rtol=1e-4, atol=2e-4)
        other = "causal" if reach == "bidirectional" else "bidirectional"
        assert (model(Tokens.full(ids, other)) - reference).abs().max() > 0.05


def test_their_tokenizer_is_ours(saved, tokenizer):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(saved[0])
    assert (theirs.mask_token, theirs.cls_token, theirs.sep_token, theirs.pad_token, theirs.unk_token) == (
        "[MASK]",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[UNK]",
    )
    assert theirs.model_max_length == 64
    ids = tokenizer.encode("The quick FOX").input_ids
    assert theirs("The quick FOX").input_ids == (ids[:-1] if saved[2] == "clm" else ids)  # which is to go on


@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_their_pipeline_fills_masks_as_we_do(architecture, tokenizer, tmp_path):
    import transformers

    model = model_of(architecture, tokenizer.vocab_size, seed=3)
    write_model(tmp_path, model, tokenizer, "mlm")
    theirs = transformers.pipeline("fill-mask", model=str(tmp_path), tokenizer=str(tmp_path), top_k=5, device="cpu")
    text = "the quick brown [MASK] jumps over the lazy dog"
    ours = fill_mask(Pretrained(model, tokenizer, "mlm"), text, top_k=5)
    reference = theirs(text)
    assert [each.token for each in ours] == [each["token_str"] for each in reference]
    np.testing.assert_allclose([e.probability for e in ours], [e["score"] for e in reference], rtol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_their_pipeline_continues_a_text_as_we_do(architecture, tokenizer, tmp_path):
    import transformers

    model = model_of(architecture, tokenizer.vocab_size, seed=3)
    write_model(tmp_path, model, tokenizer, "clm")
    theirs = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    text = theirs("the quick brown", do_sample=False, max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    ours = continue_text(tmp_path, "the quick brown", max_new=8, temperature=0)
    assert text.split() == ours.split()
    assert ours


def test_files_are_as_readable_as_others(saved):
    modes = {path.name: path.stat().st_mode for path in saved[0].iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_round_trip_through_a_directory(saved):
    directory, model, objective = saved
    again, tokenizer, was = read_model(directory)
    assert was == objective
    assert again.cfg == model.cfg
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert tokenizer.encode("fox").input_ids == tokenizer.load(directory).encode("fox").input_ids


@pytest.mark.parametrize(("architecture", "objective"), KINDS)
def test_names_and_values_survive_both_ways(architecture, objective):
    model = model_of(architecture, 99)
    config = config_to_hf(model.cfg, objective, SPECIALS)
    named = config["model_type"], kind_of(config)
    theirs = to_hf(model.state_dict(), *named)
    state, dropped = from_hf(theirs, *named, model.state_dict())
    assert not dropped
    assert state.keys() == model.state_dict().keys()
    again = to_hf(state, *named)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("architecture", "objective"), KINDS)
def test_configs_survive_both_ways(architecture, objective):
    cfg = model_of(architecture, 99).cfg
    config = config_to_hf(cfg, objective, SPECIALS)
    assert config_from_hf(config) == cfg
    assert objective_of(config) == objective
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "layer_types")}
    assert config_from_hf(old) == cfg  # as transformers 4 wrote them


def test_hf_defaults_are_read():
    """Their configs of the published models, as their library writes them."""
    import transformers

    base = config_from_hf(transformers.BertConfig().to_dict() | {"model_type": "bert"})
    assert base == bert_config(30522)
    modern = config_from_hf(transformers.ModernBertConfig().to_dict())
    assert modern.layers == modern_config(50368).layers
    assert modern.pad_token_id == 50283
    old = {"model_type": "modernbert", "global_rope_theta": 500.0, "local_rope_theta": None, "num_hidden_layers": 3}
    like = transformers.ModernBertConfig().to_dict()
    sizes = {key: value for key, value in like.items() if key not in ("rope_parameters", "layer_types")}
    assert {layer.rope_base for layer in config_from_hf(sizes | old).layers} == {500.0}  # transformers 4's: as global


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is unknown"),
        ({"model_type": ["bert"]}, r"model_type \['bert'\] is unknown"),
        ({"vocab_size": "99"}, "vocab_size is '99'; expected int"),
        ({"vocab_size": 2**62}, "give a whole number from 1"),
        ({"intermediate_size": 10**30}, "give a whole number from 1"),
        ({"max_position_embeddings": 2**62}, "give a whole number from 1"),
        ({"type_vocab_size": -1}, "type_vocab_size is -1"),
        ({"layer_norm_eps": 10**400}, "expected float"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1.0"),
        ({"hidden_size": True}, "hidden_size is True; expected int"),
        ({"num_attention_heads": 5}, "does not divide"),
        ({"hidden_act": "os.system"}, "unknown; use one of"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"position_embedding_type": "relative_key"}, "not supported"),
        ({"tie_word_embeddings": False}, "not supported"),
        ({"num_hidden_layers": 0}, "at least one layer"),
        ({"num_hidden_layers": 10**12}, "at most 1000"),
        ({"pad_token_id": 99}, "pad_token_id 99 is not in the vocabulary"),
        ({"pad_token_id": -1}, "pad_token_id -1 is not in the vocabulary"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob is 1.0"),
    ],
)
def test_a_config_we_cannot_compute_is_refused(change, message):
    config = config_to_hf(bert_config(99, 32, 2, 4), "mlm", SPECIALS) | change
    with pytest.raises(CheckpointError, match=message):
        config_from_hf(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"layer_types": None, "num_hidden_layers": 10**12}, "at most 1000"),
        ({"layer_types": ["full_attention"]}, "does not describe 3 layers"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type 'yarn' is not supported"),
        ({"local_attention": "8"}, "local_attention is '8'"),
        ({"local_attention": -8}, "window from 0 to"),
        ({"local_attention": 10**30}, "window from 0 to"),
        ({"layer_types": None, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
        ({"layer_types": "full_attention"}, "does not describe 3 layers"),
        ({"layer_types": [["full_attention"], {}, 3]}, "does not describe 3 layers"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "does not describe each kind of layer"),
        ({"rope_parameters": {"full_attention": {"rope_theta": "big"}}}, "is 'big'; expected float"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 0.0}}}, "rope_base above 0"),
        ({"rope_parameters": {"full_attention": {"rope_theta": float("inf")}}}, "full_attention.rope_theta is inf"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "it is 3; make it even"),
    ],
)
def test_a_modern_config_we_cannot_compute_is_refused(change, message):
    config = config_to_hf(model_of("modern", 99).cfg, "mlm", SPECIALS) | change
    with pytest.raises(CheckpointError, match=message):
        config_from_hf(config)


@pytest.mark.parametrize("model_type", ["roberta", "distilbert"])
def test_a_family_that_is_not_trained_here_is_no_language_model_of_ours(model_type):
    with pytest.raises(CheckpointError, match=f"a {model_type} for mlm is not trained here; AutoModel opens it"):
        kind_of({"model_type": model_type})


@pytest.mark.parametrize("entry", [{}, 3, None, {"format": 1}, {"format": 1, "objective": []}, {"format": 2}])
def test_an_entry_of_ours_that_is_none_is_refused(entry):
    with pytest.raises(CheckpointError, match="expected format 1 and an objective"):
        objective_of({"model_type": "bert", "minilm": entry})


@pytest.mark.parametrize(
    ("architecture", "change", "lost"),
    [
        ("bert", {"layers": (LayerSpec(window=3), LayerSpec())}, "layers"),
        ("bert", {"layers": (LayerSpec(rope_base=1e4),) * 2}, "layers"),
        ("bert", {"position_offset": 2}, "position_offset"),
        ("bert", {"embedding_size": 16}, "embedding_size"),
        ("bert", {"mlp": "gated", "bias": False}, "mlp, bias"),
        ("modern", {"layers": (LayerSpec(window=3, rope_base=1e4), LayerSpec(window=4, rope_base=1e4))}, "layers"),
        ("modern", {"layers": (LayerSpec(rope_base=1e4), LayerSpec(rope_base=2e4))}, "layers"),
        ("modern", {"type_vocab_size": 2}, "type_vocab_size"),
    ],
)
def test_an_encoder_that_a_config_cannot_say_is_not_written_as_another(architecture, change, lost):
    with pytest.raises(ConfigError, match=f"cannot say this encoder's {lost}$"):
        config_to_hf(replace(model_of(architecture, 99).cfg, **change), "mlm", SPECIALS)


def test_any_order_of_layers_survives():
    """Irregular ones have no period, which is written as null and read by their kinds."""
    cfg = model_of("modern", 99).cfg
    near, far = cfg.layers[1], cfg.layers[0]
    irregular = replace(cfg, layers=(near, far, far, near))
    config = config_to_hf(irregular, "mlm", SPECIALS)
    assert config["global_attn_every_n_layers"] is None
    assert config_from_hf(config) == irregular


NO_WEIGHTS = ("int64", "uint8", "complex64", "float8_e4m3fn")


def corrupt(tensors, fault):
    query = "bert.encoder.layer.1.attention.self.query.weight"
    if fault == "missing":
        del tensors[query]
    elif fault == "unknown":
        tensors["bert.encoder.layer.3.output.dense.weight"] = torch.zeros(2)
    elif fault == "shape":
        tensors[query] = tensors[query][:, :-1].contiguous()
    elif fault == "NaN":
        tensors["cls.predictions.bias"][5] = torch.nan
    elif fault == "untied":
        tensors["cls.predictions.decoder.weight"] = torch.zeros_like(tensors["bert.embeddings.word_embeddings.weight"])
    elif fault == "tied copy":
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    elif fault == "beyond fp32":
        tensors["cls.predictions.bias"] = tensors["cls.predictions.bias"].double() + 1e300
    elif fault in NO_WEIGHTS:
        tensors["cls.predictions.bias"] = tensors["cls.predictions.bias"].to(getattr(torch, fault))
    elif fault == "unknown of a head":
        tensors["cls.predictions.extra.weight"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "bert.encoder.layer.1.attention.self.query.weight is missing"),
        ("unknown", "bert.encoder.layer.3.output.dense.weight is unknown"),
        ("shape", r"attention.self.query.weight has shape \(32, 31\); config.json makes it \(32, 32\)"),
        ("NaN", "cls.predictions.bias holds values that are not finite"),
        ("beyond fp32", "cls.predictions.bias holds values that are not finite"),
        *((fault, rf"cls.predictions.bias is of torch\.{fault}") for fault in NO_WEIGHTS),
        ("untied", "cls.predictions.decoder.weight differs"),
        ("unknown of a head", "cls.predictions.extra.weight is unknown"),
        ("tied copy", None),
    ],
)
def test_every_tensor_is_accounted_for(fault, message, tokenizer, tmp_path):
    model = model_of("bert", tokenizer.vocab_size)
    write_model(tmp_path, model, tokenizer, "mlm")
    tensors = load_file(tmp_path / "model.safetensors")
    corrupt(tensors, fault)
    save_file(tensors, tmp_path / "model.safetensors")
    if message is None:
        assert torch.equal(read_model(tmp_path)[0].table, model.table)
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dropped_heads_are_named(tokenizer, tmp_path):
    model = model_of("bert", tokenizer.vocab_size)
    write_model(tmp_path, model, tokenizer, "mlm")
    heads = {"bert.pooler.dense.weight": torch.ones(2), "cls.seq_relationship.bias": torch.ones(2)}
    save_file(to_hf(model.state_dict(), "bert", "mlm") | heads, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=r"no such head: bert.pooler.dense.weight, cls.seq_relationship.bias$"):
        again, _, _ = read_model(tmp_path)
    assert torch.equal(again.table, model.table)


def test_weights_of_half_precision_become_ours(tokenizer, tmp_path):
    model = model_of("bert", tokenizer.vocab_size)
    write_model(tmp_path, model, tokenizer, "mlm")
    half = {name: tensor.half() for name, tensor in to_hf(model.state_dict(), "bert", "mlm").items()}
    save_file(half, tmp_path / "model.safetensors")
    again, _, _ = read_model(tmp_path)
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert ours.dtype == torch.float32, name
        assert ours.requires_grad
        assert torch.equal(ours, theirs.half().float())


def test_a_size_that_no_machine_holds_is_refused_by_the_file(tokenizer, tmp_path):
    model = model_of("bert", tokenizer.vocab_size)
    write_model(tmp_path, model, tokenizer, "mlm")
    config = json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": 10**7, "hidden_size": 2**24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight has shape"):
        read_model(tmp_path)


def test_every_family_names_every_parameter():
    """No parameter of ours falls through the tables, and no two share a name of theirs."""
    for architecture in ("bert", "modern"):
        model = model_of(architecture, 99)
        for objective in ("mlm", "clm"):
            config = config_to_hf(model.cfg, objective, SPECIALS)
            named = to_hf(model.state_dict(), config["model_type"], kind_of(config))
            values = [v for v in FAMILIES[config["model_type"]].body.values() if isinstance(v, tuple)]
            split = len(values) * len(model.cfg.layers) * 2 * (2 if architecture == "bert" else 1)
            assert len(named) == len(model.state_dict()) + split
    pairs = model_of("bert", 99, pairs=True).state_dict()
    assert len(to_hf(pairs, "bert", "pretraining")) == len(pairs) + 2 * 2 * 3


# -- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["next", "order"])
def test_transformers_opens_a_model_of_pairs(task, tokenizer, tmp_path):
    """As BertForPreTraining, with empty loading_info, both of its logits ours; and so does read_model."""
    import transformers

    model = model_of("bert", tokenizer.vocab_size, pairs=True)
    write_model(tmp_path, model, tokenizer, "mlm", pairs=task)
    theirs, info = transformers.AutoModelForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert type(theirs).__name__ == "BertForPreTraining"
    assert not any(info.values()), info
    ids = torch.randint(5, tokenizer.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))
    tokens = Tokens.full(ids, token_type_ids=(torch.arange(40) > 12).long().expand(3, 40))
    with torch.no_grad():
        reference = theirs.eval()(ids, token_type_ids=tokens.token_type_ids)
        torch.testing.assert_close(model(tokens), reference.prediction_logits, rtol=1e-4, atol=2e-4)
        own = model.pair(model.encoder(tokens), tokens)
    torch.testing.assert_close(own, reference.seq_relationship_logits, rtol=1e-4, atol=2e-4)
    assert own.std() > 1e-2
    config = json.loads((tmp_path / "config.json").read_text())
    assert (pairs_of(config), objective_of(config)) == (task, "mlm")
    again, _, objective = read_model(tmp_path)
    assert objective == "mlm"
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    masked = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)  # which has no such head
    torch.testing.assert_close(masked.eval()(ids).logits, again(Tokens.full(ids)), rtol=1e-4, atol=2e-4)


def test_their_model_of_pairs_is_read(tokenizer, tmp_path):
    import transformers

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    torch.manual_seed(0)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(vocab_size=tokenizer.vocab_size, **shape)).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path, 512)
    ours = read_model(tmp_path).model
    ids = torch.randint(5, tokenizer.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    tokens = Tokens.full(ids)
    with torch.no_grad():
        own, reference = ours.pair(ours.encoder(tokens), tokens), theirs(ids).seq_relationship_logits
    torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "pairs"),
    [
        ({"architectures": ["BertForPreTraining"]}, "next"),
        ({"architectures": ["BertForMaskedLM"]}, None),
        ({}, None),
        ({"architectures": ["BertForPreTraining"], "minilm": {"format": 1, "objective": "mlm"}}, None),  # ours knows
        ({"minilm": {"format": 1, "objective": "mlm", "pairs": "order"}}, "order"),
    ],
)
def test_which_pairs_a_model_tells(config, pairs):
    assert pairs_of(config) == pairs


@pytest.mark.parametrize("pairs", ["both", 3, ["next"], {}])
def test_pairs_that_are_none_are_refused(pairs):
    with pytest.raises(CheckpointError, match="expected next or order"):
        pairs_of({"minilm": {"format": 1, "objective": "mlm", "pairs": pairs}})


@pytest.mark.parametrize(
    ("architecture", "objective"), [kind for kind in KINDS if kind not in (("bert", "mlm"), ("bert", "prefix"))]
)
def test_pairs_of_another_model_cannot_be_written(architecture, objective, tokenizer, tmp_path):
    model = model_of(architecture, tokenizer.vocab_size)
    with pytest.raises(ConfigError, match="--pairs next: only a masked BERT has a head for pairs"):
        write_model(tmp_path, model, tokenizer, objective, pairs="next")
    assert list(tmp_path.iterdir()) == []


# -- an encoder alone -----------------------------------------------------------------------------


@pytest.fixture
def encoder_alone(tokenizer, tmp_path):
    """encoder_alone(architecture) -> transformers' own encoder, saved by itself in tmp_path with the tokenizer."""
    import transformers

    def make(architecture="bert"):
        config = config_to_hf(model_of(architecture, tokenizer.vocab_size).cfg, "mlm", SPECIALS)
        del config["minilm"], config["architectures"]
        torch.manual_seed(0)
        theirs = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config)).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
        theirs.save_pretrained(tmp_path)
        tokenizer.save(tmp_path, 64)
        return theirs

    return make


@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_an_encoder_alone_gets_a_new_head(architecture, encoder_alone, tokenizer, tmp_path):
    theirs = encoder_alone(architecture)
    names = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith(("bert.", "model.", "cls.", "head.")) for name in names)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"no language-model head: a new one is used|no such head: ") as warned:
        ours, _, objective = read_model(tmp_path, head_seed=0)
    said = [str(warning.message) for warning in warned]
    assert any("no language-model head" in line and str(tmp_path) in line for line in said)
    assert any("bert.pooler.dense.weight" in line for line in said) == (architecture == "bert")  # dropped, and named
    assert objective == "mlm"
    ids = torch.randint(5, tokenizer.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reference = theirs(ids).last_hidden_state
        torch.testing.assert_close(ours.encoder(Tokens.full(ids)), reference, rtol=1e-4, atol=2e-4)
        assert ours(Tokens.full(ids)).isfinite().all()
    assert float(ours.head.dense.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not ours.head.bias.any()
    assert set(ours.head.norm.weight.tolist()) == {1.0}
    assert not any(parameter.is_meta for parameter in ours.parameters())
    assert all(parameter.requires_grad for parameter in ours.parameters())


def test_an_encoder_alone_is_no_language_model(encoder_alone, tmp_path):
    encoder_alone()
    with pytest.raises(CheckpointError, match="has no language-model head; open it with AutoModel, or a tuned one"):
        read_model(tmp_path)


@pytest.mark.parametrize("kept", ["bias", "transform.dense.weight", "transform.LayerNorm.bias"])
def test_half_a_head_is_no_head(kept, tokenizer, tmp_path):
    """What is there must not be thrown away for a new one, nor be made up for."""
    write_model(tmp_path, model_of("bert", tokenizer.vocab_size), tokenizer, "mlm")
    tensors = load_file(tmp_path / "model.safetensors")
    half = {name: t for name, t in tensors.items() if not name.startswith("cls.") or name == f"cls.predictions.{kept}"}
    assert len(half) == len(tensors) - 4
    save_file(half, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor cls.predictions.\S+ is missing$"):
        read_model(tmp_path, head_seed=0)


def test_a_head_that_is_there_is_kept(tokenizer, tmp_path):
    model = model_of("bert", tokenizer.vocab_size)
    write_model(tmp_path, model, tokenizer, "mlm")
    again = read_model(tmp_path, head_seed=0).model  # without a warning: that would be an error here
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_buffers_of_old_files_are_passed_over(prefix, tokenizer, tmp_path):
    """transformers 4 kept position_ids (and, for a while, token_type_ids) in the file."""
    model = model_of("bert", tokenizer.vocab_size)
    write_model(tmp_path, model, tokenizer, "mlm")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace("bert.", prefix, 1) if name.startswith("bert.") else name: t for name, t in tensors.items()}
    for buffer in ("position_ids", "token_type_ids"):
        tensors[f"{prefix}embeddings.{buffer}"] = torch.arange(64)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    again = read_model(tmp_path).model
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))


def test_norms_of_old_files_are_read(tokenizer, tmp_path):
    """bert-base-uncased was converted from TensorFlow, whose norms have a gamma and a beta."""
    model = model_of("bert", tokenizer.vocab_size)
    write_model(tmp_path, model, tokenizer, "mlm")
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "model.safetensors")
    again = read_model(tmp_path).model
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_a_classifier_gets_a_new_head(architecture, tokenizer, tmp_path):
    """ModernBERT's has a head.dense and a head.norm as its language model has, learned for something else."""
    import transformers

    config = config_to_hf(model_of(architecture, tokenizer.vocab_size).cfg, "mlm", SPECIALS)
    del config["minilm"], config["architectures"]
    config = transformers.AutoConfig.for_model(**config)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path, 64)
    with pytest.warns(UserWarning, match="has no such head|head: a new one is used") as warned:
        read_model(tmp_path, head_seed=0)
    said = " ".join(str(warning.message) for warning in warned)
    assert "no language-model head" in said
    assert "classifier.weight" in said
    assert ("head.dense.weight" in said) == (architecture == "modern")


def test_a_part_of_the_encoder_is_not_new(tokenizer):
    """`new` is for what it names, and all or nothing."""
    model = model_of("bert", tokenizer.vocab_size, pairs=True)
    whole = to_hf(model.state_dict(), "bert", "pretraining")
    without = {name: t for name, t in whole.items() if not name.startswith(("bert.pooler", "cls.seq"))}
    state, dropped = from_hf(without, "bert", "pretraining", model.state_dict(), new=("pair.", "head."))
    assert not dropped
    assert model.state_dict().keys() - state.keys() == {n for n in model.state_dict() if n.startswith("pair.")}
    with pytest.raises(CheckpointError, match=r"bert.pooler.dense.weight is missing"):
        from_hf(without, "bert", "pretraining", model.state_dict(), new=("head.",))
    del whole["bert.embeddings.LayerNorm.bias"]
    with pytest.raises(CheckpointError, match=r"bert.embeddings.LayerNorm.bias is missing"):
        from_hf(whole, "bert", "pretraining", model.state_dict(), new=("pair.", "head."))
