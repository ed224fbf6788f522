"""Golden requests: what a version was asked when it was exported, and what it must answer. Floor 4.

assets.extra/golden.json holds, for each signature, a request in the row format of TF Serving's REST
interface and the answer. Whoever serves the version can ask the same again (`replay`): the same
weights on another machine differ by rounding, other weights by more.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfreid import forks
from tfreid.data.attributes import AttributeSchema
from tfreid.serving import errors, folding, loading, signatures, versions

FILE = 'golden.json'

# Of a ranking, so many results are kept.
NUM_RESULTS = 10
# A signature's name, and its inputs by name [B, ...] -> its outputs by name [B, ...]; texts are str
# or bytes. A ValueError if it does not take the inputs.
Ask = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


# For each signature, by its name: its inputs by name, and two examples of each.
Examples = Mapping[str, Mapping[str, Sequence]]


class Outcome(NamedTuple):
  """How a signature answered its golden request.

  Attributes:
    signature: its name.
    deviation: the greatest, of concepts relative to their length, of scores relative to the product
      of the lengths; 0 where the answer has no numbers, NaN where it could not be compared.
    tolerance: of that.
    problem: what is wrong with the answer, '' if nothing is.
  """

  signature: str
  deviation: float
  tolerance: float
  problem: str


def examples(
  contents: Sequence[bytes],
  attributes: np.ndarray,
  gallery: np.ndarray,
  ids: Sequence[str],
  schema: AttributeSchema | None,
) -> Examples:
  """For each signature to show and warm up: its inputs by name, and two examples of each.

  Args:
    contents: of one or two crops.
    attributes: float32 [8, A].
    gallery: float32 [N, E]; without a row there is nothing that searches.
    ids: of its rows.
    schema: of the attributes.
  """
  # A name means the same in each signature, so an example is given once for each.
  values: dict[str, list] = {
    'attributes': list(attributes[:2]),
    'variants': [attributes[2:4], attributes[4:6]],
    'image_bytes': [contents[0], contents[-1]],
    'any': ['', ''],
  }
  if len(ids):
    values['concepts'] = [np.asarray(gallery[row], np.float32) for row in (0, -1)]
    values['crop_ids'] = [ids[0], 'no such crop']
  if schema is not None:
    first, last = schema.attributes[0], schema.attributes[-1]
    texts = [f'{first.name}={first.values[-1]}', f'{last.name}!={last.values[0]}, zebra']
    values['words'] = texts
  return {
    signature.name: {tensor.name: values[tensor.name] for tensor in signature.inputs}
    for signature in signatures.available(has_schema=schema is not None, has_gallery=bool(len(ids)))
  }


def record(
  functions: Mapping[str, Callable],
  inputs: Examples,
  *,
  tolerance: float,
  greatest_norm: float,
) -> dict[str, Any]:
  """Asks the examples, and puts down what was answered.

  Args:
    functions: of the loaded SavedModel, by the names of their signatures.
    inputs: from `examples`.
    tolerance: greatest relative error of an image concept.
    greatest_norm: of the rows of the gallery.

  Returns:
    What belongs into golden.json.
  """
  answers = {
    signature: {
      key: value.numpy()
      for key, value in functions[signature](
        **{name: tf.constant(np.stack(values)) for name, values in given.items()}
      ).items()
    }
    for signature, given in inputs.items()
  }
  norms = [
    np.linalg.norm(answers[name]['concepts'], axis=1).max()
    for name in ('embed_attributes', 'embed_images')
  ]
  # A query that is off by a share of its length changes a score by that share of this at most.
  scale = float(max(*norms, greatest_norm) * greatest_norm)
  golden = []
  for signature, given in inputs.items():
    arrays = answers[signature]
    arrays.update({key: arrays[key][:, :NUM_RESULTS] for key in _ranked(signature)})
    of_images = signatures.BY_NAME[signature].encodes_images
    share = tolerance if of_images else folding.TOLERANCES['float32']
    golden.append(
      {
        'request': {
          'signature_name': signature,
          'instances': [
            {name: _json_value(value, binary=True) for name, value in zip(given, row)}
            for row in zip(*given.values())
          ],
        },
        'response': {'predictions': _predictions(arrays)},
        'tolerance': share,
        **({'score_tolerance': share * scale} if 'scores' in arrays else {}),
      }
    )
  return {
    'about': 'Requests, and what this version answered when it was exported; of ids and '
    f'scores the first {NUM_RESULTS}. Another machine may differ by rounding: concepts by '
    '`tolerance` of their length, scores by `score_tolerance`.',
    'tolerance': tolerance,
    'golden': golden,
  }


def read(directory: str) -> dict[str, Any]:
  """The golden requests and answers of a version.

  Raises:
    FileNotFoundError: it has none.
    ValueError: the file is damaged.
  """
  name = f'{versions.EXTRA}/{FILE}'
  path = os.path.join(directory, name)
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"'{path}' does not exist, so nothing says what this version must answer. Export it again "
      'with `tfreid export`.'
    )
  content = versions.read_json(directory, name)
  try:
    for entry in content['golden']:
      inputs(entry['request'])
      _check_predictions(entry)
    float(content['tolerance'])
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise ValueError(f"'{path}' is damaged: {error!r}. Export the model again.") from error
  return content


def _check_predictions(entry: Mapping[str, Any]) -> None:
  """Refuses an answer that cannot be compared; any of a dozen errors, or none."""
  predictions = entry['response']['predictions']
  if not predictions:
    raise ValueError('an answer is empty')
  str(entry['request']['signature_name'])
  for name in ('tolerance', 'score_tolerance'):
    float(entry.get(name, 0.0))
  for row in predictions:
    if isinstance(row, dict) and 'ids' in row:
      scores = np.asarray(row['scores'], np.float64)
      if scores.shape != (len(row['ids']),):
        raise ValueError('a ranking has not a score for each id')


def inputs(request: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inputs of a golden request by name, [B, ...]: float32, or texts and bytes (object)."""
  instances = request['instances']
  arrays = {}
  for name in instances[0]:
    values = [instance[name] for instance in instances]
    if isinstance(values[0], list):
      arrays[name] = np.asarray(values, np.float32)
      continue
    arrays[name] = np.empty(len(values), object)
    arrays[name][:] = [
      base64.b64decode(value['b64']) if isinstance(value, dict) else value for value in values
    ]
  return arrays


