"""An own data module."""

from qat_lightning.data import RandomText


class CountedTokens(RandomText):
    """Random tokens whose label tells whether the first of them is large: a task that can be learned."""

    task = "counted tokens"

    def _row(self, length, draw):
        tokens = self._tokens(length, draw)
        return {"input_ids": tokens, "labels": int(tokens[0] > self.vocabulary_size // 2)}
