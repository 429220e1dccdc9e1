"""Caption -> context: a word-level tokenizer and a transformer, trained from scratch [LDM, E.2.1]."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyldm.blocks import Attention, FeedForward, check

PAD, UNKNOWN = "<pad>", "<unk>"


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder."""

    vocabulary: int = 0  # words known, from the training captions
    length: int = 16  # l, tokens a caption
    width: int = 64  # d
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        check(self, length=1, width=2, heads=1)
        check(self, most=64, layers=1)
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads}: must divide the width {self.width}")


def words(caption: str) -> list[str]:
    """The words of a caption in lower case, hyphens kept: "A T-shirt!" -> ["a", "t-shirt"]."""
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*", caption.lower())


class Tokenizer:
    """vocabulary[i] is the word with token i; 0 pads, 1 is an unknown word. Raises ValueError otherwise."""

    def __init__(self, vocabulary: list[str], length: int):
        if vocabulary[:2] != [PAD, UNKNOWN]:
            raise ValueError(f"a vocabulary starts with {PAD!r}, {UNKNOWN!r}, got {vocabulary[:2]}")
        if len(set(vocabulary)) < len(vocabulary):
            raise ValueError("a vocabulary has each word once")
        self.vocabulary, self.length = vocabulary, length
        self.token = {word: i for i, word in enumerate(vocabulary)}

    @classmethod
    def from_captions(
        cls, captions: Iterable[str], length: int, most: int = 10_000, least: int = 1
    ) -> "Tokenizer":
        """A tokenizer that knows the `most` frequent words of the captions, of those there `least` times."""
        counts: Counter[str] = Counter()
        for caption, number in Counter(captions).items():
            for word in words(caption):
                counts[word] += number
        known = sorted(word for word, number in counts.most_common(most) if number >= least)
        return cls([PAD, UNKNOWN, *known], length)

    def encode(self, captions: list[str]) -> Tensor:
        """Captions -> tokens (b, l), long, cut or padded to l; "" is all padding, the null prompt."""
        rows = [[self.token.get(word, 1) for word in words(c)[: self.length]] for c in captions]
        rows = [row + [0] * (self.length - len(row)) for row in rows]
        return torch.tensor(rows).reshape(-1, self.length)


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
    """tokens (b, l) -> context (b, l, d). Nothing is masked: padding may carry meaning, as in LDM."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.randn(config.length, config.width) * 0.02)
        blocks = (TextBlock(config.width, config.heads) for _ in range(config.layers))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions  # (b, l, d)
        x = self.blocks(x)  # (b, l, d)
        return self.norm(x)
