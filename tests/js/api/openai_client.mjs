// The official OpenAI client against `starling serve`: what users' programs do.
// usage: STARLING=path/to/starling node openai_client.mjs
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import OpenAI from "openai";

const binary =
  process.env.STARLING ?? fileURLToPath(new URL("../../../build/starling", import.meta.url));
const KEY = "sk-test";
const messages = [{ role: "user", content: "What does courage mean?" }];
let server, exited, base, client;

before(async () => {
  server = spawn(binary, ["serve", "--host", "127.0.0.1", "--port", "0", "--api-key", KEY,
    "--served-model-name", "lexicon,another/name"], { stdio: ["ignore", "pipe", "inherit"] });
  exited = new Promise((resolve) => server.once("exit", (code, signal) => resolve({ code, signal })));
  for await (const line of createInterface({ input: server.stdout })) {
    const found = /^serving on (http:\S+)/.exec(line);
    if (found) {
      base = found[1];
      break;
    }
  }
  server.stdout.resume();
  client = new OpenAI({ baseURL: `${base}/v1`, apiKey: KEY, maxRetries: 0 });
});

after(async () => {
  server.kill("SIGTERM");
  server.kill("SIGTERM");
  assert.deepEqual(await exited, { code: 0, signal: null });
});

async function metric(name) {
  const text = await (await fetch(`${base}/metrics`)).text();
  const values = [...text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, "gm"))];
  assert.ok(values.length, name);
  return values.reduce((sum, v) => sum + Number(v[1]), 0);
}

async function until(condition, what) {
  for (let i = 0; i < 500; i++) {
    if (await condition()) return;
    await new Promise((r) => setTimeout(r, 10));
  }
  assert.fail(`${what}: not within 5 s`);
}

async function idle() {
  return (await metric("vllm:num_requests_running")) === 0 &&
    (await metric("vllm:kv_cache_usage_perc")) === 0;
}

test("lists and retrieves models", async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.deepEqual(ids, ["lexicon", "another/name"]);
  assert.equal((await client.models.retrieve("another/name")).id, "another/name");
  await assert.rejects(client.models.retrieve("gpt-4"), OpenAI.NotFoundError);
});

