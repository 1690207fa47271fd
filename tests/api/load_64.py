"""Many streaming clients at once: no error, nothing leaked.

usage: load_64.py [SECONDS [CLIENTS]]     default 5 s, 64 clients

Each client streams one chat after the other on a kept connection; one sends prompts of about
1,500 tokens. At the end no KV block is in use, resident memory is where it was after the first
third, and the gaps between tokens are printed."""
import asyncio
import json
import os
import random
import sys
import time

from server_process import Server, wait_for

WORDS = ("courage water stone river music happy small large quick light paper house friend animal "
         "color music travel winter strong silver").split()


class Client:
    def __init__(self, port, index, stats):
        self.port, self.index, self.stats = port, index, stats
        self.random = random.Random(index)

    def body(self):
        r = self.random
        if self.index == 0:
            prompt = "".join(f" {r.choice(WORDS)} {r.randrange(100)}" for _ in range(470))
            return "/v1/completions", {"prompt": prompt, "max_tokens": 8, "ignore_eos": True}
        question = f"What does {r.choice(WORDS)} mean?"
        return "/v1/chat/completions", {
            "messages": [{"role": "user", "content": question}], "max_tokens": r.randrange(8, 96),
            "temperature": r.choice([0, 1]), "seed": r.randrange(10), "ignore_eos": True}

    async def one(self, reader, writer):
        path, body = self.body()
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps(body).encode()
        writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                     % (path.encode(), len(data), data))
        status = await reader.readline()
        assert status == b"HTTP/1.1 200 OK\r\n", status
        await reader.readuntil(b"\r\n\r\n")
        last, tokens, usage = time.monotonic(), 0, None
        while True:
            size = int(await reader.readline(), 16)
            chunk = await reader.readexactly(size + 2)
            if size == 0:
                break
            now = time.monotonic()
            for event in chunk.split(b"\n\n"):
                if not event.startswith(b"data: {"):
                    continue
                e = json.loads(event[6:])
                assert "error" not in e, e
                usage = e.get("usage") or usage
                tokens += bool(e["choices"])
            if tokens > 2:
                self.stats["gaps"].append(now - last)
            last = now
        assert usage["completion_tokens"] == body["max_tokens"], usage
        self.stats["requests"] += 1
        self.stats["tokens"] += usage["completion_tokens"]
        self.stats["longest_prompt"] = max(self.stats["longest_prompt"], usage["prompt_tokens"])

    async def run(self, until):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while time.monotonic() < until:
            await self.one(reader, writer)
        writer.close()


async def load(server, seconds, clients, stats):
    loop, start = asyncio.get_running_loop(), time.monotonic()
    tasks = [asyncio.create_task(Client(server.port, i, stats).run(start + seconds))
             for i in range(clients)]
    await asyncio.sleep(seconds / 3)
    stats["rss"] = await loop.run_in_executor(None, server.metric, "process_resident_memory_bytes")
    await asyncio.gather(*tasks)


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5
    clients = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    stats = {"requests": 0, "tokens": 0, "gaps": [], "longest_prompt": 0}
    # Few blocks: a cache that is still filling would look like a leak.
    with Server("--log-level", "warning", "--num-kv-blocks", "1000") as server:
        asyncio.run(load(server, seconds, clients, stats))
        wait_for(server.idle, what="blocks back to zero")
        rss = server.metric("process_resident_memory_bytes")
        preempted = server.metric("vllm:num_preemptions_total")
    gaps = sorted(stats["gaps"])
    at = [1e3 * gaps[int(q * (len(gaps) - 1))] for q in (0.5, 0.99, 1)]
    print(f"{stats['requests']} requests, {stats['tokens']} tokens, "
          f"{stats['tokens'] / seconds:.0f} tokens/s, longest prompt {stats['longest_prompt']}; "
          f"gaps between tokens: median {at[0]:.1f}, p99 {at[1]:.1f}, max {at[2]:.1f} ms; "
          f"{preempted:.0f} preemptions; resident {stats['rss'] / 2**20:.1f} -> "
          f"{rss / 2**20:.1f} MiB")
    assert stats["longest_prompt"] >= 1400, "the long prompt is not long"
    assert stats["requests"] >= clients
    if os.environ.get("SANITIZED"):
        return  # a sanitizer keeps freed memory for a while, and looks for leaks itself
    growth = rss - stats["rss"]
    assert growth < max(16 * 2 ** 20, 0.1 * stats["rss"]), f"resident memory grew by {growth}"


main()
