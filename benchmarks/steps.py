"""Training steps: of language models on made-up tokens, and of a classifier on made-up texts."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.side import COMPARED, Done, Least, Makers, Setting, Side
from minilm.batch import IGNORE, Batch, Tokens
from minilm.checkpoint.hf import config_to_hf, to_hf
from minilm.data.packing import best_fit
from minilm.dropin.config import BertConfig
from minilm.dropin.models import BertForSequenceClassification
from minilm.finetuning.batches import row_length_of
from minilm.machine.ranks import Applied
from minilm.model.attention import Backend, fastest_backend
from minilm.model.encoder import EncoderConfig, bert_config, initialise
from minilm.model.heads import LanguageModel
from minilm.tasks.classification import Classification
from minilm.tasks.task import Features, TaskBatch, batch_of
from minilm.train.cheap import cheapen
from minilm.train.cost import training_flops
from minilm.train.graphs import step_of
from minilm.train.losses import language_model_loss
from minilm.train.optim import gradient_norm, make_optimizers

VOCABULARY = 30_522
OF_GPT2 = 50_257  # words of the causal model on a GPU, which then has GPT-2's 124 M parameters
SHAPES = {  # by the device
    "cpu": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
    "cuda": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
TOKENS = {"cpu": 32 * 128, "cuda": 256 * 128}  # of a step, padding included where rows are full
BATCHES = {"cpu": 2, "cuda": 4}  # different ones, all in each call
INITIAL = 0.1  # the standard deviation of weights
TUNED = ("cuda",)  # where sides are compiled
RATE = 0.15  # of the tokens are targets
LR, DECAY, EPS = 1e-4, 0.01, 1e-6
OF_LABELLED = {"cuda": 1e-8}  # the classifier's learning rate, else LR, with which a larger one's rounding grows to 0.1
LABELLED, TOGETHER, LABELLED_LENGTHS = 8, 32, (4, 64)  # batches, texts of each, and tokens of a text


def language_modelling(
    setting: Setting, T: int = 128, dropout: float = 0.0, natural: bool = False, causal: bool = False
) -> Makers:
    """A training step. natural: texts of all lengths, half of T on average; else rows are full."""
    device, cfg = setting.device, shape_of(setting, T, dropout, causal)
    texts = [*_made_up(T, TOKENS[device.type] // T, natural, BATCHES[device.type], cfg.vocab_size)]
    attention = "causal" if causal else "bidirectional"
    packed = [_packed(each, T, attention) for each in texts]
    masked, bare = ([_padded(each, causal, mask or natural) for each in texts] for mask in (True, False))
    sides: Makers = {
        "minilm": partial(_minilm, cfg, setting, T, packed),
        "transformers": partial(_transformers, cfg, setting, masked, causal),
    }
    if T == 128 and not (dropout or natural) and find_spec("accelerate"):
        sides["transformers, Trainer"] = partial(_transformers, cfg, setting, masked, causal, by_trainer=True)
    if device.type in TUNED:
        fixed = [_padded(each, causal, natural, T) for each in texts]  # one shape, for which it is compiled
        sides["minilm, compiled"] = partial(_minilm, cfg, setting, T, packed, compiled=True, any_shape=natural)
        tuned = partial(_transformers, cfg, setting, fixed, causal, compiled=True)
        sides["transformers, tuned"] = tuned
        if "transformers, Trainer" in sides:
            sides["transformers, tuned, Trainer"] = partial(tuned, by_trainer=True)
    if not causal:  # which has no other tokens than targets
        sides["transformers, head on targets"] = partial(_transformers, cfg, setting, bare, causal, on_targets=True)
        if device.type in TUNED:
            sides["transformers, tuned, head on targets"] = partial(tuned, on_targets=True)
    return sides


def shape_of(setting: Setting, T: int, dropout: float = 0.0, causal: bool = False) -> EncoderConfig:
    sizes, words = SHAPES[setting.device.type], OF_GPT2 if causal and setting.device.type == "cuda" else VOCABULARY
    return bert_config(words, **sizes, max_position_embeddings=max(512, T), dropout=dropout)


def least_of_token(setting: Setting, T: int, natural: bool = False, causal: bool = False) -> Least:
    """Of `language_modelling`. causal: a token sees half of its text on average, and predicts."""
    kind, cfg = setting.device.type, shape_of(setting, T, causal=causal)
    made = [*_made_up(T, TOKENS[kind] // T, natural, BATCHES[kind], cfg.vocab_size)]
    lengths = np.array([len(ids) for each in made for ids, _ in each])
    tokens, targets = int(lengths.sum()), sum(len(pick) for each in made for _, pick in each)
    few = None if causal else targets
    flops = training_flops(cfg, tokens, seen_of(lengths) // (2 if causal else 1), few or tokens, few)
    with torch.device("meta"):
        return Least(flops / tokens, _of_update(LanguageModel(cfg)) * len(made) / tokens)


def seen_of(lengths: np.ndarray) -> int:
    """Tokens that one attends to, on average over those of texts of these lengths."""
    return round(float((lengths**2).sum() / lengths.sum()))


def _of_update(model: nn.Module) -> float:
    """Bytes that AdamW reads (weights, gradients, two averages) and writes (all but the gradients), in fp32."""
    return 7 * 4 * sum(own.numel() for own in model.parameters())


def _made_up(T: int, B: int, natural: bool, batches: int, words: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Batches of B texts, the ids of each one's tokens and the columns of its targets, in order."""
    rng = np.random.default_rng(0)
    for _ in range(batches):
        lengths = np.clip(rng.normal(T / 2, T / 5, B), 8, T).astype(int) if natural else np.full(B, T)
        ids = [rng.integers(5, words, n) for n in lengths]
        picks = [np.sort(rng.permutation(n)[: max(1, round(RATE * n))]) for n in lengths]
        yield [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(ids, picks, strict=True)]


