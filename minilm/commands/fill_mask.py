"""fill-mask: the likeliest words for a mask."""

from dataclasses import asdict, dataclass
from typing import ClassVar

from minilm import cli
from minilm.commands.of_model import OfModel, tell
from minilm.errors import printable
from minilm.use.complete import fill_mask, read_masked_lm


@dataclass(frozen=True, kw_only=True)
class FillMask(OfModel):
    """The likeliest words for a mask in a text."""

    ranges: ClassVar[cli.Ranges] = OfModel.ranges | {"top_k": (1, 1 << 20)}

    text: str
    """A text with one mask in it, as the model's tokenizer writes it: [MASK], or <mask>."""
    top_k: int = 5
    """Number of words to print."""


def run_fill_mask(args: FillMask) -> None:
    """Print the likeliest fillings."""
    cli.check_result(args.json)
    masked = read_masked_lm(args.model, **args.options())
    with args.computing(masked.model):
        fillings = fill_mask(masked, args.text, args.top_k)
    lines = [printable(f"{each.probability:6.1%}  {each.token:16}  {each.text}") for each in fillings]
    tell(args.json, {"fillings": [asdict(each) for each in fillings]}, lines)
