"""What is measured side by side. A row makes the same work for each of its sides; each call of a side is some steps, or
a pass over texts, and it says how much that was, and numbers that all sides must come to.

minilm                          as its commands do it, in the row's precision
minilm, compiled                on a GPU: with --compile
transformers                    as its documentation has it: the collator's mask, autocast, AdamW
transformers, tuned             on a GPU: torch.compile, no mask where nothing is padded
transformers, head on targets   by its modules: only targets meet the vocabulary, no mask, and the faster attention
sentence-transformers           in the row's precision, that of its weights as of ours; and in fp32, its default

Weights, tokens, targets and updates are the same, dropout is off where nothing else is said. Weights are large at first
(INITIAL), for with BERT's small ones every loss is about ln V, whoever sees whom. Batches are made before, on the
device; AdamW is torch's fused one, gradients are set to None, clipped at 1.0. Counted are real tokens, not padding.
What minilm does and transformers' classes do not: only targets meet the vocabulary and pass the last layer, texts are
packed without padding.
"""

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minilm.batch import IGNORE, Batch, Tokens
from minilm.checkpoint.hf import config_to_hf, to_hf
from minilm.checkpoint.pooling import Pooling, read_pooling
from minilm.data.corpus import embedded_corpus
from minilm.data.loader import Loader, Stretch
from minilm.data.objectives import make_objective
from minilm.data.packing import best_fit, pack
from minilm.data.prepare import prepare
from minilm.data.tokenizer import Tokenizer
from minilm.dropin.config import BertConfig
from minilm.dropin.models import BertForSequenceClassification
from minilm.evaluation.embed import embed, read_embedder
from minilm.model.attention import Backend
from minilm.model.encoder import EncoderConfig, bert_config, initialise
from minilm.model.heads import LanguageModel
from minilm.tasks.classification import Classification
from minilm.tasks.task import Features, TaskBatch, batch_of
from minilm.train.cheap import cheapen
from minilm.train.cost import step_flops
from minilm.train.loop import train_step
from minilm.train.losses import language_model_loss
from minilm.train.optim import gradient_norm, make_optimizers
from minilm.train.ranks import Applied
from minilm.train.runtime import Runtime