def _packed(texts: Sequence[tuple[Tensor, Tensor]], T: int, attention: str) -> Batch:
    """As minilm's loader makes them: full rows, or texts one after the other, equally many places to predict at in each
    row, some without a target. A causal model predicts each next token, of all but the first."""
    lengths = np.array([len(ids) for ids, _ in texts])
    row_of = best_fit(lengths, T)
    B = int(row_of.max()) + 1
    ids, doc = torch.zeros(B, T, dtype=torch.int64), torch.full((B, T), -1)
    where, target, filled = [[] for _ in range(B)], [[] for _ in range(B)], [0] * B
    for number, ((own, pick), row) in enumerate(zip(texts, row_of.tolist(), strict=True)):
        start, filled[row] = filled[row], filled[row] + len(own)
        ids[row, start : start + len(own)], doc[row, start : start + len(own)] = own, number
        here = torch.arange(len(own) - 1) if attention == "causal" else pick
        where[row].append(row * T + start + here)
        target[row].append(own[here + 1] if attention == "causal" else own[here])
    full = bool((doc >= 0).all()) and len(texts) == B
    tokens = Tokens.full(ids, attention) if full else Tokens.packed(ids, doc, attention)
    there = [torch.cat(own) for own in target]
    per_row = max(map(len, there))

    def filled_rows(rows: list[Tensor], rest: list[int]) -> Tensor:
        padded = (nn.functional.pad(own, (0, per_row - len(own)), value=n) for own, n in zip(rows, rest, strict=True))
        return torch.cat([*padded])

    flat = filled_rows([torch.cat(own) for own in where], [row * T for row in range(B)])
    targets = filled_rows(there, [IGNORE] * B)
    count = sum(map(len, there))
    return Batch(tokens, flat, targets, count, int(lengths.sum()), per_row=per_row)


def _padded(texts: Sequence[tuple[Tensor, Tensor]], causal: bool, masked: bool, T: int = 0) -> dict[str, Tensor]:
    """As transformers' collator makes them, at least T tokens long; a causal model shifts its labels itself."""
    labels = []
    for ids, pick in texts:
        own = ids.clone() if causal else torch.full_like(ids, IGNORE)
        own[pick] = ids[pick]
        labels.append(own)
    ids = [ids for ids, _ in texts]
    made = {"input_ids": pad_sequence(ids, True), "labels": pad_sequence(labels, True, IGNORE)}
    made |= {"attention_mask": pad_sequence([torch.ones_like(own) for own in ids], True)} if masked else {}
    more = max(0, T - made["input_ids"].shape[1])
    rest = {"labels": IGNORE}
    return {name: nn.functional.pad(own, (0, more), value=rest.get(name, 0)) for name, own in made.items()}


