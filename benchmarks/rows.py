"""What is measured side by side. A row makes the same work for each of its sides; each call of a side is some steps, or
a pass over texts, and it says how much that was, and numbers that all sides must come to.

minilm                           as its commands do it, in the row's precision
minilm, compiled                 on a GPU: with --compile; fine-tuning also with --cuda-graphs, and with both
transformers                     as its documentation has it: the collator's mask, autocast, AdamW
transformers, Trainer            its own loop, where accelerate is installed, of the first row and of fine-tuning
transformers, tuned, Trainer     on a GPU: its own loop with torch_compile, of the first row
transformers, tuned              on a GPU: torch.compile, no mask where nothing is padded; fine-tuning also with the
                                 compiler's CUDA graphs (mode "reduce-overhead"; its optimizer is outside of them)
transformers, head on targets    by its modules: only targets meet the vocabulary, no mask, and the faster attention; on
                                 a GPU tuned, too
transformers, faster attention   of its implementations (eager, where the row has bf16 or dropout)
transformers, grouped            that, with texts of like lengths in a batch
transformers, sorted             vectors by a loop over its model, 32 texts of like lengths in a batch
transformers, sorted, by tokens  the same, with so many tokens in a batch as were fastest beforehand (on a CPU)
transformers, sorted, compiled   that by torch.compile, for batches of any shape
sentence-transformers            in the row's precision, that of its weights as of ours; and in fp32, its default

Weights, tokens, targets and updates are the same, dropout is off where nothing else is said. Weights are large at first
(INITIAL), for with BERT's small ones every loss is about ln V, whoever sees whom. Batches are made before, on the
device; AdamW is torch's fused one, gradients are set to None, clipped at 1.0. Counted are real tokens, not padding.
"Of the limit" is what share of the time its least work would take at the machine's own peaks, measured between turns:
matrix products at that of a square product, AdamW's reading and writing at that of a copy. What minilm does and
transformers' classes do not: only targets meet the vocabulary and pass the last layer, texts are packed without
padding. In training on a CPU it has glibc keep memory that is freed (`Runtime.choose`), and so have the sides of an
expert: "head on targets", "faster attention" and "grouped".
"""

from functools import partial

from benchmarks.side import Row
from benchmarks.steps import finetuning, language_modelling, least_of_labelled, least_of_token
from benchmarks.texts import SINGLE, embedding, latency, least_of_text, loading, tokenising


def of_texts(what: str, kind: str) -> Row:
    return Row(what, "texts", partial(embedding, kind=kind), True, least=partial(least_of_text, kind=kind))


ROWS: dict[str, Row] = {  # the most telling first
    "pretrain-128": Row(
        "a masked-LM step, full rows of 128 tokens", "tokens", language_modelling, least=partial(least_of_token, T=128)
    ),
    "pretrain-128-dropout": Row(
        "the same with dropout of 0.1 everywhere",
        "tokens",
        partial(language_modelling, dropout=0.1),
        least=partial(least_of_token, T=128),
        agree=False,
    ),
    "pretrain-natural": Row(
        "a masked-LM step, texts of 8 to 128 tokens, 64 on average",
        "tokens",
        partial(language_modelling, natural=True),
        least=partial(least_of_token, T=128, natural=True),
    ),
    "pretrain-512": Row(
        "a masked-LM step, full rows of 512 tokens",
        "tokens",
        partial(language_modelling, T=512),
        least=partial(least_of_token, T=512),
    ),
    "causal-1024": Row(
        "a causal-LM step, full rows of 1,024 tokens",
        "tokens",
        partial(language_modelling, T=1024, causal=True),
        least=partial(least_of_token, T=1024, causal=True),
    ),
    "finetune": Row("a fine-tuning step, 32 texts of 4 to 64 tokens", "tokens", finetuning, least=least_of_labelled),
    "finetune-dropout": Row(
        "the same with dropout of 0.1 everywhere, as models are tuned",
        "tokens",
        partial(finetuning, dropout=0.1),
        least=least_of_labelled,
        agree=False,
    ),
    "finetune-grouped": Row(
        "without dropout, texts of like lengths in a batch",
        "tokens",
        partial(finetuning, grouped=True),
        least=least_of_labelled,
    ),
    "embed-mixed": of_texts("vectors of texts of 4 to 300 words", "mixed"),
    "embed-short": of_texts("vectors of texts of 4 to 16 words", "short"),
    "embed-long": of_texts("vectors of texts of 150 to 300 words", "long"),
    "latency": Row(
        "vectors of short texts, one at a time",
        "texts",
        latency,
        True,
        least=partial(least_of_text, kind="short", n=SINGLE),
    ),
    "tokenise": Row("documents to ids", "tokens", tokenising, True, ("fp32",), on_cpu=True),
    "load": Row("masked batches of 32 rows of 128 tokens", "tokens", loading, precisions=("fp32",), on_cpu=True),
    "load-256": Row("the same of 256 rows", "tokens", partial(loading, B=256), precisions=("fp32",), on_cpu=True),
}