VOCABULARY = 30_522
SHAPES = {  # by the device
    "cpu": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
    "cuda": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
TOKENS = {"cpu": 32 * 128, "cuda": 256 * 128}  # of a step, padding included where rows are full
TEXTS = {"cpu": 400, "cuda": 20_000}  # of a pass, if not given
DOCUMENTS = 1600  # that are tokenised
BATCHES = {"cpu": 2, "cuda": 4}  # different ones, all in each call
INITIAL = 0.1  # the standard deviation of weights
RATE = 0.15  # of the tokens are targets
LR, DECAY, EPS = 1e-4, 0.01, 1e-6
SINGLE = 50  # texts, one at a time
LOADED = 50  # batches
TOGETHER = 32  # texts, sentence-transformers' batch, and of a step of fine-tuning
LABELLED, LABELLED_LENGTHS = 8, (4, 64)  # batches, and tokens of a text of theirs
WORDS = {"short": (4, 16), "long": (150, 300), "mixed": (4, 300)}  # of a text, the last with as many of each size


class Done(NamedTuple):
    """What a call of a side did."""

    count: int  # of the row's unit
    values: Tensor  # losses and norms of gradients, vectors, ids: what all sides must come to


Side = Callable[[], Done]
Makers = dict[str, Callable[[], Side]]  # of sides by their names, so that one can be made alone


@dataclass(frozen=True)
class Setting:
    """Where a row is measured."""

    device: torch.device
    precision: str
    model: Path | None  # a directory that all libraries open
    cache_dir: Path
    texts: int | None = None  # of a pass

    @property
    def runtime(self) -> Runtime:
        return Runtime.choose(str(self.device), self.precision)


@dataclass(frozen=True)
class Row:
    """A kind of work."""

    what: str
    unit: str
    make: Callable[[Setting], Makers]
    of_model: bool = False  # whether it is of --model
    precisions: tuple[str, ...] = ("fp32", "bf16")
    flops: Callable[[Setting], float] | None = None  # that a token needs at least
    agree: bool = True  # whether sides come to the same numbers


# -- language models ------------------------------------------------------------------------------------


def language_modelling(
    setting: Setting, T: int = 128, dropout: float = 0.0, natural: bool = False, causal: bool = False
) -> Makers:
    """A training step. natural: texts of all lengths, half of T on average; else rows are full."""
    device, cfg = setting.device, shape_of(setting, T, dropout)
    texts = [*_made_up(T, TOKENS[device.type] // T, natural, BATCHES[device.type])]
    attention = "causal" if causal else "bidirectional"
    packed = [_packed(each, T, attention) for each in texts]
    masked, bare = ([_padded(each, causal, mask or natural) for each in texts] for mask in (True, False))
    sides: Makers = {
        "minilm": partial(_minilm, cfg, setting, T, packed),
        "transformers": partial(_transformers, cfg, setting, masked, causal),
    }
    if device.type == "cuda":
        fixed = [_padded(each, causal, natural, T) for each in texts]  # one shape, for which it is compiled
        sides["minilm, compiled"] = partial(_minilm, cfg, setting, T, packed, compiled=True)
        sides["transformers, tuned"] = partial(_transformers, cfg, setting, fixed, causal, compiled=True)
    if not causal:  # which has no other tokens than targets
        sides["transformers, head on targets"] = partial(_transformers, cfg, setting, bare, causal, on_targets=True)
    return sides


def shape_of(setting: Setting, T: int, dropout: float = 0.0) -> EncoderConfig:
    sizes = SHAPES[setting.device.type]
    return bert_config(VOCABULARY, **sizes, max_position_embeddings=max(512, T), dropout=dropout)


def flops_of(setting: Setting, T: int, rate: float = RATE) -> float:
    """Of the matrix products that a token of a full row needs, as minilm computes them; attention in full."""
    return step_flops(shape_of(setting, T), T, T, round(rate * T)) / T


def _made_up(T: int, B: int, natural: bool, batches: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Batches of B texts, the ids of each one's tokens and the columns of its targets, in order."""
    rng = np.random.default_rng(0)
    for _ in range(batches):
        lengths = np.clip(rng.normal(T / 2, T / 5, B), 8, T).astype(int) if natural else np.full(B, T)
        ids = [rng.integers(5, VOCABULARY, n) for n in lengths]
        picks = [np.sort(rng.permutation(n)[: max(1, round(RATE * n))]) for n in lengths]
        yield [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(ids, picks, strict=True)]


def _packed(texts: Sequence[tuple[Tensor, Tensor]], T: int, attention: str) -> Batch:
    """As minilm's loader makes them: full rows, or texts one after the other. A causal model predicts each next
    token, of all but the first."""
    lengths = np.array([len(ids) for ids, _ in texts])
    row_of = best_fit(lengths, T)
    B = int(row_of.max()) + 1
    ids, doc = torch.zeros(B, T, dtype=torch.int64), torch.full((B, T), -1)
    where, target, filled = [], [], [0] * B
    for number, ((own, pick), row) in enumerate(zip(texts, row_of.tolist(), strict=True)):
        start, filled[row] = filled[row], filled[row] + len(own)
        ids[row, start : start + len(own)], doc[row, start : start + len(own)] = own, number
        here = torch.arange(len(own) - 1) if attention == "causal" else pick
        where.append(row * T + start + here)
        target.append(own[here + 1] if attention == "causal" else own[here])
    full = bool((doc >= 0).all()) and len(texts) == B
    tokens = Tokens.full(ids, attention) if full else Tokens.packed(ids, doc, attention)
    flat, count = torch.cat(where), sum(map(len, target))
    return Batch(tokens, flat, torch.cat(target), count, int(lengths.sum()), per_row=len(where[0]) if full else 0)


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


def _minilm(cfg: EncoderConfig, setting: Setting, T: int, batches: list[Batch], compiled: bool = False) -> Side:
    runtime = setting.runtime
    loss = runtime.compiled(language_model_loss) if compiled else language_model_loss
    model = _fresh(cfg, runtime.backend(T, cfg.attention_dropout))
    if setting.device.type == "cpu":
        cheapen(model)
    return _our_loop(model, loss, batches, setting)


def _our_loop(
    model: nn.Module, loss: Callable[..., tuple[Tensor, Tensor]], batches: Sequence[Batch | TaskBatch], setting: Setting
) -> Side:
    """The steps of minilm's loop."""
    runtime, forward = setting.runtime, Applied(model).to(setting.device).train()
    optimizers = make_optimizers(model, "adamw", LR, DECAY, eps=EPS)
    there = [batch.to(setting.device) for batch in batches]

    def run() -> Done:
        found = []
        for batch in there:
            nats, norm, _ = train_step(forward, loss, optimizers, [batch], runtime, 1.0)
            found += [nats / batch.count, norm]
        return Done(sum(batch.size for batch in there), torch.stack(found))

    return run


def _transformers(
    cfg: EncoderConfig,
    setting: Setting,
    batches: list[dict[str, Tensor]],
    causal: bool,
    compiled: bool = False,
    on_targets: bool = False,
) -> Side:
    from transformers import AutoConfig, BertForMaskedLM, BertLMHeadModel

    objective, half = "clm" if causal else "mlm", setting.precision == "bf16"
    config = config_to_hf(cfg, objective, {"cls_token_id": 2, "sep_token_id": 3})
    made = (BertLMHeadModel if causal else BertForMaskedLM)(AutoConfig.for_model(**config))
    missing, unexpected = made.load_state_dict(to_hf(_fresh(cfg).state_dict(), "bert", objective), strict=False)
    assert not unexpected, unexpected
    assert all("decoder" in name or "position_ids" in name for name in missing), missing  # which are tied
    if on_targets and half and setting.device.type == "cpu":
        made.set_attn_implementation("eager")

    def of_targets(labels: Tensor, **inputs: Tensor) -> Tensor:
        is_target = labels != IGNORE
        logits = made.cls(made.bert(**inputs).last_hidden_state[is_target])
        return nn.functional.cross_entropy(logits.float(), labels[is_target])

    return _loop(made, setting, batches, compiled, of_targets if on_targets else None)


def _loop(
    made: nn.Module,
    setting: Setting,
    batches: list[dict[str, Tensor]],
    compiled: bool = False,
    loss_of: Callable[..., Tensor] | None = None,
) -> Side:
    """A plain loop over one of transformers' models. loss_of: of a batch; the model's own, if not given."""
    made.to(setting.device).train()
    plain, decayed = ([own for own in made.parameters() if (own.ndim < 2) == flat] for flat in (True, False))
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, eps=EPS, fused=True)
    forward = torch.compile(made) if compiled else made
    there = [{name: own.to(setting.device) for name, own in batch.items()} for batch in batches]
    masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in batches]
    count, calls = sum(int(mask.sum()) for mask in masks), itertools.count()
    half = setting.precision == "bf16"

    def run() -> Done:
        found, is_compared = [], next(calls) == 0
        for batch in there:
            with torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=half):
                loss = forward(**batch).loss if loss_of is None else loss_of(**batch)
            loss.backward()
            # clipping's own norm of 12 M numbers is off by up to 4e-4 on a CPU, against float64; this one by 7e-6
            norm = [gradient_norm(made)] if is_compared else []
            nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found += [loss.detach(), *norm]
        return Done(count, torch.stack(found))

    return run


# -- fine-tuning ----------------------------------------------------------------------------------------


def finetuning(setting: Setting) -> Makers:
    """A training step of 32 labelled texts, their lengths about as SST-2's."""
    rng, count = np.random.default_rng(0), TOGETHER * LABELLED
    lengths = np.clip(rng.lognormal(np.log(22), 0.5, count), *LABELLED_LENGTHS).astype(int)
    ids, target = rng.integers(5, VOCABULARY, lengths.sum()).astype(np.int32), rng.integers(0, 2, count)
    offsets = np.concatenate([[0], lengths.cumsum()])
    features = Features(ids, np.zeros(len(ids), np.int8), offsets, target, np.arange(count))
    sides: Makers = {
        "minilm": partial(_classifier, setting, features),
        "transformers": partial(_their_classifier, setting, features),
    }
    if setting.device.type == "cuda":
        sides["minilm, compiled"] = partial(_classifier, setting, features, compiled=True)
        sides["transformers, tuned"] = partial(_their_classifier, setting, features, 16, compiled=True)
    return sides


def _fresh_classifier(setting: Setting) -> BertForSequenceClassification:
    """The same weights each time, of two labels."""
    torch.manual_seed(0)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = SHAPES[setting.device.type]
    more = {"intermediate_size": 4 * sizes["hidden_size"], "initializer_range": INITIAL, "num_labels": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes, **more, **none))


