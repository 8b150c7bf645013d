"""Use or judge a trained model of any family; `python evaluate.py --help` lists the commands."""

from minilm.errors import end_quietly

if __name__ == "__main__":
    end_quietly()  # before torch is loaded

from minilm import cli
from minilm.commands.bias import Bias, run_bias
from minilm.commands.cloze import Cloze, run_cloze
from minilm.commands.compare import Compare, run_compare
from minilm.commands.embed import Embed, Search, run_embed, run_search
from minilm.commands.explain import Explain, run_explain
from minilm.commands.fill_mask import FillMask, run_fill_mask
from minilm.commands.generation import Generation, run_generation
from minilm.commands.pairs import Pairs, run_pairs
from minilm.commands.perplexity import Perplexity, run_perplexity
from minilm.commands.predict import Predict, run_predict
from minilm.commands.report import Report, run_report
from minilm.commands.score import Score, run_score

COMMANDS = {
    "score": (run_score, Score),
    "compare": (run_compare, Compare),
    "report": (run_report, Report),
    "predict": (run_predict, Predict),
    "embed": (run_embed, Embed),
    "search": (run_search, Search),
    "fill-mask": (run_fill_mask, FillMask),
    "perplexity": (run_perplexity, Perplexity),
    "pairs": (run_pairs, Pairs),
    "cloze": (run_cloze, Cloze),
    "bias": (run_bias, Bias),
    "explain": (run_explain, Explain),
    "generation": (run_generation, Generation),
}

if __name__ == "__main__":
    cli.run_one_of(COMMANDS)
