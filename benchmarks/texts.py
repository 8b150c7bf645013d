"""Work on texts: vectors of them, their tokens, batches out of these; and a random model, where none is given."""

import itertools
import random
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.side import Done, Least, Makers, Setting, Side
from benchmarks.steps import INITIAL, RATE, seen_of
from minilm.checkpoint.pooling import Pooling, read_pooling
from minilm.data.ahead import made_ahead
from minilm.data.corpus import embedded_corpus
from minilm.data.loader import Loader, Stretch
from minilm.data.objectives import make_objective
from minilm.data.packing import pack
from minilm.data.prepare import prepare
from minilm.data.tokenizer import Tokenizer
from minilm.dropin.config import BertConfig
from minilm.dropin.models import BertModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.train.cost import training_flops
from minilm.use.embed import embed, read_embedder

TEXTS = {"cpu": 400, "cuda": 20_000}  # of a pass, if not given
DOCUMENTS = 1600  # that are tokenised
LIKE_BERTS = 30_528  # words, about as many as BERT has
SINGLE = 50  # texts, one at a time
LOADED = 50  # batches
TOGETHER = 32  # texts, sentence-transformers' batch
FEW = {"cpu": 1024, "cuda": 16_384}  # tokens of one; on a CPU it is fastest with so few, of 1,024 to 16,384
WORDS = {"short": (4, 16), "long": (150, 300), "mixed": (4, 300)}  # of a text, the last with as many of each size


def stand_in(cache_dir: Path) -> Path:
    """A directory with a random model of all-MiniLM-L6-v2's shape that all libraries open, made once: its vectors mean
    nothing, its speed is that of the real one."""
    directory = cache_dir / "all-minilm-l6-v2-random"
    if not (directory / "config.json").exists():
        words = Tokenizer.train(embedded_corpus(cache_dir).documents(), LIKE_BERTS)
        torch.manual_seed(0)
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        model = BertModel(BertConfig(vocab_size=words.vocab_size, initializer_range=INITIAL, **sizes))
        model.pooling = Pooling(("mean",), normalize=True, max_length=256)
        BertTokenizer(words.backend, model_max_length=256).save_pretrained(directory)
        model.save_pretrained(directory)
    return directory


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
    sides: Makers = {
        "minilm": partial(_embedder, setting, [texts]),
        **_both_sentence_transformers(setting, [texts]),
        "transformers, sorted": partial(_sorted, setting, texts),
        "transformers, sorted, by tokens": partial(_sorted, setting, texts, FEW[setting.device.type]),
    }
    if setting.device.type == "cuda" or shutil.which("g++"):  # which torch's compiler needs on a CPU
        sides["transformers, sorted, compiled"] = partial(
            _sorted, setting, texts, FEW[setting.device.type], compiled=True
        )
    return sides


def latency(setting: Setting) -> Makers:
    """Short texts, one at a time."""
    texts = [[text] for text in texts_of(setting, "short", SINGLE)]
    return {"minilm": partial(_embedder, setting, texts), **_both_sentence_transformers(setting, texts)}


def least_of_text(setting: Setting, kind: str, n: int = 0) -> Least:
    """A third of what training would need, on average over n texts, or those of a pass if that is 0."""
    embedder = read_embedder(setting.model)
    texts = texts_of(setting, kind, n or setting.texts or TEXTS[setting.device.type])
    ids = embedder.tokenizer(texts, truncation=True, max_length=embedder.length).input_ids
    lengths = np.array([*map(len, ids)])
    flops = training_flops(embedder.model.encoder.cfg, int(lengths.sum()), seen_of(lengths), 0) / 3
    return Least(flops / len(texts), tokens=float(lengths.mean()))


def _both_sentence_transformers(setting: Setting, calls: list[list[str]]) -> Makers:
    """In the row's precision, and in its own."""
    fp32 = replace(setting, precision="fp32")
    own: Makers = {"sentence-transformers": partial(_sentence_transformers, setting, calls)}
    more = {"sentence-transformers, fp32": partial(_sentence_transformers, fp32, calls)}
    return own | (more if setting.precision != "fp32" else {})


def _embedder(setting: Setting, calls: list[list[str]]) -> Side:
    embedder = read_embedder(setting.model)
    embedder.model.to(setting.device, setting.dtype)

    def run() -> Done:
        return _of_vectors(torch.cat([embed(embedder, texts) for texts in calls]))

    return run


