"""What transformers checks of its own BERT, held to ours: its tests/models/bert/test_modeling_bert.py, at the sizes of
BertModelTester, and what of tests/test_modeling_common.py is about a library like this one.

Left out: weights of the hub; cross-attention, caches and untied tables, as we have none. Parity is in test_models.py.
"""

import copy
import io
import json
import pickle
import warnings
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import find_labels

from minilm.dropin import models
from minilm.dropin.config import PROBLEMS, BertConfig
from minilm.errors import CheckpointError, ConfigError, DataError

B, T, V, D, LAYERS, H, TYPES, LABELS, CHOICES = 13, 7, 99, 32, 2, 4, 16, 3, 4
SIZES = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H}
SIZES |= {"intermediate_size": 37, "type_vocab_size": TYPES}
# each class: the shapes of what it returns; what it learns from: how many, and below what number they stay
CLASSES = {
    "BertModel": ({"last_hidden_state": (B, T, D), "pooler_output": (B, D)}, {}),
    "BertLMHeadModel": ({"logits": (B, T, V)}, {"labels": ((B, T), V)}),
    "BertForMaskedLM": ({"logits": (B, T, V)}, {"labels": ((B, T), V)}),
    "BertForNextSentencePrediction": ({"logits": (B, 2)}, {"labels": ((B,), 2)}),
    "BertForPreTraining": (
        {"prediction_logits": (B, T, V), "seq_relationship_logits": (B, 2)},
        {"labels": ((B, T), V), "next_sentence_label": ((B,), 2)},
    ),
    "BertForQuestionAnswering": (
        {"start_logits": (B, T), "end_logits": (B, T)},
        {"start_positions": ((B,), T), "end_positions": ((B,), T)},
    ),
    "BertForSequenceClassification": ({"logits": (B, LABELS)}, {"labels": ((B,), LABELS)}),
    "BertForTokenClassification": ({"logits": (B, T, LABELS)}, {"labels": ((B, T), LABELS)}),
    "BertForMultipleChoice": ({"logits": (B, CHOICES)}, {"labels": ((B,), CHOICES)}),
}
SHAPES, TARGETS = ({name: both[i] for name, both in CLASSES.items()} for i in (0, 1))
TIED = ("BertLMHeadModel", "BertForMaskedLM", "BertForPreTraining")
every_class = pytest.mark.parametrize("name", CLASSES)
every_learner = pytest.mark.parametrize("name", [name for name in CLASSES if TARGETS[name]])


def config_of(name, **changes):
    own = {"is_decoder": name == "BertLMHeadModel"}
    own |= {"num_labels": LABELS} if name.endswith(("SequenceClassification", "TokenClassification")) else {}
    return BertConfig(**SIZES | own | changes)


def model_of(name, **changes):
    torch.manual_seed(0)
    return getattr(models, name)(config_of(name, **changes)).eval()


def inputs_of(name, targets=False):
    """Ids from 1, so that none is padding's; a mask with holes, but never in front."""
    torch.manual_seed(1)
    shape = (B, CHOICES, T) if name == "BertForMultipleChoice" else (B, T)
    ids, mask, types = torch.randint(1, V, shape), torch.randint(2, shape), torch.randint(TYPES, shape)
    mask[..., 0] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return inputs | {key: torch.randint(n, size) for key, (size, n) in TARGETS[name].items() if targets}


def assert_same(mine, other, **tolerance):
    torch.testing.assert_close(dict(mine), dict(other), **tolerance)


@every_class
@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("given", ["all", "token_type_ids", "input_ids"])
def test_shapes(name, given, targets):
    """The loss comes first, a scalar."""
    inputs = inputs_of(name, targets)
    for key in {"attention_mask", "token_type_ids"} - {given} if given != "all" else ():
        del inputs[key]
    out = model_of(name)(**inputs)
    loss = {"loss": ()} if targets and TARGETS[name] else {}
    assert {key: tuple(value.shape) for key, value in out.items()} == loss | SHAPES[name]
    assert [*out] == [*loss, *SHAPES[name]]
    assert out[0] is out.to_tuple()[0] is out[next(iter(out))]