def _classifier(setting: Setting, features: Features, compiled: bool = False) -> Side:
    """As `minilm.tasks.tune` trains one."""
    runtime, model, task = setting.runtime, _fresh_classifier(setting), Classification(("no", "yes"))
    longest, on_gpu = LABELLED_LENGTHS[1], setting.device.type == "cuda"
    encoder = model.base_model.encoder
    encoder.backend = runtime.backend(longest, 0.0)
    cheapen(model, encoder.embedding.word)
    loss = runtime.compiled(task.loss, any_shape=True) if compiled else task.loss
    parts = np.arange(len(features)).reshape(LABELLED, TOGETHER)
    batches = [batch_of(features, part, longest if on_gpu else None)[0] for part in parts]
    return _our_loop(model, loss, batches, setting)


def _their_classifier(setting: Setting, features: Features, multiple: int = 1, compiled: bool = False) -> Side:
    """Each batch is padded to its longest text, or to a multiple of so many tokens."""
    from transformers import AutoModelForSequenceClassification

    with tempfile.TemporaryDirectory() as directory:
        _fresh_classifier(setting).save_pretrained(directory)
        made = AutoModelForSequenceClassification.from_pretrained(directory)
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
    return _loop(made, setting, batches, compiled)


# -- texts ----------------------------------------------------------------------------------------------


