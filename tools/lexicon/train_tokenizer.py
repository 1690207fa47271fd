#!/usr/bin/python3
"""Trains a byte-level BPE on the corpus; writes tokenizer.json and the corpus as ids.

With --tokenizer an existing one is taken over, so that a model can go on with another corpus.
ids.u16 holds all dialogues one after the other; mask.u8 marks the tokens of answers.
"""
import argparse
import array
import collections
import json
import os
import shutil

from bpe_text import BYTE_TO_CHARACTER, PATTERN, Tokenizer, merge, pieces, symbols

SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|pad|>']
ROLE_LINES = ['system\n', 'user\n', 'assistant\n']


def count_pieces(docs):
    counts = collections.Counter()
    for doc in docs:
        for text in (t for exchange in doc for t in exchange):
            counts.update(pieces(text))
    for line in ROLE_LINES:  # of every turn: worth a token each
        for piece in pieces(line):
            counts[piece] += 20000
    return counts


def learn_merges(counts, vocab_size):
    """Returns (vocab, merges): the most frequent pair first, the greater text on ties."""
    vocab = {t: i for i, t in enumerate(sorted(BYTE_TO_CHARACTER.values()))}
    words = [[symbols(piece), n] for piece, n in counts.items()]
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for i, (parts, n) in enumerate(words):
        for pair in zip(parts, parts[1:]):
            pairs[pair] += n
            where[pair].add(i)
    merges = []
    while len(vocab) < vocab_size:
        best = max(pairs.items(), key=lambda kv: (kv[1], kv[0]))[0]
        if pairs[best] < 2:
            break
        merges.append(best)
        vocab.setdefault(best[0] + best[1], len(vocab))
        for i in list(where[best]):
            parts, n = words[i]
            for pair in zip(parts, parts[1:]):
                pairs[pair] -= n
            words[i][0] = parts = merge(parts, best)
            for pair in zip(parts, parts[1:]):
                pairs[pair] += n
                where[pair].add(i)
        pairs.pop(best, None)
        where.pop(best, None)
    return vocab, merges


def tokenizer_json(vocab, merges):
    byte_level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False,
                  'use_regex': False}
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
             'special': True}
    return {
        'version': '1.0', 'truncation': None, 'padding': None,
        'added_tokens': [{'id': len(vocab) + i, 'content': s, **flags}
                         for i, s in enumerate(SPECIAL)],
        'normalizer': {'type': 'NFC'},
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [
            {'type': 'Split', 'pattern': {'Regex': PATTERN}, 'behavior': 'Isolated',
             'invert': False}, byte_level]},
        'post_processor': byte_level, 'decoder': byte_level,
        'model': {'type': 'BPE', 'dropout': None, 'unk_token': None,
                  'continuing_subword_prefix': '', 'end_of_word_suffix': '', 'fuse_unk': False,
                  'byte_fallback': False, 'ignore_merges': False, 'vocab': vocab,
                  'merges': [f'{a} {b}' for a, b in merges]},
    }


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('--work', required=True, help='folder with docs.json; written to')
    ap.add_argument('--vocab-size', type=int, default=4096, help='special tokens included')
    ap.add_argument('--tokenizer', help='tokenizer.json to take over')
    args = ap.parse_args()
    with open(os.path.join(args.work, 'docs.json'), encoding='utf-8') as f:
        docs = json.load(f)
    path = os.path.join(args.work, 'tokenizer.json')
    if args.tokenizer:
        shutil.copy(args.tokenizer, path)
    else:
        vocab, merges = learn_merges(count_pieces(docs), args.vocab_size - len(SPECIAL))
        with open(path, 'w', encoding='utf-8') as f:
            json.dump(tokenizer_json(vocab, merges), f, ensure_ascii=False)
    tokenizer = Tokenizer(path)
    ids, mask = array.array('H'), array.array('B')
    for doc in docs:
        i, m = tokenizer.dialogue(doc)
        ids.extend(i)
        mask.extend(m)
    for name, values in (('ids.u16', ids), ('mask.u8', mask)):
        with open(os.path.join(args.work, name), 'wb') as f:
            values.tofile(f)
    print(f'{len(tokenizer.vocab)} + {len(tokenizer.special)} tokens, '
          f'{len(tokenizer.rank)} merges; corpus of {len(ids)}')


if __name__ == '__main__':
    main()
