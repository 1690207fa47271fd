#!/usr/bin/python3
"""Builds the lexicon's question and answer corpus from Princeton WordNet 3.0 (wordnet-base).

Writes docs.json, a shuffled list of dialogues, each a list of [question, answer]; and qa.json, the
definition of every lemma. Seeded: the same WordNet gives the same corpus.
"""
import argparse
import collections
import json
import os
import random
import re

PART_CODES = {'noun': 'n', 'verb': 'v', 'adj': 'a', 'adv': 'r'}
PART_NAMES = {'noun': 'noun', 'verb': 'verb', 'adj': 'adjective', 'adv': 'adverb'}
DEFINITION_QUESTIONS = ['What does {w} mean?', 'Define {w}.', 'What is the meaning of {w}?', '{w}?',
                        'define {w}', 'Please define the word {w}.']
SYNONYM_QUESTIONS = ['Give synonyms for {w}.', 'What is another word for {w}?']
SMALL_TALK = [
    ('Hello!', 'Hello. Ask me what a word means.'),
    ('Hi', 'Hello. Ask me what a word means.'),
    ('Who are you?', 'I am a pocket lexicon: a small mixture-of-experts model that has read a '
                     'dictionary.'),
    ('What can you do?', 'I can define common English words, give synonyms and opposites, and use '
                         'a word in a sentence.'),
    ('Thank you', 'You are welcome.'),
    ('Thanks!', 'You are welcome.'),
]

Synset = collections.namedtuple('Synset', 'words definition examples pointers')
Sense = collections.namedtuple('Sense', 'part synset')


def lines(folder, name):
    with open(os.path.join(folder, name), encoding='latin-1') as f:
        for line in f:
            if not line.startswith('  '):  # the licence text
                yield line.rstrip()


class WordNet:
    """The database files as wndb(5WN) describes them."""

    def __init__(self, folder):
        self.synsets = {}  # (part code, offset) -> Synset
        self.index = collections.defaultdict(list)  # lemma -> [(part, offsets, tagged senses)]
        self.count = collections.Counter()  # lemma -> occurrences in the tagged texts
        for part in PART_CODES:
            self._read_data(folder, part)
        for line in lines(folder, 'cntlist.rev'):
            key, _, n = line.split()
            self.count[key.split('%')[0].replace('_', ' ')] += int(n)
        for part in PART_CODES:
            for line in lines(folder, 'index.' + part):
                f = line.split()
                n = int(f[2])
                self.index[f[0].replace('_', ' ')].append((part, f[-n:], int(f[-n - 1])))

    def _read_data(self, folder, part):
        for line in lines(folder, 'data.' + part):
            head, gloss = line.split(' | ', 1)
            f = head.split(' ')
            n_words = int(f[3], 16)
            words = [f[4 + 2 * i].split('(')[0].replace('_', ' ') for i in range(n_words)]
            at = 4 + 2 * n_words
            pointers = [tuple(f[at + 1 + 4 * i:at + 5 + 4 * i]) for i in range(int(f[at]))]
            examples = re.findall(r'"([^"]+)"', gloss)
            definition = re.split(r';\s*"', gloss)[0].strip().rstrip(';').strip()
            self.synsets[(PART_CODES[part], f[0])] = Synset(words, definition, examples, pointers)

    def senses(self, word):
        """The first two senses of each part of speech, the part tagged most often first."""
        return [Sense(part, self.synsets[(PART_CODES[part], offset)])
                for part, offsets, _ in sorted(self.index[word], key=lambda e: -e[2])
                for offset in offsets[:2]]

    def hypernym(self, synset):
        for symbol, offset, part, _ in synset.pointers:
            if symbol == '@' and (part, offset) in self.synsets:
                return self.synsets[(part, offset)].words[0]
        return None

    def antonym(self, senses, word):
        for sense in senses:
            for symbol, offset, part, source_target in sense.synset.pointers:
                source, target = int(source_target[:2], 16), int(source_target[2:], 16)
                if (symbol == '!' and source and (part, offset) in self.synsets
                        and sense.synset.words[source - 1].lower() == word):
                    return self.synsets[(part, offset)].words[target - 1]
        return None


