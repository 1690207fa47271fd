// Compares `starling tokenize` with Hugging Face's JavaScript tokenizers on the real DeepSeek-V3,
// Qwen2.5 and Qwen3 tokenizers and on the lexicon's: encode, decode, decode without specials.
//
//   node oracle.mjs [STARLING] [--seed N] [--count N] [--all-code-points]
//
// Where the oracle itself departs from the Rust library that models are published with, the
// string is left out; `exclusion` below lists every such case.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Tokenizer } from '@huggingface/tokenizers';
import { everyCodePoint, makeStrings, random } from './strings.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, '../../..');
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seed: { type: 'string', default: '20260101' },
    count: { type: 'string', default: '22500' },
    'all-code-points': { type: 'boolean', default: false },
  },
});
const binary = resolve(positionals[0] ?? join(root, 'build/starling'));
const seed = Number(values.seed);

const npm = (name) => resolve(here, `../node_modules/@lenml/tokenizer-${name}/models`);
const sample = "Hello, world! 你好 123456 don't\n\n  x";
const models = [
  { name: 'deepseek_v3', dir: npm('deepseek_v3'),
    golden: [19923, 14, 2058, 3, 223, 30594, 223, 6895, 18009, 2090, 1664, 271, 223, 1527] },
  { name: 'qwen2_5', dir: npm('qwen2_5') },
  { name: 'qwen3', dir: npm('qwen3'),
    golden: [9707, 11, 1879, 0, 220, 108386, 220, 16, 17, 18, 19, 20, 21, 1513, 944, 271, 220, 856] },
  { name: 'lexicon', dir: join(root, 'models/lexicon/int8') },
];

// Why a string cannot be compared, or null.
function exclusion(s, json) {
  // Characters that came after this Node's Unicode: the oracle takes them for unassigned. (Unicode
  // 17 is what starling knows; Debian 12 has Node 18 with Unicode 15.)
  if (Number(process.versions.unicode) < 17 && /\p{Cn}/u.test(s)) return 'newer than this Node';
  // Oniguruma ignores case by Unicode's folding, where U+017F (long s) is an s: (?i:'s) matches
  // "'\u017f" (checked with libonig 6.9.8). The JavaScript library folds ASCII letters only.
  if (/'\u017f/.test(s) && JSON.stringify(json.pre_tokenizer).includes("(?i:'s")) return 'long s';
  // Scripts that came with Unicode 16 and whose vowels NFC composes (Todhri, Tulu-Tigalari, Gurung
  // Khema, Kirat Rai): utf8proc 2.8 of Debian 12 has the normalization data of Unicode 15.
  if (/[\u{105c0}-\u{105ff}\u{11380}-\u{113ff}\u{16100}-\u{1613f}\u{16d40}-\u{16d7f}]/u.test(s) &&
    json.normalizer?.type === 'NFC') return 'composition newer than Unicode 15';
  return null;
}

// Starts starling on the lines; resolves to its answers. It works while the oracle does.
function starling(dir, args, lines) {
  return new Promise((done, failed) => {
    const run = spawn(binary, ['tokenize', dir, '--jsonl', ...args]);
    const out = [], err = [];
    run.stdout.on('data', (d) => out.push(d));
    run.stderr.on('data', (d) => err.push(d));
    run.stdin.on('error', () => {});
    run.on('error', failed);
    run.on('close', (code, signal) => {
      const answers = Buffer.concat(out).toString().split('\n');
      if (code === 0 && answers.pop() === '' && answers.length === lines.length) done(answers);
      else failed(new Error(`starling tokenize ${dir} ${args.join(' ')}: exit ${code ?? signal}, ` +
        `${answers.length} answers to ${lines.length} lines: ${Buffer.concat(err)}`));
    });
    run.stdin.end(lines.map((x) => JSON.stringify(x) + '\n').join(''));
  });
}

let compared = 0, differences = 0;
async function compare(model, what, inputs, answers, oracle) {
  // The answers come in while the oracle works: it gives way to them now and then.
  const expected = [];
  for (const x of inputs) {
    expected.push(oracle(x));
    if (expected.length % 256 === 0) await new Promise(setImmediate);
  }
  const got = await answers;
  inputs.forEach((input, i) => {
    compared++;
    if (JSON.stringify(JSON.parse(got[i])) === JSON.stringify(expected[i])) return;
    if (++differences <= 20)
      console.log(`DIFFERENT: ${model.name} ${what}\n  input    ${JSON.stringify(input)}\n` +
        `  expected ${JSON.stringify(expected[i])}\n  starling ${got[i]}`);
  });
  return expected;
}

async function testModel(model) {
  const began = Date.now();
  const read = (name) => JSON.parse(readFileSync(join(model.dir, name)));
  const json = read('tokenizer.json');
  const all = values['all-code-points'] ? [...everyCodePoint()]
    : makeStrings(seed, Number(values.count), json.added_tokens.map((t) => t.content));
  const strings = [sample, ...all.filter((s) => !exclusion(s, json))];
  const encoded = starling(model.dir, [], strings);
  const tokenizer = new Tokenizer(json, read('tokenizer_config.json'));
  const ids = await compare(model, 'encode', strings, encoded,
    (s) => tokenizer.encode(s, { add_special_tokens: false }).ids);
  if (model.golden && JSON.stringify(ids[0]) !== JSON.stringify(model.golden)) {
    differences++;
    console.log(`DIFFERENT: ${model.name} from the golden ids: ${JSON.stringify(ids[0])}`);
  }

  const r = random(seed ^ 0x5eed);
  const size = Math.max(...json.added_tokens.map((t) => t.id)) + 1;
  const sequences = ids.filter((x) => x.length).concat(Array.from({ length: 3000 }, () =>
    Array.from({ length: 1 + r.below(24) }, () =>
      r.chance(0.1) ? r.pick(json.added_tokens).id : r.below(size))));
  const plain = starling(model.dir, ['--decode'], sequences);
  const skipped = starling(model.dir, ['--decode', '--skip-special'], sequences);
  await compare(model, 'decode', sequences, plain, (x) => tokenizer.decode(x));
  await compare(model, 'decode --skip-special', sequences, skipped,
    (x) => tokenizer.decode(x, { skip_special_tokens: true }));
  console.log(`${model.name}: ${strings.length} strings (${all.length + 1 - strings.length} left ` +
    `out), ${sequences.length} id sequences, ${Date.now() - began} ms`);
}

console.log(`seed ${seed}, ${binary}`);
for (const model of models) await testModel(model);
console.log(`${compared} comparisons, ${differences} differences`);
process.exit(differences ? 1 : 0);
