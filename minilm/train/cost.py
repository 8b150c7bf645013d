"""What a model costs, counted from its shape."""

from minilm.model.encoder import EncoderConfig


def training_flops(cfg: EncoderConfig, tokens: int, length: int, targets: int) -> int:
    """Floating-point operations of the matrix products of forward and backward (twice the forward).

    tokens: positions computed, padding included; length: tokens a row; targets: positions that meet the
    vocabulary. Kaplan et al. 2020, sec. 2.1, with attention counted in full.
    """
    D, F, E = cfg.hidden_size, cfg.intermediate_size, cfg.embedding_size or cfg.hidden_size
    mlp = (3 if cfg.mlp == "gated" else 2) * D * F
    attention = 4 * D * D + 2 * length * D
    layers = len(cfg.layers) * (attention + mlp)
    head = D * E + E * cfg.vocab_size
    return 3 * 2 * (tokens * layers + targets * head)
