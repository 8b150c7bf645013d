"""Code that was written for transformers runs unchanged but for its import, and to the same numbers."""

import pytest
import torch

EMBEDDINGS = """
from LIBRARY import BertModel, BertTokenizer
import torch

tokenizer = BertTokenizer.from_pretrained("bert")
model = BertModel.from_pretrained("bert")
inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
last_hidden_states = outputs[0]
result = last_hidden_states
"""
ENCODE = """
from LIBRARY import BertModel, BertTokenizer
import torch

tokenizer = BertTokenizer.from_pretrained("bert")
model = BertModel.from_pretrained("bert")
input_ids = torch.tensor(tokenizer.encode("Hello, my dog is cute", add_special_tokens=True)).unsqueeze(0)
outputs = model(input_ids)
result = outputs[1].detach()
"""
FINE_TUNING = """
from LIBRARY import BertForSequenceClassification, BertTokenizer
import torch
from torch.utils.data import DataLoader, TensorDataset

tokenizer = BertTokenizer.from_pretrained("classifier")
model = BertForSequenceClassification.from_pretrained("classifier", num_labels=2)
encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
dataset = TensorDataset(encoded["input_ids"], encoded["attention_mask"], torch.tensor(LABELS))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
model.eval()  # where nothing is dropped, both draw no numbers
losses = []
for epoch in range(6):
    for b_input_ids, b_input_mask, b_labels in DataLoader(dataset, batch_size=4):
        model.zero_grad()
        outputs = model(b_input_ids, token_type_ids=None, attention_mask=b_input_mask, labels=b_labels)
        loss = outputs[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
model.save_pretrained("tuned")
tokenizer.save_pretrained("tuned")
result = torch.tensor(losses)
"""
EVALUATION = """
from LIBRARY import BertForSequenceClassification, BertTokenizer
import torch
from sklearn.metrics import accuracy_score

tokenizer = BertTokenizer.from_pretrained("tuned")
model = BertForSequenceClassification.from_pretrained("tuned")
model.eval()
predictions, true_labels = [], []
for text, label in zip(TEXTS, LABELS):
    inputs = tokenizer(text, add_special_tokens=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    predictions.append(torch.argmax(outputs[0], dim=-1).item())
    true_labels.append(label)
result = accuracy_score(true_labels, predictions)
"""
TEXTS = ["my dog is cute", "Hello, dog", "my cat is here", "a cat, hello", "the dog is my dog", "is the cat cute"]
LABELS = [1, 1, 0, 0, 1, 0]
WORDS = ["hello", ",", "my", "dog", "is", "cu", "##te", "cat", "here", "a", "the"]


@pytest.fixture
def directories(tmp_path, monkeypatch):
    """The models "bert" and "classifier", saved by transformers, in the current directory."""
    import transformers

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=16, max_position_embeddings=32, initializer_range=0.2, **sizes)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    for name, made in (("bert", transformers.BertModel), ("classifier", transformers.BertForSequenceClassification)):
        made(config).save_pretrained(tmp_path / name)
        transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / name)


def run(snippet, library):
    found = {"TEXTS": TEXTS, "LABELS": LABELS}
    exec(snippet.replace("LIBRARY", library), found)
    return found["result"]


@pytest.mark.parametrize("snippet", [EMBEDDINGS, ENCODE], ids=["embeddings", "encode"])
def test_states(directories, snippet):
    mine, reference = run(snippet, "minilm"), run(snippet, "transformers")
    assert mine.shape == reference.shape
    assert (mine - reference).abs().max() < 1e-5


def test_fine_tuning_and_evaluation(directories):
    """Each library evaluates what it tuned, and what the other did."""
    reference = run(FINE_TUNING, "transformers")
    scores = [run(EVALUATION, library) for library in ("transformers", "minilm")]
    mine = run(FINE_TUNING, "minilm")
    scores += [run(EVALUATION, library) for library in ("transformers", "minilm")]
    assert (mine - reference).abs().max() < 1e-3
    assert mine[-2:].mean() < 0.2 < mine[:2].mean()
    assert scores == [1.0] * 4
