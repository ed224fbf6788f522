"""Measures an exported model on people that it has not seen: the numbers of a model card.

  tfreid model-card --model=saved_models/photographs/1 --dataset=photographs \\
    --gin_bindings='PETA = "/data/peta"' --gin_bindings='MARKET = "/data/market1501"' --out=card

Writes <out>.json and <out>.md: whole descriptions, each attribute with its interval, groups of
people as they were annotated, and the precision of the first 20 for the commonest descriptions of
two or three attributes beside the base rate, which is the precision of guessing.
"""

from __future__ import annotations

import os

from absl import flags

from tfreid.cli import configuration, gin_flags, startup

flags.adopt_module_key_flags(gin_flags)
_MODEL = flags.DEFINE_string('model', None, 'Folder of the exported model.', required=True)
_DATASET = flags.DEFINE_string('dataset', None, 'Name of a file in gin/datasets/.', required=True)
_DATA_ROOT = flags.DEFINE_string('data_root', None, 'Where the data is, if the file asks for it.')
_GIN_BINDINGS = flags.DEFINE_multi_string('gin_bindings', [], 'Options of the loader. Repeatable.')
_SPLIT = flags.DEFINE_enum('split', 'test', ['test', 'validation'], 'What to measure on.')
_OUT = flags.DEFINE_string('out', 'model_card', 'Files to write, without ending.')
_COUNT = flags.DEFINE_integer('descriptions', 40, 'Commonest descriptions to ask.', lower_bound=1)
_GROUPS = flags.DEFINE_list('groups', ['gender', 'age'], 'Attributes that tell groups of people.')
_ABOUT = flags.DEFINE_list(
  'about',
  ['upper_color', 'lower_color', 'backpack', 'bag', 'handbag', 'hat', 'suitcase', 'plastic_bag'],
  'A second list of descriptions has one of these attributes in each.',
)
_RESAMPLES = flags.DEFINE_integer('resamples', 500, 'Draws of people for intervals.', lower_bound=1)
_BATCH = 64


def main(argv):
  """Embeds the split, asks, and writes both files."""
  startup.no_arguments(argv)
  with startup.clear_errors():
    from tfreid import search

    with search.load(_MODEL.value) as model:
      benchmark = _benchmark(model.schema)
      split = getattr(benchmark, _SPLIT.value)
      if split is None:
        raise ValueError(f'{benchmark.name} has no validation split here.')
      card = measure(
        model,
        benchmark.name,
        split,
        resamples=_RESAMPLES.value,
        count=_COUNT.value,
        about=_ABOUT.value,
        groups=_GROUPS.value,
      )
    _write(card)


def _benchmark(schema):
  """The data set that the flags name, in the model's encoding."""
  given = [] if _DATA_ROOT.value is None else [f'DATA_ROOT = {_DATA_ROOT.value!r}']
  given += [f'ENCODING = {schema.encoding!r}', 'VALIDATION_SHARE = 0.0', 'VALIDATION_SEED = 0']
  benchmark = configuration.dataset(
    [f'datasets/{_DATASET.value}.gin'],
    given=given,
    bindings=_GIN_BINDINGS.value,
    allow_imports=gin_flags.allow_imports(),
  )
  if benchmark.schema.column_names != schema.column_names:
    raise ValueError(
      f"The model knows other attributes than '{benchmark.name}': it was trained on those of "
      f"'{schema.name}'. Name the data set that it was trained on."
    )
  return benchmark


def measure(model, name, split, *, resamples, count, about, groups):
  """All numbers of the card.

  Args:
    model: a Source.
    name: of the data set.
    split: people that the model has not seen.
    resamples: draws of people for the intervals.
    count: number of descriptions of two or three attributes.
    about: see `--about`.
    groups: names of attributes that tell groups of people.

  Returns:
    A dict of plain JSON types.
  """
  import numpy as np

  from tfreid.evaluation import descriptions, retrieval

  schema = model.schema
  gallery = np.concatenate(
    [model.embed(list(split.paths[i : i + _BATCH])) for i in range(0, len(split), _BATCH)]
  )

  def scores(query):
    return gallery @ np.asarray(model.embed_query(query), np.float32).reshape(-1)

  vectors, ids = split.queries()
  queries = [descriptions.setting(vector, schema) for vector in vectors]
  asked = [i for i, query in enumerate(queries) if query]
  embeddings = retrieval.Embeddings(
    np.stack([np.asarray(model.embed_query(queries[i]), np.float32).reshape(-1) for i in asked]),
    gallery,
    ids[asked],
    split.semantic_ids,
  )
  statements = descriptions.statements(schema, split)
  judge = descriptions.Judge(split.person_ids, resamples=resamples)
  rows = [scores({part.attribute: part.value}) for part in statements]
  answers = [
    judge.judge({part.attribute: part.value}, part.truth, row)
    for part, row in zip(statements, rows)
  ]
  card = {
    'dataset': name,
    'split': {
      'images': len(split),
      'people': len(set(split.person_ids)),
      'descriptions': len(asked),
    },
    'whole_descriptions': retrieval.evaluate_embeddings(embeddings).to_json(),
    'attributes': [answer.to_json() for answer in answers],
    'groups': _groups(descriptions, statements, rows, split, groups, resamples),
    'descriptions': _descriptions(descriptions, statements, judge, scores, count, ()),
    'descriptions_about': _descriptions(descriptions, statements, judge, scores, count, about),
  }
  if split.subsets is not None and len(set(split.subsets)) > 1:
    parts = retrieval.by_subset(embeddings, split.subsets)
    card['subsets'] = {
      part: {field: float(value) for field, value in summary._asdict().items()}
      for part, summary in parts.items()
    }
  return card


