"""How well texts are known, sentence against sentence, word for word."""
