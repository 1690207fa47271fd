#!/usr/bin/python3
"""Exports the trained lexicon: Hugging Face checkpoints in BF16 and W8A8 INT8, golden values.

    export_lexicon.py --work W --out NEW

W holds checkpoint.pt, tokenizer.json, docs.json and qa.json. NEW/golden is computed in float64
from the exported (rounded) weights.
"""
import argparse
import json
import math
import os
import random
import shutil
import struct

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bpe_text import Tokenizer
from lexicon_model import CONFIG, Lexicon

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
GOLDEN_CHATS = [
    ['What does river mean?'], ['Define courage.'], ['What is the opposite of dark?'],
    ['Give synonyms for begin.'], ['Use river in a sentence.'],
    ['What is a house?',
     'house (noun): a dwelling that serves as living quarters for one or more families.',
     'What kind of thing is a house?'],
    ['Hello!'], ['What does zxqv mean? \u4f60\u597d \U0001f40b'],
]


# ---------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------

def is_quantized(name):
    """Which layers openPangu-Ultra-MoE-718B-V1.1-Int8 stores as INT8."""
    return (name.endswith('_proj.weight') and 'kv_b_proj' not in name and 'eh_proj' not in name)


def bf16_bits(x):
    """float32 -> bfloat16 bits, to nearest even"""
    u = x.numpy().astype(np.float32).view(np.uint32)
    return ((u + (((u >> 16) & 1) + 0x7fff)) >> 16).astype('<u2')


def round_to_bf16(x):
    return torch.from_numpy((bf16_bits(x).astype(np.uint32) << 16).view(np.float32))


def checkpoint_name(name):
    return name if name.startswith('lm_head') else 'model.' + name


def quantize(weights):
    """Adds .weight_scale [out, 1]; symmetric, per output channel."""
    out = {}
    for name, w in weights.items():
        if is_quantized(name):
            scale = (w.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
            out[name] = (w / scale).round().clamp(-127, 127).to(torch.int8)
            out[name + '_scale'] = scale
        else:
            out[name] = w
    return out


def write_safetensors(path, tensors):
    header, data = {'__metadata__': {'format': 'pt'}}, []
    offset = 0
    for name in sorted(tensors):
        t = tensors[name]
        if t.dtype == torch.int8:
            dtype, raw = 'I8', t.numpy().tobytes()
        elif name.endswith('weight_scale'):
            dtype, raw = 'F32', t.numpy().astype('<f4').tobytes()
        else:
            dtype, raw = 'BF16', bf16_bits(t).tobytes()
        header[name] = {'dtype': dtype, 'shape': list(t.shape),
                        'data_offsets': [offset, offset + len(raw)]}
        offset += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(text)) + text)
        for raw in data:
            f.write(raw)


# ---------------------------------------------------------------------------------------------
# The folder's JSON files
# ---------------------------------------------------------------------------------------------

def write_json(path, value, **options):
    with open(path, 'w', encoding='utf-8') as f:
        json.dump(value, f, indent=1, **options)


def model_config(special):
    return {
        'architectures': ['PanguUltraMoEForCausalLM'], 'model_type': 'pangu_ultra_moe',
        'torch_dtype': 'bfloat16', 'sandwich_norm': True, 'hidden_act': 'silu',
        'tie_word_embeddings': False, 'attention_bias': False,
        'num_key_value_heads': CONFIG['num_attention_heads'], 'bos_token_id': None,
        'eos_token_id': special['<|im_end|>'], 'pad_token_id': special['<|pad|>'], **CONFIG,
    }


