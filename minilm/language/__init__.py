"""Likelihoods of texts under a language model, and tests made of them: minimal pairs, cloze, perplexity, bias."""