def _fresh(cfg: EncoderConfig, backend: Backend = "sdpa") -> LanguageModel:
    """The same weights each time."""
    torch.manual_seed(0)
    model = LanguageModel(cfg, backend)
    initialise(model, std=INITIAL)
    return model


def _minilm(
    cfg: EncoderConfig, setting: Setting, T: int, batches: list[Batch], compiled: bool = False, any_shape: bool = False
) -> Side:
    runtime = setting.runtime
    loss = runtime.compiled(language_model_loss, any_shape) if compiled else language_model_loss
    model = _fresh(cfg, fastest_backend(runtime.device, runtime.dtype, T, cfg.attention_dropout, cfg.head_width))
    if setting.device.type == "cpu":
        cheapen(model)
    return _our_loop(model, loss, batches, setting)


def _our_loop(
    model: nn.Module,
    loss: Callable[..., tuple[Tensor, Tensor]],
    batches: Sequence[Batch | TaskBatch],
    setting: Setting,
    graphed: bool = False,
    lr: float | None = None,
) -> Side:
    """The steps of minilm's loop, without its logging and loading."""
    runtime, forward = setting.runtime, Applied(model).to(setting.device).train()
    optimizers = make_optimizers(model, "adamw", lr or LR, DECAY, eps=EPS)
    there = [batch.to(setting.device) for batch in batches]
    take_step = step_of(runtime, graphed)

    def run() -> Done:
        found = []
        for batch in there:
            nats, norm, _ = take_step(forward, loss, optimizers, [batch], runtime, 1.0)
            found += [nats / batch.count, norm]
        return Done(sum(batch.size for batch in there), torch.stack(found).unflatten(0, (len(there), -1)).T)

    return run


def _transformers(
    cfg: EncoderConfig,
    setting: Setting,
    batches: list[dict[str, Tensor]],
    causal: bool,
    compiled: bool = False,
    on_targets: bool = False,
    by_trainer: bool = False,
) -> Side:
    from transformers import AutoConfig, BertForMaskedLM, BertLMHeadModel

    objective = "clm" if causal else "mlm"
    config = config_to_hf(cfg, objective, {"cls_token_id": 2, "sep_token_id": 3})
    made = (BertLMHeadModel if causal else BertForMaskedLM)(AutoConfig.for_model(**config))
    missing, unexpected = made.load_state_dict(to_hf(_fresh(cfg).state_dict(), "bert", objective), strict=False)
    assert not unexpected, unexpected
    assert all("decoder" in name or "position_ids" in name for name in missing), missing  # which are tied
    made.loss_type = "ForCausalLM" if causal else made.loss_type  # it knows none by its name, and says so in each step
    if on_targets:
        _as_an_expert(made, setting, batches[0]["input_ids"].shape[1], cfg.attention_dropout)
    if compiled and "attention_mask" not in batches[0]:
        without_mask(made)
    if on_targets:
        batches = [*map(_of_targets, batches)]

    def of_targets(where: Tensor, target: Tensor, **inputs: Tensor) -> Tensor:
        logits = made.cls(made.bert(**inputs).last_hidden_state.flatten(0, 1)[where])
        return nn.functional.cross_entropy(logits.float(), target)

    if by_trainer:
        return _by_trainer(made, setting, batches, compiled)
    return _loop(made, setting, batches, compiled, of_targets if on_targets else None)