def test_a_decoder_does_not_look_ahead():
    model, inputs = model_of("BertModel", is_decoder=True), inputs_of("BertModel")
    before = model(**inputs).last_hidden_state
    inputs["input_ids"][:, 4:] = inputs["input_ids"][:, 4:] % (V - 1) + 1  # every one another
    after = model(**inputs).last_hidden_state
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(dim=-1).all()


@every_class
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_states_and_attentions(name, backend):
    """Asked for in the call or in the config they are the same, come last, and can retain their gradients."""
    inputs, rows = inputs_of(name), B * CHOICES if name == "BertForMultipleChoice" else B
    asked = {"output_hidden_states": True, "output_attentions": True}
    model = model_of(name, attn_implementation=backend)
    out, only = model(**inputs, **asked), model(**inputs, output_attentions=True)
    assert_same(out, model_of(name, attn_implementation=backend, **asked)(**inputs))
    assert [*out] == [*SHAPES[name], "hidden_states", "attentions"]
    assert [*only] == [*SHAPES[name], "attentions"]
    assert only.hidden_states is None
    assert [tuple(each.shape) for each in out.hidden_states] == [(rows, T, D)] * (LAYERS + 1)
    assert [tuple(each.shape) for each in out.attentions] == [(rows, H, T, T)] * LAYERS
    torch.testing.assert_close(out[-1][0].sum(dim=-1), torch.ones(rows, H, T))
    for each in (watched := [*out.hidden_states, *out.attentions]):
        each.retain_grad()
    out[0].square().sum().backward()
    assert all(each.grad.any() for each in watched)


@every_class
@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("more", [{}, {"output_hidden_states": True}, {"output_attentions": True}])
def test_tuples_hold_what_dicts_hold(name, targets, more):
    model, inputs = model_of(name, return_dict=False), inputs_of(name, targets) | more
    plain = model(**inputs)
    assert type(plain) is tuple
    torch.testing.assert_close(plain, model(**inputs, return_dict=True).to_tuple())


@every_class
@torch.no_grad()
def test_initialisation(name):
    """Means are 0, those of gains 1; the spread of matrices is the config's."""
    for own in model_of(name, initializer_range=1e-10).parameters():
        assert round(float(own.mean()), 9) in (0, 1)
    for key, own in model_of(name).named_parameters():
        assert float(own.std(correction=0)) == pytest.approx(0.02 if own.ndim > 1 else 0, abs=0.006), key


@every_class
def test_saved_and_loaded_twice_it_is_the_same(name, tmp_path, caplog):
    """To rounding also with the other kind of attention."""
    model, inputs = model_of(name), inputs_of(name)
    again, reference = model, model(**inputs)
    for directory in (tmp_path / "a", tmp_path / "b"):
        again.save_pretrained(directory)
        again = type(model).from_pretrained(directory)
        assert_same(again(**inputs), reference, rtol=0, atol=0)
        assert all(own.is_contiguous() and own.requires_grad for own in again.parameters())
    assert not caplog.records
    assert again.config.to_dict() == model.config.to_dict() | {"architectures": [name], "dtype": "float32"}
    assert again.config.to_dict().items() >= SIZES.items()
    eager = type(model).from_pretrained(directory, attn_implementation="eager")
    assert (eager.base_model.encoder.backend, again.base_model.encoder.backend) == ("explicit", "sdpa")
    assert_same(eager(**inputs), reference, atol=1e-5, rtol=1e-5)


