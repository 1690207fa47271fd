// Stands in for a vLLM server: its OpenAI endpoints, health and metrics, the NixlConnector's and the
// MooncakeConnector's prefill and decode roles, and its KV events. Strict: what a real vLLM would
// put up with but its protocol does not prescribe is answered 400 and kept as a violation.
//
//   node vllm.mjs [--role both|prefill|decode] [--connector nixl|mooncake] [--events-port 0] ...
//
// Prints {"port", "control", "events", "replay", "side", "bootstrap"} and serves until its stdin
// ends. The side port stands for NIXL's side channel: a decode stand-in fetches there what a
// prefill stand-in handed out, verbatim, once, within its lease.
import { createServer } from "node:http";
import { COMMON_OPTIONS, StandIn, hex, listen, options } from "./common.mjs";
import { Answer, badField, duplicateFields, fieldNames, promptsOf } from "./openai_shapes.mjs";

const o = options({
  ...COMMON_OPTIONS, role: "both", connector: "nixl", side_port: 0, bootstrap_port: 0,
  lease_ms: 30000, old_errors: 0, load_failure: "fail", transfer_ms: 0, num_gpu_blocks: 4096,
  pull_ms: 10000,
});
const s = new StandIn(o);
const engineId = `${hex(4)}-${hex(2)}-${hex(2)}-${hex(2)}-${hex(6)}`;
const offers = new Map(); // remote_request_id or transfer_id -> {raw, timer, used, waiters}

s.errorBody = (status, message, type, param = null) => {
  type ??= { 404: "NotFoundError", 401: "Unauthorized" }[status] ??
    (status >= 500 ? "InternalServerError" : "BadRequestError");
  return o.old_errors ? { object: "error", message, type, param, code: status }
    : { error: { message, type, param, code: status } };
};
s.error = (res, status, message, headers, param) =>
  s.json(res, status, s.errorBody(status, message, undefined, param), headers);

/* ---- which leg a body is, and what is wrong with it ---- */

const NIXL_PREFILL = { do_remote_decode: true, do_remote_prefill: false, remote_engine_id: null,
  remote_block_ids: null, remote_host: null, remote_port: null };

const same = (a, b) => JSON.stringify(Object.entries(a).sort()) === JSON.stringify(Object.entries(b).sort());

function prefillFaults(chat, body, headers) {
  const out = [];
  if (body.stream !== false) out.push(`stream is ${body.stream}, expected false`);
  if ("stream_options" in body) out.push("stream_options is there");
  for (const f of ["max_tokens", "min_tokens", "max_completion_tokens"]) {
    if (f === "max_completion_tokens" && !chat && !(f in body)) continue; // not a completion's field
    if (body[f] !== 1) out.push(`${f} is ${body[f]}, expected 1`);
  }
  if (!headers["x-request-id"]) out.push("no x-request-id");
  return out;
}

function legOf(body) {
  const kv = body.kv_transfer_params;
  if (kv === undefined) return "whole";
  if (kv?.do_remote_decode === true && kv?.do_remote_prefill === false) return "prefill";
  if (kv?.do_remote_prefill === true && kv?.do_remote_decode === false) return "decode";
  return "neither";
}

function kvFaults(leg, kv) {
  if (leg === "whole") return o.role === "prefill" ? ["a whole request at a prefill engine"] : [];
  if (leg === "neither") return ["kv_transfer_params is of neither leg"];
  if (o.role !== "both" && o.role !== leg) return [`a ${leg} leg at a ${o.role} engine`];
  if (o.connector === "mooncake") {
    const keys = leg === "prefill" ? ["do_remote_decode", "do_remote_prefill", "transfer_id"]
      : ["do_remote_decode", "do_remote_prefill", "remote_bootstrap_addr", "remote_engine_id", "transfer_id"];
    if (!same(Object.keys(kv).sort(), keys)) return [`kv_transfer_params has ${Object.keys(kv)}, expected ${keys}`];
    if (!/^xfer-[0-9a-f-]{32,36}$/.test(kv.transfer_id)) return [`transfer_id is '${kv.transfer_id}'`];
    return [];
  }
  if (leg === "prefill" && !same(kv, NIXL_PREFILL))
    return [`the prefill leg's kv_transfer_params is ${JSON.stringify(kv)}`];
  return [];
}

// The text of the top-level kv_transfer_params as it stands in a body.
function rawKv(raw) {
  const found = [...raw.matchAll(/(?<!\\)"kv_transfer_params"\s*:\s*/g)].at(-1);
  if (!found) return "";
  const at = found.index + found[0].length;
  let depth = 0;
  for (const m of raw.slice(at).matchAll(/"(?:[^"\\]|\\.)*"|[{}\[\]]/gs)) {
    if ("{[".includes(m[0])) depth++;
    else if ("}]".includes(m[0]) && --depth === 0) return raw.slice(at, at + m.index + 1);
  }
  return "";
}

