"""Byte-level BPE in plain Python: pieces, bytes as printable characters, merges by rank."""
import json

import regex

# Qwen's pre-tokenizer.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
NO_RANK = 1 << 30


def byte_characters():
    """The printable character that stands for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(printable))
    return table


BYTE_TO_CHARACTER = byte_characters()
CHARACTER_TO_BYTE = {c: b for b, c in BYTE_TO_CHARACTER.items()}


def pieces(text):
    return regex.findall(PATTERN, text)


def symbols(piece):
    return [BYTE_TO_CHARACTER[b] for b in piece.encode()]


def merge(parts, pair):
    """parts with every non-overlapping occurrence of pair joined, left to right"""
    out, i = [], 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


class Tokenizer:
    def __init__(self, path):
        with open(path, encoding='utf-8') as f:
            tok = json.load(f)
        self.vocab = tok['model']['vocab']
        self.text_of = {i: t for t, i in self.vocab.items()}
        self.rank = {tuple(m.split(' ')): i for i, m in enumerate(tok['model']['merges'])}
        self.special = {a['content']: a['id'] for a in tok['added_tokens']}
        self.cache = {}

    def _encode_piece(self, piece):
        if piece not in self.cache:
            parts = symbols(piece)
            while len(parts) > 1:
                best = min(zip(parts, parts[1:]), key=lambda p: self.rank.get(p, NO_RANK))
                if best not in self.rank:
                    break
                parts = merge(parts, best)
            self.cache[piece] = [self.vocab[p] for p in parts]
        return self.cache[piece]

    def encode(self, text):
        return [i for piece in pieces(text) for i in self._encode_piece(piece)]

    def decode(self, ids):
        """Special tokens are left out."""
        text = ''.join(self.text_of.get(i, '') for i in ids)
        return bytes(CHARACTER_TO_BYTE[c] for c in text).decode('utf-8', 'replace')

    def turn(self, role, text):
        """<|im_start|>role newline text <|im_end|> newline"""
        return [self.special['<|im_start|>'], *self.encode(f'{role}\n{text}'),
                self.special['<|im_end|>'], *self.encode('\n')]

    def generation_prompt(self):
        return [self.special['<|im_start|>'], *self.encode('assistant\n')]

    def chat(self, turns):
        """Ids of alternating user and assistant texts, and of the prompt for the next answer."""
        ids = []
        for i, text in enumerate(turns):
            ids += self.turn('assistant' if i % 2 else 'user', text)
        return ids + self.generation_prompt()

    def dialogue(self, exchanges):
        """Ids of (question, answer) pairs; and a mask: 1 on the answers' tokens and their end."""
        ids, mask = [], []
        newline = self.encode('\n')
        for question, answer in exchanges:
            prompt = self.turn('user', question) + self.generation_prompt()
            said = self.encode(answer) + [self.special['<|im_end|>']]
            ids += prompt + said + newline
            mask += [0] * len(prompt) + [1] * len(said) + [0] * len(newline)
        return ids, mask
