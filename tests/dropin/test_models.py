"""Every class of every family against transformers': numbers and gradients in float64, and both ways through files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minilm.batch import Tokens
from minilm.checkpoint.families import FAMILIES
from minilm.dropin import models
from minilm.errors import CheckpointError, ConfigError, DataError

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
}
DISTILBERT = {
    "vocab_size": 99,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 37,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "qa_dropout": 0.0,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODERN = SIZES | {"pad_token_id": 0, "local_attention": 8, "num_hidden_layers": 3, "layer_types": None}
CONFIGS = {
    "bert": SIZES | NO_DROPOUT,
    "modernbert": MODERN,
    "modernbert-mean": MODERN | {"classifier_pooling": "mean"},
    "modernbert-decoder": MODERN,
    "roberta": SIZES | NO_DROPOUT,
    "distilbert": DISTILBERT,
    "electra": SIZES | NO_DROPOUT | {"embedding_size": 16},
}
CLASS_OF = {
    "model": models.BertModel,
    "mlm": models.BertForMaskedLM,
    "clm": models.BertLMHeadModel,
    "pretraining": models.BertForPreTraining,
    "next": models.BertForNextSentencePrediction,
    "sequence": models.BertForSequenceClassification,
    "choice": models.BertForMultipleChoice,
    "token": models.BertForTokenClassification,
    "span": models.BertForQuestionAnswering,
    "discriminator": models.ElectraForPreTraining,
}
ROWS = [(name, kind) for name in CONFIGS for kind in FAMILIES[name.removesuffix("-mean")].classes]
B, T = 3, 13


def theirs_of(name: str, kind: str, regime: str = "wild", **changes):
    """A model of theirs with random weights in float64: as they initialise, or large ones everywhere."""
    family = name.removesuffix("-mean")
    architecture = FAMILIES[family].classes[kind].architecture
    config = transformers.AutoConfig.for_model(family, **CONFIGS[name] | changes)
    if (family, kind) == ("bert", "clm"):
        config.is_decoder = True
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config).double().eval()
    if regime == "wild":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def ours_of(theirs, kind, tmp_path, **changes):
    theirs.save_pretrained(tmp_path / "theirs")
    return CLASS_OF[kind].from_pretrained(tmp_path / "theirs", **changes)


def inputs_of(name, kind, padding=None):
    generator = torch.Generator().manual_seed(1)
    shape = (B, 2, T) if kind == "choice" else (B, T)
    ids = torch.randint(5, 99, shape, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if padding is not None:
        pad = FAMILIES[name.removesuffix("-mean")].defaults["pad_token_id"]
        cut = slice(-4, None) if padding == "right" else slice(0, 4)
        inputs["attention_mask"][0, ..., cut] = 0
        ids[0, ..., cut] = 0 if pad > 99 else pad
    if name in ("bert", "electra"):
        inputs["token_type_ids"] = (torch.arange(T) > 6).long().expand(shape)
    return inputs


def targets_of(kind, num_labels=2):
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(0, 99, (B, T), generator=generator)
    words[:, ::3] = -100
    flags = torch.tensor([0, 1, 1])
    return {
        "model": {},
        "mlm": {"labels": words},
        "clm": {"labels": words},
        "pretraining": {"labels": words, "next_sentence_label": flags},
        "next": {"labels": flags},
        "sequence": {"labels": flags},
        "choice": {"labels": flags},
        "token": {"labels": torch.where(words < 0, -100, words % num_labels)},
        "span": {"start_positions": torch.tensor([1, 4, 99]), "end_positions": torch.tensor([[3], [5], [2]])},
        "discriminator": {"labels": (words.clamp(min=0) % 2).double()},
    }[kind]


def assert_close(mine, reference, what=""):
    bound = 1e-9 * max(1.0, float(reference.detach().abs().max()))
    assert mine.shape == reference.shape, what
    assert (mine - reference).abs().max() <= bound, (what, float((mine - reference).abs().max()))


def assert_equal_outputs(mine, reference, read=None):
    """read: (B, T), the queries whose states mean something; None: all, as where padding reads the text, too."""
    assert list(mine.keys()) == [key for key in reference if key not in ("past_key_values", "cross_attentions")]
    for key, value in mine.items():
        pairs = zip(value, reference[key], strict=True) if isinstance(value, tuple) else [(value, reference[key])]
        for own, other in pairs:
            if read is not None and own.ndim:
                own, other = ((x.transpose(1, 2) if key == "attentions" else x)[read] for x in (own, other))
            assert_close(own, other, key)


def read_by(name, kind, inputs):
    """What a padding query sees that sees no text differs."""
    causal = name == "modernbert-decoder" or kind == "clm"
    return inputs["attention_mask"].bool() if causal else None


@pytest.mark.parametrize(
    ("padding", "regime"), [(None, "initial"), (None, "wild"), ("right", "wild"), ("left", "wild")]
)
@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_parity(name, kind, padding, regime, tmp_path, exact_float64):
    """Outputs, loss, and every gradient under transformers' own names."""
    exact_float64()
    theirs = theirs_of(name, kind, regime)
    ours = ours_of(theirs, kind, tmp_path)
    assert ours.dtype == torch.float64
    inputs, targets = inputs_of(name, kind, padding), targets_of(kind)
    if kind == "clm":
        targets["labels"][inputs["attention_mask"].roll(1, dims=1) == 0] = -100  # what a padding query would predict
        targets["labels"][inputs["attention_mask"] == 0] = -100
    reference = theirs(**inputs, **targets)
    mine = ours(**inputs, **targets)
    read = read_by(name, kind, inputs)
    assert_equal_outputs(mine, reference, read)
    every = inputs["attention_mask"].bool() if read is not None else ...
    learned = (
        (mine.loss, reference.loss) if targets else (mine[0][every].square().sum(), reference[0][every].square().sum())
    )
    if kind == "model" and mine.pooler_output is not None:
        learned = tuple(x + out.pooler_output.sum() for x, out in zip(learned, (mine, reference), strict=True))
    learned[1].backward()
    learned[0].backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    own = {models._bare(name): p.grad for name, p in ours.named_parameters() if p.grad is not None}
    own = models.to_hf(own, ours.config.model_type, kind)
    assert own.keys() <= gradients.keys()
    assert {key for key in gradients.keys() - own.keys() if "decoder" not in key} == set()  # the tied copy
    for key, gradient in own.items():
        assert_close(gradient, gradients[key], key)


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_what_is_on_the_way(name, kind, tmp_path, exact_float64):
    """Hidden states and attention weights; and the same numbers without a look at them, and from embeddings."""
    exact_float64()
    theirs = theirs_of(name, kind)
    theirs.set_attn_implementation("eager")
    ours, inputs = ours_of(theirs, kind, tmp_path), inputs_of(name, kind, "right")
    with torch.no_grad():
        reference = theirs(**inputs, output_hidden_states=True, output_attentions=True)
        mine = ours(**inputs, output_hidden_states=True, output_attentions=True)
        read = read_by(name, kind, inputs)
        assert_equal_outputs(mine, reference, read)
        every = ... if read is None else read
        plain = ours(**inputs, return_dict=False)
        assert isinstance(plain, tuple)
        assert_close(plain[0][every], reference[0][every])
        embeds = ours.get_input_embeddings()(inputs.pop("input_ids"))
        if name != "roberta":  # whose positions are then those of a text without padding
            assert_close(ours(inputs_embeds=embeds, **inputs)[0][every], reference[0][every])
        given = theirs(inputs_embeds=embeds, **inputs)
        assert_close(ours(inputs_embeds=embeds, **inputs)[0][every], given[0][every])


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_round_trip_is_bit_for_bit(name, kind, tmp_path):
    """Theirs -> ours -> theirs -> ours: the file that we write holds the tensors of the file that we read."""
    theirs = theirs_of(name, kind)
    ours = ours_of(theirs, kind, tmp_path)
    ours.save_pretrained(tmp_path / "ours")
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(own, again.state_dict()[key]) for key, own in theirs.state_dict().items())
    was, now = theirs.config.to_dict(), again.config.to_dict()
    assert {key: now[key] for key in was} == was | {"_name_or_path": now["_name_or_path"]}
    once_more = CLASS_OF[kind].from_pretrained(tmp_path / "ours")
    assert all(torch.equal(own, once_more.state_dict()[key]) for key, own in ours.state_dict().items())


