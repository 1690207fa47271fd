// The official OpenAI client through the whole stack: gateway, a prefill and a decode engine.
// usage: GATEWAY=http://127.0.0.1:PORT DIRECT=http://127.0.0.1:PORT node openai_gateway.mjs
// (tests/gateway/test_openai_client.py starts both: DIRECT is one engine alone.)
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.GATEWAY}/v1`, apiKey: "sk-test", maxRetries: 0 });
const direct = new OpenAI({ baseURL: `${process.env.DIRECT}/v1`, apiKey: "sk-test", maxRetries: 0 });
const messages = [{ role: "user", content: "What does courage mean?" }];
const long = [{ role: "user", content: "What is a river? ".repeat(30) }];

test("lists and retrieves models", async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.deepEqual(ids, ["lexicon"]);
});

test("answers chats as the engine alone does, streamed and whole", async () => {
  for (const ask of [messages, long]) {
    const body = { model: "lexicon", messages: ask, max_tokens: 40 };
    const want = (await direct.chat.completions.create(body)).choices[0];
    const whole = await client.chat.completions.create(body);
    assert.equal(whole.choices[0].message.content, want.message.content);
    assert.equal(whole.choices[0].finish_reason, want.finish_reason);
    let text = "", usage, role, reason;
    const stream = await client.chat.completions.create({
      ...body, stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      role ??= chunk.choices[0]?.delta.role;
      reason = chunk.choices[0]?.finish_reason ?? reason;
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, want.message.content);
    assert.equal(role, "assistant");
    assert.equal(reason, want.finish_reason);
    assert.equal(usage.prompt_tokens, whole.usage.prompt_tokens);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  }
});

test("the streaming helper puts the message together", async () => {
  const runner = client.chat.completions.stream({ model: "lexicon", messages, max_tokens: 8 });
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].finish_reason, "length");
  assert.equal(final.choices[0].message.content, await runner.finalContent());
});

test("gives the engine's log-probabilities", async () => {
  const body = { model: "lexicon", messages: long, logprobs: true, top_logprobs: 3, max_tokens: 6 };
  const [a, b] = await Promise.all([direct, client].map((c) => c.chat.completions.create(body)));
  assert.deepEqual(b.choices[0].logprobs, a.choices[0].logprobs);
});

test("completions, with several prompts and choices", async () => {
  const body = { model: "lexicon", prompt: ["Courage is", "A river is"], max_tokens: 8 };
  const [a, b] = await Promise.all([direct, client].map((c) => c.completions.create(body)));
  assert.deepEqual(b.choices.map((c) => c.text), a.choices.map((c) => c.text));
  const n = await client.chat.completions.create({ model: "lexicon", messages, n: 3, max_tokens: 4 });
  assert.equal(n.choices.length, 3);
});

test("stop strings", async () => {
  const stopped = await client.chat.completions.create({ model: "lexicon", messages, stop: [" of"] });
  assert.doesNotMatch(stopped.choices[0].message.content, / of/);
});

test("errors are the client's own classes", async () => {
  await assert.rejects(client.chat.completions.create({ model: "gpt-9", messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model: "lexicon", messages: [] }),
    OpenAI.BadRequestError);
  await assert.rejects(client.chat.completions.create({ model: "lexicon", messages, temperature: -5 }),
    OpenAI.BadRequestError);
  await assert.rejects(client.chat.completions.create({ model: "lexicon", stream: true,
    messages: [{ role: "user", content: "word ".repeat(5000) }] }), OpenAI.BadRequestError);
});

test("an aborted stream ends at once", async () => {
  const stream = await client.chat.completions.create({
    model: "lexicon", messages, stream: true, max_tokens: 1500, ignore_eos: true });
  let n = 0;
  for await (const chunk of stream) if (++n === 4) stream.controller.abort();
  assert.ok(n < 1500); // what had come at once with the fourth is still read
});

test("many at once", async () => {
  const want = (await direct.chat.completions.create({ model: "lexicon", messages, max_tokens: 12 }))
    .choices[0].message.content;
  const all = await Promise.all(Array.from({ length: 24 }, () =>
    client.chat.completions.create({ model: "lexicon", messages, max_tokens: 12 })));
  for (const one of all) assert.equal(one.choices[0].message.content, want);
});