test("answers a chat, streamed and whole, the same", async () => {
  const whole = await client.chat.completions.create({ model: "lexicon", messages });
  const text = whole.choices[0].message.content;
  assert.equal(whole.object, "chat.completion");
  assert.equal(whole.choices[0].finish_reason, "stop");
  assert.match(text, /courage/);
  let streamed = "", usage, reason, role;
  const stream = await client.chat.completions.create({
    model: "lexicon", messages, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    assert.equal(chunk.object, "chat.completion.chunk");
    streamed += chunk.choices[0]?.delta.content ?? "";
    role ??= chunk.choices[0]?.delta.role;
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
  }
  assert.equal(streamed, text);
  assert.equal(role, "assistant");
  assert.equal(reason, "stop");
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test("the streaming helper puts the message together", async () => {
  const runner = client.chat.completions.stream({ model: "lexicon", messages, max_tokens: 8 });
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].finish_reason, "length");
  assert.equal(final.choices[0].message.content, await runner.finalContent());
});

test("reuses the cache on a repeated prompt", async () => {
  const long = [{ role: "user", content: "What does courage mean? ".repeat(8) }];
  const ask = () => client.chat.completions.create({ model: "lexicon", messages: long, max_tokens: 4 });
  const first = await ask(), second = await ask();
  assert.equal(first.usage.prompt_tokens_details.cached_tokens, 0);
  assert.ok(second.usage.prompt_tokens_details.cached_tokens >= 32);
  assert.equal(second.choices[0].message.content, first.choices[0].message.content);
  const salted = await client.chat.completions.create({
    model: "lexicon", messages: long, max_tokens: 4, cache_salt: "mine",
  });
  assert.equal(salted.usage.prompt_tokens_details.cached_tokens, 0);
});

test("gives logprobs in chats and completions", async () => {
  const chat = await client.chat.completions.create({
    model: "lexicon", messages, logprobs: true, top_logprobs: 3, max_tokens: 6,
  });
  const content = chat.choices[0].logprobs.content;
  assert.equal(content.length, 6);
  assert.equal(content.map((t) => t.token).join(""), chat.choices[0].message.content);
  for (const t of content) {
    assert.equal(t.top_logprobs.length, 3);
    assert.ok(t.logprob <= 0 && t.top_logprobs[0].logprob >= t.top_logprobs[1].logprob);
    assert.equal(Buffer.from(t.bytes).toString(), t.token);
  }
  // Greedy: the chosen token is the likeliest.
  assert.equal(content[0].top_logprobs[0].token, content[0].token);
  const completion = await client.completions.create({
    model: "lexicon", prompt: "Courage is", logprobs: 2, max_tokens: 4, temperature: 0,
  });
  const l = completion.choices[0].logprobs;
  assert.equal(l.tokens.length, 4);
  assert.equal(l.tokens.join(""), completion.choices[0].text);
  assert.equal(l.token_logprobs[0], Math.max(...Object.values(l.top_logprobs[0])));
  assert.deepEqual(l.text_offset[0], 0);
});

test("completions: batches, echo, ids, stop", async () => {
  const batch = await client.completions.create({
    model: "lexicon", prompt: ["One", "Two", "Three"], max_tokens: 3, n: 2, echo: true,
  });
  assert.deepEqual(batch.choices.map((c) => c.index), [0, 1, 2, 3, 4, 5]);
  assert.ok(batch.choices[2].text.startsWith("Two") && batch.choices[5].text.startsWith("Three"));
  const ids = await client.completions.create({
    model: "lexicon", prompt: [71, 386, 451], max_tokens: 2, return_token_ids: true,
  });
  assert.deepEqual(ids.choices[0].prompt_token_ids, [71, 386, 451]);
  assert.equal(ids.choices[0].token_ids.length, 2);
});

test("stop strings end the text before them", async () => {
  const plain = await client.chat.completions.create({ model: "lexicon", messages });
  const text = plain.choices[0].message.content;
  const stopped = await client.chat.completions.create({
    model: "lexicon", messages, stop: ["(noun)", "nowhere"],
  });
  assert.equal(stopped.choices[0].message.content, text.slice(0, text.indexOf("(noun)")));
  assert.equal(stopped.choices[0].finish_reason, "stop");
  assert.ok(stopped.usage.completion_tokens < plain.usage.completion_tokens);
  await until(idle, "the engine's request after a stop string");
});

test("n answers, reproducible by seed", async () => {
  const ask = (seed) => client.chat.completions.create({
    model: "lexicon", messages, n: 4, seed, temperature: 2, max_tokens: 24,
  });
  const texts = (r) => r.choices.map((c) => c.message.content);
  const a = texts(await ask(1)), b = texts(await ask(1)), c = texts(await ask(2));
  assert.equal(a.length, 4);
  assert.ok(new Set(a).size > 1, "four samples, all equal");
  assert.deepEqual(a, b);
  assert.notDeepEqual(a, c);
  // Choice i draws from seed + i.
  assert.deepEqual(a.slice(1), c.slice(0, 3));
});

test("refuses with the right error class", async () => {
  const ask = (extra, c = client) =>
    c.chat.completions.create({ model: "lexicon", messages, ...extra });
  await assert.rejects(ask({ temperature: -1 }), (e) => {
    assert.ok(e instanceof OpenAI.BadRequestError);
    assert.equal(e.param, "temperature");
    assert.match(e.message, /temperature is -1/);
    return true;
  });
  await assert.rejects(ask({ model: "gpt-4" }), (e) => {
    assert.ok(e instanceof OpenAI.NotFoundError);
    assert.equal(e.code, "model_not_found");
    return true;
  });
  const stranger = new OpenAI({ baseURL: `${base}/v1`, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(ask({}, stranger), OpenAI.AuthenticationError);
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  await assert.rejects(ask({ messages: [{ role: "user", content: "word ".repeat(4000) }] }), (e) => {
    assert.ok(e instanceof OpenAI.BadRequestError);
    assert.equal(e.code, "context_length_exceeded");
    return true;
  });
});

test("cancels a stream", async () => {
  const stream = await client.chat.completions.create({
    model: "lexicon", messages, stream: true, ignore_eos: true, max_tokens: 1900,
  });
  for await (const chunk of stream)
    if (chunk.choices[0].delta.content) break;
  stream.controller.abort();
  await until(idle, "a cancelled stream's request");
  const abort = new AbortController();
  const whole = client.chat.completions.create(
    { model: "lexicon", messages, ignore_eos: true, max_tokens: 1900, n: 4 },
    { signal: abort.signal });
  await until(async () => (await metric("vllm:num_requests_running")) === 4, "four running");
  abort.abort();
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  await until(idle, "a cancelled answer's requests");
});
