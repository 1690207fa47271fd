// OpenAI's requests and answers as vLLM and SGLang have them: checks of a body's common fields, and
// the events or the whole answer to it. `flavour` is "vllm" or "sglang".
import { chatText, hashIds, hex, piece, textIds } from "./common.mjs";

const isId = (x, vocab) => Number.isInteger(x) && x >= 0 && x < vocab;

// Fields that a client may send. Anything else was put in by somebody in between.
const COMMON_FIELDS = `model stream stream_options max_tokens min_tokens temperature top_p top_k
  min_p seed stop stop_token_ids n logprobs ignore_eos frequency_penalty presence_penalty
  repetition_penalty logit_bias user echo suffix best_of priority cache_salt return_token_ids
  skip_special_tokens spaces_between_special_tokens add_special_tokens request_id metadata
  data_parallel_rank use_beam_search prompt_logprobs`;
const CHAT_FIELDS = `messages max_completion_tokens top_logprobs tools tool_choice response_format
  parallel_tool_calls reasoning_effort chat_template chat_template_kwargs add_generation_prompt
  continue_final_message store guided_json structured_outputs`;
const COMPLETION_FIELDS = "prompt";

export function fieldNames(chat, extra) {
  return new Set(`${COMMON_FIELDS} ${chat ? CHAT_FIELDS : COMPLETION_FIELDS} ${extra}`.split(/\s+/));
}

// Names of top-level fields that are in raw twice: splicing gone wrong.
export function duplicateFields(raw) {
  const seen = new Set(), twice = [];
  let depth = 0, expectKey = false;
  for (let i = 0; i < raw.length; i++) {
    const c = raw[i];
    if (c === "{" || c === "[") {
      depth++;
      expectKey = c === "{" && depth === 1;
    } else if (c === "}" || c === "]") {
      depth--;
    } else if (c === "," && depth === 1) {
      expectKey = true;
    } else if (c === '"') {
      const start = i;
      for (i++; raw[i] !== '"'; i++) if (raw[i] === "\\") i++;
      if (depth !== 1 || !expectKey) continue;
      const key = JSON.parse(raw.slice(start, i + 1));
      if (seen.has(key)) twice.push(key);
      seen.add(key);
      expectKey = false;
    }
  }
  return twice;
}

// A body's prompts as lists of ids, or an error: {prompts} or {error, param}.
export function promptsOf(chat, body, vocab) {
  if (chat) {
    const { messages } = body;
    if (!Array.isArray(messages) || !messages.length || messages.some((m) => typeof m?.role !== "string"))
      return { error: "messages must be a list of messages", param: "messages" };
    return { prompts: [textIds(chatText(messages))] };
  }
  const { prompt } = body;
  if (typeof prompt === "string") return { prompts: [textIds(prompt)] };
  if (!Array.isArray(prompt) || !prompt.length)
    return { error: "prompt must be a string, a list of strings or of token ids", param: "prompt" };
  const list = typeof prompt[0] === "number" ? [prompt] : prompt;
  const out = [];
  for (const p of list) {
    if (typeof p === "string") out.push(textIds(p));
    else if (Array.isArray(p) && p.length && p.every((x) => isId(x, vocab))) out.push(p);
    else return { error: "prompt holds something that is no token id", param: "prompt" };
  }
  return { prompts: out, ids: typeof list[0] !== "string" };
}

// Wrong types that pydantic would refuse.
export function badField(body) {
  const int = (name, min) => {
    const v = body[name];
    return v !== undefined && v !== null && !(Number.isInteger(v) && v >= min) ? name : null;
  };
  const bool = (name) => (body[name] !== undefined && body[name] !== null &&
    typeof body[name] !== "boolean" ? name : null);
  return int("max_tokens", 1) ?? int("max_completion_tokens", 1) ?? int("min_tokens", 0) ??
    int("n", 1) ?? bool("stream") ?? bool("ignore_eos");
}

// How many tokens a request gets, and why it ends then.
export function extent(chat, body, natural, room) {
  const asked = body.max_completion_tokens ?? body.max_tokens ?? (chat ? room : 16);
  const limit = Math.min(asked, room);
  if (body.ignore_eos || limit <= natural || (body.min_tokens ?? 0) > natural)
    return { n: limit, reason: limit < natural || body.ignore_eos ? "length" : "stop" };
  return { n: natural, reason: "stop" };
}

export class Answer {
  constructor(o, flavour, chat, body, prompts, cached, extra = {}) {
    Object.assign(this, { o, flavour, chat, body, prompts, cached, extra });
    const room = Math.max(1, o.max_model_len - Math.max(...prompts.map((p) => p.length)));
    Object.assign(this, extent(chat, body, o.natural, room));
    this.id = `${chat ? "chatcmpl" : "cmpl"}-${hex(16)}`;
    this.created = Math.floor(Date.now() / 1000);
    this.tool = chat && body.tools?.length && body.tool_choice !== "none" ? body.tools[0] : null;
    this.choices = [];
    for (const p of prompts)
      for (let k = 0; k < (body.n ?? 1); k++)
        this.choices.push({ index: this.choices.length, hash: hashIds(p) });
  }