@every_learner
def test_the_head_that_a_file_lacks_is_new_and_what_it_adds_is_refused(name, tmp_path, caplog):
    """transformers only warns of the latter."""
    model = model_of(name)
    model.base_model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert "not in the file, so newly initialized" in caplog.text
    assert all(own.isfinite().all() for own in again.parameters())
    save_file(load_file(tmp_path / "model.safetensors") | {"added": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor \S*added is unknown"):
        type(model).from_pretrained(tmp_path)


@every_class
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_and_dtypes_of_loaded_models(name, dtype, tmp_path):
    """A file's dtype is the model's, unless another is asked for."""
    model, inputs = model_of(name), inputs_of(name)
    reference, load = model(**inputs), type(model).from_pretrained
    assert model.to("cpu", dtype) is model
    model.save_pretrained(tmp_path)
    asked = ({}, {"dtype": "auto"}, {"torch_dtype": dtype}, {"dtype": "float32"}, {"dtype": torch.float32})
    loaded = [model, *(load(tmp_path, **each) for each in asked)]
    assert [own.dtype for own in loaded] == [dtype] * 4 + [torch.float32] * 2
    for own in loaded:
        out = own(**inputs)
        assert {each.dtype for each in (*own.parameters(), *out.values())} == {own.dtype}
        assert_same(out, reference, check_dtype=False, atol=0.05, rtol=0.05)


@every_class
def test_ways_to_call(name):
    """By place, from a BatchEncoding, or with embeddings instead of ids: the same, but for the dropout of training."""
    model, inputs = model_of(name), inputs_of(name)
    out = model(**transformers.BatchEncoding(inputs))
    assert_same(model(*inputs.values()), out, rtol=0, atol=0)
    assert not torch.equal(model.train()(**inputs)[0], out[0])
    assert_same(model.eval()(inputs_embeds=model.get_input_embeddings()(inputs.pop("input_ids")), **inputs), out)


@every_class
@pytest.mark.parametrize(("size", "multiple", "rows"), [(V, None, V), (109, None, 109), (60, None, 60), (V, 64, 128)])
def test_resized_vocabulary(name, size, multiple, rows):
    """Longer or shorter: the old rows stay, new ones begin as their mean, and the last one learns."""
    model, inputs = model_of(name), inputs_of(name, targets=True)
    old, kept = model.get_input_embeddings().weight, min(V, rows)
    table = model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
    assert table is model.get_input_embeddings()
    assert (*table.weight.shape, model.config.vocab_size) == (rows, D, rows)
    assert torch.equal(table.weight[:kept], old[:kept])
    torch.testing.assert_close(table.weight[kept:], old.mean(dim=0).expand(rows - kept, D))
    inputs["input_ids"].clamp_(max=rows - 2)[..., 0] = rows - 1
    if name in TIED:
        inputs["labels"].clamp_(max=rows - 1)
    out = model.train()(**inputs)
    assert name not in TIED or out[1].shape == (B, T, rows)
    (out.loss if TARGETS[name] else out[0].square().sum()).backward()
    assert table.weight.grad[rows - 1].any()
    with pytest.raises(ConfigError, match="vocab_size"):
        model.resize_token_embeddings(V, pad_to_multiple_of=1.3)


@every_class
def test_every_parameter_learns(name):
    out = (model := model_of(name).train())(**inputs_of(name, targets=True))
    (out.loss if TARGETS[name] else out[0].square().sum() + out[1].sum()).backward()
    shifts = ("BertForMultipleChoice", "BertForQuestionAnswering")  # softmax does not see a shift of all logits
    for key, own in model.named_parameters():
        assert own.grad is not None, key
        assert own.grad.isfinite().all(), key
        assert own.grad.any() or (key == "classifier.bias" and name in shifts), key


@every_learner
def test_gradient_checkpointing_computes_twice_and_changes_nothing(name):
    model, inputs, calls, learned = model_of(name).train(), inputs_of(name, targets=True), [], []
    model.base_model.encoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(len(learned)))
    for switch in (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable):
        switch()
        model.zero_grad()
        torch.manual_seed(2)  # of the dropout
        loss = model(**inputs).loss
        loss.backward()
        learned.append({"loss": loss} | {key: own.grad for key, own in model.named_parameters()})
    assert calls == [0, 0, 1]
    assert_same(*learned)
    for other in ({"every_n_layers": 2}, {"offload": True}):
        with pytest.raises(ConfigError, match="is for all layers here, without offloading"):
            model.gradient_checkpointing_enable(**other)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problem_types(problem):
    """No loss is of a target that torch has to stretch, of which it warns."""
    labels = {"regression": torch.zeros(B), "multi_label_classification": torch.zeros(B, 2)}
    labels = labels.get(problem, torch.zeros(B, dtype=torch.long))
    several = {"problem_type": problem, "num_labels": 1 if problem == "regression" else 2}
    model = model_of("BertForSequenceClassification", **several).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs_of("BertModel"), labels=labels).loss.backward()