@pytest.mark.parametrize(("num_labels", "labels"), [(1, "numbers"), (3, "numbers"), (3, "classes"), (3, "several")])
@pytest.mark.parametrize("name", [name for name, kind in ROWS if kind == "sequence"])
def test_kinds_of_labels(name, num_labels, labels, tmp_path, exact_float64):
    problem = {"numbers": "regression", "classes": "single_label_classification"}.get(
        labels, "multi_label_classification"
    )
    exact_float64()
    theirs = theirs_of(name, "sequence", num_labels=num_labels)
    if (num_labels, labels) == (3, "numbers"):
        theirs.config.problem_type = problem  # what floats of three columns do not say by themselves
    ours = ours_of(theirs, "sequence", tmp_path)
    given = {
        "numbers": torch.randn(B, num_labels, dtype=torch.float64).squeeze(-1),
        "classes": torch.tensor([0, 2, 1]),
        "several": torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.float64),
    }[labels]
    reference = theirs(**inputs_of(name, "sequence"), labels=given)
    assert_equal_outputs(ours(**inputs_of(name, "sequence"), labels=given), reference)
    assert ours.config.problem_type == theirs.config.problem_type == problem


DROPOUTS = {
    "bert": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4},
    "roberta": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4},
    "electra": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "summary_last_dropout": 0.4},
    "distilbert": {"dropout": 0.2, "attention_dropout": 0.3, "seq_classif_dropout": 0.4, "qa_dropout": 0.1},
    "modernbert": {"embedding_dropout": 0.1, "mlp_dropout": 0.2, "attention_dropout": 0.3, "classifier_dropout": 0.4},
}


