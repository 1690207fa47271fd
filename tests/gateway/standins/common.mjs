// What the stand-ins for vLLM and SGLang share: options, the text they answer with, the paged KV
// cache behind their events, the events' ZeroMQ sockets, faults, counters and the control port.
//
// A stand-in answers text that follows from the ids of its prompt alone, so that a test can tell
// that the right prompt arrived and that each token came back once and in order.
import { createHash, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";

// The packages are installed beside the other JavaScript tests.
const require = createRequire(new URL("../../js/package.json", import.meta.url));
const zmq = require("zeromq");
const { encode } = require("@msgpack/msgpack");

/* ---- options ---- */

// --name value or --name=value over defaults; numbers where the default is one.
export function options(defaults) {
  const out = { ...defaults };
  const args = process.argv.slice(2);
  for (let i = 0; i < args.length; i++) {
    const [flag, inline] = args[i].split(/=(.*)/s);
    const name = flag.replace(/^--/, "").replaceAll("-", "_");
    if (!flag.startsWith("--") || !(name in defaults)) throw new Error(`unknown option ${flag}`);
    const text = inline ?? args[++i];
    if (text === undefined) throw new Error(`${flag} needs a value`);
    out[name] = typeof defaults[name] === "number" ? Number(text) : text;
    if (Number.isNaN(out[name])) throw new Error(`${flag} does not take '${text}'`);
  }
  return out;
}

/* ---- the answer ---- */

// Endings that a relay could trip over: JSON escapes, several bytes, the stream's own framing.
const ENDINGS = ["", "é", '"\\', "\n\n", "😀", "data: [DONE]\n\n", "\u0001\t"];

export function fnv(bytes) {
  let h = 0x811c9dc5;
  for (const b of bytes) h = Math.imul(h ^ b, 0x01000193) >>> 0;
  return h;
}

export function hashIds(ids) {
  const bytes = new Uint8Array(new Int32Array(ids).buffer);
  return fnv(bytes).toString(16).padStart(8, "0");
}

// Token i of the answer to a prompt.
export const piece = (hash, i) => ` ${hash}.${i}${ENDINGS[i % ENDINGS.length]}`;

// A text has ids, too, as far as a stand-in is concerned: its bytes.
export const textIds = (text) => [...Buffer.from(text)];

export function chatText(messages) {
  return messages.map((m) => `${m.role}\n${typeof m.content === "string" ? m.content
    : JSON.stringify(m.content ?? null)}\n`).join("");
}

/* ---- KV events ---- */

const be8 = (n) => {
  const b = Buffer.alloc(8);
  b.writeBigInt64BE(BigInt(n));
  return b;
};
const END = be8(-1);

// One data-parallel rank's PUB and ROUTER sockets.
export class Publisher {
  constructor(o, rank, violation) {
    Object.assign(this, { o, rank, violation, seq: 0, buffer: [], dropNext: 0, replays: 0 });
  }

  async open(port, replayPort) {
    this.pub = new zmq.Publisher({ linger: 0, sendHighWaterMark: 100000 });
    this.router = new zmq.Router({ linger: 0 });
    await this.pub.bind(`tcp://${this.o.host}:${port || "*"}`);
    await this.router.bind(`tcp://${this.o.host}:${replayPort || "*"}`);
    this.port = Number(/:(\d+)$/.exec(this.pub.lastEndpoint)[1]);
    this.replayPort = Number(/:(\d+)$/.exec(this.router.lastEndpoint)[1]);
    this.#serveReplay();
  }

  async #serveReplay() {
    for await (const frames of this.router) {
      const [who, empty, start] = frames;
      if (frames.length !== 3 || empty.length !== 0 || start.length !== 8) {
        this.violation(`replay request: ${frames.length - 1} frames of ` +
          `${frames.slice(1).map((f) => f.length)} bytes, expected 2 of 0,8`);
        continue;
      }
      this.replays++;
      const from = start.readBigInt64BE();
      for (const [seq, payload] of this.buffer)
        if (BigInt(seq) >= from) await this.router.send([who, "", be8(seq), payload]);
      await this.router.send([who, "", END, ""]);
    }
  }

  // Sends a payload as the next batch. With dropNext > 0 it is lost on the way: a gap.
  async sendPayload(payload) {
    const seq = this.seq++;
    this.buffer.push([seq, payload]);
    if (this.buffer.length > this.o.replay_buffer) this.buffer.shift();
    if (this.dropNext > 0) this.dropNext--;
    else await this.#put([this.o.topic, be8(seq), payload]);
  }

  // Frames as they are: what a broken or hostile engine might send.
  sendFrames(frames) {
    return this.#put(frames);
  }

  // A socket takes one send at a time.
  #put(frames) {
    this.last = (this.last ?? Promise.resolve()).then(() => this.pub.send(frames));
    return this.last;
  }

  sendEvents(events) {
    const rank = this.rank === null ? [] : [this.rank];
    const batch = [Date.now() / 1000 + 1e-6, events, ...rank];
    return this.sendPayload(Buffer.from(encode(this.o.batch_as_map
      ? { ts: batch[0], events, data_parallel_rank: this.rank } : batch, { useBigInt64: true })));
  }

  close() {
    this.pub?.close();
    this.router?.close();
  }
}

