"""What several test folders share: reference models of transformers, ours with the same weights, and `train.py`.

Parity is asserted in float64 (transformers' own two kernels differ by 1e-5 in fp32), in two weight regimes: under
the initial one some wrong ports are invisible, because biases are 0, gains 1 and attention nearly uniform.
"""

import importlib.util
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor

import minilm
import minilm.finetuning.report
import minilm.train.log
from minilm.batch import Tokens
from minilm.checkpoint.hf import config_to_hf, from_hf, kind_of, to_hf
from minilm.labelled.examples import Example
from minilm.machine.runtime import Runtime
from minilm.model.encoder import bert_config, modern_config
from minilm.model.heads import LanguageModel
from minilm.recipes import RECIPES

REGIMES = ("initial", "wild", "deep")  # deep: 6 x 384, once, because it is slow
VOCAB = 99
GOOD, BAD, PLAIN = ["fine", "great", "lovely"], ["awful", "poor", "dull"], ["the", "film", "was", "and", "plot", "a"]


REACHED: list[object] = []  # hosts that this process asked for, other than itself
LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}


def _notice(event: str, args: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        where = args[:1] if event.startswith("socket.get") else args[1]  # of a local socket a path
        if isinstance(where, tuple) and isinstance(where[0], str) and where[0] not in {"", *LOCAL}:
            REACHED.append(where[0])


sys.addaudithook(_notice)


@pytest.fixture(autouse=True)
def no_network(request):
    """No test, and so no command that they run in this process, asks for another machine; nor what is made for them."""
    yield REACHED
    reached, REACHED[:] = [*REACHED], []
    assert reached == [] or request.node.get_closest_marker("asks")


@pytest.fixture
def graphs(monkeypatch):
    """The graphs of `Runtime.compiled`, here on a CPU, too; they are run as they are, and no code is made of them."""
    compiled, made = torch.compile, []
    monkeypatch.setattr("minilm.machine.runtime.COMPILED_ON", ("cpu",))
    monkeypatch.setattr(torch, "compile", partial(compiled, backend=lambda graph, inputs: made.append(graph) or graph))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):
        yield made
    torch._dynamo.reset()


@pytest.fixture
def replays(monkeypatch):
    """The steps that `--cuda-graphs` records, here on a CPU, too, each with `count`, how often it is replayed: computed
    anew from what it was recorded with."""
    recorded = []

    class Graphs:
        def __init__(self, device):
            self.device = device

        def warm_up(self, work):
            return work()

        def record(self, work):
            made = torch.full((), torch.nan), torch.full((), torch.nan), torch.tensor(True)
            recorded.append(SimpleNamespace(count=0))
            own = recorded[-1]

            def replay():
                own.count += 1
                for old, new in zip(made, work(), strict=True):
                    old.copy_(new)

            return replay, made

    monkeypatch.setattr("minilm.train.graphs.GRAPHED_ON", ("cpu",))
    monkeypatch.setattr("minilm.train.graphs.CudaGraphs", Graphs)
    return recorded


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices gain nothing from more, and lose twentyfold where the cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def as_in_a_terminal():
    """Signals, even where these run under nohup, which has SIGHUP ignored, or in the background of a script,
    which has SIGINT ignored."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def wait_for():
    """wait_for(sign, *processes): until sign() is true, while all of them run."""

    def wait(sign: Callable[[], object], *processes: subprocess.Popen, seconds: float = 60) -> None:
        limit = time.monotonic() + seconds
        while not (came := sign()) and all(each.poll() is None for each in processes) and time.monotonic() < limit:
            time.sleep(0.005)
        assert came or sign()

    return wait


@pytest.fixture(scope="session")
def load():
    """load("train.py"): a script as a module, without putting the root on sys.path."""

    def make(path: str):
        name = Path(path).stem + "_script"
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return make


@pytest.fixture(scope="session")
def train_script(load):
    """train.py as a module."""
    return load("train.py")


@pytest.fixture
def narrow_recipes(monkeypatch):
    """The recipes of a few minutes, made narrow."""
    narrow = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 256}
    for name in ("quick", "bert-mini"):
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], **narrow))


@pytest.fixture
def pictures():
    """For tests of pictures: without it runs in this process draw none, which takes a second each."""


@pytest.fixture
def no_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        for module in (minilm.finetuning.report, minilm.train.log):
            monkeypatch.setattr(module, "drawn", lambda image, draw: True)


@pytest.fixture
def train(train_script, monkeypatch, no_pictures):
    """The same, in less time: the peak of the machine is not measured, and fewer held-out targets do."""
    monkeypatch.setattr("minilm.train.measure.matmul_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr(train_script, "fixed_batches", partial(train_script.fixed_batches, min_targets=2000))
    return train_script


def small_config(architecture: str, regime: str = "wild", dropout: float = 0.0):
    """2 x 32 (or 6 x 384), odd widths where they can be odd, a window that 24 tokens exceed."""
    layers, width, heads = (6, 384, 12) if regime == "deep" else (3, 32, 4)
    if architecture == "bert":
        return bert_config(
            VOCAB, width, layers, heads, intermediate_size=37, max_position_embeddings=64, dropout=dropout
        )
    return modern_config(
        VOCAB, width, layers, heads, intermediate_size=21, max_position_embeddings=64, window=3, global_every=2
    )


def randomise(module: torch.nn.Module, regime: str, seed: int) -> None:
    """In place: matrices N(0, 0.3) (0.05 if deep), and N(0, 0.3) added to every bias and gain. `initial`: nothing."""
    if regime == "initial":
        return
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            if parameter.ndim > 1:
                parameter.copy_(noise * (0.05 if regime == "deep" else 0.3))
            else:
                parameter.add_(noise * 0.3)


@pytest.fixture
def exact_float64(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets a float64 model of transformers compute in float64: its RoPE, its losses and ModernBERT's eager softmax
    round to fp32 on the way."""
    return partial(_exact_float64, monkeypatch)