def assert_same_in_training(name, kind, tmp_path):
    """Outputs and loss of both, which draw the same numbers in the same order, each for the same tensor; padded."""
    family = name.removesuffix("-mean").removesuffix("-decoder")
    theirs = theirs_of(name, kind, **DROPOUTS[family]).train()
    ours = ours_of(theirs, kind, tmp_path).train()
    inputs = inputs_of(name, kind, None if read_by(name, kind, inputs_of(name, kind)) is not None else "left")
    results = []
    for model in (theirs, ours):
        torch.manual_seed(3)
        results.append((model(**inputs, **targets_of(kind)), torch.rand(1)))
    assert_equal_outputs(results[1][0], results[0][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(ours(**inputs)[0], ours(**inputs)[0])


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_in_training_the_same_is_dropped(name, kind, tmp_path, exact_float64):
    exact_float64()
    assert_same_in_training(name, kind, tmp_path)


def wrong_rows():
    """(name, kind, field, value): every choice in the rows of the families, made otherwise."""
    for name, kind in ROWS:
        built = FAMILIES[name.removesuffix("-mean")].classes[kind]
        if built.activation is not None:
            yield name, kind, "activation", "relu" if built.activation != "relu" else "gelu"
        if built.dropout:
            yield name, kind, "dropout", ()
        if built.drop_first:
            yield name, kind, "drop_first", False
        if built.pooling is not None:
            yield name, kind, "pooling", "cls" if name.endswith("-mean") else "mean"


def swapped(outputs):
    return {"start_logits": outputs["end_logits"], "end_logits": outputs["start_logits"]}


WRONG_CODE = {
    "roberta counts padding": (
        ("roberta", "mlm"),
        ("tokens_of", lambda read, cfg, *rest: read(replace(cfg, position_offset=0), *rest)),
    ),
    "the first token that is not padding is pooled": (
        ("bert", "sequence"),
        (
            "tokens_of",
            lambda read, cfg, attention, ids, mask, *rest: replace(
                read(cfg, attention, ids, mask, *rest), cls=Tokens.padded(ids, mask).cls
            ),
        ),
    ),
    "token types are left out": (
        ("bert", "model"),
        (
            "tokens_of",
            lambda read, cfg, attention, ids, mask, types, *rest: read(cfg, attention, ids, mask, None, *rest),
        ),
    ),
    "a causal model's labels are not shifted": (
        ("bert", "clm"),
        (
            "BertLMHeadModel.loss",
            lambda loss, self, outputs, tokens, labels: models.cross_entropy(outputs["logits"], labels),
        ),
    ),
    "an answer's ends are swapped": (
        ("bert", "span"),
        ("BertForQuestionAnswering.outputs_of", lambda read, *given: swapped(read(*given))),
    ),
    "an answer out of the text is at its end": (
        ("bert", "span"),
        (
            "BertForQuestionAnswering.loss",
            lambda loss, self, outputs, tokens, **at: loss(
                self, outputs, tokens, **{name: own.clamp(max=T - 1) for name, own in at.items()}
            ),
        ),
    ),
    "a discriminator learns from padding": (
        ("electra", "discriminator"),
        (
            "ElectraForPreTraining.loss",
            lambda loss, self, outputs, tokens, labels: loss(
                self, outputs, replace(tokens, key=torch.ones_like(tokens.key)), labels
            ),
        ),
    ),
    "the loss of pairs is left out": (
        ("bert", "pretraining"),
        (
            "BertForPreTraining.loss",
            lambda loss, self, outputs, tokens, labels, **_: models.cross_entropy(outputs["prediction_logits"], labels),
        ),
    ),
}


@pytest.mark.parametrize(("name", "kind", "field", "value"), wrong_rows())
def test_a_wrong_row_is_seen(name, kind, field, value, tmp_path, exact_float64, monkeypatch):
    exact_float64()
    classes = FAMILIES[name.removesuffix("-mean")].classes
    monkeypatch.setitem(classes, kind, replace(classes[kind], **{field: value}))
    with pytest.raises(AssertionError):
        assert_same_in_training(name, kind, tmp_path)


@pytest.mark.parametrize("fault", WRONG_CODE)
def test_wrong_code_is_seen(fault, tmp_path, exact_float64, monkeypatch):
    exact_float64()
    (name, kind), (path, wrong) = WRONG_CODE[fault]
    place, _, attribute = path.removeprefix("").rpartition(".")
    owner = getattr(models, place) if place else models
    right = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, lambda *args, **kwargs: wrong(right, *args, **kwargs))
    with pytest.raises(AssertionError):
        assert_same_in_training(name, kind, tmp_path)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])