def _sentence_transformers(setting: Setting, calls: list[list[str]]) -> Side:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(setting.model), device=str(setting.device)).to(setting.dtype)

    def run() -> Done:
        return _of_vectors(torch.cat([model.encode(texts, convert_to_tensor=True) for texts in calls]))

    return run


def _sorted(setting: Setting, texts: list[str], batch_tokens: int | None = None, compiled: bool = False) -> Side:
    """A plain loop over transformers' model: the longest texts first, in half precision where the row has it, TOGETHER
    in a batch, or with at most so many tokens, padding included. compiled: for batches of any shape."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(setting.model).to(setting.device, setting.dtype).eval()
    forward = torch.compile(model, dynamic=True) if compiled else model
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    pooling = read_pooling(setting.model) or Pooling()
    length = min(pooling.max_length or model.config.max_position_embeddings, model.config.max_position_embeddings)
    assert pooling.how == ("mean",), pooling

    def run() -> Done:
        ids = tokenizer(texts, truncation=True, max_length=length, return_attention_mask=False).input_ids
        order, at, found = sorted(range(len(texts)), key=lambda i: -len(ids[i])), 0, []
        while at < len(order):
            size = max(1, batch_tokens // len(ids[order[at]])) if batch_tokens else TOGETHER
            part = order[at : at + size]
            at += len(part)
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in part]}, return_tensors="pt").to(setting.device)
            with torch.no_grad():
                states = forward(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None]
            means = (states * mask).sum(dim=1) / mask.sum(dim=1)
            found.append(nn.functional.normalize(means) if pooling.normalize else means)
        return _of_vectors(torch.cat(found)[np.argsort(order)])

    return run


def _of_vectors(vectors: Tensor) -> Done:
    return Done(len(vectors), vectors.float())


def tokenising(setting: Setting) -> Makers:
    """Documents to ids, without special tokens, by as many threads as either library takes."""
    texts = texts_of(setting, "long", DOCUMENTS)

    def minilm() -> Side:
        tokenizer = Tokenizer.load(setting.model)

        def run() -> Done:
            fresh = Tokenizer(tokenizer.backend, tokenizer.lowercase)  # which remembers no word of these texts
            return _of_ids(np.concatenate(fresh.encode_documents(texts)))

        return run

    def transformers() -> Side:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(setting.model, model_max_length=10**9)
        calls = itertools.count()

        def run() -> Done:
            wanted = {"return_attention_mask": False, "return_token_type_ids": False}
            ids = tokenizer(texts, add_special_tokens=False, **wanted).input_ids
            if next(calls) == 0:
                return _of_ids(np.concatenate([np.array(each, np.int32) for each in ids]))
            return Done(sum(map(len, ids)), torch.zeros(1, 1))

        return run

    return {"minilm": minilm, "transformers": transformers}


def _of_ids(ids: np.ndarray) -> Done:
    return Done(len(ids), torch.from_numpy(ids.astype(np.int64))[None])


def loading(setting: Setting, B: int = 32) -> Makers:
    """Masked batches of B rows of 128 tokens, out of tokens on the disk, or in memory for transformers."""
    data = prepare(None, setting.cache_dir, 0.05, vocab_size=8192)
    rows = pack(data.train, "stream", 128, data.tokenizer)

    def minilm() -> Side:
        stretches, objective = [Stretch(10**9, 128, B, B)], make_objective("mlm", data.tokenizer, 0, RATE)
        endless = made_ahead(Loader(stretches, {128: rows}, objective, 0), 0)

        def run() -> Done:
            count = sum(each.tokens.input_ids.numel() for _ in range(LOADED) for each in next(endless))
            return Done(count, torch.zeros(1, 1))

        return run

    def transformers() -> Side:
        """A process of its own prepares them, as minilm's thread does."""
        from torch.utils.data import DataLoader
        from transformers import AutoTokenizer, DataCollatorForLanguageModeling

        numbers = np.arange(B * LOADED) % len(rows)
        ids = rows.take(numbers, np.zeros_like(numbers)).ids
        special = torch.isin(ids, torch.tensor(data.tokenizer.special_ids)).long()
        examples = [{"input_ids": a, "special_tokens_mask": b} for a, b in zip(ids, special, strict=True)]
        with tempfile.TemporaryDirectory() as directory:
            data.tokenizer.save(Path(directory), 128)
            collate = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(directory), mlm_probability=RATE)
        loader = DataLoader(examples, B, True, collate_fn=collate, num_workers=1, persistent_workers=True)
        return lambda: Done(sum(batch["input_ids"].numel() for batch in loader), torch.zeros(1, 1))

    return {"minilm": minilm, "transformers": transformers}