def _groups(descriptions, found, rows, split, names, resamples):
  """For each group, the mean over the same statements."""
  result = []
  for by in names:
    members = descriptions.groups(found, [by])
    # A group of a handful tells nothing, and would leave no statement to compare the others by.
    members = {key: group for key, group in members.items() if group.sum() >= 100} or members
    chosen = descriptions.asked_in_groups(found, list(members.values()), by=by)
    for (attribute, value), group in members.items():
      judge = descriptions.Judge(split.person_ids[group], resamples=resamples)
      means = judge.mean([found[i].truth[group] for i in chosen], [rows[i][group] for i in chosen])
      result.append(
        {
          'group': f'{attribute}={value}',
          'images': int(group.sum()),
          'people': len(set(split.person_ids[group])),
          'statements': len(chosen),
          **{name: _plain(estimate) for name, estimate in means.items()},
        }
      )
  return result


def _descriptions(descriptions, found, judge, scores, count, about):
  """The commonest descriptions and the mean over them."""
  chosen = descriptions.commonest(found, count=count, about=about)
  truths = [descriptions.joined(parts) for parts in chosen]
  queries = [{part.attribute: part.value for part in parts} for parts in chosen]
  rows = [scores(query) for query in queries]
  answers = [judge.judge(*each) for each in zip(queries, truths, rows)]
  means = judge.mean(truths, rows)
  return {
    'mean_precision': _plain(means['precision']),
    'mean_base_rate': sum(answer.base_rate for answer in answers) / max(1, len(answers)),
    'queries': [answer.to_json() for answer in answers],
  }


def _plain(estimate):
  return [None if value != value else round(float(value), 5) for value in estimate]


def markdown(card) -> str:
  """The card's numbers as Markdown tables, in percent."""
  split = card['split']
  whole = card['whole_descriptions']['all']
  lines = [
    f'{split["images"]} images of {split["people"]} people of {card["dataset"]}, none of them seen '
    'in training. In brackets: 95 % interval over people.',
    '',
    f'Whole descriptions ({split["descriptions"]}): mAP {_percent(whole["mAP"])}, rank-1 '
    f'{_percent(whole["rank1"])}, rank-10 {_percent(whole["rank10"])}; chance '
    f'{_percent(whole["chance_mAP"])} and {_percent(whole["chance_rank1"])}.',
    '',
    '## Each attribute',
    '',
    *_table(card['attributes']),
    '',
    '## Groups of people',
    '',
    'Means over the statements that can be told of every group.',
    '',
    '| group | images | people | statements | AUC | average precision |',
    '|---|---|---|---|---|---|',
  ]
  for row in card['groups']:
    lines.append(
      f'| {row["group"]} | {row["images"]} | {row["people"]} | {row["statements"]} | '
      f'{_interval(row["auc"])} | {_interval(row["average_precision"])} |'
    )
  titles = {'descriptions': 'Commonest descriptions', 'descriptions_about': 'Colours and things'}
  for key, title in titles.items():
    value = card[key]
    lines += [
      *('', f'## {title}', ''),
      f'Mean of {len(value["queries"])}: {_interval(value["mean_precision"])} of the first 20; '
      f'guessing {_percent(value["mean_base_rate"])}.',
      '',
      *_table(value['queries']),
    ]
  if 'subsets' in card:
    lines += [
      '',
      '## Subsets',
      '',
      '| subset | images | queries | mAP | chance |',
      '|---|---|---|---|---|',
    ]
    for name, row in card['subsets'].items():
      lines.append(
        f'| {name} | {row["gallery"]:.0f} | {row["queries"]:.0f} | {_percent(row["mAP"])} | '
        f'{_percent(row["chance_mAP"])} |'
      )
  return '\n'.join(lines) + '\n'


def _table(rows):
  lines = [
    '| asked | images | base rate | first 20 right | average precision | AUC |',
    '|---|---|---|---|---|---|',
  ]
  for row in rows:
    asked = ', '.join(f'{name}={value}' for name, value in row['query'].items())
    lines.append(
      f'| {asked} | {row["images"]} | {_percent(row["base_rate"])} | '
      f'{_interval(row["precision"])} | {_interval(row["average_precision"])} | '
      f'{_interval(row["auc"])} |'
    )
  return lines


def _percent(value) -> str:
  return '-' if value is None else f'{100 * value:.1f}'


def _interval(estimate) -> str:
  value, low, high = estimate
  if value is None:
    return '-'
  return (
    _percent(value) if low is None else f'{_percent(value)} [{_percent(low)}, {_percent(high)}]'
  )


def _write(card):
  from tfreid import storage

  storage.make_directories(os.path.dirname(os.path.abspath(_OUT.value)))
  storage.write_json(f'{_OUT.value}.json', card)
  storage.write_text(f'{_OUT.value}.md', markdown(card))
  print(f'Written: {_OUT.value}.json and {_OUT.value}.md')