def test_activations(activation, tmp_path, exact_float64):
    exact_float64()
    theirs = theirs_of("bert", "mlm", hidden_act=activation)
    ours = ours_of(theirs, "mlm", tmp_path)
    assert_close(ours(**inputs_of("bert", "mlm")).logits, theirs(**inputs_of("bert", "mlm")).logits)
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["hidden_act"] == activation


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_a_head_has_the_activation_that_it_has_there(name, kind, tmp_path, exact_float64):
    """Some have the encoder's, and some the same one whatever that is."""
    exact_float64()
    keys = {"distilbert": ["activation"], "modern": ["hidden_activation", "classifier_activation"]}
    own = next((keys[family] for family in keys if name.startswith(family)), ["hidden_act"])
    theirs = theirs_of(name, kind, **dict.fromkeys(own, "relu"))
    ours = ours_of(theirs, kind, tmp_path)
    mine, reference = (model(**inputs_of(name, kind), return_dict=True) for model in (ours, theirs))
    for key, value in mine.items():
        if isinstance(value, torch.Tensor):
            assert_close(value, reference[key], key)


def edited(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("modernbert-decoder", "clm", {"sliding_window": 2}),
        ("modernbert", "mlm", {"sliding_window": 2}),
        ("modernbert", "mlm", {"is_decoder": True}),
        ("distilbert", "mlm", {"is_decoder": True}),
    ],
)
def test_a_key_counts_where_it_does_there(name, kind, changes, tmp_path, exact_float64):
    exact_float64()
    theirs = theirs_of(name, kind)
    theirs.save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    theirs = type(theirs).from_pretrained(tmp_path, dtype=torch.float64).eval()
    ours = CLASS_OF[kind].from_pretrained(tmp_path)
    wanted = theirs(**inputs_of(name, kind)).logits
    assert_close(ours(**inputs_of(name, kind)).logits, wanted)
    ours.save_pretrained(tmp_path / "again")
    again = type(theirs).from_pretrained(tmp_path / "again", dtype=torch.float64).eval()
    assert_close(again(**inputs_of(name, kind)).logits, wanted)


