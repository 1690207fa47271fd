// Strings that tokenizers find hard, from a seed: many scripts, code, numbers, runs, combining
// marks, spaces of every kind, spellings of added tokens, and random bytes.

export function random(seed) {
  // mulberry32
  let a = seed >>> 0;
  const next = () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = a;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const below = (n) => Math.floor(next() * n);
  return { below, pick: (list) => list[below(list.length)], chance: (p) => next() < p };
}

const range = (a, b) => Array.from({ length: b - a + 1 }, (_, i) => String.fromCodePoint(a + i));
const chars = (...parts) => parts.flatMap((p) => (typeof p === 'string' ? [...p] : range(...p)));

const scripts = {
  latin: chars([0x61, 0x7a], [0x61, 0x7a], [0x41, 0x5a], [0xc0, 0x24f], [0x1e00, 0x1eff], '    '),
  latin_ext: chars([0x250, 0x2af], [0xa720, 0xa7ff], [0x2c60, 0x2c7f], 'ſßŉǅǈİıﬀﬁﬃﬆ  '),
  cyrillic: chars([0x400, 0x52f], '    '),
  greek: chars([0x370, 0x377], [0x37a, 0x37f], [0x384, 0x3ce], [0x1f00, 0x1f15], 'σςΣ   '),
  arabic: chars([0x600, 0x6ff], [0x750, 0x77f], [0xfb50, 0xfbb1], '    '),
  hebrew: chars([0x591, 0x5c7], [0x5d0, 0x5ea], [0xfb1d, 0xfb36], '    '),
  devanagari: chars([0x900, 0x97f], '    '),
  indic: chars([0x980, 0x9fe], [0xa80, 0xaf1], [0xb80, 0xbfa], [0xc00, 0xc7f], [0xd00, 0xd7f], ' '),
  sinhala_thai: chars([0xd81, 0xdf4], [0xe01, 0xe3a], [0xe3f, 0xe5b], [0xe81, 0xedf], '  '),
  tibetan_myanmar: chars([0xf00, 0xfda], [0x1000, 0x109f], '  '),
  georgian_ethiopic: chars([0x10a0, 0x10ff], [0x1200, 0x1248], [0x1c90, 0x1cbf], ' '),
  khmer_mongolian: chars([0x1780, 0x17f9], [0x1800, 0x1878], '\u180e\u180e \u200b\u2060'),
  han: chars([0x4e00, 0x4fff], [0x8000, 0x81ff], [0x9fa0, 0x9fff], '，。！？、；：「」…—　'),
  han_rare: chars([0x3400, 0x3420], [0x20000, 0x20020], [0x2f800, 0x2f830], [0xf900, 0xfa6d],
    [0x2e80, 0x2ed5], [0x2f00, 0x2fd5]),
  kana: chars([0x3041, 0x3096], [0x3099, 0x30ff], [0x31f0, 0x31ff], [0xff61, 0xff9f], '・ー'),
  hangul: chars([0xac00, 0xad00], [0xd700, 0xd7a3], [0x3131, 0x318e], '   '),
  jamo: chars([0x1100, 0x1112], [0x1161, 0x1175], [0x11a8, 0x11c2], [0x1100, 0x11ff], '가각 '),
  marks: chars([0x300, 0x36f], [0x1ab0, 0x1abe], [0x1dc0, 0x1dff], [0x20d0, 0x20f0], 'aeiouAEnç가か'),
  symbols: chars([0xa1, 0xbf], [0x2010, 0x2027], [0x2030, 0x205e], [0x20a0, 0x20c0],
    [0x2100, 0x214f], [0x2190, 0x21ff], [0x2200, 0x22ff], [0x2460, 0x24ff], '  '),
  boxes: chars([0x2500, 0x27bf], [0x2900, 0x29ff], [0x2a00, 0x2aff], ' '),
  digits: chars('0123456789', [0x660, 0x669], [0x966, 0x96f], [0xff10, 0xff19], [0x1d7ce, 0x1d7ff],
    '²³¹¼½¾ⅠⅫↈ①⑳〇一二三 .,-+%'),
  full_width: chars([0xff01, 0xff5e], [0xffe0, 0xffe6], '　'),
  emoji: ['😀', '👍🏽', '👨‍👩‍👧‍👦', '🏳️‍🌈', '🇩🇪', '🇯🇵', '❤️', '☎︎', '1️⃣', '🧑🏿‍🚀', '🫠', '🤷‍♀️', '\u200d',
    '\ufe0f', '🏽', ' ', 'a'],
  old: chars([0x10300, 0x1031f], [0x10330, 0x1034a], [0x12000, 0x12020], [0x13000, 0x13020],
    [0x16a0, 0x16ea], [0x1d400, 0x1d454], [0x1d15e, 0x1d164], [0x10400, 0x1044f], ' '),
  marks_only: chars([0x300, 0x345], [0x5b0, 0x5bd], [0x64b, 0x652], [0x302a, 0x302f], '\u0f71\u0f72'),
  spaces: [...' \t\n\r\v\f\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2009\u200a\u200b\u200c\u200d',
    ...'\u2028\u2029\u202f\u205f\u3000\ufeff\u180e', '\r\n', '\n\n', '  ', '   ', 'x', '.', '1'],
  controls: chars([0, 0x20], [0x7f, 0xa0], '\u200e\u200f\u061c', [0x202a, 0x202e], [0x2066, 0x2069],
    '\ufff9\ufffb\ufffc\ufffd\ufffe\uffff\u{e0001}\u{e0061}\ue000\u{f0000}\u{10ffff}ab'),
  ascii: chars([0x20, 0x7e]),
  punctuation: chars('!"#$%&\'()*+,-./:;<=>?@[\\]^_`{|}~', ' ', 'aZ0\n'),
};

