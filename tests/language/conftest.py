"""Small language models of transformers' on disk, as what scores texts."""

import pytest

from minilm.language.likelihood import read_scorer


@pytest.fixture
def in_float64():
    """in_float64(directory): what scores texts by its model."""

    def make(directory):
        scorer = read_scorer(directory)
        scorer.model.double()
        return scorer

    return make