  usage(done = this.n) {
    const prompt = this.prompts.reduce((sum, p) => sum + p.length, 0);
    const completion = done * this.choices.length;
    return { prompt_tokens: prompt, total_tokens: prompt + completion, completion_tokens: completion,
      prompt_tokens_details: { cached_tokens: this.cached } };
  }

  #stopped(reason) {
    return this.flavour === "vllm" ? { finish_reason: reason, stop_reason: null }
      : { finish_reason: reason, matched_stop: reason === "stop" ? 2 : null };
  }

  #logprobs(hash, from, to) {
    const wanted = this.body.logprobs;
    if (wanted === undefined || wanted === null || wanted === false) return null;
    const tokens = [];
    for (let i = from; i < to; i++) tokens.push(piece(hash, i));
    if (this.chat)
      return { content: tokens.map((token) => ({ token, logprob: -0.5, bytes: [...Buffer.from(token)], top_logprobs: [] })) };
    return { text_offset: tokens.map(() => 0), token_logprobs: tokens.map(() => -0.5), tokens,
      top_logprobs: tokens.map((t) => ({ [t]: -0.5 })) };
  }

  #head(object) {
    return { id: this.id, object, created: this.created, model: this.body.model ?? this.o.model };
  }

  text(hash) {
    let out = "";
    for (let i = 0; i < this.n; i++) out += piece(hash, i);
    return out;
  }

  whole() {
    const choices = this.choices.map(({ index, hash }) => {
      const text = this.text(hash), logprobs = this.#logprobs(hash, 0, this.n);
      if (!this.chat) return { index, text, logprobs, ...this.#stopped(this.reason), prompt_logprobs: null };
      const message = { role: "assistant", content: text, refusal: null, tool_calls: [],
        reasoning_content: this.o.reasoning ? `thinking of ${hash}` : null };
      if (this.tool) {
        message.content = null;
        message.tool_calls = [{ id: `call_${hash}`, type: "function",
          function: { name: this.tool.function.name, arguments: `{"x": "${hash}"}` } }];
      }
      return { index, message, logprobs, ...this.#stopped(this.tool ? "tool_calls" : this.reason) };
    });
    return { ...this.#head(this.chat ? "chat.completion" : "text_completion"), choices,
      usage: this.usage(), ...this.extra };
  }

  #chatDeltas({ index, hash }) {
    const delta = (d, end) => ({ index, delta: d, logprobs: null, ...(end ? this.#stopped(end) : { finish_reason: null }) });
    const out = [delta({ role: "assistant", content: "" })];
    if (this.o.reasoning)
      for (const w of ["thinking ", "of ", hash]) out.push(delta({ reasoning_content: w }));
    if (this.tool) {
      out.push(delta({ tool_calls: [{ index: 0, id: `call_${hash}`, type: "function",
        function: { name: this.tool.function.name, arguments: "" } }] }));
      for (const part of ['{"x"', ': "', hash, '"}'])
        out.push(delta({ tool_calls: [{ index: 0, function: { arguments: part } }] }));
      out.push(delta({ content: "" }, "tool_calls"));
      return out;
    }
    for (let i = 0; i < this.n; i++) {
      const c = delta({ content: piece(hash, i) }, i === this.n - 1 ? this.reason : null);
      c.logprobs = this.#logprobs(hash, i, i + 1);
      out.push(c);
    }
    return out;
  }

  #completionChunks({ index, hash }) {
    const out = [];
    for (let i = 0; i < this.n; i++)
      out.push({ index, text: piece(hash, i), logprobs: this.#logprobs(hash, i, i + 1),
        ...this.#stopped(i === this.n - 1 ? this.reason : null) });
    return out;
  }

  // Every event of the stream, [DONE] included; choices take turns.
  events() {
    const object = this.chat ? "chat.completion.chunk" : "text_completion";
    const per = this.choices.map((c) => (this.chat ? this.#chatDeltas(c) : this.#completionChunks(c)));
    const out = [];
    for (let i = 0; i < Math.max(...per.map((p) => p.length)); i++)
      for (const p of per)
        if (p[i]) out.push({ ...this.#head(object), choices: [p[i]], ...(this.chat ? {} : { usage: null }) });
    if (this.body.stream_options?.include_usage)
      out.push({ ...this.#head(object), choices: [], usage: this.usage() });
    out.push("[DONE]");
    return out;
  }
}
