"""Each file of an index, harmed in many ways: told in a sentence, never answered from."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import tfreid.index
from tfreid import storage
from tfreid.index import writer
from tfreid.index.directory import IndexDirectory

# Of each file. With 45 it is a thousand, which takes minutes; none of them has been silent.
HARMS = 4


def harmed(content: bytes, draw: random.Random) -> bytes:
  """Some bytes, with a byte changed, cut off somewhere, or made longer."""
  kind = draw.randrange(4)
  if kind == 0 and content:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
  if kind == 1 and content:
    return content[: draw.randrange(len(content))]
  if kind == 2 and content:
    place = draw.randrange(len(content))
    length = min(draw.randrange(1, 64), len(content) - place)
    return content[:place] + bytes(length) + content[place + length :]
  return content + draw.choice([b'\0', b'\n', b'{}', content[-20:], bytes(4096)])


def answers(folder):
  with tfreid.index.open(folder) as opened:
    query = np.linspace(-1, 1, opened.engine.width, dtype=np.float32)
    found = opened.search(query, top_k=50, where='camera is None or camera < 4').hits
    return [(hit.id, hit.score, hit.path, dict(hit.metadata)) for hit in found]


@pytest.fixture
def whole(tmp_path, files, digest_model):
  """An index with removed crops, and an unfinished build beside it."""
  folder = tmp_path / 'index'
  writer.build(str(folder), files(12), digest_model, shard_rows=6)
  writer.remove(str(folder), ['id 3'])
  rows = files(8, start=40)
  Path(rows[-1].path).write_text('broken')
  with pytest.raises(ValueError, match='1 file cannot be read'):
    writer.add(str(folder), rows, digest_model, shard_rows=2)
  assert len(IndexDirectory(folder).read_pending()['shards']) == 3
  return folder, rows[:6]


def test_no_damaged_file_is_answered_from_or_a_traceback(whole, tmp_path, digest_model):
  whole, rows = whole
  expected, draw = answers(whole), random.Random(0)
  state = IndexDirectory(whole).read()
  counts = {'told': 0, 'harmless': 0}
  names = [path.relative_to(whole) for path in sorted(whole.rglob('*')) if path.is_file()]
  unused = {
    shard['segment']['name'] for shard in IndexDirectory(whole).read_pending()['shards'].values()
  }
  copy = tmp_path / 'copy'
  for name in names:
    is_used = name.name != 'lock' and not unused.intersection(name.parts)
    for _ in range(HARMS):
      shutil.rmtree(copy, ignore_errors=True)
      shutil.copytree(whole, copy)
      content = (whole / name).read_bytes()
      bad = harmed(content, draw)
      if bad == content:
        continue
      (copy / name).write_bytes(bad)
      try:
        now = answers(copy)
        is_told = False
      except (ValueError, OSError) as error:
        assert str(copy) in str(error)
        is_told = True
      if name.name.startswith('pending') or not is_used:
        # Nothing to readers; a writer is told, or does without.
        assert not is_told and now == expected
        is_told = told_to_a_writer(copy, rows, digest_model)
      else:
        assert is_told, f'{name} was answered from'
      counts['told' if is_told else 'harmless'] += 1
  assert counts['told'] > 10 * HARMS
  assert IndexDirectory(whole).read() == state


def told_to_a_writer(folder, rows, model):
  """Whether a writer refuses; if not, it must have come to the right end."""
  try:
    writer.add(str(folder), rows, model, shard_rows=2)
  except (ValueError, OSError) as error:
    assert 'damaged' in str(error), error
    return True
  with tfreid.index.open(folder) as opened:
    names = [f'id {i}' for i in (*range(3), *range(4, 12), *range(40, 46))]
    assert [row.id for _, rows in opened.engine.parts() for row in rows] == names
    assert opened.problems() == []
  return False


def test_what_is_written_anew_is_looked_at_before(whole):
  """Otherwise a damaged byte would get a checksum that is right."""
  whole, _ = whole
  entry = IndexDirectory(whole).read()['segments'][1]
  path = whole / 'segments' / entry['name'] / 'embeddings.npy'
  content = path.read_bytes()
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with tfreid.index.open(whole, check=False) as opened, opened.engine.folder.lock():
    assert len(opened) == 11
    with pytest.raises(ValueError, match='checksum differs'):
      opened.engine.compact()


def test_an_index_of_an_earlier_release_is_read_and_written(whole, digest_model):
  """Without checksums of the small files and without marks, as it was until format 1."""
  whole, rows = whole
  expected = answers(whole)
  state = json.loads((whole / 'index.json').read_text())
  for name in ('checksum', 'commit'):
    del state[name]
  state['format'] = 1
  for entry in state['segments']:
    del entry['files']['segment.json']
    (whole / 'segments' / entry['name'] / 'segment.json').unlink()
  (whole / 'index.json').write_text(json.dumps(state))
  pending = json.loads((whole / 'pending.json').read_text())
  (whole / 'pending.json').write_text(
    json.dumps({name: pending[name] for name in pending if name not in ('checksum', 'format')})
  )
  lines = [json.loads(line)[:2] for line in (whole / 'pending.jsonl').read_text().splitlines()]
  (whole / 'pending.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert answers(whole) == expected
  report = writer.add(str(whole), rows, digest_model, shard_rows=2)
  assert (report.added, report.resumed) == (6, 6)
  writer.compact(str(whole))
  names = {entry['name'] for entry in IndexDirectory(whole).read()['segments']}
  assert {path.name for path in (whole / 'segments').iterdir()} == names
  assert storage.read_json(whole / 'index.json')['format'] == 3