def _of_targets(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the flat index of its targets and themselves, in place of a label for each token."""
    labels = batch["labels"].flatten()
    where = (labels != IGNORE).nonzero().flatten()
    return {name: own for name, own in batch.items() if name != "labels"} | {"where": where, "target": labels[where]}


def without_mask(made: nn.Module) -> None:
    """Have a model of transformers take torch's attention without a mask, whatever its compiled code would make: with
    torch before 2.13 it makes one of all ones."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)
    AttentionMaskInterface.register("sdpa_without_mask", lambda *args, **more: None)
    made.set_attn_implementation("sdpa_without_mask")


def _as_an_expert(made: nn.Module, setting: Setting, T: int, dropout: float) -> None:
    """Have a model of transformers take the attention that is faster there, and keep memory as minilm does."""
    if (
        fastest_backend(setting.runtime.device, setting.runtime.dtype, T, dropout, shape_of(setting, T).head_width)
        == "explicit"
    ):
        made.set_attn_implementation("eager")


def _loop(
    made: nn.Module,
    setting: Setting,
    batches: list[dict[str, Tensor]],
    compiled: bool = False,
    loss_of: Callable[..., Tensor] | None = None,
    graphed: bool = False,
    lr: float | None = None,
) -> Side:
    """A plain loop over one of transformers' models. loss_of: of a batch; the model's own, if not given. graphed: the
    compiler's CUDA graphs."""
    made.to(setting.device).train()
    plain, decayed = ([own for own in made.parameters() if (own.ndim < 2) == flat] for flat in (True, False))
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr or LR, eps=EPS, fused=True)
    how = {"dynamic": False} | ({"mode": "reduce-overhead"} if graphed else {})

    def loss_in(batch: dict[str, Tensor]) -> Tensor:
        return made(**batch).loss if loss_of is None else loss_of(**batch)

    loss_in = torch.compile(loss_in, **how) if compiled else loss_in
    there = [{name: own.to(setting.device) for name, own in batch.items()} for batch in batches]
    count, calls, half = _tokens_of(batches), itertools.count(), setting.precision == "bf16"

    def run() -> Done:
        found, is_compared = [], next(calls) < COMPARED[setting.device.type]
        for batch in there:
            if graphed:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=half):
                loss = loss_in(batch)
            loss.backward()
            # clipping's own norm of 12 M numbers is off by up to 4e-4 on a CPU, against float64; this one by 7e-6
            norm = [gradient_norm(made)] if is_compared else []
            nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found += [loss.detach().clone(), *norm]
        return Done(count, torch.stack(found).unflatten(0, (len(there), -1)).T)

    return run


def _by_trainer(
    made: nn.Module, setting: Setting, batches: list[dict[str, Tensor]], compiled: bool = False, lr: float | None = None
) -> Side:
    from benchmarks.trainer import trained

    how = {"learning_rate": lr or LR, "weight_decay": DECAY, "adam_epsilon": EPS}
    return trained(made, setting, batches, _tokens_of(batches), torch_compile=compiled, **how)


def _tokens_of(batches: list[dict[str, Tensor]]) -> int:
    """Real ones."""
    return sum(int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum()) for batch in batches)


# -- fine-tuning ----------------------------------------------------------------------------------------


def finetuning(setting: Setting, grouped: bool = False, dropout: float = 0.0) -> Makers:
    """A training step of 32 labelled texts, their lengths about as SST-2's. grouped: of like lengths, as transformers'
    `group_by_length` makes batches of a whole set, and as an expert has it besides."""
    rng, count, lengths = np.random.default_rng(1), TOGETHER * LABELLED, _labelled_lengths()
    lengths = np.sort(lengths)[::-1] if grouped else lengths
    ids, target = rng.integers(5, VOCABULARY, lengths.sum()).astype(np.int32), rng.integers(0, 2, count)
    offsets = np.concatenate([[0], lengths.cumsum()])
    features = Features(ids, np.zeros(len(ids), np.int8), offsets, target, np.arange(count))
    sides: Makers = {"minilm": partial(_classifier, setting, features, dropout)}
    if not grouped:
        sides["transformers"] = partial(_their_classifier, setting, features, dropout)
        if find_spec("accelerate"):
            sides["transformers, Trainer"] = partial(_their_classifier, setting, features, dropout, by_trainer=True)
    expert = "transformers, grouped" if grouped else "transformers, faster attention"
    if grouped or setting.device.type == "cpu":  # on a GPU its own is the faster one
        sides[expert] = partial(_their_classifier, setting, features, dropout, by_expert=True)
    if setting.device.type in TUNED:
        sides["minilm, compiled"] = partial(_classifier, setting, features, dropout, compiled=True)
        sides["minilm, CUDA graphs"] = partial(_classifier, setting, features, dropout, graphed=True)
        sides["minilm, compiled, CUDA graphs"] = partial(
            _classifier, setting, features, dropout, compiled=True, graphed=True
        )
        tuned = partial(_their_classifier, setting, features, dropout, 16, compiled=True)
        sides |= {"transformers, tuned": tuned, "transformers, tuned, CUDA graphs": partial(tuned, graphed=True)}
    return sides


