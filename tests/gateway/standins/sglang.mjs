// Stands in for an SGLang server: its OpenAI endpoints and /generate, health and metrics, prefill
// and decode roles that meet through a bootstrap server, and its KV events with mediums. Strict:
// what its protocol does not prescribe is answered 400 and kept as a violation.
//
//   node sglang.mjs [--disaggregation-mode null|prefill|decode] [--bootstrap-port 0] ...
//
// In prefill or decode mode every request needs bootstrap_host, _port and _room, the same body on
// both sides, and a leg whose partner never comes hangs until its client gives up: as SGLang does.
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { COMMON_OPTIONS, StandIn, hashIds, listen, options, piece } from "./common.mjs";
import { Answer, badField, duplicateFields, fieldNames, promptsOf } from "./openai_shapes.mjs";

const o = options({
  ...COMMON_OPTIONS, encoding: "array", hashes: "signed", disaggregation_mode: "null",
  bootstrap_port: 0,
});
const s = new StandIn(o);
const rooms = new Map(); // room -> {prefill, decode: {digest, meet}}
s.counters.rooms_open = 0;

// SGLang's errors are flat.
s.errorBody = (status, message, param = null) => ({ object: "error", message,
  type: status >= 500 ? "InternalServerError" : "BadRequestError", param, code: status });
s.error = (res, status, message, headers, param) =>
  s.json(res, status, s.errorBody(status, message, param), headers);

/* ---- the bootstrap room ---- */

// The rooms' digits as they stand in a body: JSON.parse would round them.
function rawRooms(raw) {
  const text = /(?<!\\)"bootstrap_room"\s*:\s*(\[[^\]]*\]|[^\s,}]+)/.exec(raw)?.[1] ?? "";
  return text.startsWith("[") ? text.slice(1, -1).split(",").map((t) => t.trim()) : [text];
}

// A prompt's request has one of each, a batch a list of one for each prompt.
function bootstrapFaults(body, raw) {
  const out = [];
  const batch = Array.isArray(body.prompt) && typeof body.prompt[0] !== "number";
  const n = batch ? body.prompt.length : 1;
  for (const f of ["bootstrap_host", "bootstrap_port", "bootstrap_room"])
    if (Array.isArray(body[f]) ? !batch || body[f].length !== n : n > 1)
      out.push(`${f} is ${JSON.stringify(body[f])} for ${n} prompts`);
  for (const host of [body.bootstrap_host].flat()) {
    if (typeof host !== "string" || !host)
      out.push(`bootstrap_host is ${JSON.stringify(host)}, expected a host`);
    else if (host.includes(":") && !/^\[.*\]$/.test(host))
      out.push(`bootstrap_host ${host} has no brackets`);
  }
  for (const port of [body.bootstrap_port].flat()) {
    if (!Number.isInteger(port) || port < 1 || port > 65535) out.push(`bootstrap_port is ${JSON.stringify(port)}`);
    if (o.disaggregation_mode === "prefill" && Number(port) !== s.ports.bootstrap)
      out.push(`bootstrap_port is ${port}, this prefill engine's is ${s.ports.bootstrap}`);
  }
  const rooms = rawRooms(raw);
  if (new Set(rooms).size < n) out.push(`${n} prompts share rooms: ${rooms}`);
  for (const room of rooms)
    if (!/^(0|[1-9]\d*)$/.test(room) || BigInt(room) >= 1n << 63n)
      out.push(`bootstrap_room is ${room}, expected an integer below 2^63`);
  return out;
}

// A leg comes into its room; resolves to "met", "refused: ..." or, when it leaves, "left".
function enter(room, side, digest, gone) {
  const known = rooms.get(room) ?? {};
  if (known[side]) return Promise.resolve("refused: the room is taken");
  rooms.set(room, known);
  s.counters.rooms_open = rooms.size;
  return new Promise((resolve) => {
    known[side] = { digest, resolve };
    gone.then(() => {
      if (rooms.get(room) === known) rooms.delete(room);
      s.counters.rooms_open = rooms.size;
      resolve("left");
    });
    const other = known[side === "prefill" ? "decode" : "prefill"];
    if (!other) return;
    const answer = other.digest === digest ? "met" : "refused: the two legs' bodies differ";
    if (answer !== "met") s.violation(`room ${room}: the two legs' bodies differ`);
    other.resolve(answer);
    resolve(answer);
  });
}