def quantization_config(weights):
    ignore = sorted(n[:-len('.weight')] for n, w in weights.items()
                    if n.endswith('.weight') and w.dim() == 2 and not is_quantized(n)
                    and 'embed_tokens' not in n)
    bits = {'num_bits': 8, 'type': 'int'}
    return {
        'quant_method': 'compressed-tensors', 'format': 'int-quantized',
        'quantization_status': 'compressed', 'ignore': ignore,
        'config_groups': {'group_0': {
            'targets': ['Linear'],
            'weights': {**bits, 'strategy': 'channel', 'symmetric': True, 'dynamic': False},
            'input_activations': {**bits, 'strategy': 'token', 'symmetric': True,
                                  'dynamic': True}}},
    }


def write_folder(folder, tensors, config, tokenizer_path, special):
    os.makedirs(folder, exist_ok=True)
    write_safetensors(os.path.join(folder, 'model.safetensors'), tensors)
    write_json(os.path.join(folder, 'config.json'), config)
    write_json(os.path.join(folder, 'generation_config.json'),
               {'eos_token_id': special['<|im_end|>'], 'pad_token_id': special['<|pad|>'],
                'do_sample': False, 'max_new_tokens': 200})
    write_json(os.path.join(folder, 'tokenizer_config.json'),
               {'tokenizer_class': 'PreTrainedTokenizerFast', 'add_bos_token': False,
                'bos_token': None, 'eos_token': '<|im_end|>', 'pad_token': '<|pad|>',
                'clean_up_tokenization_spaces': False,
                'model_max_length': CONFIG['max_position_embeddings'],
                'chat_template': CHAT_TEMPLATE})
    shutil.copy(tokenizer_path, folder)


# ---------------------------------------------------------------------------------------------
# Reference passes
# ---------------------------------------------------------------------------------------------

class Int8Linear(nn.Module):
    """W8A8: activations rounded per token (absmax / 127, half to even), then both scales."""

    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = weight.double(), scale.double()

    def forward(self, x):
        a = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-12)
        q = (x / a).round().clamp(-127, 127)
        return (q @ self.weight.T) * a * self.scale[:, 0]


def reference_model(weights, quantized=None):
    """float64; with quantized, its INT8 layers in place of the weights'."""
    model = Lexicon()
    model.load_state_dict({n[len('model.'):] if n.startswith('model.') else n: w.double()
                           for n, w in weights.items()})
    if quantized:
        for path, module in list(model.named_modules()):
            for child, layer in list(module.named_children()):
                name = checkpoint_name('.'.join(filter(None, (path, child, 'weight'))))
                if isinstance(layer, nn.Linear) and is_quantized(name):
                    setattr(module, child, Int8Linear(quantized[name], quantized[name + '_scale']))
    return model.eval()


@torch.no_grad()
def greedy(model, prompt, end, limit=64):
    """Returns the answer's ids, and how many of its tokens the MTP layer had drafted right, and
    had drafted."""
    ids, right, drafted = list(prompt), 0, 0
    while len(ids) - len(prompt) < limit:
        logits, mtp = model(torch.tensor([ids]))
        token = logits[0, -1].argmax().item()
        if len(ids) > len(prompt):
            # The last MTP row has seen the newest token: it drafts this one.
            drafted += 1
            right += mtp[0, -1].argmax().item() == token
        ids.append(token)
        if token == end:
            break
    return ids[len(prompt):], right, drafted


@torch.no_grad()
def perplexity(model, dialogues):
    """Over the positions that the masks mark; and their number."""
    total, n = 0.0, 0
    for d in dialogues:
        ids = torch.tensor([d['tokens']])
        loss = F.cross_entropy(model(ids)[0][0, :-1], ids[0, 1:], reduction='none')
        keep = torch.tensor(d['mask'][1:], dtype=torch.bool)
        total += loss[keep].sum().item()
        n += int(keep.sum())
    return math.exp(total / n), n