@pytest.mark.parametrize("name", ["modernbert", "modernbert-decoder"])
def test_scaled_rotations_are_refused_in_each_spelling(name, tmp_path):
    kind = "clm" if name.endswith("decoder") else "mlm"
    theirs_of(name, kind).save_pretrained(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    for changes in (
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"full_attention": {"type": "linear", "factor": 4.0}}},
        {"rope_scaling": None, "rope_parameters": {each: {"type": "linear", "factor": 4.0} for each in plain}},
        {"rope_parameters": {each: {"rope_type": "linear", "factor": 4.0} for each in plain}},
    ):
        edited(tmp_path, **changes)
        with pytest.raises(CheckpointError, match=r"rope_(scaling|type) .* is not supported"):
            CLASS_OF[kind].from_pretrained(tmp_path)
    edited(tmp_path, rope_parameters=plain, rope_scaling={"rope_type": "default"})
    CLASS_OF[kind].from_pretrained(tmp_path)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_of_frozen_checkpointed_layers_learn(checkpointing, tmp_path):
    theirs = theirs_of("bert", "mlm")
    ours = ours_of(theirs, "mlm", tmp_path)
    assert ours.get_memory_footprint() >= theirs.get_memory_footprint(return_buffers=False) > 0
    for model in (ours, theirs):
        model.requires_grad_(False)
        model.enable_input_require_grads()
        model.train()
    if checkpointing:
        ours.gradient_checkpointing_enable()
    adapter = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    ours.bert.encoder.layers[0].register_forward_hook(lambda module, inputs, output: output * adapter)
    ours(**inputs_of("bert", "mlm")).logits.square().sum().backward()
    assert adapter.grad.abs() > 0
    given = []
    ours.get_input_embeddings().register_forward_hook(lambda module, inputs, output: given.append(output.requires_grad))
    ours(**inputs_of("bert", "mlm"))
    assert given == [True]


def test_saving_over_shards_leaves_none(tmp_path):
    theirs_of("bert", "mlm").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len([*tmp_path.glob("model-*-of-*.safetensors")]) > 1
    ours = models.BertForMaskedLM.from_pretrained(tmp_path)
    (tmp_path / "model-mine.safetensors").touch()
    ours.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "model-mine.safetensors", "config.json"}
    assert not [*tmp_path.glob("model-*-of-*.safetensors")]
    again = models.BertForMaskedLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(own, again[name]) for name, own in ours.state_dict().items())


def test_a_new_head_is_said_and_everything_else_is_the_files(tmp_path, caplog):
    theirs = theirs_of("bert", "mlm")
    theirs.save_pretrained(tmp_path)
    ours = models.BertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert "not in the file, so newly initialized; train before use: pooler, classifier" in caplog.text
    assert "no such head: cls.predictions" in caplog.text
    assert ours.classifier.weight.shape == (5, 32)
    assert 0.01 < ours.classifier.weight.std() < 0.03
    assert ours.config.id2label[4] == "LABEL_4"
    word = theirs.bert.embeddings.word_embeddings.weight
    assert torch.equal(ours.get_input_embeddings().weight, word)
    assert not ours.training
    assert ours(torch.tensor([[2, 7, 3]])).logits.shape == (1, 5)