/* ---- handing KV over ---- */

function offer(key, raw) {
  const known = offers.get(key) ?? { waiters: [] };
  offers.set(key, known);
  Object.assign(known, { raw, used: false });
  s.counters.leases_held++;
  known.timer = setTimeout(() => {
    s.counters.leases_held--;
    s.counters.leases_expired++;
    known.expired = true;
  }, o.lease_ms);
  known.waiters.splice(0).forEach((w) => w());
}

// What the decode side asks of the prefill side.
async function fetchOffer(req, res) {
  const url = new URL(req.url, "http://x");
  if (url.pathname === "/query" && o.connector === "mooncake")
    return s.json(res, 200, { 0: { engine_id: engineId, worker_addr: { 0: { 0: "tcp://127.0.0.1:9" } } } });
  if (url.pathname !== "/fetch") return s.json(res, 404, {});
  let text = "";
  for await (const part of req) text += part;
  const { key, raw, engine } = JSON.parse(text);
  const refuse = (why, violation = true) => {
    if (violation) s.violation(why);
    s.json(res, 409, { why });
  };
  if (engine !== engineId) // of an engine that is no more, when this one was started in its place
    return refuse(`fetch for engine ${engine}, this is ${engineId}`, false);
  if (!offers.get(key)?.raw && o.connector === "mooncake") { // decode came first: wait for prefill
    const waiting = offers.get(key) ?? { waiters: [] };
    offers.set(key, waiting);
    await Promise.race([new Promise((r) => waiting.waiters.push(r)),
      new Promise((r) => res.on("close", r)), new Promise((r) => setTimeout(r, o.pull_ms))]);
  }
  const found = offers.get(key);
  if (!found?.raw) return refuse(`nothing was handed out as ${key}`, o.connector === "nixl");
  if (found.used) return refuse(`${key} is fetched twice`);
  if (found.expired) return refuse(`${key} is fetched after its lease`, false);
  if (o.connector === "nixl" && raw !== found.raw)
    return refuse(`kv_transfer_params came back changed:\n  ${found.raw}\n  ${raw}`);
  found.used = true;
  clearTimeout(found.timer);
  s.counters.leases_held--;
  s.counters.leases_fetched++;
  return s.json(res, 200, {});
}

function handOut(ids, requestId) {
  const id = `${requestId}-${hex(4)}`;
  const blocks = Array.from({ length: Math.ceil(ids.length / o.block_size) }, (_, i) => i * 3 + 1);
  // Spelt as no serialiser would: whoever writes it anew is caught.
  const raw = `{"do_remote_prefill": true,"do_remote_decode":false, "remote_block_ids": ` +
    `[${blocks.join(", ")}],"remote_engine_id":"${engineId}","remote_request_id":"${id}",` +
    `"remote_host":"127.0.0.1","remote_port":${s.ports.side},"tp_size":1,` +
    `"remote_num_tokens":${ids.length},"x_opaque":{"\\u00fc":[1.50,-0.0,1E2,"\\/\\"}]{["]} }`;
  offer(id, raw);
  return raw;
}

// The decode side: true when the KV came. Waits as long as the prefill side takes.
async function pull(kv, raw, state) {
  const [base, body] = o.connector === "mooncake"
    ? [kv.remote_bootstrap_addr, { key: kv.transfer_id, engine: kv.remote_engine_id }]
    : [`http://${kv.remote_host}:${kv.remote_port}`,
      { key: kv.remote_request_id, raw: rawKv(raw), engine: kv.remote_engine_id }];
  try {
    const stop = new AbortController();
    state.gone.then(() => stop.abort());
    const r = await fetch(`${base}/fetch`, { method: "POST", body: JSON.stringify(body), signal: stop.signal });
    state.entry.fetch = r.status === 200 ? "ok" : (await r.json()).why;
    return r.status === 200 && s.pause(state, o.transfer_ms);
  } catch (e) {
    state.entry.fetch = String(e.cause?.code ?? e.name);
    return false;
  }
}

/* ---- requests ---- */