def texts_of(setting: Setting, kind: str, n: int) -> list[str]:
    """Pieces of the embedded corpus with so many words; of "mixed" sizes as many short as long ones, by octaves."""
    rng, (low, high) = random.Random(0), WORDS[kind]
    words = " ".join(embedded_corpus(setting.cache_dir).documents()).split()
    found = []
    for _ in range(n):
        size = round(low * (high / low) ** rng.random())
        start = rng.randrange(len(words) - size)
        found.append(" ".join(words[start : start + size]))
    return found


def embedding(setting: Setting, kind: str) -> Makers:
    """Texts to vectors, tokenising included."""
    texts = texts_of(setting, kind, setting.texts or TEXTS[setting.device.type])
    return {
        "minilm": partial(_embedder, setting, [texts]),
        **_both_sentence_transformers(setting, [texts]),
        "transformers, sorted": partial(_sorted, setting, texts),
    }


def latency(setting: Setting) -> Makers:
    """Short texts, one at a time."""
    texts = [[text] for text in texts_of(setting, "short", SINGLE)]
    return {
        "minilm": partial(_embedder, setting, texts),
        **_both_sentence_transformers(setting, texts),
    }


def _both_sentence_transformers(setting: Setting, calls: list[list[str]]) -> Makers:
    """In the row's precision, and in its own."""
    fp32 = replace(setting, precision="fp32")
    own: Makers = {"sentence-transformers": partial(_sentence_transformers, setting, calls)}
    more = {"sentence-transformers, fp32": partial(_sentence_transformers, fp32, calls)}
    return own | (more if setting.precision != "fp32" else {})


def _embedder(setting: Setting, calls: list[list[str]]) -> Side:
    embedder, runtime = read_embedder(setting.model), setting.runtime
    embedder.model.to(setting.device, runtime.dtype)

    def run() -> Done:
        return _of_vectors(torch.cat([embed(embedder, texts) for texts in calls]))

    return run


def _sentence_transformers(setting: Setting, calls: list[list[str]]) -> Side:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(setting.model), device=str(setting.device)).to(setting.runtime.dtype)

    def run() -> Done:
        return _of_vectors(torch.cat([model.encode(texts, convert_to_tensor=True) for texts in calls]))

    return run