def write_golden(folder, tokenizer, models, dialogues):
    """Logits of the golden chats, greedy answers, and the evaluation's tokens."""
    os.makedirs(folder, exist_ok=True)
    end = tokenizer.special['<|im_end|>']
    prompts = []
    for i, chat in enumerate(GOLDEN_CHATS):
        ids = tokenizer.chat(chat)
        with torch.no_grad():
            logits, mtp = models['bf16'](torch.tensor([ids]))
            int8_logits, _ = models['int8'](torch.tensor([ids]))
        for name, x in (('logits', logits), ('mtp_logits', mtp), ('int8_logits', int8_logits)):
            np.save(os.path.join(folder, f'{name}_{i}.npy'), x[0].numpy().astype(np.float32))
        answer = greedy(models['bf16'], ids, end)[0]
        int8_answer = greedy(models['int8'], ids, end)[0]
        prompts.append({
            'messages': [{'role': 'assistant' if k % 2 else 'user', 'content': text}
                         for k, text in enumerate(chat)],
            'tokens': ids, 'greedy': answer, 'greedy_text': tokenizer.decode(answer),
            'int8_greedy': int8_answer, 'int8_greedy_text': tokenizer.decode(int8_answer)})
        print(f'{chat[-1]} -> {tokenizer.decode(answer)}', flush=True)
    write_json(os.path.join(folder, 'prompts.json'), prompts, ensure_ascii=False)
    with open(os.path.join(folder, 'eval.jsonl'), 'w', encoding='utf-8') as f:
        for d in dialogues:
            f.write(json.dumps(d) + '\n')


def evaluate(models, tokenizer, dialogues, definitions, n_words):
    end = tokenizer.special['<|im_end|>']
    bf16, n = perplexity(models['bf16'], dialogues)
    int8, _ = perplexity(models['int8'], dialogues)
    right = drafted = exact = 0
    words = random.sample(list(definitions), min(n_words, len(definitions)))
    for word in words:
        answer, r, d = greedy(models['bf16'], tokenizer.chat([f'What does {word} mean?']), end, 80)
        right, drafted = right + r, drafted + d
        exact += tokenizer.decode(answer).strip() == definitions[word].strip()
    return {'eval perplexity bf16': bf16, 'eval perplexity int8 (dynamic activations)': int8,
            'eval answer tokens': n,
            'MTP first-draft acceptance, greedy': right / max(drafted, 1),
            f'definitions reproduced exactly, of {len(words)}': exact}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('--work', required=True, help='folder that the earlier steps wrote to')
    ap.add_argument('--out', required=True, help='folder to write bf16, int8 and golden to')
    ap.add_argument('--dialogues', type=int, default=150, help='in the evaluation')
    ap.add_argument('--words', type=int, default=60, help='definitions to check')
    args = ap.parse_args()

    def load(name):
        with open(os.path.join(args.work, name), encoding='utf-8') as f:
            return json.load(f)

    random.seed(11)
    tokenizer_path = os.path.join(args.work, 'tokenizer.json')
    tokenizer = Tokenizer(tokenizer_path)
    trained = torch.load(os.path.join(args.work, 'checkpoint.pt'))
    weights = {checkpoint_name(n): round_to_bf16(w) for n, w in trained.items()}
    quantized = quantize(weights)
    config = model_config(tokenizer.special)
    write_folder(os.path.join(args.out, 'bf16'), weights, config, tokenizer_path,
                 tokenizer.special)
    write_folder(os.path.join(args.out, 'int8'), quantized,
                 {**config, 'quantization_config': quantization_config(weights)}, tokenizer_path,
                 tokenizer.special)

    torch.set_default_dtype(torch.float64)
    models = {'bf16': reference_model(weights), 'int8': reference_model(weights, quantized)}
    docs = load('docs.json')
    dialogues = []
    for doc in random.sample(docs, min(args.dialogues, len(docs))):
        tokens, mask = tokenizer.dialogue(doc)
        dialogues.append({'tokens': tokens, 'mask': mask})
    golden = os.path.join(args.out, 'golden')
    write_golden(golden, tokenizer, models, dialogues)
    report = evaluate(models, tokenizer, dialogues, load('qa.json'), args.words)
    write_json(os.path.join(golden, 'reference.json'), report)
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