def _exact_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.modernbert import modeling_modernbert as encoder
    from transformers.models.modernbert_decoder import modeling_modernbert_decoder as decoder

    def table(self, x: Tensor, position_ids: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        base = self.config.rope_parameters[layer_type]["rope_theta"]
        width = self.config.hidden_size // self.config.num_attention_heads
        k = torch.arange(0, width, 2, dtype=x.dtype)
        angle = torch.cat((position_ids[..., None].to(x.dtype) * base ** (-k / width),) * 2, dim=-1)
        return angle.cos(), angle.sin()

    def keep_wide(self: Tensor) -> Tensor:
        return self if self.dtype == torch.float64 else self.to(torch.float32)

    def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return x.softmax(dim, dtype=None if x.dtype == torch.float64 else dtype)

    monkeypatch.setattr(encoder.ModernBertRotaryEmbedding, "forward", table)
    monkeypatch.setattr(decoder.ModernBertDecoderRotaryEmbedding, "forward", table)
    monkeypatch.setattr(Tensor, "float", keep_wide)
    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)


@pytest.fixture
def pair(exact_float64):
    """pair(architecture, objective, regime, dtype, ..., pairs) -> .ours, .theirs (same weights, eval mode), .cfg."""
    import transformers

    def make(
        architecture: str,
        objective: str = "mlm",
        regime: str = "wild",
        dtype=torch.float64,
        kernel="sdpa",
        backend="sdpa",
        pairs=None,
    ):
        if dtype == torch.float64:
            exact_float64()
        cfg = small_config(architecture, regime)
        written = config_to_hf(cfg, objective, {"cls_token_id": 2, "sep_token_id": 3}, pairs)
        model_type, kind = written["model_type"], kind_of(written)
        config = transformers.AutoConfig.for_model(**written)
        torch.manual_seed(1)
        theirs = getattr(transformers, written["architectures"][0])._from_config(config, attn_implementation=kernel)
        randomise(theirs, regime, seed=2)
        theirs.to(dtype).eval()
        ours = LanguageModel(cfg, backend, pairs is not None).to(dtype).eval()
        ours.load_state_dict(from_hf(theirs.state_dict(), model_type, kind, ours.state_dict())[0])

        def gradients() -> dict[str, tuple[Tensor, Tensor]]:
            """Their name -> (our gradient, theirs), after both backward passes."""
            own = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
            mine = to_hf(own, model_type, kind)
            reference = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
            assert mine.keys() == reference.keys()
            return {name: (mine[name], reference[name]) for name in mine}

        return SimpleNamespace(ours=ours, theirs=theirs, cfg=cfg, model_type=model_type, gradients=gradients)

    return make


@pytest.fixture
def assert_close():
    """assert_close(ours, theirs, what): within 1e-9 of the larger of 1 and the largest reference value."""

    def check(mine: Tensor, reference: Tensor, what: str = "") -> None:
        mine, reference = mine.detach(), reference.detach()
        bound = 1e-9 * max(1.0, float(reference.abs().max()))
        worst = float((mine - reference).abs().max())
        assert worst <= bound, f"{what}: {worst:.3g} apart, allowed {bound:.3g}"

    return check