def test_heads_that_nobody_knows_are_said_and_other_tensors_refused(tmp_path, caplog):
    """A file may hold heads of its own under BERT's cls; what else it holds is of another model."""
    theirs_of("bert", "mlm").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"cls.species.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    models.BertForMaskedLM.from_pretrained(tmp_path)
    assert "no such head: cls.species.bias" in caplog.text
    for name in ("cls.predictions.extra.bias", "bert.encoder.layer.2.output.dense.bias", "species.bias"):
        save_file(tensors | {name: torch.zeros(3)}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"tensor {name} is unknown"):
            models.BertForMaskedLM.from_pretrained(tmp_path)


def test_weights_in_several_files_and_in_a_pickle(tmp_path):
    theirs = theirs_of("bert", "mlm")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    word = theirs.get_input_embeddings().weight
    assert torch.equal(models.BertForMaskedLM.from_pretrained(tmp_path / "shards").get_input_embeddings().weight, word)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    for elsewhere in ("../model.safetensors", "/etc/hostname", "sub/model.safetensors", ".hidden.safetensors", 3):
        changed = whole["weight_map"] | {"cls.predictions.bias": elsewhere}
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(CheckpointError, match="which is no name of a file beside it"):
            models.BertForMaskedLM.from_pretrained(tmp_path / "shards")
    theirs.config.save_pretrained(tmp_path / "pickle")
    torch.save(theirs.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle; if you trust its maker"):
        models.BertForMaskedLM.from_pretrained(tmp_path / "pickle")
    ours = models.BertForMaskedLM.from_pretrained(tmp_path / "pickle", use_safetensors=False)
    assert torch.equal(ours.get_input_embeddings().weight, word)
    torch.save({"x": Path("/")}, tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors") as caught:
        models.BertForMaskedLM.from_pretrained(tmp_path / "pickle", use_safetensors=False)
    assert "\n" not in str(caught.value)


def test_pairs_learn_from_labels_under_their_old_name(tmp_path):
    ours = ours_of(theirs_of("bert", "next"), "next", tmp_path)
    inputs, labels = inputs_of("bert", "next"), torch.tensor([0, 1, 1])
    assert torch.equal(ours(**inputs, next_sentence_label=labels).loss, ours(**inputs, labels=labels).loss)


def test_a_model_without_a_pooler_has_none(tmp_path):
    theirs_of("bert", "mlm").save_pretrained(tmp_path)
    ours = models.BertModel.from_pretrained(tmp_path)
    out = ours(torch.tensor([[2, 7, 3]]))
    assert out.pooler_output is None
    assert list(out) == ["last_hidden_state"]
    assert models.BertModel.from_pretrained(tmp_path, add_pooling_layer=False).pooler is None


def test_a_head_of_another_size(tmp_path, caplog):
    theirs_of("bert", "sequence", num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"classifier.weight has shape \(3, 32\); config.json makes it \(4, 32\)"):
        models.BertForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    ours = models.BertForSequenceClassification.from_pretrained(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
    assert ours.classifier.weight.shape == (4, 32)
    assert "BertForSequenceClassification has no such head, or a new one: classifier." in caplog.text


def test_label_names_travel(tmp_path):
    theirs_of("bert", "model").save_pretrained(tmp_path / "a")
    names = {0: "bad", 1: "good", 2: "who knows"}
    ours = models.BertForSequenceClassification.from_pretrained(
        tmp_path / "a", id2label=names, label2id={name: id for id, name in names.items()}
    )
    ours.save_pretrained(tmp_path / "b")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    assert theirs.config.id2label == names
    assert theirs.config.num_labels == 3
    assert models.BertForSequenceClassification.from_pretrained(tmp_path / "b").config.id2label == names


def test_label_numbers_may_be_text(tmp_path):
    theirs_of("bert", "sequence").save_pretrained(tmp_path)
    more = {"label2id": {"bad": "0", "good": "1"}}
    ours = models.BertForSequenceClassification.from_pretrained(tmp_path, **more)
    assert ours.config.id2label == {0: "bad", 1: "good"}
    more["id2label"] = {"0": "bad", "1": "good"}
    assert models.BertForSequenceClassification.from_pretrained(tmp_path, **more).config.label2id["good"] == 1
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"label2id": {"bad": "0", "good": "1"}}))
    assert models.BertForSequenceClassification.from_pretrained(tmp_path).config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize(("name", "kind"), [row for row in ROWS if row[1] != "discriminator"])  # its loss is fp32 there
