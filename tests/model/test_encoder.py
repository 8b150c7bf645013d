"""The encoder and its LM heads against transformers, in float64 and in two weight regimes; and what must fail."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minilm.batch import Tokens
from minilm.errors import ConfigError
from minilm.model.attention import BACKENDS
from minilm.model.encoder import Encoder, EncoderConfig, LayerSpec, Trace, bert_config, initialise, modern_config
from minilm.model.heads import LanguageModel, Pooler
from minilm.train.losses import cross_entropy_sum

ARCHITECTURES = ("bert", "modern")
OBJECTIVE = {"bidirectional": "mlm", "causal": "clm", "prefix": "prefix"}


def their_mask(rule, tokens, cfg, kind):
    """Who sees whom, as transformers' attention adds it: 4-D for BERT, one per kind of layer for ModernBERT."""

    def added(window):
        return torch.zeros(1, dtype=torch.float64).where(rule(tokens, window)[:, None], -torch.inf)

    if kind == "bert":
        return added(None)
    window = next(spec.window for spec in cfg.layers if spec.window is not None)
    return {"full_attention": added(None), "sliding_attention": added(window)}


def reference(both, architecture, tokens, mask, rule):
    """Their (states, logits): by the padding mask alone where they have that mode, else by the rule written out."""
    body = both.theirs.bert if architecture == "bert" else both.theirs.model
    extra = {"token_type_ids": tokens.token_type_ids} if architecture == "bert" else {}
    if tokens.attention == "prefix":
        mask = their_mask(rule, tokens, both.cfg, architecture)
    states = body(tokens.input_ids, attention_mask=mask, **extra).last_hidden_state
    if architecture == "bert":
        return states, both.theirs.cls(states)
    head = both.theirs.lm_head if hasattr(both.theirs, "lm_head") else both.theirs.head
    return states, both.theirs.decoder(head(states))


def backward(both, mine, theirs, readable):
    """Both backward passes from the same random cotangents, on the positions whose states mean something."""
    generator = torch.Generator().manual_seed(3)
    for own, other in zip(mine, theirs, strict=True):
        cotangent = torch.randn(other.shape, dtype=other.dtype, generator=generator) * readable[..., None]
        own.backward(cotangent, retain_graph=True)
        other.backward(cotangent, retain_graph=True)


def run(both, architecture, tokens, rule, assert_close, mask=None):
    """States, logits and every gradient are equal where tokens are real."""
    mine = both.ours.encoder(tokens), both.ours(tokens)
    theirs = reference(both, architecture, tokens, mask, rule)
    for own, other, what in zip(mine, theirs, ("states", "logits"), strict=True):
        assert_close(own[tokens.key], other[tokens.key], what)
    backward(both, mine, theirs, tokens.key)
    for name, (own, other) in both.gradients().items():
        assert_close(own, other, f"gradient of {name}")


