#!/usr/bin/python3
"""What the commands say to wrong arguments, odd folders and full disks: exit codes and messages.

    test_cmd_errors.py PATH_OF_STARLING
"""
import os
import signal
import subprocess
import sys
import tempfile

STARLING = os.path.abspath(sys.argv[1])
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LEXICON = os.path.join(ROOT, "models", "lexicon", "int8")
failures = 0


def check(name, ok, detail=""):
    global failures
    failures += not ok
    print(f'{"ok" if ok else "FAIL"}: {name} {"" if ok else detail}')


def starling(*args, stdin="", stdout=subprocess.PIPE, cwd=None):
    return subprocess.run([STARLING, *args], input=stdin, stdout=stdout, stderr=subprocess.PIPE,
                          text=True, timeout=60, cwd=cwd)


def refused(code, words, *args):
    """The command ends with the code, says so in a line that holds the words, and prints nothing."""
    r = starling(*args)
    check(f"{args} is refused", r.returncode == code and words in r.stderr and not r.stdout, r)


def check_usage():
    refused(2, "there is no command 'frob'", "frob")
    for command in ("serve", "run", "bench", "logits", "tokenize", "template", "inspect"):
        refused(2, "unknown option '--frob'", command, "--frob")
        r = starling(command, "--help")
        check(f"{command} --help", r.returncode == 0 and "usage: starling " + command in r.stdout, r)
    refused(2, "does not take '99999'", "serve", "--port", "99999")
    refused(2, "needs a value", "serve", "--port")
    refused(2, "unexpected argument 'b'", "serve", "a", "b")


def check_serve():
    refused(1, "no checkpoint folder there", "serve", "--port", "0", "/nonexistent")
    refused(1, "MODEL is empty", "serve", "--port", "0", "")
    refused(1, "Is a directory", "serve", "--port", "0", "--chat-template", ROOT)
    # Addressable, but far more than any machine's memory.
    refused(1, "KV blocks", "serve", "--port", "0", "--num-kv-blocks", "500000000",
            "--block-size", "64")
    refused(1, "at least 2", "serve", "--port", "0", "--max-model-len", "1")


def check_name_of_this_folder():
    p = subprocess.Popen([STARLING, "serve", "--port", "0", "."], cwd=LEXICON, text=True,
                         stdout=subprocess.PIPE)
    line = p.stdout.readline()
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=30)
    check("serve . takes the folder's name", line.startswith("int8 ready"), line)


def check_full_disk():
    with open("/dev/full", "w") as full:
        for args, stdin in ((("tokenize", "hello"), ""), (("tokenize", "--jsonl"), '"hello"\n'),
                            (("inspect",), ""), (("run", "-p", "x", "--max-tokens", "2"), "")):
            r = starling(*args, stdin=stdin, stdout=full)
            check(f"{args} on a full disk", r.returncode == 1 and "No space left" in r.stderr, r)


def check_decoded_zero():
    r = starling("tokenize", "--decode", "64", "188", "65")
    check("decoding prints U+0000", r.stdout == "a\0b\n", r)


def check_folders():
    with tempfile.TemporaryDirectory() as empty:
        for command in (["run", "-p", "x"], ["inspect"], ["bench"], ["logits", "--tokens", "1", "--out", "x"],
                        ["tokenize", "--jsonl"], ["template", "--jsonl"]):
            refused(1, empty, command[0], empty, *command[1:])
        check("nothing was written", os.listdir(empty) == [], os.listdir(empty))
    refused(1, "Not a directory", "serve", "--port", "0", os.path.join(LEXICON, "config.json"))


check_usage()
check_serve()
check_name_of_this_folder()
check_full_disk()
check_decoded_zero()
check_folders()
sys.exit(failures > 0)