def test_arguments_without_names(name, kind, tmp_path, exact_float64):
    """In transformers' order; where that is not BERT's, those that could be others are refused."""
    theirs = theirs_of(name, kind)
    ours = ours_of(theirs, kind, tmp_path)
    inputs, targets = inputs_of(name, kind), targets_of(kind)
    ids, mask, types = (inputs.get(each) for each in ("input_ids", "attention_mask", "token_type_ids"))
    if name not in ("bert", "roberta", "electra"):
        with pytest.raises(TypeError, match=rf"of a {ours.config.model_type}: use keywords after attention_mask"):
            ours(ids, mask, None)
        return
    arguments = (ids, mask, types, torch.arange(2, 2 + T)[None], None, *targets.values())
    if (name, kind) == ("roberta", "choice"):  # there token types come second
        with pytest.raises(TypeError, match="of a roberta: use keywords after input_ids"):
            ours(ids, mask)
        return
    if kind in ("mlm", "clm") and name != "electra":  # there states of an encoder come before labels
        arguments = arguments[:5]
    assert_equal_outputs(ours(*arguments), theirs(*arguments))
    with pytest.raises(TypeError, match="use keywords after"):
        ours(*arguments, None)


def test_what_does_not_go_together_is_refused(tmp_path):
    theirs_of("bert", "sequence").save_pretrained(tmp_path)
    ours = models.BertForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([[2, 7, 3]])
    with pytest.raises(TypeError, match="takes labels, not start_positions"):
        ours(ids, start_positions=ids[:, 0])
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        ours()
    with pytest.raises(DataError, match="a text of 65 tokens, and the model reads 64"):
        ours(torch.full((1, 65), 7))
    with pytest.raises(ConfigError, match=r"hiden_dropout_prob.* did you mean hidden_dropout_prob"):
        models.BertModel.from_pretrained(tmp_path, hiden_dropout_prob=0.2)
    with pytest.raises(ConfigError, match="a bert has no such class"):
        models.ElectraForPreTraining.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [99 + 7, 50])
@pytest.mark.parametrize("kind", ["model", "mlm"])
def test_resized_tables_are_theirs(kind, size, tmp_path):
    ours = ours_of(theirs_of("bert", kind), kind, tmp_path)
    before = ours.get_input_embeddings().weight.clone()
    table = ours.resize_token_embeddings(size)
    assert table.weight.shape == (size, 32)
    assert torch.equal(table.weight[: min(size, 99)], before[:size])
    ours.save_pretrained(tmp_path / "more")
    theirs, info = getattr(transformers, ours.built.architecture).from_pretrained(
        tmp_path / "more", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = torch.tensor([[2, size - 1, 3]])
    with torch.no_grad():
        assert_close(ours(ids)[0], theirs.double().eval()(ids)[0])


def test_freezing_the_base_leaves_the_head():
    config = models.PreTrainedConfig("bert", **CONFIGS["bert"])
    model = models.BertForSequenceClassification(config)
    for parameter in model.bert.parameters():
        parameter.requires_grad = False
    trained = [name for name, own in model.named_parameters() if own.requires_grad]
    assert trained == ["classifier.weight", "classifier.bias"]
    assert model.num_parameters(only_trainable=True) == 32 * 2 + 2
    assert model.bert(torch.tensor([[2, 7, 3]])).pooler_output.shape == (1, 32)