@pytest.fixture
def ids():
    """(3, 24) token ids without specials."""
    return torch.randint(5, VOCAB, (3, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def masks():
    """Attention masks (3, 24) by name: padding on the right, on the left, one row unpadded."""
    right, left = torch.ones(3, 24, dtype=torch.long), torch.ones(3, 24, dtype=torch.long)
    right[0, 10:] = right[1, 23:] = 0
    left[0, :9] = left[2, :1] = 0
    return {"right": right, "left": left}


@pytest.fixture
def packed():
    """Document numbers (3, 24): several documents a row, one of one token, a padded tail, a full row."""
    doc = torch.full((3, 24), -1)
    doc[0] = torch.tensor([0] * 5 + [1] * 9 + [2] * 10)
    doc[1, :20] = torch.tensor([0] * 1 + [1] * 12 + [2] * 7)
    doc[2, :23] = 0
    return doc


@pytest.fixture
def tokens_of():
    """tokens_of(ids, reach, doc=None, mask=None): Tokens; prefix marks the first third of each document."""

    def make(ids: Tensor, reach: str, doc: Tensor | None = None, mask: Tensor | None = None) -> Tokens:
        prefix = None
        if reach == "prefix":
            whole = torch.zeros_like(ids) if doc is None else doc
            prefix = torch.zeros_like(ids, dtype=torch.bool)
            for b, row in enumerate(whole.tolist()):
                for d in set(row) - {-1}:
                    places = [t for t, x in enumerate(row) if x == d]
                    prefix[b, places[: -(-len(places) // 3)]] = True
        if doc is not None:
            return Tokens.packed(ids, doc, reach, prefix)
        return Tokens.full(ids, reach, prefix) if mask is None else Tokens.padded(ids, mask, reach, prefix)

    return make


@pytest.fixture
def rule():
    """rule(tokens, window): who sees whom, (B, T, T) bool, by a triple loop over the sentence in the design."""

    def by_hand(t: Tokens, window: int | None) -> Tensor:
        B, T = t.input_ids.shape
        doc, key, prefix = t.doc.tolist(), t.key.tolist(), t.prefix.tolist()
        out = torch.zeros(B, T, T, dtype=torch.bool)
        for b in range(B):
            for i in range(T):
                for j in range(T):
                    out[b, i, j] = (
                        key[b][j]
                        and (doc[b][i] == doc[b][j] or not key[b][i])
                        and (j <= i or prefix[b][j])
                        and (window is None or abs(i - j) <= window)
                    )
                if not out[b, i].any():
                    out[b, i, i] = True
        return out

    return by_hand


@pytest.fixture
def encoder_directory(tmp_path_factory):
    """A directory with a small random BERT without a head, that reads 24 tokens, and a tokenizer of a few words."""
    directory = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    minilm.BertModel(minilm.BertConfig(vocab_size=64, max_position_embeddings=24, **sizes)).save_pretrained(directory)
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] fine great lovely awful poor dull the film was and plot a ##s ."
    (directory / "vocab.txt").write_text(words.replace(" ", "\n") + "\n")
    minilm.BertTokenizer(directory / "vocab.txt", model_max_length=24).save_pretrained(directory)
    return directory


# -- small models of transformers on disk, and texts for them -------------------------------------------

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "##s", "##ing", "##ed", "."]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
STEMS, ENDS = [word for word in WORDS if word[0] not in "#."], ["", "s", "ing", "ed", "inged"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="session")
def vocab():
    return PIECES


@pytest.fixture(scope="session")
def sentences():
    """sentences(n, seed): n of them, of words of one piece and of several."""

    def make(n, seed=0):
        rng = random.Random(seed)
        return [
            " ".join(rng.choice(STEMS) + rng.choice(ENDS) for _ in range(rng.randint(1, 9))) + rng.choice(["", "."])
            for _ in range(n)
        ]

    return make


@pytest.fixture
def made():
    """made(family, directory) -> (directory, transformers' model of it in float64), random weights."""
    return _made


def _made(family, directory, **more):
    torch.manual_seed(0)
    common = {"vocab_size": len(PIECES), "max_position_embeddings": 48, "pad_token_id": 0, "initializer_range": 0.3}
    special = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    named = {
        "bert": (transformers.BertConfig, transformers.BertForMaskedLM, SIZES),
        "causal": (transformers.BertConfig, transformers.BertLMHeadModel, SIZES | {"is_decoder": True}),
        "modernbert": (transformers.ModernBertConfig, transformers.ModernBertForMaskedLM, SIZES | special),
        "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, SIZES | {"type_vocab_size": 1}),
        "distilbert": (
            transformers.DistilBertConfig,
            transformers.DistilBertForMaskedLM,
            {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
        ),
    }
    config, model, own = named[family]
    reference = model(config(**common | own | more))
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    reference.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    minilm.BertTokenizer(str(directory / "vocab.txt"), model_max_length=32).save_pretrained(directory)
    reference = model.from_pretrained(directory, attn_implementation="eager")
    return directory, reference.double().eval()


@pytest.fixture
def reviews():
    """reviews(n, seed, pairs): n examples of unequal lengths, "good" or "bad" by one word in each."""

    def make(n, seed=0, pairs=False):
        rng = random.Random(seed)
        found = []
        for i in range(n):
            label = ("good", "bad")[i % 2]
            words = rng.choices(PLAIN, k=rng.randint(0, 14))
            words.insert(rng.randint(0, len(words)), rng.choice(GOOD if label == "good" else BAD))
            pair = " ".join(rng.choices(PLAIN, k=rng.randint(1, 6))) if pairs else None
            found.append(Example(" ".join(words), pair, label, f"row {i + 1}"))
        return found

    return make


@pytest.fixture
def cpu():
    """cpu(precision): a Runtime as `choose` would make it, of its own (each has its own GradScaler)."""
    return lambda precision="fp32": Runtime(torch.device("cpu"), precision, "test", torch.get_num_threads())
