"""JSON has one meaning or none: A18 of the attack list."""

import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from agent.ota.refusal import RefusalError
from agent.ota.strict_json import MAX_DEPTH, MAX_INTEGER, decode

MOST = 1 << 16


class Typed(Struct, forbid_unknown_fields=True):
    number: int = 0
    share: float = 0.0
    text: str = ""
    table: dict[str, object] = {}


def refusal(raw, kind=Typed, most_bytes=MOST):
    began = time.process_time()
    with pytest.raises(RefusalError) as caught:
        decode(raw, kind, most_bytes=most_bytes, where="it")
    # 3 ms at most were measured. What looks at anything twice takes minutes, on any machine.
    assert time.process_time() - began < 1
    assert str(caught.value).startswith("it: ")
    assert caught.value.is_final
    return caught.value.code


def deep(count, opening=b"[", closing=b"]"):
    return b'{"table":{"a":' + opening * count + b"1" + closing * count + b"}}"


@pytest.mark.parametrize(
    "raw",
    {
        "twice": b'{"number":1,"number":2}',
        "twice, the same": b'{"number":1,"number":1}',
        "twice below": b'{"table":{"a":[{"b":1,"b":2}]}}',
        "twice, one escaped": b'{"table":{"x":1,"\\u0078":2}}',
        "twice unknown": b'{"table":{"":0,"":0}}',
        "NaN": b'{"share":NaN}',
        "Infinity": b'{"share":Infinity}',
        "-Infinity": b'{"share":-Infinity}',
        "1e999": b'{"share":1e999}',
        "1e999 untyped": b'{"table":{"a":1e999}}',
        "2**70": b'{"number":%d}' % 2**70,
        "2**70 untyped": b'{"table":{"a":%d}}' % 2**70,
        "-2**70": b'{"table":{"a":%d}}' % -(2**70),
        "2**53+1": b'{"number":%d}' % (2**53 + 1),
        "60,000 digits": b'{"number":' + b"9" * 60_000 + b"}",
        "60,000 digits, untyped": b'{"table":{"a":-' + b"9" * 60_000 + b"}}",
        "4,000 digits": b'{"table":{"a":' + b"9" * 4000 + b"}}",
        "10**5 lists, open": b'{"table":{"a":' + b"[" * 60_000,
        "10**5 objects, open": b'{"table":' * 6_000,
        "900 lists": deep(900),
        "900 objects": deep(900, b'{"a":', b"}"),
        "one too deep": deep(MAX_DEPTH - 1),
        "deep where nobody looks": b'{"other":' + b"[" * 900 + b"]" * 900 + b"}",
        "byte order mark": b'\xef\xbb\xbf{"number":1}',
        "UTF-16": '{"number":1}'.encode("utf-16"),
        "UTF-16, no mark": '{"number":1}'.encode("utf-16-le"),
        "UTF-32": '{"number":1}'.encode("utf-32"),
        "lone surrogate": b'{"text":"\\ud800"}',
        "lone surrogate, more behind": b'{"text":"\\ud800 and much more"}',
        "lone low surrogate": b'{"text":"\\udc00"}',
        "lone surrogate in a key": b'{"table":{"\\ud800":1}}',
        "surrogates the wrong way round": b'{"text":"\\udc00\\ud800"}',
        "encoded surrogate": b'{"text":"\xed\xa0\x80"}',
        "no UTF-8": b'{"text":"\xff"}',
        "no UTF-8 in a key": b'{"table":{"\xff":1}}',
        "overlong slash": b'{"text":"\xc0\xaf"}',
        "raw control": b'{"text":"\x01"}',
        "raw line end": b'{"text":"\n"}',
        "more behind": b'{"number":1} {}',
        "a zero behind": b'{"number":1}\0',
        "trailing comma": b'{"number":1,}',
        "comment": b'{"number":1}//',
        "single quotes": b"{'number':1}",
        "no quotes": b"{number:1}",
        "leading zero": b'{"number":01}',
        "plus": b'{"number":+1}',
        "hexadecimal": b'{"number":0x1}',
        "float for a whole number": b'{"number":1.0}',
        "text for a number": b'{"number":"1"}',
        "true for a number": b'{"number":true}',
        "unknown key": b'{"numbre":1}',
        "no object": b"[]",
        "null": b"null",
        "nothing": b"",
        "form feed": b'\x0c{"number":1}',
        "quotes without an end": b'{"text":"' + b'\\"' * 30_000,
        "backslashes without an end": b'{"text":"' + b"\\" * 60_001,
    }.items(),
    ids=lambda item: item[0],
)
def test_what_has_not_one_meaning_is_refused(raw):
    assert refusal(raw[1]) == "E_JSON"


def test_what_is_too_long_is_not_even_read():
    raw = b'{"text":"' + b"x" * 5_000_000 + b'"}'
    assert refusal(raw) == "E_SIZE"
    assert refusal(b"[" * 5_000_000) == "E_SIZE"
    assert refusal(b" " * (MOST + 1)) == "E_SIZE"
    assert decode(b"{}" + b" " * (MOST - 2), Typed, most_bytes=MOST, where="it") == Typed()


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'{"number":%d}' % MAX_INTEGER, Typed(number=MAX_INTEGER)),
        (b'{"number":-%d}' % MAX_INTEGER, Typed(number=-MAX_INTEGER)),
        (b'{"text":"[[[[{{{{\\\\\\"]"}', Typed(text='[[[[{{{{\\"]')),
        (b'{"text":"' + b"[" * 1000 + b'"}', Typed(text="[" * 1000)),
        (b'{"text":"\\ud83d\\ude00"}', Typed(text="\U0001f600")),
        (b' \t\r\n{"share":1} ', Typed(share=1.0)),
        (b'{"table":{"a":{"x":1},"b":{"x":1}}}', Typed(table={"a": {"x": 1}, "b": {"x": 1}})),
        (b'{"table":{"a":[{"x":1},{"x":2}]}}', Typed(table={"a": [{"x": 1}, {"x": 2}]})),
    ],
)
def test_what_has_is_taken(raw, wanted):
    assert decode(raw, Typed, most_bytes=MOST, where="it") == wanted


@pytest.mark.parametrize("key", [b"\x7f\xc2\x9b2J", b"k" * 60_000, b"\xe2\x80\xae", b"\\n\\u0000"])
def test_what_is_quoted_can_be_shown(key):
    with pytest.raises(RefusalError) as caught:
        decode(b'{"%s":1}' % key, Typed, most_bytes=MOST, where="it")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_the_deepest_that_is_taken():
    found = decode(deep(MAX_DEPTH - 2), Typed, most_bytes=MOST, where="it")
    assert json.dumps(found.table).count("[") == MAX_DEPTH - 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(width=32),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_all_other_json_means_what_the_standard_library_says(value):
    try:
        raw = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, UnicodeEncodeError):
        return
    assert decode(raw, object, most_bytes=1 << 20, where="it") == json.loads(raw)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0d8x1e.-', max_size=200))
def test_nothing_else_comes_out_of_it(raw):
    raw = raw if isinstance(raw, bytes) else raw.encode()
    try:
        found = decode(raw, object, most_bytes=1 << 20, where="it")
    except RefusalError as error:
        assert error.code == "E_JSON"
    else:
        assert found == json.loads(raw) == msgspec.json.decode(raw)