@pytest.mark.parametrize("regime", ["initial", "wild"])
@pytest.mark.parametrize("padding", [None, "right", "left"])
@pytest.mark.parametrize("reach", OBJECTIVE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parity(pair, ids, masks, tokens_of, rule, assert_close, architecture, reach, padding, regime):
    both = pair(architecture, OBJECTIVE[reach], regime)
    mask = None if padding is None else masks[padding]
    run(both, architecture, tokens_of(ids, reach, mask=mask), rule, assert_close, mask)


@pytest.mark.parametrize("reach", ["bidirectional", "causal"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parity_deep(pair, ids, masks, tokens_of, rule, assert_close, architecture, reach):
    both = pair(architecture, OBJECTIVE[reach], "deep")
    run(both, architecture, tokens_of(ids, reach, mask=masks["right"]), rule, assert_close, masks["right"])


def test_parity_of_padding_queries(pair, ids, masks, assert_close):
    """What BERT computes at a padding position is what transformers computes there: its pooler may read it."""
    for padding in masks.values():
        both = pair("bert")
        theirs = both.theirs.bert(ids, attention_mask=padding).last_hidden_state
        assert_close(both.ours.encoder(Tokens.padded(ids, padding)), theirs)


def test_parity_of_token_types_and_positions(pair, ids, assert_close):
    both = pair("bert")
    types, position = (ids % 2), (ids % 60)
    mine = both.ours(Tokens.full(ids, token_type_ids=types, position=position))
    assert_close(mine, both.theirs(ids, token_type_ids=types, position_ids=position).logits)


def test_parity_of_positions_that_differ_by_row(pair, ids, assert_close):
    both = pair("modern")
    position = torch.arange(ids.shape[1]) * torch.arange(1, len(ids) + 1)[:, None]
    assert_close(both.ours(Tokens.full(ids, position=position)), both.theirs(ids, position_ids=position).logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reach", OBJECTIVE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_documents_are_alone(pair, ids, packed, tokens_of, rule, assert_close, architecture, reach, backend):
    """Each document of a packed row has the states, logits and gradients that transformers gives it by itself."""
    both = pair(architecture, OBJECTIVE[reach], backend=backend)
    tokens = tokens_of(ids, reach, doc=packed)
    mine = both.ours.encoder(tokens), both.ours(tokens)
    for b, d in {(b, d) for b, row in enumerate(packed.tolist()) for d in row if d >= 0}:
        here = packed[b] == d
        alone = tokens_of(ids[b][here][None], reach)
        theirs = reference(both, architecture, alone, None, rule)
        for own, other in zip(mine, theirs, strict=True):
            assert_close(own[b][here], other[0])
        backward(both, [own[b][here][None] for own in mine], theirs, alone.key)
    for name, (own, other) in both.gradients().items():
        assert_close(own, other, f"gradient of {name}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_documents_and_padding_change_nothing(pair, ids, packed, architecture):
    both = pair(architecture, dtype=torch.float32)
    tokens = Tokens.packed(ids, packed)
    changed = ids.clone()
    changed[0, 5:14] = 7  # its second document
    changed[packed < 0] = 8
    same = (packed != 1) | (torch.arange(3)[:, None] != 0)
    before, after = both.ours.encoder(tokens), both.ours.encoder(Tokens.packed(changed, packed))
    assert torch.equal(before[same & (packed >= 0)], after[same & (packed >= 0)])
    assert not torch.equal(before[0, 5:14], after[0, 5:14])


@pytest.mark.parametrize("reach", ["bidirectional", "causal"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_parity(pair, ids, tokens_of, assert_close, architecture, reach):
    """Our sum over count is their mean loss, and so are its gradients."""
    both = pair(architecture, OBJECTIVE[reach])
    labels = torch.where(ids % 3 == 0, ids, -100)
    loss = both.theirs(ids, labels=labels).loss
    loss.backward()
    logits = both.ours(tokens_of(ids, reach))
    if reach == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    nats, count = cross_entropy_sum(logits.flatten(0, 1), labels.flatten())
    (nats / count).backward()
    assert_close(nats / count, loss)
    for name, (own, other) in both.gradients().items():
        assert_close(own, other, f"gradient of {name}")


def test_logits_at_chosen_positions_are_the_same(pair, ids):
    both = pair("modern")
    tokens, where = Tokens.full(ids), torch.tensor([0, 5, 71, 5])
    everywhere = both.ours(tokens).flatten(0, 1)
    torch.testing.assert_close(both.ours(tokens, where), everywhere[where], rtol=0, atol=1e-12)


def test_pooler_parity(ids, masks, assert_close):
    """Also with left padding, where the pooler reads the first real token's state (theirs reads position 0)."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    torch.manual_seed(0)
    theirs = transformers.BertModel(config).double().eval()
    pooler = Pooler(bert_config(99, 32, 2, 4)).double()
    pooler.dense.load_state_dict(theirs.pooler.dense.state_dict())
    out = theirs(ids, attention_mask=masks["right"])
    assert_close(pooler(out.last_hidden_state, Tokens.padded(ids, masks["right"])), out.pooler_output)
    states = out.last_hidden_state
    first = torch.stack([states[0, 9], states[1, 0], states[2, 1]])
    assert_close(pooler(states, Tokens.padded(ids, masks["left"])), torch.tanh(theirs.pooler.dense(first)))


@pytest.mark.parametrize("objective", ["mlm", "clm"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp32_is_as_close_as_their_own_kernels(pair, ids, masks, architecture, objective):
    """Our distance to their eager attention is at most 4 times that of their sdpa to it."""
    eager = pair(architecture, objective, dtype=torch.float32, kernel="eager")
    other = pair(architecture, objective, dtype=torch.float32, kernel="sdpa")
    reach = {"mlm": "bidirectional", "clm": "causal"}[objective]
    mask = masks["right"]
    theirs, sdpa = (each.theirs(ids, attention_mask=mask).logits[mask.bool()] for each in (eager, other))
    mine = eager.ours(Tokens.padded(ids, mask, reach))[mask.bool()]
    assert (mine - theirs).abs().max() <= 4 * max((sdpa - theirs).abs().max(), 1e-6)


def swap(a: str, b: str):
    def mutate(state):
        for i in range(3):
            one, two = (f"encoder.layers.{i}.{name}" for name in (a, b))
            state[one], state[two] = state[two].clone(), state[one].clone()

    return mutate


def zero(name: str):
    def mutate(state):
        for i in range(3):
            state[f"encoder.layers.{i}.{name}"].zero_()

    return mutate


def swap_thirds(name: str, first: int, second: int, of: int):
    def mutate(state):
        for i in range(3):
            tensor = state[f"encoder.layers.{i}.{name}"]
            parts = list(tensor.clone().chunk(of))
            parts[first], parts[second] = parts[second], parts[first]
            tensor.copy_(torch.cat(parts))

    return mutate


def drop_value_bias(state):
    for i in range(3):
        state[f"encoder.layers.{i}.attention.qkv.bias"][64:] = 0


def replace_layers(**changes):
    def mutate(model):
        model.encoder.cfg = replace(
            model.cfg,
            layers=tuple(
                replace(spec, **{k: v for k, v in changes.items() if getattr(spec, k) is not None})
                for spec in model.cfg.layers
            ),
        )

    return mutate


def tanh_gelu(model):
    for module in model.modules():
        if hasattr(module, "activation"):
            module.activation = lambda x: torch.nn.functional.gelu(x, approximate="tanh")


def wrong_eps(model):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps *= 1e3


def missing_first_norm(model):
    model.encoder.layers[0].attention_norm = torch.nn.LayerNorm(32, bias=False, dtype=torch.float64)


def untyped(model):
    model.encoder.embedding.token_type = None


WRONG_WEIGHTS = {
    ("bert", "query and key bias swapped"): swap_thirds("attention.qkv.bias", 0, 1, 3),
    ("bert", "query and key matrix swapped"): swap_thirds("attention.qkv.weight", 0, 1, 3),
    ("bert", "value bias dropped"): drop_value_bias,
    ("bert", "MLP bias dropped"): zero("mlp.inp.bias"),
    ("bert", "MLP output bias dropped"): zero("mlp.out.bias"),
    ("bert", "norms swapped"): swap("attention_norm.weight", "mlp_norm.weight"),
    ("bert", "norm biases swapped"): swap("attention_norm.bias", "mlp_norm.bias"),
    ("modern", "gate and value swapped"): swap_thirds("mlp.inp.weight", 0, 1, 2),
}
WRONG_MODELS = {
    ("bert", "tanh GELU"): tanh_gelu,
    ("bert", "eps a thousand times too large"): wrong_eps,
    ("bert", "no token types"): untyped,
    ("modern", "tanh GELU"): tanh_gelu,
    ("modern", "window one too wide"): replace_layers(window=4),
    ("modern", "window one too narrow"): replace_layers(window=2),
    ("modern", "one RoPE base for all layers"): replace_layers(rope_base=10_000.0),
    ("modern", "first attention norm kept"): missing_first_norm,
}
INVISIBLE_AT_FIRST = ("bias swapped", "bias dropped", "norms swapped", "norm biases swapped", "output bias")


@pytest.mark.parametrize(("architecture", "fault"), [*WRONG_WEIGHTS, *WRONG_MODELS])
def test_a_wrong_port_is_seen(pair, ids, rule, tokens_of, assert_close, architecture, fault):
    """Each mutation fails the parity test in the wild regime; some are invisible under the initial weights."""
    for regime in ("wild", "initial"):
        both = pair(architecture, "mlm", regime)
        if (architecture, fault) in WRONG_WEIGHTS:
            state = {name: tensor.clone() for name, tensor in both.ours.state_dict().items()}
            WRONG_WEIGHTS[architecture, fault](state)
            both.ours.load_state_dict(state)
        else:
            WRONG_MODELS[architecture, fault](both.ours)
        theirs = reference(both, architecture, tokens_of(ids, "bidirectional"), None, rule)[1]
        mine = both.ours(tokens_of(ids, "bidirectional"))
        if regime == "wild":
            with pytest.raises(AssertionError):
                assert_close(mine, theirs)
        elif fault.endswith(INVISIBLE_AT_FIRST):
            assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30}, "does not divide"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": "99"}, "vocab_size is '99'"),
        ({"activation": "os.system"}, "unknown; use one of gelu"),
        ({"layers": ()}, "at least one layer"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    fields = {f: getattr(bert_config(99, 32, 2, 4), f) for f in EncoderConfig.__dataclass_fields__}
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**(fields | change))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="unknown; use one of explicit, sdpa"):
        LanguageModel(bert_config(99, 32, 2, 4), "flash")


def test_narrow_embeddings_and_shifted_positions(ids):
    """ELECTRA's narrow tables and RoBERTa's shifted positions are plain fields."""
    narrow = LanguageModel(replace(bert_config(99, 32, 2, 4, dropout=0.0), embedding_size=16)).eval()
    assert narrow.table.shape == (99, 16)
    assert narrow(Tokens.full(ids)).shape == (3, 24, 99)
    base = LanguageModel(bert_config(99, 32, 2, 4, max_position_embeddings=64)).eval()
    shifted = LanguageModel(replace(base.cfg, position_offset=2)).eval()
    state = base.state_dict()
    table = state["encoder.embedding.position.weight"]
    shifted.load_state_dict(state | {"encoder.embedding.position.weight": torch.cat((table[-2:], table))})
    assert torch.equal(shifted(Tokens.full(ids)), base(Tokens.full(ids)))


def test_layers_of_a_narrow_table_add_up_in_fp32_too():
    """Under autocast, where the map to the width of the layers is a product in bf16."""
    torch.manual_seed(0)
    encoder = Encoder(replace(bert_config(99, 32, 6, 4, dropout=0.0), embedding_size=16)).eval()
    tokens = Tokens.full(torch.randint(5, 99, (4, 24)))
    with torch.autocast("cpu", torch.bfloat16):
        states = encoder(tokens)
    assert states.dtype == torch.float32
    assert encoder.bfloat16()(tokens).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initialisation(architecture):
    """BERT's: N(0, 0.02), biases 0, gains 1, the padding row 0; with output_scale 0 pre-norm layers pass through."""
    cfg = (bert_config if architecture == "bert" else modern_config)(512, 128, 2, 4)
    model = LanguageModel(cfg)
    torch.manual_seed(0)
    initialise(model, output_scale=0.5)
    for name, parameter in model.named_parameters():
        scale = 0.01 if name.endswith(("attention.out.weight", "mlp.out.weight")) else 0.02
        if parameter.ndim == 2 and parameter.numel() > 10_000:
            assert float(parameter.detach().std()) == pytest.approx(scale, rel=0.05), name
        elif parameter.ndim == 1:
            assert set(parameter.tolist()) == {1.0 if "norm.weight" in name else 0.0}, name
    assert not model.table[cfg.pad_token_id].any()
    if architecture == "modern":
        initialise(model, output_scale=0.0)
        model.eval()
        tokens = Tokens.full(torch.arange(20)[None])
        torch.testing.assert_close(model.encoder(tokens), model.encoder.final_norm(model.encoder.embedding(tokens)))


@pytest.mark.parametrize("width", [32, 33])
def test_positions_that_start_as_sinusoids(width):
    """Those of Vaswani et al., the sines first; words have a scale of their own, and all else is as it was."""
    cfg = bert_config(2000, width, 1, 1, max_position_embeddings=50)
    found = []
    for more in ({}, {"word_std": 0.1, "sinusoids": 0.3}):
        model = LanguageModel(cfg)
        torch.manual_seed(0)
        initialise(model, **more)
        found.append(model.state_dict())
    changed = {name for name in found[0] if not torch.equal(found[0][name], found[1][name])}
    word, position = "encoder.embedding.word.weight", "encoder.embedding.position.weight"
    assert changed == {word, position}
    assert torch.equal(found[1][word], found[0][word] * (0.1 / 0.02))
    assert not found[1][word][cfg.pad_token_id].any()
    waves, half = found[1][position] / (2**0.5 * 0.3), width // 2
    for place in (0, 1, 7, 49):
        for k in (0, 1, half - 1):
            angle = place / 10_000 ** (2 * k / width)
            assert float(waves[place, k]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(waves[place, half + k]) == pytest.approx(math.cos(angle), abs=1e-5)
    assert float(found[1][position].square().mean().sqrt()) == pytest.approx(0.3, rel=0.02)


def test_presets_are_the_papers():
    base = bert_config(30522)
    assert (len(base.layers), base.hidden_size, base.intermediate_size) == (12, 768, 3072)
    modern = modern_config(50368)
    assert [spec.window for spec in modern.layers[:4]] == [None, 64, 64, None]
    assert modern.layers[0] == LayerSpec(rope_base=160_000.0)
    parameters = sum(p.numel() for p in LanguageModel(modern).parameters())
    assert parameters == pytest.approx(149.6e6, rel=2e-3)  # 149 M, Warner et al. 2024, sec. 2.1


# -- gradient checkpointing -----------------------------------------------------------------------


def computed(ids, architecture, dropout, checkpointing, training=True):
    """(gradients by name, FLOPs) of a backward pass in fp32, its dropout drawn from one seed."""
    torch.manual_seed(0)
    cfg = (bert_config if architecture == "bert" else modern_config)(99, 32, 3, 4, 48, 64, dropout=dropout)
    model = LanguageModel(cfg, "explicit").train(training)
    initialise(model, std=0.2)
    model.encoder.gradient_checkpointing = checkpointing
    torch.manual_seed(1)
    with FlopCounterMode(display=False) as counter:
        model(Tokens.full(ids)).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}, counter.get_total_flops()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_computed_again_is_the_same_to_the_last_bit(ids, architecture, dropout):
    """Dropout included, which must be drawn again as it was; at the cost of another forward through the layers."""
    kept, flops = computed(ids, architecture, dropout, False)
    again, more = computed(ids, architecture, dropout, True)
    assert kept.keys() == again.keys()
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []
    assert all(grad.any() for grad in kept.values())
    assert 1.15 * flops < more < 4 / 3 * flops
    if dropout:
        other, _ = computed(ids, architecture, 0.0, False)
        assert not torch.equal(other["head.dense.weight"], kept["head.dense.weight"])


def test_nothing_is_computed_again_out_of_training(ids):
    assert computed(ids, "bert", 0.0, True, training=False)[1] == computed(ids, "bert", 0.0, False, training=False)[1]


def test_layers_are_not_put_where_nothing_computes_them():
    encoder = Encoder(bert_config(99, 32, 2, 4))
    assert encoder.layer is encoder.layers
    with pytest.raises(AttributeError, match="cannot be put here"):
        encoder.layer = encoder.layers[:1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["full", "padded", "packed"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal", "prefix"])
@pytest.mark.parametrize(
    ("read", "checkpointing"),
    [
        ([0, 3, 15, 17, 17, 33, 37], False),
        ([[0, 3, 15], [17, 17, 30], [33, 37, 40]], True),
        ([0, 17, 17, 37], True),
        ([[0, 3], [17, 17], [37, 40]], False),
    ],
    ids=["any", "of each row", "few", "few of each row"],
)
def test_states_that_are_read_are_those_of_all(
    architecture, backend, layout, attention, read, checkpointing, exact_float64
):
    """And their gradients; also where one is read twice, and others of a row not at all."""
    make = bert_config if architecture == "bert" else modern_config
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    cfg = make(**sizes, intermediate_size=48, max_position_embeddings=32, dropout=0.0)
    torch.manual_seed(0)
    encoder = Encoder(cfg, backend).double().train()
    encoder.gradient_checkpointing = checkpointing
    ids, B, T = torch.randint(5, 50, (3, 16)), 3, 16
    prefix = (torch.arange(T) < 6).expand(B, T) if attention == "prefix" else None
    if layout == "full":
        tokens = Tokens.full(ids, attention, prefix)
    elif layout == "padded":
        tokens = Tokens.padded(ids, (torch.arange(T) < torch.tensor([[16], [9], [1]])).long(), attention, prefix)
    else:
        doc = torch.tensor([[0] * 5 + [1] * 11, [0] * 16, [0, 1, 1, 2, 2, 2] + [-1] * 10])
        tokens = Tokens.packed(ids, doc, attention, prefix)
    read = torch.tensor(read)
    if backend == "varlen" and layout == "packed":  # whose padding, which nobody reads, sees no document
        read = read.masked_fill(~tokens.key.flatten()[read], 32)
    whole = encoder(tokens).flatten(0, 1)[read]
    own = encoder(tokens, read=read)
    assert own.shape == (*read.shape, 32)
    assert (own - whole).abs().max() < 1e-12
    weight = torch.randn_like(whole)
    parameters = list(encoder.parameters())
    mine = torch.autograd.grad((own * weight).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((whole * weight).sum(), parameters, allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() < 1e-11 * max(1, b.abs().max())


def test_documents_by_themselves_need_no_mask_where_some_states_are_read(monkeypatch):
    """A mask of a row is quadratic in its tokens."""
    encoder = Encoder(bert_config(50, 32, 2, 4), "varlen").eval()
    tokens = Tokens.packed(torch.randint(5, 50, (2, 16)), torch.tensor([[0] * 5 + [1] * 11, [0] * 16]))
    read = torch.arange(0, 32, 3)
    whole = encoder(tokens).flatten(0, 1)[read]
    monkeypatch.setattr("minilm.model.attention.visible", lambda *of: pytest.fail("a mask was made"))
    torch.testing.assert_close(encoder(tokens, read=read), whole)


@pytest.mark.parametrize("read", [[0, 17, 37], [[3], [17], [33]]], ids=["any", "of each row"])
@pytest.mark.parametrize("bias", [True, False])
def test_few_states_drop_what_they_would_drop_with_keys_and_values(read, bias, exact_float64, monkeypatch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    encoder = Encoder(replace(bert_config(50, **sizes, dropout=0.3), bias=bias), "explicit").double()
    tokens = Tokens.packed(torch.randint(5, 50, (3, 16)), torch.tensor([[0] * 5 + [1] * 11, [0] * 16, [0] * 16]))
    for parameter in encoder.parameters():
        parameter.data.normal_(0.0, 0.5)

    def of_read():
        torch.manual_seed(1)
        return encoder(tokens, read=torch.tensor(read))

    few = of_read()
    monkeypatch.setattr("minilm.model.attention.are_fewest", lambda *shape: False)
    assert (of_read() - few).abs().max() < 1e-12
    encoder.eval()
    assert (of_read() - few).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("read", [None, [0, 3, 15, 17], [0, 17], [[3], [17], [33]]], ids=["all", "any", "few", "rows"])
def test_tokens_that_repeat_at_their_places_are_computed_once(architecture, layers, read, exact_float64):
    """Three masked copies of a text of 16 tokens have 16 of its own and three masks; their trace is the same, too."""
    make = bert_config if architecture == "bert" else modern_config
    torch.manual_seed(0)
    encoder = Encoder(make(50, 32, layers, 4, 48, max_position_embeddings=32, dropout=0.0)).double()
    rows = torch.randint(5, 50, (16,)).repeat(3, 1)
    rows[torch.arange(3), torch.tensor([2, 7, 15])] = 4
    cells, cell = (rows * 16 + torch.arange(16)).unique(return_inverse=True)
    distinct = Tokens.full(cells[None] // 16, position=cells[None] % 16), cell
    assert len(cells) == 19
    seen, wanted = Trace(attentions=[]), Trace(attentions=[])
    read = None if read is None else torch.tensor(read)
    with torch.no_grad():
        own = encoder(Tokens.full(rows), read=read, distinct=distinct)
        whole = encoder(Tokens.full(rows), read=read)
        encoder(Tokens.full(rows), trace=seen, read=read, distinct=distinct)
        encoder(Tokens.full(rows), trace=wanted, read=read)
    assert own.shape == whole.shape
    assert (own - whole).abs().max() < 1e-12
    for one, other in zip(seen.states + seen.attentions, wanted.states + wanted.attentions, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-12
    if layers > 1:
        with FlopCounterMode(display=False) as few:
            encoder(Tokens.full(rows), read=read, distinct=distinct)
        with FlopCounterMode(display=False) as all_of_them:
            encoder(Tokens.full(rows), read=read)
        assert all_of_them.get_total_flops() - few.get_total_flops() == 2 * (48 - 19) * 32 * 96  # queries, keys, values


def test_only_what_is_read_is_computed():
    """The last layer's feed-forward is of N tokens, and of so few no token has a key or value."""
    encoder = Encoder(bert_config(50, 32, 1, 4, 128, max_position_embeddings=64))
    tokens = Tokens.full(torch.randint(5, 50, (2, 64)))
    with FlopCounterMode(display=False) as whole:
        encoder(tokens)
    with FlopCounterMode(display=False) as part:
        encoder(tokens, read=torch.tensor([0, 64]))
    assert part.get_total_flops() < 0.1 * whole.get_total_flops()
    with FlopCounterMode(display=False) as of_rows:
        encoder(tokens, read=torch.tensor([[0], [64]]))
    assert of_rows.get_total_flops() == part.get_total_flops()


@pytest.mark.parametrize("width", [0, -3, 2**62])
def test_a_width_of_tables_that_cannot_be(width):
    with pytest.raises(ConfigError, match=f"embedding_size is {width}; give a whole number from 1"):
        replace(bert_config(99, 32, 2, 4), embedding_size=width)