// The prefill engine's bootstrap server, where decode engines come.
async function bootstrap(req, res) {
  let text = "";
  for await (const part of req) text += part;
  const { room, digest } = JSON.parse(text);
  const gone = new Promise((r) => res.on("close", r));
  s.json(res, 200, { answer: await enter(room, "decode", digest, gone) });
}

// Every prompt's room; the first answer that is not "met", if any.
async function meet(body, raw, state) {
  const digest = createHash("sha256").update(raw).digest("hex");
  const rooms = rawRooms(raw);
  state.entry.room = rooms[0];
  state.entry.rooms = rooms;
  const answers = await Promise.all(rooms.map((room) => (o.disaggregation_mode === "prefill"
    ? enter(room, "prefill", digest, state.gone) : visit(body, room, digest, state))));
  return answers.find((a) => a !== "met") ?? "met";
}

async function visit(body, room, digest, state) {
  const stop = new AbortController();
  state.gone.then(() => stop.abort());
  const [host] = [body.bootstrap_host].flat(), [port] = [body.bootstrap_port].flat();
  try {
    const r = await fetch(`http://${host}:${port}/room`,
      { method: "POST", body: JSON.stringify({ room, digest }), signal: stop.signal });
    return (await r.json()).answer;
  } catch (e) {
    state.entry.fetch = String(e.cause?.code ?? e.name);
    await state.gone; // no prefill engine there: SGLang's decode waits
    return "left";
  }
}

/* ---- requests ---- */

async function complete(kind, req, res, bytes) {
  const chat = kind === "chat", raw = bytes.toString();
  const mode = o.disaggregation_mode;
  const entry = { path: req.url, headers: req.headers, bytes: bytes.length,
    leg: mode === "null" ? "whole" : mode, body: bytes.length <= 65536 ? raw : undefined,
    request_id: req.headers["x-request-id"] };
  const state = s.begin(req, res, entry);
  s.counters[`${entry.leg}_legs`]++;
  const refuse = (status, message, param) => {
    entry.outcome = `status ${status}`;
    s.counters.failed++;
    s.error(res, status, message, {}, param);
  };
  if (o.api_key && req.headers.authorization !== `Bearer ${o.api_key}`) return refuse(401, "Unauthorized");
  let body;
  try {
    body = JSON.parse(raw);
  } catch (e) {
    s.violation(`a body that is no JSON: ${e.message}`);
    return refuse(400, `JSON decode error: ${e.message}`);
  }
  const pair = mode === "null" ? "" : "bootstrap_host bootstrap_port bootstrap_room";
  const known = kind === "generate"
    ? new Set(`text input_ids sampling_params stream rid ${pair}`.split(" ")) : fieldNames(chat, pair);
  const wrong = [
    ...Object.keys(body).filter((f) => !known.has(f)).map((f) => `unknown field ${f}`),
    ...duplicateFields(raw).map((f) => `field ${f} twice`),
    ...(mode === "null" ? [] : bootstrapFaults(body, raw)),
  ];
  if (wrong.length) {
    s.violation(`${entry.leg} leg on ${req.url}: ${wrong.join("; ")}`);
    return refuse(400, wrong.join("; "));
  }
  if (kind === "generate") body.prompt = body.input_ids ?? body.text;
  if (body.model !== undefined && body.model !== o.model && kind !== "generate")
    return refuse(404, `The model \`${body.model}\` does not exist.`);
  const bad = badField(body);
  if (bad) return refuse(400, `field ${bad} has a wrong value: ${JSON.stringify(body[bad])}`, bad);
  const { prompts, ids, error, param } = promptsOf(chat, body, o.vocab);
  if (error) return refuse(400, error, param);
  if (mode !== "null" && (body.n ?? 1) > 1) { // SGLang takes it, and hangs
    s.violation("a split request with several choices");
    return refuse(400, "several choices");
  }
  if (prompts.some((p) => p.length >= o.max_model_len))
    return refuse(400, `The input is longer than the model's context length (${o.max_model_len}).`);
  entry.ids = ids && prompts[0].length <= 4096 ? prompts[0] : undefined;
  entry.prompt_tokens = prompts[0].length;
  entry.is_ids = Boolean(ids);
  return serve(kind, body, raw, prompts, res, state);
}

