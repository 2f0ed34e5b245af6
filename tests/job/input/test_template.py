"""Templates: prompts of columns, the columns that a template reads, and nulls."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from rwkv_batch.errors import ConfigurationError, RowError
from rwkv_batch.job.input.template import Template

from ..conftest import Job


def test_template_renders_columns_and_messages():
    template = Template("{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}{{ n + 1 }}")
    assert template.render({"messages": [{"role": "user", "content": "é"}], "n": 1}) == "user=é;2"


def test_template_writes_json_without_html_escapes():
    assert Template("{{ row | tojson }}").render({"row": {"a": "<é>'&"}}) == '{"a": "<é>\'&"}'


@pytest.mark.parametrize("source", ["fine\n{{ oops", "fine\n{% for %}", "fine\n{{ x | nofilter }}"])
def test_template_syntax_error_names_the_line(source: str):
    with pytest.raises(ConfigurationError, match="line 2"):
        Template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ question }}",  # not a column
        "{% if question %}{% endif %}",
        "{{ text + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[3].content }}",
        "{{ text.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% include 'other' %}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'x' * (10 ** 18) }}",
    ],
)
def test_failing_template_is_a_row_error(source: str):
    template = Template(source)
    with pytest.raises(RowError) as caught:
        template.render({"text": "abc", "messages": []})
    assert caught.value.code == "template_error"
    assert "columns: text, messages" in caught.value.message


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("{{ b }}", ["b"]),
        ("{% set c = a %}{{ c }}{% for x in range(2) %}{{ x }}{% endfor %}", ["a"]),
        ("{{ row['two words'] }}{{ c }}", ["two words", "c"]),
        ("{{ row.a }}", ["a", "b", "two words", "c"]),
        ("{{ row[0] }}{{ row['a'] }}", ["a", "b", "two words", "c"]),
        ("{% for name in row %}{{ name }}{% endfor %}", ["a", "b", "two words", "c"]),
        ("{{ d | default('') }}{% if e is defined %}{{ e }}{% endif %}{{ a }}", ["a"]),
        ("{% for row in b %}{{ row['x'] }}{% endfor %}", ["b"]),
        ("no column", []),
    ],
)
def test_only_named_columns_are_read(source: str, read: list[str]):
    assert Template(source).columns(["a", "b", "two words", "c"]) == read


def test_a_column_named_row_comes_first():
    template = Template("{{ row.x }}")
    assert template.columns(["row", "other"]) == ["row"]
    assert template.render({"row": {"x": 1}}) == "1"


def test_unknown_columns_are_all_named():
    with pytest.raises(ConfigurationError) as caught:
        Template("{{ questoin }} {{ row['Quetsion Text'] }} {{ known }}").columns(
            ["known", "question", "Question Text"]
        )
    assert str(caught.value).splitlines() == [
        "input.template: the input has no column 'Quetsion Text' (did you mean 'Question Text'?)",
        "input.template: the input has no column 'questoin' (did you mean 'question'?)",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "{{ x }}",
        "{{ row['x'] }}",
        "{{ nested.inner }}",
        "{{ x | trim }}",
        "{{ x | upper }}",
        "{{ '%s' | format(x) }}",
        "{{ 'a' ~ x }}",
        "{{ ['a', x] | join(' ') }}",
        "{{ x or none }}",
        "{% set y = x %}{{ y }}",
    ],
)
def test_a_printed_null_is_a_row_error(source: str):
    template = Template(source)
    with pytest.raises(RowError, match=r"a null is printed \(null in this row: x\)") as caught:
        template.render({"x": None, "nested": {"inner": None}})
    assert caught.value.code == "template_error"
    assert "None" not in template.render({"x": "text", "nested": {"inner": 0}}).replace("0", "")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ x or 'nothing' }}", "nothing"),
        ("{{ x | default('', true) }}", ""),
        ("{% if x is none %}none{% endif %}", "none"),
        ("{% if x %}{{ x }}{% else %}-{% endif %}", "-"),
        ("{{ [x, 1] | tojson }}", "[null, 1]"),
        ("{{ 'a' ~ 1 ~ 'b' }}{{ [1, 2] | join('+') }}{{ ' c ' | trim }}{{ {'v': 3}.v }}", "a1b1+2c3"),
    ],
)
def test_nulls_that_the_template_handles(source: str, text: str):
    assert Template(source).render({"x": None}) == text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ text.upper }}", "builtin_function_or_method is printed.*write \\(\\) behind the name"),
        ("{{ [text.upper] }}", "builtin_function_or_method"),
        ("{{ {'a': text.upper} }}", "builtin_function_or_method"),
        ("{{ text.upper | string }}", "builtin_function_or_method"),
        ("{{ text.upper ~ '' }}", "builtin_function_or_method"),
        ("{{ '%s' % text.upper }}", "builtin_function_or_method"),
        ("{{ '%s' % (text.upper,) }}", "builtin_function_or_method"),
        ("{{ '{}'.format(text.upper) }}", "builtin_function_or_method"),
        ("{{ '{a}'.format(a=text.upper) }}", "builtin_function_or_method"),
        ("{{ '%(a)s' | format(a=text.upper) }}", "builtin_function_or_method"),
        ("{{ [text.upper] | join }}", "builtin_function_or_method"),
        ("{{ text | map('upper') }}", "generator is printed.*write \\| list"),
        ("{{ range(3) }}", "range"),
        ("{{ {'a': 1}.items() }}", "dict_items"),
        ("{{ [missing] }}", "'missing' is undefined"),
        ("{{ raw }}", "bytes is printed.*decode"),
        ("{% macro m() %}{% endmacro %}{{ m }}", "Macro"),
        ("{% for c in text %}{{ loop }}{% endfor %}", "LoopContext"),
        ("{{ when.now() }}", "SecurityError"),
    ],
)
def test_what_is_no_data_is_not_printed(source: str, reason: str):
    template = Template(source)
    with pytest.raises(RowError, match=reason) as caught:
        template.render({"text": "abc", "raw": b"abc", "when": datetime(2020, 1, 2)})
    assert caught.value.code == "template_error"


@pytest.mark.parametrize("source", ["{{ '%s' % x }}", "{{ '{}'.format(x) }}", "{{ '{a}'.format(a=x) }}", "{{ [x] }}"])
def test_a_null_inside_a_text_is_a_row_error(source: str):
    with pytest.raises(RowError, match="a null is printed"):
        Template(source).render({"x": None})


def test_data_is_printed():
    source = "{{ [1, 2.5, true, 'a'] }} {{ {'a': [when.date().isoformat()]} }} {{ when }} {{ many }} {{ '%s' % (1,) }}"
    columns = {"when": datetime(2020, 1, 2), "many": Decimal("1.50")}
    assert Template(source).render(columns) == "[1, 2.5, True, 'a'] {'a': ['2020-01-02']} 2020-01-02 00:00:00 1.50 1"


@pytest.mark.parametrize("source", ["fine\n{{ [1, 2] | random }}", "fine\n{% if x %}{{ lipsum(1) }}{% endif %}"])
def test_chance_is_refused(source: str):
    with pytest.raises(ConfigurationError, match=r"line 2: '(random|lipsum)' draws at random"):
        Template(source)


def test_expressions_of_constants_are_not_computed_when_the_template_is_read():
    Template("{{ 'x' * (10 ** 18) }}{{ '%1000000000000d' % 1 }}{{ 'x' | center(10 ** 18) }}")


def test_a_template_that_python_cannot_compile_is_refused():
    with pytest.raises(ConfigurationError, match="cannot compile"):
        Template("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


def test_an_unknown_column_ends_the_job_before_the_model_loads(job: Job, capsys: pytest.CaptureFixture[str]):
    job.input(question=["a"]).set(input__template="{{ questoin }}")
    assert job.run() == 2
    assert "input.template: the input has no column 'questoin' (did you mean 'question'?)" in capsys.readouterr().err


def test_a_cell_of_an_unused_column_makes_no_row_bad(job: Job):
    """Neither a time beyond all calendars nor a zone that nobody knows is read."""
    when = pa.array([2**60, 0], pa.timestamp("us"))
    where = pa.array([0, 0], pa.timestamp("us", "Mars/Phobos"))
    job.input(question=["a", "b"], when=when, where=where).set(input__template="{{ question }}")
    assert job.run() == 0


def test_a_cell_of_an_unknown_time_zone_makes_its_row_bad(job: Job):
    job.input(when=pa.array([None, 0], pa.timestamp("us", "Mars/Phobos"))).set(input__template="{{ when or 'never' }}")
    assert job.run() == 3
    assert [row["error_code"] for row in job.table().select(["error_code"]).to_pylist()] == [None, "bad_type"]
