"""The demo model's tokenizer: byte-level BPE behind the pre-tokenizer that GGUF calls `qwen2`.

Merges are learned on bare words and on runs of punctuation, so a word is cut the same way wherever
it stands: after a space, in a quoted JSON string, at a line's start. That is what lets a small model
copy a name it has never seen. Words of the templates get one token together with their space, by
merges placed after all others.

`python tokens.py` learns it anew from the training cases and writes `tokenizer.json`; a model fits
only the tokenizer it was trained with.
"""

import json
from collections import Counter
from pathlib import Path

import regex
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import phrases as P
from generate import case

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
SPACE = "\u0120"
SAMPLES = 60_000
FILE = Path(__file__).parent / "tokenizer.json"
NAMES = {
    part
    for one in (P.DEVICES, P.ADJECTIVES, P.PLACES, P.COMPONENTS, P.METRICS, P.STATES, P.PROPERTIES)
    for word in one["train"]
    for part in word.split("+")
}


def pieces(samples: int) -> tuple[Counter, Counter]:
    """Bare pieces of the training corpus, and words that follow a space, with their counts."""
    bare, spaced = Counter(), Counter()
    for index in range(samples):
        for message in case("train", index)["messages"]:
            for piece in regex.findall(QWEN2, message["content"]):
                if piece[0] == " " and len(piece) > 1 and piece[1].isalpha():
                    spaced[piece[1:]] += 1
                bare[piece[1:] if len(piece) > 1 and not piece[0].isalpha() and piece[1].isalpha() else piece] += 1
    return bare, spaced


def train(vocab_size: int) -> Tokenizer:
    """Learns the tokenizer from the first training cases."""
    bare, spaced = pieces(SAMPLES)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Words of the templates, told from names by the lists and by how often they come.
    words = [w for w, n in spaced.most_common(400) if n > SAMPLES // 600 and w not in NAMES and (len(w) > 1 or w in "aI")]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL) - len(words),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((p for p, n in sorted(bare.items()) for _ in range(min(n, 2000))), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(m) for m in model["merges"]]
    for word in words:
        if word in vocab and SPACE + word not in vocab:
            vocab[SPACE + word] = len(vocab)
            merges.append((SPACE, word))
    filler = 0
    while len(vocab) < vocab_size - len(SPECIAL):
        vocab[f"<|unused_{filler}|>"] = len(vocab)
        filler += 1
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    return tokenizer


def load() -> Tokenizer:
    """The committed tokenizer."""
    return Tokenizer.from_file(str(FILE))


def encode_case(tokenizer: Tokenizer, messages: list) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation as the chat template renders it, and which of them are answers.

    The same as encoding the rendered template, whose text has no special tokens of its own.
    """
    end = tokenizer.token_to_id("<|end|>")
    ids, answer = [], []
    for message in messages:
        body = tokenizer.encode(message["content"].strip()).ids + [end]
        ids += [tokenizer.token_to_id(f"<|{message['role']}|>"), *body]
        answer += [False, *[message["role"] == "assistant"] * len(body)]
    return ids, answer


if __name__ == "__main__":
    train(4096).save(str(FILE))