async function complete(chat, req, res, bytes) {
  const raw = bytes.toString();
  const entry = { path: req.url, headers: req.headers, bytes: bytes.length,
    body: bytes.length <= 65536 ? raw : undefined };
  const state = s.begin(req, res, entry);
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
  entry.leg = legOf(body);
  entry.request_id = req.headers["x-request-id"];
  s.counters[`${entry.leg === "neither" ? "whole" : entry.leg}_legs`]++;
  const known = fieldNames(chat, "kv_transfer_params max_completion_tokens");
  const wrong = [
    ...Object.keys(body).filter((f) => !known.has(f)).map((f) => `unknown field ${f}`),
    ...duplicateFields(raw).map((f) => `field ${f} twice`),
    ...kvFaults(entry.leg, body.kv_transfer_params),
    ...(entry.leg === "prefill" ? prefillFaults(chat, body, req.headers) : []),
    ...(entry.leg === "decode" && !req.headers["x-request-id"] ? ["no x-request-id"] : []),
  ];
  if (wrong.length) {
    s.violation(`${entry.leg} leg on ${req.url}: ${wrong.join("; ")}`);
    return refuse(400, wrong.join("; "));
  }
  if (body.model !== undefined && body.model !== o.model)
    return refuse(404, `The model \`${body.model}\` does not exist.`);
  const bad = badField(body);
  if (bad) return refuse(400, `field ${bad} has a wrong value: ${JSON.stringify(body[bad])}`, bad);
  const { prompts, ids, error, param } = promptsOf(chat, body, o.vocab);
  if (error) return refuse(400, error, param);
  if (entry.leg !== "whole" && (prompts.length > 1 || (body.n ?? 1) > 1)) {
    s.violation(`${entry.leg} leg with several prompts or choices`);
    return refuse(400, "several prompts or choices");
  }
  if (prompts.some((p) => p.length >= o.max_model_len))
    return refuse(400, `This model's maximum context length is ${o.max_model_len} tokens.`, "prompt");
  entry.ids = ids && prompts[0].length <= 4096 ? prompts[0] : undefined;
  entry.prompt_tokens = prompts[0].length;
  entry.is_ids = Boolean(ids);
  return serve(chat, body, raw, prompts, res, state);
}

async function serve(chat, body, raw, prompts, res, state) {
  const { entry } = state, { leg } = entry;
  if (await s.faultyHead(res, state, leg)) return;
  const rank = Number(entry.headers["x-data-parallel-rank"] ?? 0);
  const { cache } = s.ranks[rank] ?? s.ranks[0];
  if (leg === "decode" && !(await pull(body.kv_transfer_params, raw, state))) {
    if (state.aborted) return;
    s.counters.kv_load_failures++;
    if (o.load_failure === "fail") {
      entry.outcome = "kv load failed";
      s.error(res, 500, `KV load failed: ${entry.fetch}`);
      return;
    }
  }
  let cached = 0;
  for (const p of prompts) cached += await cache.take(p);
  entry.cached = cached;
  if (leg !== "decode" && !(await s.prefill(state, prompts.reduce((n, p) => n + p.length, -cached)))) return;
  const answer = new Answer(o, "vllm", chat, body, prompts, cached);
  if (leg === "prefill") {
    const kv = o.connector === "mooncake" ? (offer(body.kv_transfer_params.transfer_id, "mooncake"), "null")
      : handOut(prompts[0], entry.request_id);
    const text = JSON.stringify({ ...answer.whole(), kv_transfer_params: "@" });
    s.json(res, 200, text.replace('"@"', () => s.fault("no_kv_params", leg) ? "null" : kv));
    return;
  }
  if (body.stream) await s.stream(res, state, answer.events(), leg);
  else if (await s.pause(state, (s.faults.token_ms ?? o.token_ms) * answer.n))
    s.json(res, 200, { ...answer.whole(), kv_transfer_params: null });
}

function metrics(res) {
  const c = s.counters, labels = `{engine="0",model_name="${o.model}"}`;
  const running = o.metrics_running ?? c.running;
  res.setHeader("content-type", "text/plain; version=0.0.4; charset=utf-8");
  res.end(`# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running${labels} ${running.toFixed(1)}
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting${labels} ${Number(o.metrics_waiting ?? 0).toFixed(1)}
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc${labels} ${o.metrics_usage ?? 0}
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="${o.block_size}",cache_dtype="auto",enable_prefix_caching="True",num_gpu_blocks="${o.num_gpu_blocks}"} 1.0
`);
}

async function handler(req, res, bytes) {
  const path = req.url.split("?")[0];
  if (req.method === "GET") {
    const sick = s.fault("health", "health");
    if (path === "/health") return sick ? s.error(res, sick, "unhealthy") : res.end();
    if (path === "/metrics") return metrics(res);
    if (path === "/version") return s.json(res, 200, { version: "0.14.0" });
    if (path === "/v1/models")
      return s.json(res, 200, { object: "list", data: [{ id: o.model, object: "model", created: 1,
        owned_by: "vllm", root: o.model, parent: null, max_model_len: o.max_model_len }] });
  } else if (path === "/v1/chat/completions" || path === "/v1/completions") {
    if (!/^application\/json\b/.test(req.headers["content-type"] ?? ""))
      s.violation(`content-type is '${req.headers["content-type"]}'`);
    return complete(path === "/v1/chat/completions", req, res, bytes);
  }
  return s.error(res, 404, "Not Found");
}

s.ports = { side: 0, bootstrap: 0 };
const side = createServer((req, res) => fetchOffer(req, res).catch(() => res.destroy()));
if (o.connector === "mooncake") s.ports.bootstrap = await listen(side, o.bootstrap_port, o.host);
else s.ports.side = await listen(side, o.side_port, o.host);
await s.start(handler);