def loaded(directory: str) -> Ask:
  """A version, loaded in this process, as what `replay` asks.

  Raises:
    ValueError: it cannot be loaded, for example because a file is damaged.
  """
  model = loading.load(directory)

  def ask(signature, arrays):
    # (The closure keeps the model, and so its variables: signatures do not.)
    forks.check()
    functions = model.signatures
    if signature not in functions:
      raise ValueError('the model has no such signature')
    try:
      answer = functions[signature](**{name: tf.constant(a) for name, a in arrays.items()})
    except (tf.errors.OpError, TypeError, ValueError) as error:
      raise ValueError(errors.plain(str(error))) from error
    return {name: value.numpy() for name, value in answer.items()}

  return ask


def replay(directory: str, ask: Ask, *, tolerance: float | None = None) -> list[Outcome]:
  """Asks the golden requests of a version again.

  Rankings are alike if the scores are, place by place, and crops are in another order only where
  their scores differ by no more than that.

  Args:
    directory: of the version, for golden.json.
    ask: who is asked.
    tolerance: greatest relative deviation, instead of those that were put down at the export.

  Returns:
    An outcome for each signature.

  Raises:
    FileNotFoundError: the version has no golden requests.
    ValueError: they are damaged.
  """
  requests = read(directory)
  outcomes = []
  for entry in requests['golden']:
    request, predictions = entry['request'], entry['response']['predictions']
    signature = request['signature_name']
    share = entry.get('tolerance', requests['tolerance'])
    # Earlier exports did not put it down; most spaces have concepts of length 1.
    scale = max(1.0, _greatest_score(predictions))
    if share and 'score_tolerance' in entry:
      scale = entry['score_tolerance'] / share
    share = share if tolerance is None else tolerance
    comparison = _Comparison(share, share * scale)
    try:
      comparison.compare(predictions, ask(signature, inputs(request)))
      problem = comparison.problem
    except ValueError as error:
      comparison.deviation, problem = float('nan'), f'no answer: {error}'
    outcomes.append(Outcome(signature, comparison.deviation, share, problem))
  return outcomes


_RANKED_OUTPUTS = {
  tensor.name
  for signature in signatures.SIGNATURES
  for tensor in signature.outputs
  if tensor.is_ranked
}


def _ranked(signature: str) -> list[str]:
  """Its outputs that have a place for each result."""
  return [tensor.name for tensor in signatures.BY_NAME[signature].outputs if tensor.is_ranked]