const words = ('The quick brown fox jumps over lazy dogs while fifteen engineers debug Kubernetes ' +
  "it's don't we'll they've I'm he'd you're DON'T IT'S We'Re 'tis o'clock rock'n'roll " +
  'naïve café Straße Ærøskøbing Übergrößenträger pneumonoultramicroscopicsilicovolcanoconiosis ' +
  'Привет мир Ελλάδα שלום مرحبا नमस्ते สวัสดี 你好世界 こんにちは 안녕하세요 Việt Nam ' +
  'function return const import def class self None True while for if else elif ' +
  'http://example.com/a?b=c&d=%20 user@example.org 3.14159 1,000,000 0xDEADBEEF 2026-11-21T21:00:00Z'
).split(' ');

const code = [
  'int main(void)\n{\n    return 0;\n}\n', 'for (let i = 0; i < n; ++i) {\n\tfoo[i] = `x${i}`;\n}',
  'def f(x: int) -> str:\n    """Doc."""\n    return f"{x!r}"\n\n\n', '#include <stdio.h>\r\n\r\n',
  'SELECT * FROM t WHERE a <> \'it\'\'s\' -- comment\n', '<div class="a">&nbsp;</div>\n',
  '{"key": [1, 2.5e-3, null, "\\u00e9"]}', '\t\tif err != nil {\n\t\t\treturn err\n\t\t}\n',
  '// ==========\n/* ---- */ x->y::z &&= ~!a ?? b;', '$ ls -la | grep "^d" > /dev/null 2>&1 &&\n',
];

const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });

// Every code point that is no surrogate, in strings of 48, each between other characters.
export function* everyCodePoint() {
  for (let cp = 0; cp < 0x110000; cp += 48) {
    let s = '';
    for (let k = cp; k < cp + 48; k++) {
      if ((k >= 0xd800 && k < 0xe000) || k > 0x10ffff) continue;
      s += String.fromCodePoint(k) + ['', 'a', ' ', '.', '1', '\n', "'s"][k % 7];
    }
    if (s) yield s;
  }
}

export function makeStrings(seed, count, added) {
  const r = random(seed);
  const names = Object.keys(scripts);
  const piece = () => {
    switch (r.below(13)) {
      case 0: return r.pick(words) + (r.chance(0.7) ? ' ' : '');
      case 1: return Array.from({ length: 1 + r.below(8) }, () => r.pick(words)).join(' ');
      case 2: return r.pick(code);
      case 3: return String(r.below(10 ** (1 + r.below(9)))) + r.pick(['', ' ', '.', ',', '%', '\n']);
      case 4: return r.pick(scripts.spaces).repeat(1 + r.below(6));
      case 5: { // a long run of one character
        const c = r.pick(scripts[r.pick(names)]);
        return c.repeat(1 + r.below(r.chance(0.05) ? 400 : 30));
      }
      case 6: { // random bytes, as every caller sees them: ill-formed ones are U+FFFD
        const bytes = Uint8Array.from({ length: 1 + r.below(24) }, () =>
          r.chance(0.3) ? r.below(128) : r.below(256));
        return utf8.decode(bytes);
      }
      case 7: { // spellings of added tokens: whole, cut short, or put together wrongly
        const t = r.pick(added);
        const cut = [...t];
        return r.pick([t, t, t, t + t, ' ' + t + ' ', cut.slice(0, -1).join(''),
          cut.slice(1).join(''), '<' + t + '>', t.toUpperCase(), t + r.pick(added)]);
      }
      case 8: return r.pick(["'s", "'T", "'RE", "'ve", "'M", "'ll", "'D", "’s", "'", "''s", "'\u00e9"]);
      case 9: return String.fromCodePoint(r.pick([r.below(0x300), r.below(0x3000), r.below(0xd800)]));
      default: {
        const set = scripts[r.pick(names)];
        return Array.from({ length: 1 + r.below(16) }, () => r.pick(set)).join('');
      }
    }
  };
  const out = ['', ' ', '\n', '\0', 'a'];
  while (out.length < count) {
    let s = '';
    for (let n = 1 + r.below(5); n > 0; n--) s += piece();
    out.push(Buffer.from(s).toString()); // a lone surrogate becomes U+FFFD
  }
  return out;
}