@every_learner
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_dtype(name, dtype):
    """transformers takes no int32."""
    inputs = inputs_of(name, targets=True)
    narrow = inputs | {key: inputs[key].to(dtype) for key in TARGETS[name]}
    assert torch.equal(model_of(name)(**narrow).loss, model_of(name)(**inputs).loss)


@every_class
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_alone_is_the_row_in_a_padded_batch(name, side):
    """On the left, with positions that begin where the row does."""
    model, inputs = model_of(name, output_hidden_states=True), inputs_of(name)
    text = slice(0, 4) if side == "right" else slice(3, T)
    mask = inputs["attention_mask"].fill_(1)
    alone = model(**{key: value[:1, ..., text] for key, value in inputs.items()})
    mask[0], mask[0, ..., text] = 0, 1
    inputs["position_ids"] = (torch.arange(T) - text.start).clamp(min=0).expand_as(inputs["input_ids"])
    batch = model(**inputs)
    for all_rows, own in zip(batch.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(all_rows[: len(own), text], own, atol=1e-5, rtol=1e-5)
    for key in SHAPES[name] if side == "right" else ():  # BERT pools the first token, even where it is padding
        own = alone[key]
        torch.testing.assert_close(batch[key][tuple(map(slice, own.shape))], own, atol=1e-5, rtol=1e-5)


@every_class
def test_copies_and_states(name):
    """A deep copy shares nothing, and the word table is one in it, too; a saved state makes another model the same."""
    model, other, inputs = model_of(name), model_of(name, initializer_range=0.1), inputs_of(name)
    reference, twin, file = model(**inputs), copy.deepcopy(model), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert str(other.load_state_dict(torch.load(file, weights_only=True))) == "<All keys matched successfully>"
    assert_same(other(**inputs), reference, rtol=0, atol=0)
    assert [own.shape for own in twin.parameters()].count((V, D)) == 1
    for own in twin.parameters():
        own.data.add_(1)
    assert_same(model(**inputs), reference, rtol=0, atol=0)
    assert_same(pickle.loads(pickle.dumps(reference)), reference, rtol=0, atol=0)


@every_class
def test_models_of_a_config_are_of_their_size(name):
    config = config_of(name)
    ours = getattr(models, name).from_config(config)
    theirs = getattr(transformers, name)(transformers.BertConfig(**config.to_dict()))
    assert ours.training
    assert ours.config is ours.base_model.config is config
    assert ours.num_parameters() == theirs.num_parameters()
    for model in (ours, theirs):
        model.base_model.requires_grad_(False)
    assert ours.num_parameters(only_trainable=True) == theirs.num_parameters(only_trainable=True)


bert, mlm, load = partial(model_of, "BertModel"), partial(model_of, "BertForMaskedLM"), models.BertModel.from_pretrained
build, config, half = models.BertModel.from_config, config_of("BertModel"), torch.float16
ids, one = inputs_of("BertModel")["input_ids"], partial(model_of, "BertForSequenceClassification", num_labels=1)
LIKE = {  # what code around models asks of them; `at`: a file in float16, beside a config.json that names no dtype
    "the loss is None without labels": lambda at: mlm()(ids).loss is None,
    "an output that is put": lambda at: (
        setattr(out := mlm()(ids, labels=ids), "loss", ids)
        or out["loss"] is out[0] is out.to_tuple()[0] is out.loss is ids
    ),
    "an output that is put away": lambda at: setattr(out := bert()(ids), "pooler_output", None) or len(out) == 1,
    "an attribute beside the outputs": lambda at: setattr(out := bert()(ids), "own", 1) or (out.own and len(out) == 2),
    "outputs of items, as DataParallel and accelerate": lambda at: [*type(out := mlm()(ids))(out.items())] == [*out],
    "pickled models": lambda at: pickle.loads(pickle.dumps(bert())).config == config,
    "a dtype that no config names": lambda at: load(at).dtype == half,
    "a config given to a load stays": lambda at: load(at, config=(own := copy.copy(config))) and own == config,
    "numbers stay in float32": lambda at: one().bfloat16()(ids, labels=torch.full((B,), 1001.3)).loss > 1001.2**2,
    "a table that is put": lambda at: bert().set_input_embeddings(nn.Embedding(V, D)) is None,
    "names of parts": lambda at: bert().embeddings and len(bert().encoder.layer) == LAYERS,
    "resizing thaws nothing": lambda at: (
        (m := mlm().requires_grad_(False)).resize_token_embeddings(V) and not m.num_parameters(True)
    ),
    "no mean of the words": lambda at: len(mlm().resize_token_embeddings(V + 1, mean_resizing=False).weight) == V + 1,
    "no cache": lambda at: torch.equal(bert()(ids, use_cache=False)[0], bert()(ids)[0]),
    "how many labels": lambda at: one().num_labels == 1,
    "where it comes from": lambda at: (
        {load(at).name_or_path, load(at).config._name_or_path, BertConfig.from_pretrained(at).name_or_path} == {str(at)}
    ),
    "where it does not come from": lambda at: bert().name_or_path == config.name_or_path == "",
    "a file's encoder and decoder": lambda at: config.is_encoder_decoder is False and "is_encoder" not in repr(config),
    "the base model's name": lambda at: getattr(mlm(), mlm().base_model_prefix).base_model_prefix == "bert",
    "the table that decodes": lambda at: (
        bert().get_output_embeddings() is None
        and (m := mlm()).get_output_embeddings().weight is m.get_input_embeddings().weight
    ),
    "resizing to a multiple alone": lambda at: len(bert().resize_token_embeddings(pad_to_multiple_of=64).weight) == 128,
    "parameters without tables": lambda at: bert().num_parameters(exclude_embeddings=True) == 14698,
    "checkpointing's arguments": lambda at: [bert().gradient_checkpointing_enable(gradient_checkpointing_kwargs={})],
    "from_config's arguments": lambda at: build(config, attn_implementation="eager", dtype=half).dtype == half,
    "save_pretrained's arguments": lambda at: [bert().save_pretrained(at, safe_serialization=True)],
    "from_pretrained's arguments": lambda at: load(at, token=None, trust_remote_code=False, low_cpu_mem_usage=True),
    "from_config's other arguments": lambda at: (
        build(config, torch_dtype="float16", trust_remote_code=True).dtype == half
    ),
    "a config's dtype": lambda at: build(config_of("BertModel", dtype="float16")).config.dtype == half,
    "a dtype is torch's": lambda at: (
        (own := load(at).config).dtype == own.torch_dtype == half and "float16" in repr(own)
    ),
    "a dtype that is put": lambda at: (
        setattr(own := config_of("BertModel"), "torch_dtype", half) or (own.save_pretrained(at) or own.dtype == half)
    ),
    "names of arguments": lambda at: (
        load(pretrained_model_name_or_path=at, config=at).save_pretrained(
            save_directory=at, is_main_process=True, save_function=torch.save, max_shard_size="1GB"
        )
        or [BertConfig.from_pretrained(pretrained_model_name_or_path=at).save_pretrained(save_directory=at)]
    ),
    "another process saves nothing": lambda at: (
        bert().save_pretrained(at / "b", is_main_process=False) or not (at / "b").exists()
    ),
    "activation checkpointing": lambda at: (
        (m := bert()).activation_checkpointing_enable()
        or (
            (m.is_activation_checkpointing and m.is_gradient_checkpointing)
            and (m.activation_checkpointing_disable() or not m.is_activation_checkpointing)
        )
    ),
    "attention that is set": lambda at: (
        (m := bert()).set_attn_implementation("eager") or m.encoder.backend == m.config.backend == "explicit"
    ),
    "tying that is asked for": lambda at: mlm().tie_weights() is None,
    "one device": lambda at: all(load(at, device_map=to).device.type == "cpu" for to in ("cpu", {"": "cpu"})),
    "options of calls are saved": lambda at: (
        config_of("BertModel", output_hidden_states=True).save_pretrained(at)
        or load(at, dtype="float32")(ids).hidden_states is not None
    ),
    "a cache that is off": lambda at: (
        BertConfig.from_pretrained(at).use_cache and not BertConfig.from_pretrained(at, use_cache=False).use_cache
    ),
    "a dtype of a file that models cannot have": lambda at: (
        (at / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "int8"}))
        and BertConfig.from_pretrained(at).dtype == "int8"
        and load(at, dtype="float32").dtype == torch.float32
    ),
    "one label that is chosen, in a file": lambda at: (
        BertConfig(**SIZES, num_labels=1, problem_type=PROBLEMS[1]).save_pretrained(at)
        or (load(at) and models.BertForSequenceClassification.from_pretrained(at, num_labels=2).num_labels == 2)
    ),
    "a config's arguments": lambda at: (
        BertConfig.from_pretrained(
            at, num_labels=3, finetuning_task="mrpc", trust_remote_code=False, return_unused_kwargs=True
        )[1]
        == {"finetuning_task": "mrpc"}
    ),
    "torch.export, and trees for DDP": lambda at: torch.export.export(bert(), (ids,)),
    "Trainer's names of labels": lambda at: all(
        find_labels(getattr(models, name)) == find_labels(getattr(transformers, name)) for name in CLASSES
    ),
    "torch.jit.trace": lambda at: torch.jit.trace(bert(return_dict=False), (ids,)),
}