class _Comparison:
  """Compares an answer with the golden one; remembers the greatest deviation, the first problem."""

  def __init__(self, tolerance: float, score_tolerance: float):
    self.tolerance, self.score_tolerance = tolerance, score_tolerance
    self.deviation, self.problem = 0.0, ''

  def compare(self, predictions: Sequence[Any], answer: Mapping[str, np.ndarray]):
    if not isinstance(predictions[0], dict):
      # The row format leaves the name of a single output out.
      if len(answer) != 1:
        return self._object(f'it has {len(answer)} outputs ({", ".join(answer)}), not one')
      predictions = [dict(zip(answer, [value])) for value in predictions]
    for number, row in enumerate(predictions, start=1):
      if set(row) != set(answer):
        return self._object(f'its outputs are {sorted(answer)}, not {sorted(row)}')
      if any(len(value) != len(predictions) for value in answer.values()):
        return self._object(f'it does not answer {len(predictions)} requests with as many rows')
      plain = {name: _plain(value[number - 1]) for name, value in answer.items()}
      if 'ids' in row:
        self._ranking(number, row, plain)
      for name in set(row) - _RANKED_OUTPUTS:
        if isinstance(row[name], str):
          if plain[name] != row[name]:
            self._object(f'request {number}: {name} is {plain[name]!r}, not {row[name]!r}')
        elif np.shape(plain[name]) != np.shape(row[name]):
          self._object(f'request {number}: {name} has the shape {np.shape(plain[name])}')
        else:
          error = folding.relative_errors(plain[name], row[name])
          self._measure(f'request {number}: {name}', float(error), self.tolerance)
    return None

  def _ranking(self, number, row, found):
    ids, scores = row['ids'], np.asarray(row['scores'], np.float64)
    names, values = list(found['ids'][: len(ids)]), np.asarray(found['scores'], np.float64)
    values = values[: len(ids)]
    if len(names) < len(ids) or len(values) < len(ids):
      return self._object(f'request {number}: {len(names)} results, not {len(ids)}')
    self._measure(
      f'request {number}: the scores', np.abs(values - scores).max(), self.score_tolerance
    )
    # Of what was not understood nothing is found: '' in all places.
    if '' in ids or len(set(names)) < len(names):
      if names != ids:
        self._object(f'request {number}: the crops are {names[:3]} …, not {ids[:3]} …')
      return None
    places = {name: place for place, name in enumerate(ids)}
    for place, name in enumerate(names):
      # What is not among the golden results scored no more than the last of them.
      golden = scores[places.get(name, -1)]
      if not abs(golden - scores[place]) <= 2 * self.score_tolerance:
        return self._object(
          f'request {number}: the crop in place {place + 1} is {name!r}, not {ids[place]!r}'
        )
      if 'variant_scores' in row and name in places:
        expected = np.asarray(row['variant_scores'][places[name]], np.float64)
        variants = np.asarray(found['variant_scores'][place], np.float64)
        if variants.shape != expected.shape:
          return self._object(f'request {number}: {variants.shape} variants')
        error = np.abs(variants - expected).max(initial=0.0)
        self._measure(f'request {number}: variant_scores', error, self.score_tolerance)
    return None

  def _measure(self, what, error, limit):
    share = float(error) / limit * self.tolerance if limit else float(error)
    # Not "greater than": what is no number is no small deviation either.
    if not error <= limit:
      self._object(f'{what}: off by {share:.2g} (relative), with a tolerance of {self.tolerance:g}')
    if not share <= self.deviation:
      self.deviation = share

  def _object(self, problem):
    self.problem = self.problem or problem


def _greatest_score(predictions) -> float:
  return max(
    (abs(score) for row in predictions if isinstance(row, dict) for score in row.get('scores', ())),
    default=0.0,
  )


def _plain(value):
  """A row of an answer, with texts as str."""
  if isinstance(value, np.ndarray):
    return [_plain(item) for item in value] if value.dtype == object else value
  return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value


def _predictions(arrays: Mapping[str, np.ndarray]) -> list[Any]:
  """Outputs by name, in the row format: a dict for each row, or, of a single output, its values."""
  rows = [
    {name: _json_value(value) for name, value in zip(sorted(arrays), row)}
    for row in zip(*(arrays[name] for name in sorted(arrays)))
  ]
  return rows if len(arrays) > 1 else [value for row in rows for value in row.values()]


def _json_value(value, *, binary=False):
  """A tensor's value as TF Serving's REST interface writes it."""
  if isinstance(value, bytes):
    return {'b64': base64.b64encode(value).decode()} if binary else value.decode()
  if isinstance(value, np.ndarray):
    return [_json_value(element) for element in value.tolist()]
  return value
