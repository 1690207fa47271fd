#!/usr/bin/python3
"""Trains the lexicon on the encoded corpus; writes checkpoint.pt in the working folder.

One process, or several that share the gradient (gloo; start each with its --rank): on two cores,
two processes of one thread are faster than one of two. Stops after --minutes; the learning rate
follows the clock.
"""
import argparse
import array
import math
import os
import time

import torch
import torch.distributed as dist
from torch.nn import functional as F

from lexicon_model import Lexicon, MoE

ROW = 128            # tokens a row
ROWS = 32            # rows a step and process
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 80
PROMPT_WEIGHT = 0.15  # of tokens that are not an answer's
MTP_WEIGHT, BALANCE_WEIGHT = 0.3, 0.002


def read(path, code, dtype):
    values = array.array(code)
    with open(path, 'rb') as f:
        values.frombytes(f.read())
    return torch.tensor(values, dtype=dtype)


def learning_rate(step, done):
    """Warm-up by steps; flat until 30% of the time, then a cosine to 2%."""
    decay = 1.0 if done < 0.3 else 0.02 + 0.49 * (1 + math.cos(math.pi * (done - 0.3) / 0.7))
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * decay


def weighted_loss(logits, targets, weights):
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='none')
    weights = weights.flatten()
    return (loss * weights).sum() / weights.sum()


class Trainer:
    def __init__(self, args):
        self.args = args
        self.ids = read(os.path.join(args.work, 'ids.u16'), 'H', torch.long)
        mask = read(os.path.join(args.work, 'mask.u8'), 'B', torch.float32)
        self.weights = mask * (1 - PROMPT_WEIGHT) + PROMPT_WEIGHT
        self.path = os.path.join(args.work, 'checkpoint.pt')
        self.model = Lexicon()
        if args.start > 0:
            self.model.load_state_dict(torch.load(self.path))
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [{'params': [p for p in parameters if p.dim() > 1], 'weight_decay': 0.02},
             {'params': [p for p in parameters if p.dim() < 2], 'weight_decay': 0.0}],
            lr=LEARNING_RATE, betas=(0.9, 0.97), eps=1e-8)
        # All gradients lie in one buffer: one message per step, one norm.
        self.gradient = torch.zeros(sum(p.numel() for p in parameters))
        at = 0
        for p in parameters:
            p.grad = self.gradient[at:at + p.numel()].view_as(p)
            at += p.numel()
        self.began = time.time()
        self.step = 0
        self.loss = None

    def progress(self):
        """Part of the run that is done, as process 0's clock has it."""
        minutes = (time.time() - self.began) / 60
        done = torch.tensor(self.args.start
                            + (1 - self.args.start) * minutes / self.args.minutes)
        if self.args.world > 1:
            dist.broadcast(done, 0)
        return done.item()

    def batches(self):
        """Endless batches of row starts: each pass cuts rows at another offset and shuffles."""
        generator = torch.Generator()
        generator.manual_seed(int(self.args.start * 1e6) + 5)
        per_step = ROWS * self.args.world
        while True:
            offset = torch.randint(0, ROW, (1,), generator=generator).item()
            n = (len(self.ids) - offset) // ROW
            if n < per_step:
                raise SystemExit(f'the corpus has {n} rows of {ROW}; a step needs {per_step}')
            for rows in torch.randperm(n, generator=generator).split(per_step):
                if len(rows) == per_step:
                    yield (rows[self.args.rank::self.args.world] * ROW + offset).tolist()

    def train_step(self, starts, done):
        rate = learning_rate(self.step, done)
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        x = torch.stack([self.ids[s:s + ROW] for s in starts])
        w = torch.stack([self.weights[s:s + ROW] for s in starts])
        logits, mtp = self.model(x)
        loss = weighted_loss(logits[:, :-1], x[:, 1:], w[:, 1:])
        mtp_loss = weighted_loss(mtp[:, :-1], x[:, 2:], w[:, 2:])
        balance = sum(layer.mlp.aux for layer in self.model.layers if isinstance(layer.mlp, MoE))
        self.gradient.zero_()
        (loss + MTP_WEIGHT * mtp_loss + BALANCE_WEIGHT * balance).backward()
        if self.args.world > 1:
            dist.all_reduce(self.gradient)
            self.gradient.div_(self.args.world)
        norm = self.gradient.norm().item()
        if norm > 1:
            self.gradient.div_(norm)
        self.optimizer.step()
        self.step += 1
        self.loss = loss.item() if self.loss is None else 0.98 * self.loss + 0.02 * loss.item()
        return mtp_loss.item()

    def save(self):
        torch.save(self.model.state_dict(), self.path + '.part')
        os.replace(self.path + '.part', self.path)

    def run(self):
        for starts in self.batches():
            done = self.progress()
            if done >= 1:
                break
            mtp_loss = self.train_step(starts, done)
            if self.args.rank == 0 and self.step % 25 == 0:
                speed = self.step * ROW * ROWS * self.args.world / (time.time() - self.began)
                print(f'{done:.3f} step {self.step} loss {self.loss:.3f} mtp {mtp_loss:.3f} '
                      f'{speed:.0f} tokens/s', flush=True)
            if self.args.rank == 0 and self.step % 200 == 0:
                self.save()
        if self.args.rank == 0:
            self.save()


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    ap.add_argument('--work', required=True, help='folder with ids.u16 and mask.u8')
    ap.add_argument('--minutes', type=float, required=True)
    ap.add_argument('--start', type=float, default=0.0,
                    help='above 0: go on from checkpoint.pt, as if this part were done')
    ap.add_argument('--rank', type=int, default=0)
    ap.add_argument('--world', type=int, default=1, help='number of processes')
    args = ap.parse_args()
    torch.manual_seed(1)
    torch.set_flush_denormal(True)
    if args.world > 1:
        os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
        os.environ.setdefault('MASTER_PORT', '29512')
        dist.init_process_group('gloo', rank=args.rank, world_size=args.world)
        torch.set_num_threads(1)
    Trainer(args).run()


if __name__ == '__main__':
    main()