// The engine's prefix cache: full blocks, chained hashes, least recently used ones evicted.
export class BlockCache {
  constructor(o, publisher) {
    Object.assign(this, { o, publisher, blocks: new Map() });
  }

  #hash(parent, tokens) {
    const h = createHash("sha256").update(this.o.seed).update(parent ?? "none");
    return h.update(Buffer.from(new Int32Array(tokens).buffer)).digest();
  }

  // What stands for a hash in events: bytes, or an integer as the engine makes them.
  #wire(hash) {
    if (this.o.hashes === "bytes") return hash;
    return this.o.hashes === "signed" ? hash.readBigInt64BE(24) : hash.readBigUInt64BE(24);
  }

  #hashes(ids) {
    const out = [];
    for (let at = 0; at + this.o.block_size <= ids.length; at += this.o.block_size)
      out.push(this.#hash(out.at(-1), ids.slice(at, at + this.o.block_size)));
    return out;
  }

  #stored(run, parent, ids, at) {
    const tokens = ids.slice(at * this.o.block_size, (at + run.length) * this.o.block_size);
    const hashes = run.map((h) => this.#wire(h));
    const before = parent ? this.#wire(parent) : null;
    const medium = this.o.medium || null;
    if (this.o.encoding === "map")
      return { type: "BlockStored", block_hashes: hashes, parent_block_hash: before,
        token_ids: tokens, block_size: this.o.block_size, lora_id: null, medium, lora_name: null,
        extra_keys: null, group_idx: 0, a_field_of_tomorrow: { x: [1.5, "y"] } };
    return ["BlockStored", hashes, before, tokens, this.o.block_size, null, medium, null]
      .slice(0, this.o.arity || undefined);
  }

  #removed(hashes) {
    const wire = hashes.map((h) => this.#wire(h));
    if (this.o.encoding === "map")
      return { type: "BlockRemoved", block_hashes: wire, medium: this.o.medium || null };
    return ["BlockRemoved", wire, this.o.medium || null];
  }

  // Takes a prompt into the cache and returns how many of its tokens were there before.
  async take(ids) {
    const hashes = this.#hashes(ids);
    let n = 0;
    while (n < hashes.length && this.blocks.has(hashes[n].toString("hex"))) n++;
    const cached = n * this.o.block_size;
    const events = [];
    for (let at = n; at < hashes.length; at += this.o.blocks_per_event) {
      const run = hashes.slice(at, at + this.o.blocks_per_event);
      events.push(this.#stored(run, hashes[at - 1], ids, at));
    }
    for (const h of hashes) { // most recently used last
      this.blocks.delete(h.toString("hex"));
      this.blocks.set(h.toString("hex"), h);
    }
    const gone = [];
    while (this.blocks.size > this.o.kv_blocks) {
      const [key, hash] = this.blocks.entries().next().value;
      this.blocks.delete(key);
      gone.push(hash);
    }
    if (gone.length) events.push(this.#removed(gone));
    if (this.publisher)
      for (let i = 0; i < events.length; i += this.o.events_per_batch)
        await this.publisher.sendEvents(events.slice(i, i + this.o.events_per_batch));
    // All of a prompt but its last token may come from the cache.
    return Math.min(cached, Math.max(0, ids.length - 1));
  }

  async clear() {
    this.blocks.clear();
    await this.publisher?.sendEvents([this.o.encoding === "map"
      ? { type: "AllBlocksCleared" } : ["AllBlocksCleared"]]);
  }
}

export const CACHE_OPTIONS = {
  events_port: -1, replay_port: 0, topic: "", encoding: "map", batch_as_map: "", hashes: "int",
  block_size: 16, kv_blocks: 4096, blocks_per_event: 4, events_per_batch: 1, arity: 0, medium: "GPU",
  replay_buffer: 10000, seed: "0", dp: 1,
};

/* ---- the engine's outside ---- */

const readBody = async (req) => {
  const parts = [];
  for await (const p of req) parts.push(p);
  return Buffer.concat(parts);
};

// Counters, faults, the control port and the main port of one stand-in.
export class StandIn {
  constructor(o) {
    this.o = o;
    this.counters = {
      requests: 0, running: 0, waiting: 0, finished: 0, aborted: 0, failed: 0, whole_legs: 0,
      prefill_legs: 0, decode_legs: 0, connections: 0, open_connections: 0, kv_load_failures: 0,
      leases_held: 0, leases_expired: 0, leases_fetched: 0, most_running: 0,
    };
    this.violations = [];
    this.log = []; // the last requests
    this.faults = {};
    this.sockets = new Set();
  }

  violation(text) {
    this.violations.push(text);
    process.stderr.write(`protocol violation: ${text}\n`);
  }

  // Starts everything and prints one line of JSON that says where.
  async start(handler) {
    this.handler = handler;
    this.ranks = [];
    const { o } = this;
    for (let r = 0; r < o.dp; r++) {
      let publisher = null;
      if (o.events_port >= 0) {
        publisher = new Publisher(o, o.dp > 1 ? r : null, (t) => this.violation(t));
        // Rank r publishes at port + r; a free first port is tried until all ranks have theirs.
        const at = (p, first) => (p ? p + r : first ? first + r : 0);
        await publisher.open(at(o.events_port, this.ranks[0]?.publisher.port),
          at(o.replay_port, this.ranks[0]?.publisher.replayPort));
      }
      this.ranks.push({ publisher, cache: new BlockCache(o, publisher) });
    }
    this.server = createServer((req, res) => this.#serve(req, res));
    this.server.keepAliveTimeout = o.keep_alive_ms;
    this.server.requestTimeout = 0;
    this.server.on("connection", (s) => {
      this.counters.connections++;
      this.counters.open_connections++;
      this.sockets.add(s);
      s.setNoDelay(true);
      s.once("close", () => {
        this.sockets.delete(s);
        this.counters.open_connections--;
      });
    });
    o.port = await listen(this.server, o.uds || o.port, o.host);
    this.control = createServer((req, res) => this.#control(req, res));
    const control = await listen(this.control, o.control_port, "127.0.0.1");
    const first = this.ranks[0].publisher;
    process.stdout.write(`${JSON.stringify({
      port: o.port, control, events: first?.port ?? 0, replay: first?.replayPort ?? 0,
      ...this.ports,
    })}\n`);
    // The test that started this process is gone: so is this process.
    process.stdin.resume();
    process.stdin.on("end", () => process.exit(0));
  }

  async #serve(req, res) {
    res.on("error", () => {});
    let raw;
    try {
      raw = await readBody(req);
    } catch {
      return; // cut short: nothing to answer
    }
    try {
      await this.handler(req, res, raw);
    } catch (e) {
      this.violation(`the stand-in failed on ${req.method} ${req.url}: ${e.stack}`);
      res.destroy();
    }
  }

  /* A fault that applies now, or undefined: {value}. Faults may be limited: {"status": 500,
   * "times": 2, "only": "prefill"}. */
  fault(name, leg) {
    const f = this.faults;
    if (!(name in f) || (f.only && f.only !== leg)) return undefined;
    if (f.times !== undefined && f.times-- <= 0) return undefined;
    return f[name];
  }

  async #control(req, res) {
    const raw = await readBody(req);
    const answer = (o) => res.end(JSON.stringify(o, (k, v) => (typeof v === "bigint" ? String(v) : v)));
    if (req.method === "GET" && req.url === "/_control/requests") return answer(this.log);
    if (req.method === "GET")
      return answer({
        ...this.counters, violations: this.violations, faults: this.faults,
        blocks: this.ranks.map((r) => r.cache.blocks.size),
        seq: this.ranks.map((r) => r.publisher?.seq ?? 0),
        replays: this.ranks.map((r) => r.publisher?.replays ?? 0),
      });
    const body = JSON.parse(raw);
    try {
      await this.#order(body);
      answer({});
    } catch (e) {
      res.statusCode = 400;
      answer({ error: String(e.stack) });
    }
  }

  // What a test may ask for.
  async #order(body) {
    const rank = this.ranks[body.rank ?? 0];
    if (body.kill) process.kill(process.pid, "SIGKILL");
    if (body.faults) {
      this.faults = body.faults;
      const refuse = Boolean(body.faults.refuse);
      if (refuse && this.server.listening) {
        const closed = new Promise((r) => this.server.close(r));
        for (const s of this.sockets) s.destroy();
        await closed;
      } else if (!refuse && !this.server.listening) {
        await listen(this.server, this.o.uds || this.o.port, this.o.host);
      }
    }
    if (body.options) Object.assign(this.o, body.options);
    if (body.reset_log) this.log = [];
    if (body.clear_violations) this.violations = [];
    if (body.drop_connections) for (const s of this.sockets) s.destroy();
    if (body.clear_cache) await rank.cache.clear();
    if (body.gap) rank.publisher.dropNext = body.gap;
    if (body.events_restart) { // as a new process would: an empty cache, and the sequence from 0
      rank.cache.blocks.clear();
      rank.publisher.seq = 0;
      rank.publisher.buffer = [];
    }
    if (body.take) await rank.cache.take(body.take);
    if (body.events) await rank.publisher.sendEvents(body.events);
    if (body.payload) await rank.publisher.sendPayload(Buffer.from(body.payload, "hex"));
    if (body.frames) await rank.publisher.sendFrames(body.frames.map((f) => Buffer.from(f, "hex")));
  }

  /* ---- answering ---- */

  json(res, status, body, headers = {}) {
    const text = typeof body === "string" ? body : JSON.stringify(body);
    res.writeHead(status, { "content-type": "application/json", ...headers,
      "content-length": Buffer.byteLength(text) });
    res.end(text);
  }

  // Marks a request as running until its connection's answer ended; tells whether it was aborted.
  begin(req, res, entry) {
    const c = this.counters;
    const state = { aborted: false, entry, gone: null };
    c.requests++;
    c.running++;
    c.most_running = Math.max(c.most_running, c.running);
    this.log.push(entry);
    if (this.log.length > 2000) this.log.shift();
    state.gone = new Promise((resolve) => {
      res.on("close", () => {
        c.running--;
        if (res.writableFinished) {
          c.finished++;
          entry.outcome ??= "finished";
        } else if (entry.outcome === undefined) {
          c.aborted++;
          state.aborted = true;
          entry.outcome = "aborted";
        }
        resolve();
      });
    });
    return state;
  }

  // Waits; returns false when the client left before the time was over.
  async pause(state, ms) {
    if (ms > 0) {
      let timer;
      await Promise.race([state.gone, new Promise((r) => { timer = setTimeout(r, ms); })]);
      clearTimeout(timer);
    }
    return !state.aborted;
  }

  // Computes a prompt: a fixed time, and one for each token that was not cached.
  prefill(state, tokens) {
    return this.pause(state, (this.faults.first_token_ms ?? this.o.first_token_ms) +
      Math.max(0, tokens) * this.o.prefill_us / 1000);
  }

  // Faults that come before or instead of an answer's head. True: the request was dealt with.
  async faultyHead(res, state, leg) {
    const { entry } = state;
    const socket = res.socket;
    const raw = (text) => {
      entry.outcome = "fault";
      this.counters.failed++;
      socket?.end(text);
    };
    let v;
    // For as long as the fault is set: a test sees a request in this state however slow it is.
    while (this.fault("hold", leg))
      if (!(await this.pause(state, 5))) return true;
    if (this.fault("kill_on_request", leg)) process.kill(process.pid, "SIGKILL");
    if (this.fault("hang_head", leg)) {
      await state.gone;
      return true;
    }
    if (this.fault("close_before_head", leg)) {
      entry.outcome = "fault";
      socket?.destroy();
      return true;
    }
    if (this.fault("garbage_head", leg)) {
      raw("\u0000\u0001 what is this\r\n\r\n");
      return true;
    }
    if (this.fault("endless_head", leg)) {
      socket?.write("HTTP/1.1 200 OK\r\n");
      entry.outcome = "fault";
      const timer = setInterval(() => socket?.write(`x-${"y".repeat(1000)}: z\r\n`), 1);
      await state.gone;
      clearInterval(timer);
      return true;
    }
    if (this.fault("half_head", leg)) {
      raw("HTTP/1.1 200 OK\r\ncontent-ty");
      return true;
    }
    if ((v = this.fault("long_length", leg))) { // says more than it sends
      raw(`HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{"id":`);
      return true;
    }
    if ((v = this.fault("two_lengths", leg))) {
      raw("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n" +
        "content-length: 3\r\n\r\n{} ");
      return true;
    }
    if ((v = this.fault("bad_chunk", leg))) {
      raw("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" +
        "zz\r\ndata: {}\n\n\r\n0\r\n\r\n");
      return true;
    }
    if ((v = this.fault("body", leg)) !== undefined) { // a 200 with this as its body
      entry.outcome = "fault";
      this.json(res, 200, String(v));
      return true;
    }
    if ((v = this.fault("error_first", leg))) { // a 200 that is an error, in a stream and not
      entry.outcome = "fault";
      const text = JSON.stringify({ error: v });
      if (!JSON.parse(entry.body).stream) this.json(res, 200, text);
      else {
        res.writeHead(200, { "content-type": "text/event-stream" });
        res.end(`data: ${text}\n\ndata: [DONE]\n\n`);
      }
      return true;
    }
    if ((v = this.fault("status", leg))) {
      entry.outcome = `status ${v}`;
      this.counters.failed++;
      this.error(res, v, v === 400 ? "the stand-in was told to refuse" : "the stand-in was told to fail",
        v === 429 || v === 503 ? { "retry-after": "1" } : {});
      return true;
    }
    return false;
  }

  /* Sends events (objects, or strings as they are) one token at a time, with the faults of a
   * stream. pace(i) is awaited before token i. */
  async stream(res, state, events, leg) {
    const { entry } = state;
    res.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    const cut = this.fault("cut_after", leg);
    const half = this.fault("half_event", leg);
    const halfClean = this.fault("half_event_clean", leg);
    const noDone = this.fault("no_done", leg);
    const bad = this.fault("garbage_event", leg);
    const errorAt = this.fault("error_event", leg);
    const killAt = this.fault("kill_after", leg);
    const hangAt = this.fault("hang_after", leg);
    const huge = this.fault("huge_event", leg);
    const comments = this.fault("comments", leg);
    const broken = (how) => {
      entry.outcome = "fault";
      this.counters.failed++;
      how();
    };
    for (let i = 0; i < events.length; i++) {
      const text = `data: ${typeof events[i] === "string" ? events[i] : JSON.stringify(events[i])}\n\n`;
      if (i > 0 && !(await this.pause(state, this.faults.token_ms ?? this.o.token_ms))) return;
      if (cut === i) return broken(() => res.destroy());
      if (killAt === i) process.kill(process.pid, "SIGKILL");
      if (hangAt === i) return state.gone;
      if (half === i || halfClean === i) {
        const part = Buffer.from(text).subarray(0, text.length / 2);
        return broken(() => res.write(part, () => (half === i ? res.destroy() : res.end())));
      }
      if (bad === i) res.write("data: {not json\n\n");
      if (huge === i) for (let k = 0; k < 64 && !state.aborted; k++) await put(res, "data: ".padEnd(1 << 20, "x"));
      if (comments) res.write(": keep-alive\n\n");
      if (errorAt === i) {
        entry.outcome = "fault";
        res.write(`data: ${JSON.stringify(this.errorBody(500, "the stand-in failed in the middle"))}\n\n`);
        res.end("data: [DONE]\n\n");
        return undefined;
      }
      if (noDone && i === events.length - 1) return res.end();
      // In pieces at odd places now and then: a reader must not mind.
      if (this.o.split_events && i % 3 === 1) {
        const bytes = Buffer.from(text), at = (i * 7) % bytes.length;
        res.write(bytes.subarray(0, at));
        await this.pause(state, 1);
        res.write(bytes.subarray(at));
      } else if (!res.write(text)) {
        await Promise.race([state.gone, new Promise((r) => res.once("drain", r))]);
      }
      entry.sent = i + 1;
      if (state.aborted) return undefined;
    }
    return res.end();
  }
}

const put = (res, text) => new Promise((r) => { res.write(text, r); });

export function listen(server, where, host) {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    const done = () => {
      server.off("error", reject);
      const a = server.address();
      resolve(typeof a === "string" ? a : a.port);
    };
    if (typeof where === "string") server.listen(where, done);
    else server.listen(where, host, done);
  });
}

export const COMMON_OPTIONS = {
  host: "127.0.0.1", port: 0, uds: "", control_port: 0, model: "lexicon", token_ms: 0,
  first_token_ms: 0, prefill_us: 0, natural: 24, keep_alive_ms: 600000, vocab: 1 << 20, max_model_len: 1 << 20,
  split_events: 0, api_key: "", reasoning: 0, ...CACHE_OPTIONS,
};

export const hex = (n) => randomBytes(n).toString("hex");
