from __future__ import annotations

import pytest

from tfreid.web import forms
from tfreid.web.forms import FormError

TYPE = 'multipart/form-data; boundary=b'


def part(name, contents, more=b''):
  head = f'--b\r\nContent-Disposition: form-data; name="{name}"'.encode()
  return head + more + b'\r\n\r\n' + contents + b'\r\n'


FORM = part('image', b'\r\n--\r\n--a\0', b'; filename="a;b.png"\r\nContent-Type: image/png')
FORM += part('options', b'{}') + b'--b--\r\n'


@pytest.mark.parametrize('start', [b'', b'\r\n', b'a preamble\r\n'])
@pytest.mark.parametrize('end', [b'', b'behind it'])
@pytest.mark.parametrize('kind', [TYPE, 'Multipart/Form-Data; charset=utf-8; Boundary="b"'])
def test_parts_are_found_by_their_names(start, end, kind):
  assert forms.parse(kind, start + FORM + end, max_parts=2) == {
    'image': b'\r\n--\r\n--a\0',
    'options': b'{}',
  }


def test_a_form_may_be_empty_and_a_part_too():
  assert forms.parse(TYPE, b'--b--', max_parts=2) == {}
  assert forms.parse(TYPE, part('é', b'') + b'--b--', max_parts=1) == {'é': b''}


@pytest.mark.parametrize(
  ('kind', 'body'),
  [
    (TYPE, b''),
    (TYPE, FORM.removesuffix(b'--\r\n')),
    (TYPE, FORM[: len(FORM) // 2]),
    (TYPE, FORM.replace(b'\r\n\r\n', b'\r\n')),
    (TYPE, FORM.replace(b'\r\n', b'\n')),
    (TYPE, part('a', b'') * 2 + b'--b--'),
    (TYPE, part('a', b'') + part('b', b'') + part('c', b'') + b'--b--'),
    (TYPE, part('', b'') + b'--b--'),
    (TYPE, part('a', b'').replace(b'form-data; name="a"', b'form-data') + b'--b--'),
    (TYPE, part('a', b'', b'\r\nx: ' + b'y' * 9000) + b'--b--'),
    (TYPE.replace('boundary=b', 'boundary=c'), FORM),
    (TYPE.replace('boundary=b', 'boundary='), FORM),
    (TYPE.replace('boundary=b', f'boundary={"b" * 71}'), FORM.replace(b'--b', b'--' + b'b' * 71)),
    ('multipart/form-data', FORM),
    (f'{TYPE}; {"x" * 1000}', FORM),
    ('', FORM),
  ],
)
def test_what_is_no_whole_form_is_an_error(kind, body):
  with pytest.raises(FormError):
    forms.parse(kind, body, max_parts=2)