@pytest.mark.parametrize("what", LIKE)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_code_around_models_asks_of_them(what, tmp_path):
    bert().half().save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    assert LIKE[what](tmp_path)


REFUSED = [
    (lambda at: models.BertModel("bert-base-uncased"), ConfigError, "BertModel: builtins.str is no config of minilm"),
    (lambda at: models.BertModel(transformers.BertConfig()), ConfigError, r"BertConfig is no config of minilm"),
    (lambda at: load(at, device_map={"encoder": 0, "pooler": 1}), ConfigError, "a model is on one device here"),
    (lambda at: load(at, device_map="gpu"), ConfigError, "device_map 'gpu': "),
    (lambda at: BertConfig(dtype="int8"), ConfigError, "dtype 'int8': give one of torch.float32"),
    (lambda at: one(problem_type=PROBLEMS[1]), ConfigError, "problem_type single_label_classification; give two"),
    (lambda at: BertConfig.from_pretrained(at, hiden_size=3), ConfigError, "did you mean hidden_size"),
    (lambda at: load(at, config=transformers.BertConfig()), ConfigError, "BertConfig is no config of minilm; to open"),
    (lambda at: BertConfig.from_pretrained(at, subfolder="x"), ConfigError, "subfolder 'x': not supported"),
    (lambda at: model_of("BertForMultipleChoice")([[[1]]]), TypeError, "input_ids is a list; give a tensor"),
    (lambda at: bert()([[1, 2]]), TypeError, "input_ids is a list; give a tensor: return_tensors='pt'"),
    (lambda at: bert()(ids[0]), ValueError, r"input_ids has shape \(7,\); give \(rows, tokens\)"),
    (lambda at: bert()(ids, token_type_ids=ids[:, :3]), ValueError, r"token_type_ids has shape \(13, 3\), not \(13, 7"),
    (lambda at: bert()(ids, position_ids=ids[:, :3]), ValueError, r"position_ids has shape \(13, 3\), not \(13, 7"),
    (
        lambda at: bert()(ids, token_type_ids=ids * 0 + 16),
        DataError,
        "token type 16, but the model has 16 types; leave",
    ),
    (lambda at: bert()(ids, position_ids=ids * 0 + 512), DataError, "position 512, but the model has 512 positions"),
    (lambda at: bert()(ids * 0 - 100), DataError, "token id -100, but the model has 99 tokens; give none below 0"),
    (lambda at: bert()(ids * 0 + V), DataError, "token id 99, but the model has 99 tokens; call resize_token"),
]


@pytest.mark.parametrize(("call", "kind", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_what_cannot_be_is_told_in_words(call, kind, said, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(kind, match=said):
        call(tmp_path)