def _sorted(setting: Setting, texts: list[str]) -> Side:
    """A plain loop over transformers' model: the longest texts first, in half precision where the row has it."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(setting.model).to(setting.device, setting.runtime.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    pooling = read_pooling(setting.model) or Pooling()
    length = min(pooling.max_length or model.config.max_position_embeddings, model.config.max_position_embeddings)
    assert pooling.how == ("mean",), pooling
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    by_length, back = [texts[i] for i in order], np.argsort(order)

    def run() -> Done:
        found = []
        for at in range(0, len(texts), TOGETHER):
            part = by_length[at : at + TOGETHER]
            inputs = tokenizer(part, padding=True, truncation=True, max_length=length, return_tensors="pt")
            inputs = inputs.to(setting.device)
            with torch.no_grad():
                states = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None]
            means = (states * mask).sum(dim=1) / mask.sum(dim=1)
            found.append(nn.functional.normalize(means) if pooling.normalize else means)
        return _of_vectors(torch.cat(found)[back])

    return run


def _of_vectors(vectors: Tensor) -> Done:
    return Done(len(vectors), vectors.float())


def tokenising(setting: Setting) -> Makers:
    """Documents to ids, without special tokens, by as many threads as either library takes."""
    from transformers import AutoTokenizer

    texts = texts_of(setting, "long", DOCUMENTS)

    def minilm() -> Side:
        tokenizer = Tokenizer.load(setting.model)

        def run() -> Done:
            fresh = Tokenizer(tokenizer.backend, tokenizer.lowercase)  # which remembers no word of these texts
            return _of_ids(np.concatenate(fresh.encode_documents(texts)))

        return run

    def transformers() -> Side:
        tokenizer = AutoTokenizer.from_pretrained(setting.model, model_max_length=10**9)

        def run() -> Done:
            wanted = {"return_attention_mask": False, "return_token_type_ids": False}
            ids = tokenizer(texts, add_special_tokens=False, **wanted).input_ids
            return _of_ids(np.concatenate([np.array(each, np.int32) for each in ids]))

        return run

    return {"minilm": minilm, "transformers": transformers}


def _of_ids(ids: np.ndarray) -> Done:
    return Done(len(ids), torch.from_numpy(ids.astype(np.int64)))


def loading(setting: Setting, B: int = 32) -> Makers:
    """Masked batches of B rows of 128 tokens, out of tokens on the disk, or in memory for transformers."""
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    data = prepare(None, setting.cache_dir, 0.05, vocab_size=8192)
    rows = pack(data.train, "stream", 128, data.tokenizer)

    def minilm() -> Side:
        stretches, objective = [Stretch(10**9, 128, B, B)], make_objective("mlm", data.tokenizer, 0, RATE)
        endless = Loader(stretches, {128: rows}, objective, 0).steps_from(0)

        def run() -> Done:
            count = sum(each.tokens.input_ids.numel() for _ in range(LOADED) for each in next(endless))
            return Done(count, torch.zeros(1))

        return run

    def transformers() -> Side:
        """A process of its own prepares them, as minilm's thread does."""
        numbers = np.arange(B * LOADED) % len(rows)
        ids = rows.take(numbers, np.zeros_like(numbers)).ids
        special = torch.isin(ids, torch.tensor(data.tokenizer.special_ids)).long()
        examples = [{"input_ids": a, "special_tokens_mask": b} for a, b in zip(ids, special, strict=True)]
        with tempfile.TemporaryDirectory() as directory:
            data.tokenizer.save(Path(directory), 128)
            collate = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(directory), mlm_probability=RATE)
        loader = DataLoader(examples, B, True, collate_fn=collate, num_workers=1, persistent_workers=True)
        return lambda: Done(sum(batch["input_ids"].numel() for batch in loader), torch.zeros(1))

    return {"minilm": minilm, "transformers": transformers}


ROWS: dict[str, Row] = {  # the most telling first
    "pretrain-128": Row(
        "a masked-LM step, full rows of 128 tokens", "tokens", language_modelling, flops=partial(flops_of, T=128)
    ),
    "pretrain-128-dropout": Row(
        "the same with dropout of 0.1 everywhere",
        "tokens",
        partial(language_modelling, dropout=0.1),
        flops=partial(flops_of, T=128),
        agree=False,
    ),
    "pretrain-natural": Row(
        "a masked-LM step, texts of 8 to 128 tokens, 64 on average", "tokens", partial(language_modelling, natural=True)
    ),
    "pretrain-512": Row(
        "a masked-LM step, full rows of 512 tokens",
        "tokens",
        partial(language_modelling, T=512),
        flops=partial(flops_of, T=512),
    ),
    "causal-1024": Row(
        "a causal-LM step, full rows of 1,024 tokens",
        "tokens",
        partial(language_modelling, T=1024, causal=True),
        flops=partial(flops_of, T=1024, rate=1.0),
    ),
    "finetune": Row("a fine-tuning step, 32 texts of 4 to 64 tokens", "tokens", finetuning),
    "embed-mixed": Row("vectors of texts of 4 to 300 words", "texts", partial(embedding, kind="mixed"), True),
    "embed-short": Row("vectors of texts of 4 to 16 words", "texts", partial(embedding, kind="short"), True),
    "embed-long": Row("vectors of texts of 150 to 300 words", "texts", partial(embedding, kind="long"), True),
    "latency": Row("vectors of short texts, one at a time", "texts", latency, True),
    "tokenise": Row("documents to ids", "tokens", tokenising, True, ("fp32",)),
    "load": Row("masked batches of 32 rows of 128 tokens", "tokens", loading, precisions=("fp32",)),
    "load-256": Row("the same of 256 rows", "tokens", partial(loading, B=256), precisions=("fp32",)),
}