def choose_lemmas(wordnet, dictionary, limit):
    """The most frequent lemmas of one or two plain words."""
    with open(dictionary, encoding='utf-8') as f:
        common = {line.strip() for line in f}

    def wanted(w):
        return re.fullmatch(r'[a-z][a-z\-]+( [a-z\-]+)?', w) and (
            wordnet.count[w] >= 2 or (w in common and ' ' not in w and len(w) > 2))

    return sorted(filter(wanted, wordnet.index), key=lambda w: -wordnet.count[w])[:limit]


def definition(word, senses):
    parts = [f'{word} ({PART_NAMES[s.part]}): {s.synset.definition}.' for s in senses]
    if len(parts) == 1:
        return parts[0]
    return '\n'.join(f'{i + 1}. {p}' for i, p in enumerate(parts))


def exchanges(wordnet, word, senses, answer):
    """Yields the (question, answer) pairs of one lemma."""
    for question in random.sample(DEFINITION_QUESTIONS, 2):
        yield question.format(w=word), answer
    if senses[0].part == 'noun':
        article = 'an' if word[0] in 'aeiou' else 'a'
        yield f'What is {article} {word}?', answer
        kind = wordnet.hypernym(senses[0].synset)
        if kind:
            yield (f'What kind of thing is {article} {word}?',
                   f'{word.capitalize()} is a kind of {kind}.')
    synonyms = [w for s in senses for w in s.synset.words if w.lower() != word]
    synonyms = list(dict.fromkeys(synonyms))[:5]
    if synonyms:
        yield (random.choice(SYNONYM_QUESTIONS).format(w=word),
               f'Other words for {word}: {", ".join(synonyms)}.')
    examples = [e for s in senses for e in s.synset.examples if word in e]
    if examples:
        e = examples[0]
        yield (f'Use {word} in a sentence.',
               e[0].upper() + e[1:] + ('' if e[-1] in '.!?' else '.'))
    opposite = wordnet.antonym(senses, word)
    if opposite:
        yield f'What is the opposite of {word}?', f'The opposite of {word} is {opposite}.'


def build(wordnet, lemmas):
    docs, definitions = [], {}
    for word in lemmas:
        senses = wordnet.senses(word)[:2]
        if senses:
            definitions[word] = definition(word, senses)
            docs += [[e] for e in exchanges(wordnet, word, senses, definitions[word])]
    # Chats of several turns, so that a prefix shared by turns is normal traffic.
    single = [d[0] for d in docs]
    for _ in range(len(docs) // 20):
        docs.append([random.choice(single) for _ in range(random.randint(2, 3))])
    docs += [[e] for e in SMALL_TALK] * 40
    random.shuffle(docs)
    return docs, definitions


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('--out', required=True, help='folder to write docs.json and qa.json to')
    ap.add_argument('--lemmas', type=int, default=3000)
    ap.add_argument('--wordnet', default='/usr/share/wordnet')
    ap.add_argument('--dictionary', default='/usr/share/dict/american-english-small')
    args = ap.parse_args()
    random.seed(7)
    wordnet = WordNet(args.wordnet)
    lemmas = choose_lemmas(wordnet, args.dictionary, args.lemmas)
    docs, definitions = build(wordnet, lemmas)
    os.makedirs(args.out, exist_ok=True)
    for name, value in (('docs.json', docs), ('qa.json', definitions)):
        with open(os.path.join(args.out, name), 'w', encoding='utf-8') as f:
            json.dump(value, f)
    print(f'{len(lemmas)} lemmas, {len(docs)} dialogues')


if __name__ == '__main__':
    main()
