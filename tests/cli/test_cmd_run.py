#!/usr/bin/python3
"""starling run and starling template as a user meets them, with the lexicon.

    test_cmd_run.py PATH_OF_STARLING
"""
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

STARLING = sys.argv[1]
QUESTION = "What does courage mean?"
failures = 0


def check(name, ok, detail=''):
    global failures
    failures += not ok
    print(f'{"ok" if ok else "FAIL"}: {name} {"" if ok else detail}')


def starling(*args, stdin=''):
    return subprocess.run([STARLING, *args], input=stdin, text=True, capture_output=True,
                          timeout=60)


def check_one_prompt():
    r = starling('run', '-p', QUESTION)
    check('-p answers', r.returncode == 0 and 'courage (noun)' in r.stdout, r)
    check('-p prints the answer alone', r.stderr == '' and r.stdout.endswith('\n'), r)
    check('-p - reads stdin', starling('run', '-p', '-', stdin=QUESTION + '\n').stdout == r.stdout)
    cut = starling('run', '-p', QUESTION, '--max-tokens', '4')
    check('--max-tokens', r.stdout.startswith(cut.stdout.rstrip('\n')) and
          len(cut.stdout) < len(r.stdout), cut)
    stopped = starling('run', '-p', QUESTION, '--stop', ' (noun)')
    check('--stop', stopped.stdout == r.stdout.split(' (noun)')[0] + '\n', stopped)
    raw = starling('run', '--raw', '-p', '1. courage (', '--max-tokens', '8')
    check('--raw', raw.returncode == 0 and len(raw.stdout) > 3, raw)
    seeds = [starling('run', '-p', QUESTION, '--temperature', '1.5', '--seed', s).stdout
             for s in ('7', '7', '8')]
    check('--seed', seeds[0] == seeds[1] != seeds[2], seeds)


def check_mistakes():
    for args, code, part in [
            (['--temperature', 'x'], 2, "--temperature does not take 'x'"),
            (['--top-p', '2'], 2, 'expected a number from'),
            (['--kv-cache-dtype', 'int3'], 2, 'expected bf16, f32 or int8'),
            (['--nope'], 2, "unknown option '--nope'"),
            (['--max-model-len', '8'], 1, 'context is 8 tokens'),
            (['--chat-template', '/nowhere'], 1, '/nowhere'),
            (['/nowhere'], 1, '/nowhere: no checkpoint folder there'),
            (['--min-tokens', '9', '--max-tokens', '3'], 1, 'min_tokens')]:
        r = starling('run', '-p', 'x', *args)
        check(f'refuses {args}', r.returncode == code and part in r.stderr and not r.stdout, r)


def check_pipe():
    """Lines from a pipe: the same answers as one by one, no prompts, errors do not end it."""
    first = starling('run', '-p', 'What is hope?').stdout
    r = starling('run', stdin='What is hope?\n\n/reset\n/nope\n/stats\n/help\n/exit\nnever\n')
    check('pipe: the answer', r.stdout.startswith(first), r)
    check('pipe: commands', 'there is no command /nope' in r.stdout and
          '0 turns' in r.stdout and '/reset' in r.stdout, r)
    check('pipe: /exit', r.stdout.count('(noun)') == first.count('(noun)') and r.returncode == 0, r)
    r = starling('run', '--max-model-len', '64', stdin='word ' * 100 + '\nWhat is hope?\n')
    check('pipe: goes on after an error', 'context is 64 tokens' in r.stderr and
          'hope (noun)' in r.stdout and r.returncode == 0, r)


class Terminal:
    def __init__(self, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(STARLING, [STARLING, *args])
        self.seen = ''

    def until(self, pattern, seconds=20):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            try:
                data = os.read(self.fd, 65536) if ready else b''
            except OSError:
                data = b''
            if not data:
                return False
            self.seen += data.decode('utf-8', 'replace')
        return True

    def type(self, text):
        self.seen = ''
        os.write(self.fd, text.encode())

    def exit_code(self):
        for _ in range(200):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            try:
                if select.select([self.fd], [], [], 0.05)[0]:
                    os.read(self.fd, 65536)
            except OSError:
                time.sleep(0.05)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None


def check_terminal():
    t = Terminal('run')
    check('tty: prompt', t.until('>>> $'), t.seen)
    t.type('What is hope?\n')
    check('tty: answer and dimmed statistics',
          t.until(r'hope \(noun\)(.|\n)*\x1b\[2m\d+ prompt tokens.*\x1b\[0m(.|\n)*>>> $'), t.seen)
    t.type('What is \\\n')
    check('tty: a line goes on', t.until(r'\.\.\. $'), t.seen)
    t.type('rain?\n')
    check('tty: second answer', t.until(r'rain \(noun\)(.|\n)*>>> $'), t.seen)
    t.type('\x04')
    check('tty: Ctrl-D ends', t.exit_code() == 0)

    for _ in range(10):  # a busy machine may let the answer end before the key is typed
        t = Terminal('run', '--ignore-eos', '--max-tokens', '1900')
        t.until('>>> $')
        t.type('What is hope?\n')
        t.until(r'hope \(noun\)')
        os.write(t.fd, b'\x03')
        stopped = t.until(r', stopped(.|\n)*>>> $')
        if stopped or ', cut at the longest length' not in t.seen:
            break
        t.exit_code()
    check('tty: Ctrl-C stops the answer', stopped, t.seen)
    t.type('/stats\n')
    check('tty: the chat goes on', t.until('1 turns(.|\n)*>>> $'), t.seen)
    t.type('\x03')
    check('tty: Ctrl-C at the prompt ends', t.exit_code() == 0)


def check_template():
    messages = [{'role': 'user', 'content': 'hé'}]
    lines = [{'messages': messages, 'add_generation_prompt': True}, {'messages': 5}, [1]]
    r = starling('template', '--jsonl', stdin=''.join(json.dumps(x) + '\n' for x in lines) + '{\n')
    out = [json.loads(x) for x in r.stdout.splitlines()]
    check('template --jsonl', r.returncode == 0 and len(out) == 4 and
          out[0] == '<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n', r)
    check('template: errors are answers', all('error' in x for x in out[1:]) and
          'not iterable' in out[1]['error'], r)
    r = starling('template', stdin=json.dumps({'messages': messages}))
    check('template: one conversation', r.stdout == '<|im_start|>user\nhé<|im_end|>\n', r)
    with tempfile.TemporaryDirectory() as d:
        r = starling('template', d, stdin='{}')
        check('template: none there', r.returncode == 1 and 'no chat template' in r.stderr, r)
        path = f'{d}/t.jinja'
        with open(path, 'w', encoding='utf-8') as f:
            f.write("{{ strftime_now('%Y') }}{{ raise_exception('no ' ~ x) if x }}")
        r = starling('template', '--template', path, '--now', '86400', stdin='{}')
        check('template: --template and --now', r.stdout == '1970', r)
        r = starling('template', '--template', path, stdin='{"x": 1}')
        check('template: what it raises', r.returncode == 1 and
              r.stderr == 'starling template: no 1\n', r)


check_one_prompt()
check_mistakes()
check_pipe()
check_terminal()
check_template()
print(f'{failures} failed')
sys.exit(failures > 0)
