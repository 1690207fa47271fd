"""The reference for chat templates: Jinja2 set up the way Hugging Face's libraries set it up."""
import datetime
import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

# Given whether or not the caller names them, as apply_chat_template does.
DEFAULTS = {"tools": None, "documents": None, "add_generation_prompt": False}


class Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: prints its body."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("passed_through")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def passed_through(self, caller):
        return caller()


def environment(now):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def strftime_now(form):
        return datetime.datetime.fromtimestamp(now).strftime(form)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


def compile_template(env, text):
    """The template, or the exception that compiling it raised."""
    try:
        return env.from_string(text)
    except Exception as e:  # also SyntaxError and friends from the generated code
        return e


def render(template, context):
    """('ok', text), ('raised', message) from raise_exception, or ('error', text)."""
    if isinstance(template, Exception):
        return "error", f"{type(template).__name__}: {template}"
    try:
        return "ok", template.render(**{**DEFAULTS, **context})
    except jinja2.exceptions.TemplateError as e:
        if type(e) is jinja2.exceptions.TemplateError:
            return "raised", str(e.message if e.message is not None else "")
        return "error", f"{type(e).__name__}: {e}"
    except Exception as e:
        return "error", f"{type(e).__name__}: {e}"
