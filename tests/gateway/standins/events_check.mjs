// Subscribes to a stand-in's KV events and asks for a replay, as a router would; prints what came as
// JSON. usage: node events_check.mjs EVENTS_PORT REPLAY_PORT BATCHES START_SEQ CONTROL_PORT ORDER...
import { createRequire } from "node:module";

const require = createRequire(new URL("../../js/package.json", import.meta.url));
const zmq = require("zeromq");
const { decode } = require("@msgpack/msgpack");
const [events, replay, batches, start, control, ...orders] = process.argv.slice(2);

// Buffers print as hexadecimal, not through their own toJSON.
Buffer.prototype.toJSON = undefined;
const plain = (k, v) => (typeof v === "bigint" ? `${v}` : v instanceof Uint8Array ? Buffer.from(v).toString("hex") : v);
const one = ([seq, payload]) => [Number(Buffer.from(seq).readBigInt64BE()),
  payload.length ? decode(payload, { useBigInt64: true }) : null];

const sub = new zmq.Subscriber();
sub.connect(`tcp://127.0.0.1:${events}`);
sub.subscribe("");
await new Promise((r) => setTimeout(r, 300)); // a subscription takes a moment to arrive
for (const o of orders) await fetch(`http://127.0.0.1:${control}/_control`, { method: "POST", body: o });
const live = [];
while (live.length < Number(batches)) {
  const [topic, ...rest] = await sub.receive();
  live.push([topic.toString(), ...one(rest)]);
}
const dealer = new zmq.Dealer();
dealer.connect(`tcp://127.0.0.1:${replay}`);
const from = Buffer.alloc(8);
from.writeBigInt64BE(BigInt(start));
await dealer.send(["", from]);
const replayed = [];
for (;;) {
  const [, ...rest] = await dealer.receive();
  const batch = one(rest);
  if (batch[0] === -1) break;
  replayed.push(batch);
}
console.log(JSON.stringify({ live, replayed }, plain));
process.exit(0);