def least_of_labelled(setting: Setting) -> Least:
    lengths = _labelled_lengths()
    with torch.device("meta"):
        model = _fresh_classifier(setting)
    tokens = int(lengths.sum())
    flops = training_flops(model.base_model.encoder.cfg, tokens, seen_of(lengths), 0, len(lengths))
    return Least(flops / tokens, _of_update(model) * LABELLED / tokens)


def _labelled_lengths() -> np.ndarray:
    lengths = np.random.default_rng(0).lognormal(np.log(22), 0.5, TOGETHER * LABELLED)
    return np.clip(lengths, *LABELLED_LENGTHS).astype(int)


def _fresh_classifier(setting: Setting, dropout: float = 0.0) -> BertForSequenceClassification:
    """The same weights each time, of two labels."""
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    sizes = SHAPES[setting.device.type]
    more = {"intermediate_size": 4 * sizes["hidden_size"], "initializer_range": INITIAL, "num_labels": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes, **more, **rates))


def _classifier(
    setting: Setting, features: Features, dropout: float, compiled: bool = False, graphed: bool = False
) -> Side:
    """As `minilm.finetuning.run` trains one."""
    runtime, model, task = setting.runtime, _fresh_classifier(setting, dropout), Classification(("no", "yes"))
    row = row_length_of(features, model.config.max_position_embeddings) if setting.device.type == "cuda" else None
    encoder = model.base_model.encoder
    encoder.backend = fastest_backend(
        runtime.device, runtime.dtype, row or LABELLED_LENGTHS[1], dropout, encoder.cfg.head_width
    )
    cheapen(model, encoder.embedding.word)
    loss = runtime.compiled(task.loss, any_shape=True) if compiled else task.loss
    parts = np.arange(len(features)).reshape(LABELLED, TOGETHER)
    batches = [batch_of(features, part, row, graphed)[0] for part in parts]
    return _our_loop(model, loss, batches, setting, graphed, lr=OF_LABELLED.get(setting.device.type))


def _their_classifier(
    setting: Setting,
    features: Features,
    dropout: float,
    multiple: int = 1,
    compiled: bool = False,
    by_expert: bool = False,
    graphed: bool = False,
    by_trainer: bool = False,
) -> Side:
    """Each batch is padded to its longest text, or to a multiple of so many tokens."""
    from transformers import AutoModelForSequenceClassification

    with tempfile.TemporaryDirectory() as directory:
        _fresh_classifier(setting, dropout).save_pretrained(directory)
        made = AutoModelForSequenceClassification.from_pretrained(directory)
    if by_expert:
        _as_an_expert(made, setting, LABELLED_LENGTHS[1], dropout)
    texts = [torch.from_numpy(ids.astype(np.int64)) for ids in np.split(features.ids, features.offsets[1:-1])]
    labels = torch.from_numpy(features.target)
    batches = []
    for part in np.arange(len(texts)).reshape(LABELLED, TOGETHER):
        own = [texts[i] for i in part]
        batch = {"input_ids": pad_sequence(own, True), "labels": labels[part]}
        batch["attention_mask"] = pad_sequence([torch.ones_like(ids) for ids in own], True)
        more = -batch["input_ids"].shape[1] % multiple
        padded = {name: nn.functional.pad(batch[name], (0, more)) for name in ("input_ids", "attention_mask")}
        batches.append(batch | padded)
    lr = OF_LABELLED.get(setting.device.type)
    if by_trainer:
        return _by_trainer(made, setting, batches, lr=lr)
    return _loop(made, setting, batches, compiled, graphed=graphed, lr=lr)
