"""From a caption to its context: a word-level tokenizer and a transformer, both trained from scratch [LDM, appendix E.2.1]."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from tinyldm.blocks import Attention, FeedForward
from tinyldm.errors import UserError
from tinyldm.sizes import TextConfig

PAD, UNKNOWN = "<pad>", "<unk>"


def words(caption: str) -> list[str]:
    """The words of a caption in lower case, letters, digits and inner hyphens: "A T-shirt!" -> ["a", "t-shirt"]."""
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*", caption.lower())


class Tokenizer:
    """Word-level: vocabulary[i] is the word with token i; token 0 pads, token 1 stands for every unknown word."""

    def __init__(self, vocabulary: list[str], length: int):
        if vocabulary[:2] != [PAD, UNKNOWN]:
            raise UserError(f"a vocabulary starts with {PAD!r}, {UNKNOWN!r}, this one with {vocabulary[:2]}")
        self.vocabulary, self.length = vocabulary, length
        self.token = {word: i for i, word in enumerate(vocabulary)}

    @classmethod
    def from_captions(cls, captions: Iterable[str], length: int, most: int = 10_000) -> "Tokenizer":
        """A tokenizer that knows the `most` frequent words of the captions, alphabetically."""
        counts = Counter(word for caption in captions for word in words(caption))
        return cls([PAD, UNKNOWN, *sorted(word for word, _ in counts.most_common(most))], length)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read what `save` wrote. Raises UserError if the file is missing or is not a vocabulary."""
        try:
            content = json.loads(path.read_text())
            return cls(content["vocabulary"], content["length"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no vocabulary ({error}); give a run folder of train_base.py") from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"length": self.length, "vocabulary": self.vocabulary}, indent=1) + "\n")

    def unknown(self, captions: Iterable[str]) -> list[str]:
        """The words of the captions that are not in the vocabulary, each once."""
        return list(dict.fromkeys(word for caption in captions for word in words(caption) if word not in self.token))

    def encode(self, captions: list[str]) -> Tensor:
        """Captions -> tokens (b, l), long; cut or padded to l. The empty caption is all padding: the null prompt."""
        rows = [[self.token.get(word, 1) for word in words(caption)[: self.length]] for caption in captions]
        return torch.tensor([row + [0] * (self.length - len(row)) for row in rows]).reshape(-1, self.length)


class TextBlock(nn.Module):
    """x (b, l, d) -> x: self-attention and feed-forward, each pre-LN."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class TextEncoder(nn.Module):
    """tokens (b, l) -> context (b, l, d). Nothing is masked, so padding may carry meaning too, as in LDM."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.randn(config.length, config.width) * 0.02)
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
