"""Conversations and options that chat templates are rendered with."""
import itertools
import json

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city; units °C or °F",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Name, e.g. 北京"},
        "days": {"type": "integer", "default": 3},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "tags": {"type": "array", "items": {"type": "string"}}}, "required": ["city"]}}}
SEARCH = {"type": "function", "function": {
    "name": "search", "description": "Find \"things\" & <stuff>\nquickly",
    "parameters": {"type": "object", "properties": {}}}}
BARE = {"name": "bare", "description": None, "parameters": {}}
TOOLS = [None, [], [WEATHER], [WEATHER, SEARCH], [BARE]]


def call(name, arguments, id=None):
    c = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if id:
        c["id"] = id
    return c


def msg(role, content="", **more):
    return {"role": role, "content": content, **more}


TEXTS = ["Hello", "", " padded \n", "line\n\nline", "你好，世界 🌍 é", "<|im_end|> {{ x }} {% y %}",
         "quote \" ' \\ back", "tab\there"]
OBJECT = {"city": "Paris", "days": 2, "nested": {"a": [1, 2.5, True, None]}, "ü": "ß"}
THINK = "<think>\nfirst\nsecond\n</think>\n\nanswer"
SYSTEM = msg("system", "You are terse.")
ASK, ANSWER = msg("user", "Hi"), msg("assistant", "Hello!")


def with_calls(arguments, content="", **more):
    return [ASK, msg("assistant", content, tool_calls=[call("get_weather", arguments, "call_1abc2")],
                     **more)]


def results(n=1):
    return [msg("tool", f"{{\"t\": {20 + i}}}", name="get_weather", tool_call_id=f"call_{i}abc2")
            for i in range(n)]


def conversations():
    """(name, messages)"""
    for i, t in enumerate(TEXTS):
        yield f"user text {i}", [msg("user", t)]
        yield f"system text {i}", [msg("system", t), ASK]
        yield f"assistant text {i}", [ASK, msg("assistant", t), msg("user", "go on")]
    yield "empty", []
    yield "only system", [SYSTEM]
    yield "only assistant", [ANSWER]
    yield "two turns", [SYSTEM, ASK, ANSWER, msg("user", "More?")]
    yield "five turns", [SYSTEM] + [ASK, ANSWER] * 4 + [msg("user", "Bye")]
    yield "two systems", [SYSTEM, msg("system", "Be kind."), ASK, ANSWER, msg("user", "?")]
    yield "late system", [ASK, ANSWER, msg("system", "Now in French."), msg("user", "Go")]
    yield "two users", [ASK, msg("user", "again")]
    yield "unknown role", [ASK, msg("critic", "meh"), msg("user", "so?")]
    yield "developer", [msg("developer", "dev rules"), ASK]
    yield "ends with assistant", [ASK, ANSWER]
    for name, args in [("object", OBJECT), ("string", json.dumps(OBJECT, ensure_ascii=False)),
                       ("empty object", {}), ("empty string", ""), ("list", [1, "a"])]:
        yield f"call {name}", with_calls(args)
        yield f"call {name}, result", with_calls(args) + results() + [msg("assistant", "20°")]
        yield f"call {name}, text, results", \
            [SYSTEM] + with_calls(args, "Let me see.") + results(2) + [msg("user", "thanks")]
        yield f"call {name}, none content", with_calls(args, None) + results(1)
    yield "two calls", [ASK, msg("assistant", "", tool_calls=[call("a", {"x": 1}, "aaaaaaaaa"),
                                                              call("b", "{}", "bbbbbbbbb")])] \
        + results(2)
    yield "flat call", [ASK, msg("assistant", "", tool_calls=[{"name": "f", "arguments": {"x": 1}}])]
    yield "empty calls", [ASK, msg("assistant", "x", tool_calls=[]), msg("user", "y")]
    yield "none calls", [ASK, msg("assistant", "x", tool_calls=None), msg("user", "y")]
    yield "calls twice", with_calls(OBJECT) + results() + [
        msg("assistant", "", tool_calls=[call("search", {}, "call_9xyz")])] + results() + [
        msg("assistant", "done"), msg("user", "ok")]
    yield "result first", results() + [ASK]
    yield "thoughts in text", [ASK, msg("assistant", THINK), msg("user", "more")]
    yield "thoughts at the end", [ASK, msg("assistant", THINK)]
    yield "half a thought", [ASK, msg("assistant", "</think>x"), msg("user", "more")]
    yield "reasoning", [ASK, msg("assistant", "answer", reasoning_content="\nwhy\n"),
                        msg("user", "more")]
    yield "reasoning at the end", [ASK, msg("assistant", "answer", reasoning_content="why")]
    yield "reasoning and call", [ASK, msg("assistant", "", reasoning_content="hm", tool_calls=[
        call("search", {"q": "x"}, "call_9xyz")])] + results() + [msg("assistant", "fin")]
    yield "thinking field", [ASK, msg("assistant", "answer", thinking="hm"), msg("user", "more")]
    yield "none content", [msg("user", None)]
    yield "missing content", [{"role": "user"}]
    yield "content parts", [msg("user", [{"type": "text", "text": "part 1"},
                                         {"type": "text", "text": "part 2"}])]
    yield "image part", [msg("user", [{"type": "image"}, {"type": "text", "text": "what?"}])]
    yield "system parts", [msg("system", [{"type": "text", "text": "sys"}]), ASK]
    yield "number content", [msg("user", 42)]
    yield "missing role", [{"content": "x"}]
    yield "tool response list", [ASK, msg("tool", [{"output": 1}, "two"]), msg("user", "?")]
    yield "long", [msg("user", "word " * 2000), msg("assistant", "ok " * 500), ASK]


THINKING = [{}, {"enable_thinking": False, "thinking": False},
            {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}]


def contexts():
    """(name, context) for every conversation with every set of options."""
    for name, messages in conversations():
        for tools, prompt, more in itertools.product(range(len(TOOLS)), (False, True), THINKING):
            if tools > 1 and prompt and more:
                continue  # thin the grid where nothing new can meet
            c = {"messages": messages, "add_generation_prompt": prompt, **more}
            if tools:
                c["tools"] = TOOLS[tools]
            yield f"{name}, tools {tools}, prompt {prompt}, {more}", c
    yield "no messages", {}
    yield "messages none", {"messages": None}
    yield "bos override", {"messages": [ASK], "bos_token": "<B>", "eos_token": "<E>"}
    yield "date", {"messages": [SYSTEM, ASK], "date_string": "01 Jan 2030",
                   "builtin_tools": ["brave_search", "code_interpreter"], "tools": [WEATHER],
                   "tools_in_user_message": False, "model_identity": "You are a test."}
