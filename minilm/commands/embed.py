"""embed, search: vectors of texts, and the nearest texts."""

import hashlib
import io
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from minilm import cli
from minilm.checkpoint.model import weights_fingerprint
from minilm.commands.of_model import SAY_EVERY, OfModel, going_on
from minilm.data.documents import lines_of
from minilm.errors import ConfigError, DataError, printable
from minilm.labelled.tables import is_table, text_lines
from minilm.machine.runtime import Precision, Runtime
from minilm.train.job import VERSIONS
from minilm.train.log import say
from minilm.use.embed import Embedder, parts_of, read_embedder, say_cut, search, usual_batch_tokens


@dataclass(frozen=True, kw_only=True)
class OfTexts(OfModel):
    """Flags of a command that embeds a file of texts."""

    ranges: ClassVar[cli.Ranges] = OfModel.ranges | {"batch_tokens": (1, 1 << 20)}

    precision: Precision = "fp32"
    """Precision of the model's weights, states and products. Norms are computed in fp32."""
    data: Path
    """A text file, also .gz or .xz, one text a line."""
    pooling: tuple[Literal["cls", "mean", "max"], ...] | None = None
    """How a text's states become one vector; if not given, as the model's sentence-transformers files say, or mean."""
    batch_tokens: int | None = None
    """Tokens of a batch, about, or one text; if not given, 2,048 on a CPU and 16,384 elsewhere."""

    def embedder(self, normalize: bool | None = None) -> Embedder:
        """The model on its device, in the precision that is asked for."""
        embedder = read_embedder(self.model, self.pooling, normalize, **self.options())
        runtime = Runtime.precise(embedder.model, self.device, self.precision, self.threads)
        embedder.model.to(runtime.dtype)
        return embedder

    def decides(self, embedder: Embedder) -> dict[str, Any]:
        """All that determines the bits of a line's vector: weights, tokenizer, versions, precision, ..."""
        model, backend = embedder.model, embedder.tokenizer.backend_tokenizer
        how = asdict(embedder.pooling) | {"length": embedder.length, "side": embedder.tokenizer.truncation_side}
        how["config"] = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
        how |= {"batch_tokens": self.batch_tokens or usual_batch_tokens(model.device)}
        computed = {"precision": self.precision, "device": str(model.device), "threads": torch.get_num_threads()}
        tokenizer = hashlib.sha256(backend.to_str().encode()).hexdigest()
        return {"model": weights_fingerprint(model), "tokenizer": tokenizer} | VERSIONS | how | computed

    def lines(self) -> Iterator[str]:
        if is_table(self.data):
            raise DataError(f"--data {self.data}: tables and jsonl are not read here; give a file of one text a line")
        next(text_lines(self.data), None)  # refuses a file that is no text
        return lines_of(self.data)


@dataclass(frozen=True, kw_only=True)
class Embed(OfTexts):
    """A vector for each line of a text file, as a .npy. After a stop or kill, the same command resumes."""

    goes_on: ClassVar[bool] = True

    out: Path
    """The .npy to write: float32, a row for each line."""
    normalize: bool | None = None
    """Scale vectors to length 1; if not given, as the model's sentence-transformers files say, or not."""


@dataclass(frozen=True, kw_only=True)
class Search(OfTexts):
    """The lines of a text file that are nearest to a query, by cosine."""

    ranges: ClassVar[cli.Ranges] = OfTexts.ranges | {"top_k": (1, 1 << 20)}

    query: tuple[str, ...]
    """One or more texts."""
    top_k: int = 5
    """Lines to find for each query."""


def run_embed(args: Embed) -> None:
    """Write the vectors of all lines, streamed into a file that appears only when it is complete."""
    cli.check_result(args.json, data=args.data, out=args.out)
    cli.check_output("--out", args.out, data=args.data)
    if args.out.suffix != ".npy" or cli.is_stream(args.out):
        raise ConfigError(f"--out {args.out}: give a file that ends in .npy, and no pipe")
    lines, again = Watched(args.lines()), Watched(args.lines())
    count = sum(1 for _ in lines)
    if not count:
        raise DataError(f"--data {args.data}: holds no line")
    embedder = args.embedder(args.normalize)
    width = len(embedder.pooling.how) * embedder.model.config.hidden_size
    said = time.monotonic()
    with going_on("--out", args.out, args.decides(embedder) | {"lines": lines.digest()}) as rows:
        at, cut = rows.told.get("lines", 0), rows.told.get("cut", 0)
        if at:
            say(f"resuming after {at:,} of {count:,} lines")
        else:
            rows.add(header(count, width))
        for part in parts_of(embedder, itertools.islice(again, at, None), args.batch_tokens):
            if at + len(part.texts) > count:
                break
            at, cut = at + len(part.texts), cut + part.cut
            rows.add(part.vectors.numpy().astype("<f4", copy=False).tobytes(), lines=at, cut=cut)
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(f"{at:,} of {count:,} lines")
        if again.digest() != lines.digest():
            raise DataError(f"--data {args.data}: changed while it was read")
        rows.finish()
    say_cut(cut, count, embedder)
    how = " + ".join(embedder.pooling.how) + (", normalized" if embedder.pooling.normalize else "")
    say(f"{count:,} lines -> {args.out}: float32 ({count}, {width}), {how}")
    if args.json is not None:
        pooling = asdict(embedder.pooling)
        cli.write_result(args.json, {"texts": count, "cut": cut, "length": embedder.length, "width": width} | pooling)


class Watched:
    """Lines, with a checksum of those that have been read."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._digest = iter(lines), hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self._digest.update(f"{line}\n".encode())
            yield line

    def digest(self) -> str:
        return self._digest.hexdigest()


def header(count: int, width: int) -> bytes:
    """The header of a .npy of vectors (count, width) float32."""
    begin = io.BytesIO()
    np.lib.format.write_array_header_1_0(begin, {"descr": "<f4", "fortran_order": False, "shape": (count, width)})
    return begin.getvalue()


def run_search(args: Search) -> None:
    """Print the nearest lines of each query."""
    cli.check_result(args.json, data=args.data)
    if not args.query:
        raise ConfigError("--query: give one or more texts")
    lines = args.lines()
    found = search(args.embedder(), args.query, lines, args.top_k, args.batch_tokens)
    if args.json is not None:
        hits = [[{"line": hit.row + 1, "score": hit.score, "text": hit.text} for hit in each] for each in found]
        results = [{"query": query, "hits": each} for query, each in zip(args.query, hits, strict=True)]
        cli.write_result(args.json, {"results": results})
    if args.json != "-":
        for query, hits in zip(args.query, found, strict=True):
            print(printable(query))
            for hit in hits:
                print(f"  {hit.score:6.3f}  {args.data}:{hit.row + 1}: {printable(hit.text.strip()[:200])}")
