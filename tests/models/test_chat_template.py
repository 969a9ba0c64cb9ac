import contextlib
import json
import threading
import time
import tracemalloc
from datetime import datetime
from pathlib import Path

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nocopy.errors import MetadataError, TemplateError, UsageError
from nocopy.models.chat_template import ChatTemplate, folder_chat_template
from nocopy.models.template_budget import LIMITS

TALK = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "  Hi 🦙\n"},
    {"role": "assistant", "content": "Hello.", "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2, None, True]}}}]},
    {"role": "tool", "name": "add", "content": "3"},
    {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now?"}]},
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds \u2013 zwei Zahlen",
                                           "parameters": {"type": "object", "properties": {}}}}]  # fmt: skip

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}{{ message.content | trim }}{% else %}
    {%- for part in message['content'] if part.type == 'text' %}
        {{- part.text ~ (' ' if not loop.last) }}
    {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
TOOL_USE = """\
{{ bos_token }}{% macro describe(tool, depth=0) %}
{%- set f = tool.function if tool.function is defined else tool -%}
{{ '  ' * depth }}{{ f.name }}: {{ f | tojson }}
{% endmacro %}
{%- set ns = namespace(user=0, last='') %}
{%- if tools is not none %}{% for tool in tools %}{{ describe(tool, 1) }}{% endfor %}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}{% continue %}{% endif %}
    {%- if m.role == 'user' %}{% set ns.user = ns.user + 1 %}{% endif %}
    {%- set ns.last = m.role %}
    {%- for call in m.tool_calls | default([]) %}
        {%- for name, value in call.function.arguments.items() %}
[{{ name | upper }}={{ value | tojson(indent=2) }}]
        {%- endfor %}
    {%- endfor %}
    {%- if ns.user > 1 %}{% break %}{% endif %}
{%- endfor %}
{%- set roles = messages | map(attribute='role') | list %}
{{ roles | unique | sort | join(', ') }} {{ roles[::-1][0] }} {{ ns.last }} {{ roles | length }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ roles[1:3] | join('/') }}
{{ "%s-%03d" % ('x', 7) }} {{ "{} {:>4}".format('a', 'b') }} {{ 'a,b'.split(',') | last }} {{ 7 // 2 }}
{{ 2 ** 3 }}
{% generation %}G{% endgeneration %}{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}
{{ 'a\\nb' | indent(2) }}|{{ 'a b' | replace(' ', '_') | title }}|
{{ [3, 1] | max }}|{{ 2.567 | round(1) }}|{{ 'x' in 'xyz' }}
"""


def plainly(source, **values):
    """The same template in Jinja's sandbox as Hugging Face sets it up, without any budget."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    source = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    return environment.from_string(source).render(**values)


@pytest.mark.parametrize("source", [CHATML, TOOL_USE], ids=["chatml", "tools"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [TOOLS, None], ids=["with tools", "without"])
def test_renders_what_jinja_renders(source, prompt, tools):
    now = datetime(2026, 2, 3)
    found = ChatTemplate(source, {"bos_token": "<s>"}).render(
        TALK, add_generation_prompt=prompt, tools=tools, now=now, extra=1
    )
    assert found == plainly(
        source, messages=TALK, add_generation_prompt=prompt, tools=tools, bos_token="<s>", extra=1,
        strftime_now=now.strftime,
    )  # fmt: skip
    assert len(found) > 50


def test_a_template_may_refuse_the_conversation():
    template = ChatTemplate(
        "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}ok"
    )
    assert template.render(TALK[:1]) == "ok"
    with pytest.raises(TemplateError, match="refuses the conversation: one message only"):
        template.render(TALK)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ x", "{% endfor %}", "{{ x | nosuchfilter }}", "{{ " + "(" * 5000]
)
def test_templates_that_do_not_compile(source):
    with pytest.raises(TemplateError, match="compile"):
        ChatTemplate(source)


def test_mistakes_in_a_template_are_template_errors():
    for source in (
        "{{ 1 / 0 }}",
        "{{ messages.x.y.z }}",
        "{{ 'a' + 1 }}",
        "{{ [] | first | tojson }}",
        "{{ none() }}",
    ):
        with pytest.raises(TemplateError):
            ChatTemplate(source).render(TALK)


def test_values_must_be_plain():
    class Sly(str):
        def __str__(self):
            return "sly"

    deep = []
    for _ in range(100):
        deep = [deep]
    for value in (object(), b"bytes", deep, {"x": {1, 2}}):
        with pytest.raises(UsageError):
            ChatTemplate("").render([{"role": "user", "content": value}])
        with pytest.raises(UsageError):
            ChatTemplate("").render([], option=value)
    assert ChatTemplate("{{ messages[0].content }}").render([{"content": Sly("real")}]) in ("real", "sly")


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__base__'] }}",
    "{{ (''|attr('__class__')) }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ range.__self__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.func.__globals__ }}",
    "{{ dict.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0[__class__]}'.format(messages) }}",
    "{{ ''.format_map({}) }}",
    "{{ 'x'.encode() }}",
    "{{ cycler('a') }}",
    "{{ lipsum(5) }}",
    "{% for x in messages recursive %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{{ caller }}{% endmacro %}{{ m.__globals__ }}{{ m._environment.x }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{{ messages.clear() }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% autoescape true %}{% endautoescape %}",
    "{{ 1 | nocopy charge }}",
    "{{ messages | map('nocopy made') | nosuch }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out_of_the_sandbox(source):
    talk = json.loads(json.dumps(TALK))
    try:
        text = ChatTemplate(source).render(talk)
    except TemplateError:
        text = ""
    assert "class" not in text
    assert "object" not in text
    assert "globals" not in text
    assert talk == TALK


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}"
    "{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "long range": "{% for a in range(10**9) %}x{% endfor %}",
    "range to a list": "{{ range(10**12) | list }}",
    "output": "{% for a in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "repeated text": "{{ 'x' * 10**10 }}",
    "repeated text, reversed": "{{ 10**10 * 'x' }}",
    "repeated list": "{{ ([0] * 10**9) | length }}",
    "repeated list of text": "{{ (['x' * 10**6] * 10**5) | length }}",
    "doubling by ~": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}"
    "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "doubling by method": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s.join([ns.s, ns.s]) %}{% endfor %}",
    "doubling by set block": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}"
    "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "replace": "{% set s = 'x' * 10**6 %}{{ s.replace('x', s) }}",
    "replace filter": "{% set s = 'x' * 10**6 %}{{ s | replace('x', s) }}",
    "shared lists printed": "{% set a0 = ['x'] %}"
    + "".join(f"{{% set a{i + 1} = [a{i}, a{i}] %}}" for i in range(60))
    + "{{ a60 }}",
    "shared dicts to JSON": "{% set a0 = {'x': 1} %}"
    + "".join(f"{{% set a{i + 1} = {{'p': a{i}, 'q': a{i}}} %}}" for i in range(60))
    + "{{ a60 | tojson }}",
    "shared dicts by call": "{% set a0 = dict(x=1) %}"
    + "".join(f"{{% set a{i + 1} = dict(p=a{i}, q=a{i}) %}}" for i in range(60))
    + "{{ a60 == a59 }}",
    "shared namespaces": "{% set a0 = namespace(x='x') %}"
    + "".join(f"{{% set a{i + 1} = namespace(p=a{i}, q=a{i}) %}}" for i in range(60))
    + "{{ a60 }}{% for i in range(10**6) %}{% endfor %}",
    "varargs": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}"
    "{% endmacro %}{{ m(60, 'x') }}",
    "macros that call twice": "{% macro a0() %}x{% endmacro %}"
    + "".join(f"{{% macro a{i + 1}() %}}{{{{ a{i}() }}}}{{{{ a{i}() }}}}{{% endmacro %}}" for i in range(60))
    + "{{ a60() }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "blocks": "{% block a %}{% for i in range(99999) %}{{ self.b() }}{% endfor %}{% endblock %}"
    "{% block b %}{% for i in range(99999) %}{% endfor %}{% endblock %}",
    "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "squares": "{% set ns = namespace(n=3) %}"
    "{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format by star": "{{ '%*d' % (1000000000, 1) }}",
    "many formats": "{% set s = '%999d' * 10000 %}{{ s % ((1,) * 10000) }}{{ s * 1000 }}",
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "str.format with a computed width": "{{ '{:{}}'.format(1, 10**9) }}",
    "indent": "{{ ('x\\n' * 10**6) | indent(16) | indent(16) }}",
    "indent by much": "{{ 'x\\ny' | indent(10**9) }}",
    "JSON indent": "{{ [1] | tojson(indent=10**9) }}",
    "round": "{{ 5 | round(-10**9) }}",
    "strip": "{% set s = 'a' * 10**7 %}{{ s.strip('b' * 10**7 + 'a') }}",
    "trim": "{% set s = 'a' * 10**7 %}{{ s | trim('b' * 10**7 + 'a') }}",
    "split": "{{ ('a ' * 8 * 10**6).split() | length }}",
    "splitlines": "{{ ('\\n' * 16 * 10**6).splitlines() | length }}",
    "list of characters": "{{ ('a' * 16 * 10**6) | list | length }}",
    "sorted characters": "{{ ('a' * 16 * 10**6) | sort | length }}",
    "sum of lists": "{{ range(9999) | map('list') | sum(start=[]) }}{{ [[1]] * 1000 | sum(start=[]) }}",
    "slices kept": "".join(f"{{% set a{i} = ('x' * 10**7)[1:] %}}" for i in range(1000)),
    "comparing": "{% set a = range(99999) | list %}{% for i in a %}{% for j in a %}"
    "{% set x = 100000 in a %}{% endfor %}{% endfor %}",
    "generators": "{% set a = range(99999) | list %}{% for i in a %}"
    "{% set x = a | map('string') | reject('string') | list %}{% endfor %}",
    "date format": "{{ strftime_now('%Y' * 10**6) }}",
    "long joins": "{% set s = 'x' * 10**7 %}{{ " + " ~ ".join(["s"] * 5000) + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_templates_that_never_end_are_stopped(name, monkeypatch):
    monkeypatch.setitem(LIMITS, "seconds", (0.5, LIMITS["seconds"][1]))
    start = time.process_time()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(BOMBS[name]).render(TALK)
    assert time.process_time() - start < LIMITS["seconds"][0] + 2
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "doubling by ~",
        "repeated list",
        "shared lists printed",
        "replace",
        "indent",
        "format",
        "split",
        "output",
    ],
)
def test_templates_that_grow_are_stopped_before_they_take_memory(name):
    template = ChatTemplate(BOMBS[name])
    tracemalloc.start(1)
    try:
        with pytest.raises(TemplateError):
            template.render([])
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "piece",
    [
        "{{a}}",
        "{% if a %}{% endif %}",
        "{#",
        "{% raw %}",
        "{{ '",
        "[",
        "a.b.c ",
        "{{a|upper|lower}}",
        "\n{%- ",
        "{{-",
    ],
)
def test_templates_that_are_hard_to_compile_take_no_time(piece):
    source = piece * (int(LIMITS["source"][0]) // len(piece))
    start = time.process_time()
    with contextlib.suppress(TemplateError):
        ChatTemplate(source)
    assert time.process_time() - start < 8


def test_a_source_that_is_too_long_is_refused():
    with pytest.raises(TemplateError, match="source"):
        ChatTemplate("x" * int(LIMITS["source"][0] + 1))


def test_a_long_conversation_is_no_bomb():
    talk = [
        {"role": "user", "content": "word " * 400},
        {"role": "assistant", "content": "answer " * 400},
    ] * 500
    text = ChatTemplate(CHATML).render(talk)
    assert len(text) > 2_000_000


def test_threads_have_budgets_of_their_own():
    template = ChatTemplate("{% for i in range(20000) %}{% endfor %}{{ messages[0].content }}")
    found = {}

    def render(name):
        found[name] = [template.render([{"content": name}]) for _ in range(5)]

    threads = [threading.Thread(target=render, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {str(i): [str(i)] * 5 for i in range(4)}


def test_templates_of_a_folder(tmp_path):
    class Nothing:
        special = {}  # noqa: RUF012

    with pytest.raises(MetadataError, match="no chat template"):
        folder_chat_template(tmp_path, Nothing())
    config = {"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert folder_chat_template(tmp_path, Nothing()).source == "D"
    assert folder_chat_template(tmp_path, Nothing(), "tool_use").source == "T"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert folder_chat_template(tmp_path, Nothing()).source == "J"


def test_the_document_lists_every_limit():
    text = (Path(__file__).parents[2] / "docs" / "gguf.md").read_text()
    for most, meaning in LIMITS.values():
        assert f"| {int(most):,} | {meaning} |" in text
