"""Every class of every family in fp32: as near to transformers' written-out attention as its fused one is."""

import pytest
import torch
import transformers

from minilm.checkpoint.families import FAMILIES
from minilm.dropin import models

CLASS_OF = {each.kind: each for each in vars(models).values() if hasattr(each, "kind")}
ROWS = [(name, kind) for name, family in FAMILIES.items() for kind in family.classes]
SIZES = {
    "vocab_size": 99,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
MORE = {  # by the families' own names; the text is longer than the window
    "distilbert": {"hidden_dim": 512},
    "modernbert": {"intermediate_size": 512, "local_attention": 16},
    "modernbert-decoder": {"intermediate_size": 512, "local_attention": 16},
}
B, T, REAL = 2, 48, 40


def theirs_of(name, kind):
    """A model of theirs of 6 x 384: matrices N(0, 0.05), biases and gains N(0, 0.3) beside where they begin."""
    more = MORE.get(name, {"intermediate_size": 512}) | ({"is_decoder": True} if kind == "clm" else {})
    config = transformers.AutoConfig.for_model(name, **SIZES, **more)
    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[name].classes[kind].architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.05)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_distance(name, kind, tmp_path):
    """To the eager outputs, over the tokens that are not padding: at most four times that of sdpa."""
    theirs = theirs_of(name, kind)
    theirs.save_pretrained(tmp_path)
    shape = (B, 2, T) if kind == "choice" else (B, T)
    ids = torch.randint(5, 99, shape, generator=torch.Generator().manual_seed(1))
    ids[0, ..., REAL:] = 1
    inputs = {"input_ids": ids, "attention_mask": (ids != 1).long()}

    @torch.no_grad()
    def outputs(model, attention):
        if isinstance(model, transformers.PreTrainedModel):
            model.set_attn_implementation(attention)
        found = {key: value for key, value in model(**inputs).items() if key != "past_key_values"}
        return {
            key: own[inputs["attention_mask"].bool()] if own.shape[:2] == (B, T) else own for key, own in found.items()
        }

    reference, fused = outputs(theirs, "eager"), outputs(theirs, "sdpa")
    for attention in ("sdpa", "eager"):
        mine = outputs(CLASS_OF[kind].from_pretrained(tmp_path, attn_implementation=attention), attention)
        assert mine.keys() == reference.keys()
        for key, own in mine.items():
            scale = max(1.0, float(reference[key].abs().max()))
            mistake, theirs_own = (float((x - reference[key]).abs().max()) / scale for x in (own, fused[key]))
            assert own.shape == reference[key].shape
            assert mistake <= 4 * max(1e-6, theirs_own), (attention, key, mistake, theirs_own)