async function serve(kind, body, raw, prompts, res, state) {
  const { entry } = state, { leg } = entry;
  if (await s.faultyHead(res, state, leg)) return;
  if (leg !== "whole") {
    const answer = await meet(body, raw, state);
    entry.meeting = answer;
    if (state.aborted || answer === "left") return;
    if (answer !== "met") {
      s.violation(answer);
      s.error(res, 400, answer);
      return;
    }
  }
  const { cache } = s.ranks[Number(body.data_parallel_rank ?? 0)] ?? s.ranks[0];
  let cached = 0;
  for (const p of prompts) cached += await cache.take(p);
  entry.cached = cached;
  if (!(await s.prefill(state, prompts.reduce((n, p) => n + p.length, -cached)))) return;
  if (kind === "generate") return generate(body, prompts[0], cached, res, state);
  // The prefill side computes one token and ends, whatever was asked for.
  const asked = leg === "prefill" ? { ...body, max_tokens: 1, max_completion_tokens: 1 } : body;
  const answer = new Answer(o, "sglang", kind === "chat", asked, prompts, cached);
  if (body.stream) await s.stream(res, state, answer.events(), leg);
  else if (await s.pause(state, (s.faults.token_ms ?? o.token_ms) * answer.n))
    s.json(res, 200, { ...answer.whole(), metadata: { weight_version: "default" } });
}

// SGLang's own endpoint: each event holds all of the text so far.
async function generate(body, ids, cached, res, state) {
  const hash = hashIds(ids), n = body.sampling_params?.max_new_tokens ?? 128, events = [];
  let text = "";
  for (let i = 0; i < n; i++) {
    text += piece(hash, i);
    events.push({ text, meta_info: { id: "0", finish_reason: i === n - 1 ? { type: "length", length: n } : null,
      prompt_tokens: ids.length, completion_tokens: i + 1, cached_tokens: cached } });
  }
  if (body.stream) await s.stream(res, state, [...events, "[DONE]"], state.entry.leg);
  else s.json(res, 200, events.at(-1));
}

function metrics(res) {
  const labels = `{engine_type="unified",model_name="${o.model}",tp_rank="0"}`;
  res.setHeader("content-type", "text/plain; version=0.0.4; charset=utf-8");
  res.end(`# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs${labels} ${(o.metrics_running ?? s.counters.running).toFixed(1)}
# HELP sglang:num_queue_reqs The number of requests in the waiting queue.
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs${labels} ${Number(o.metrics_waiting ?? 0).toFixed(1)}
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage${labels} ${o.metrics_usage ?? 0}
`);
}

async function handler(req, res, bytes) {
  const path = req.url.split("?")[0];
  const kinds = { "/v1/chat/completions": "chat", "/v1/completions": "completion", "/generate": "generate" };
  if (req.method === "GET") {
    const sick = s.fault("health", "health");
    if (path === "/health" || path === "/health_generate") return sick ? s.error(res, sick, "unhealthy") : res.end();
    if (path === "/metrics") return metrics(res);
    if (path === "/get_model_info" || path === "/model_info")
      return s.json(res, 200, { model_path: o.model, is_generation: true });
    if (path === "/get_server_info" || path === "/server_info")
      return s.json(res, 200, { page_size: o.block_size, disaggregation_mode: o.disaggregation_mode,
        disaggregation_bootstrap_port: s.ports.bootstrap, max_total_num_tokens: o.kv_blocks * o.block_size });
    if (path === "/v1/models")
      return s.json(res, 200, { object: "list", data: [{ id: o.model, object: "model", created: 1,
        owned_by: "sglang", root: o.model, max_model_len: o.max_model_len }] });
  } else if (kinds[path]) {
    return complete(kinds[path], req, res, bytes);
  }
  return s.error(res, 404, "Not Found");
}

s.ports = { bootstrap: 0 };
if (o.disaggregation_mode === "prefill") {
  const server = createServer((req, res) => bootstrap(req, res).catch(() => res.destroy()));
  s.ports.bootstrap = await listen(server, o.bootstrap_port, o.host);
}
await s.start(handler);
