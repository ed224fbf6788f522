from __future__ import annotations

import io

import numpy as np
import pandas as pd
from PIL import Image

from tfreid.data import audit
from tfreid.data.attributes import Attribute, AttributeSchema, AttributeTable
from tfreid.data.benchmark import ImageRecord, assemble, join

SCHEMA = AttributeSchema(
  name='toy',
  attributes=(
    Attribute('gender', ('male', 'female'), (('gender', 2),)),
    Attribute('hat', ('no', 'yes'), (('hat', 2),)),
    Attribute('color', ('red', 'blue', 'green'), (('red', 2), ('blue', 2), ('green', 2))),
  ),
  raw_values={'gender': (1, 2), 'hat': (1, 2), 'red': (1, 2), 'blue': (1, 2), 'green': (1, 2)},
)

# gender, hat, red, blue, green
TRAIN = {
  'p1': (1, 1, 2, 1, 1),
  'p2': (1, 1, 2, 1, 1),
  'p3': (2, 1, 1, 2, 1),
  'p4': (2, 1, 1, 1, 1),
}
TEST = {'q1': (1, 2, 2, 2, 1), 'q2': (2, 1, 1, 2, 1)}


def split(people, images, name):
  frame = pd.DataFrame.from_dict(people, orient='index', columns=list(SCHEMA.raw_values))
  records = [ImageRecord(f'/x/{i}.jpg', person, i % 2) for i, person in enumerate(images)]
  return join(records, AttributeTable(SCHEMA, frame), source=name)


def toy():
  return assemble(
    'toy',
    SCHEMA,
    split(TRAIN, ['p1', 'p1', 'p2', 'p3', 'p4'], 'train'),
    split(TEST, ['q1', 'q2', 'q2'], 'test'),
  )


def test_summary_counts_images_people_and_semantic_ids():
  summary = audit.summarize(toy())
  assert summary.loc['train'].to_dict() == {
    'images': 5,
    'people': 4,
    'cameras': 2,
    'semantic_ids': 3,
    'single_person_ids': 2,
    'largest_id': 2,
    'seen': 3,
    'unseen': 0,
  }
  assert summary.loc['test', ['images', 'semantic_ids', 'seen', 'unseen']].tolist() == [3, 2, 1, 1]
  assert list(summary.index) == ['train', 'test']


def test_rates_are_shares_of_people_not_of_images():
  rates = audit.column_rates(toy())
  assert list(rates.index) == ['gender=female', 'hat', 'color=red', 'color=blue', 'color=green']
  assert rates['train'].tolist() == [0.5, 0.0, 0.5, 0.25, 0.0]
  assert rates['test'].tolist() == [0.5, 0.5, 0.5, 1.0, 0.0]


def test_group_counts_show_people_without_a_value_and_with_several():
  counts = audit.group_counts(toy())
  assert counts.loc[('train', 'color')].tolist() == [1, 3, 0]
  assert counts.loc[('test', 'color')].tolist() == [0, 1, 1]
  assert len(counts) == 2


def test_findings_name_what_cannot_be_learned_or_is_rare():
  found = '\n'.join(audit.findings(toy(), rare=2))
  assert "'hat': nobody has it in training, so it cannot be learned; in test 1 of 2" in found
  assert "'color=green': nobody has it in training" in found
  assert "'color=blue' is rare: only 1 training people have it." in found
  assert "'color=red' is rare" not in found
  assert "'color' in train: 1 people have no value, 0 have several." in found
  assert "'color' in test: 0 people have no value, 1 have several." in found


def test_a_common_attribute_is_rarely_lacking():
  found = '\n'.join(audit.findings(toy(), rare=3))
  assert "'gender=female' is rare: only 2 training people have it." in found


def test_a_person_in_both_splits_and_one_annotated_twice_are_found():
  train = split(TRAIN, ['p1', 'p2', 'p3'], 'train')
  train.person_ids[:] = ['a', 'b', 'b']
  test = split(TEST, ['q1'], 'test')
  test.person_ids[:] = ['a']
  found = '\n'.join(audit.findings(assemble('toy', SCHEMA, train, test)))
  assert "1 people are in training and in test, 'a' first" in found
  assert "train: 1 people are annotated differently from crop to crop, 'b' first" in found


def test_images_that_cannot_be_decoded_are_found(tmp_path):
  buffer = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
  Image.fromarray(noise).save(buffer, 'JPEG')
  whole = buffer.getvalue()
  contents = {
    'good.jpg': whole,
    'truncated.jpg': whole[: len(whole) // 2],  # its header is good
    'page.jpg': b'<html>not found</html>',
    'empty.jpg': b'',
  }
  for name, content in contents.items():
    (tmp_path / name).write_bytes(content)
  paths = [str(tmp_path / name) for name in [*contents, 'missing.jpg']]
  checks = list(audit.check_images(paths, threads=2))
  assert [check.path for check in checks] == paths
  assert [bool(check.problem) for check in checks] == [False, True, True, True, True]
  assert (checks[0].height, checks[0].width) == (64, 32)
