"""What the commands share: how far they are is told."""

from minilm.commands import of_model


def test_how_far_it_is_is_told_of_what_is_done(monkeypatch):
    """Forty items in batches of ten, each batch of 12 s, are half done after two: the other two take 24 s, of which the
    third has taken its 12 when its first item comes."""
    now, said = [0.0], []
    monkeypatch.setattr(of_model.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(of_model, "say", said.append)

    def batches():
        for i in range(40):
            now[0] += 12.0 * (i % 10 == 0)
            yield i

    assert [*of_model.counted(batches(), 40, "pairs")] == [*range(40)]
    assert said == ["10 of 40 pairs, 24 s left", "20 of 40 pairs, 12 s left", "30 of 40 pairs, 0 s left"]
