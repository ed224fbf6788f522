"""Evaluation of a joint space that was saved: what `tfreid evaluate` prints and writes. Floor 4.

The space alone is loaded, not the method that trained it. It is asked for its own people, for those
of a data set with the same attributes, or, through the attributes that several data sets share, for
those of another (see `tfreid.data.shared_attributes`).
"""

from __future__ import annotations

import json
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Union

import numpy as np
import tensorflow as tf

from tfreid import storage
from tfreid.data import shared_attributes
from tfreid.data.attributes import AttributeSchema, check_same_columns
from tfreid.data.benchmark import Benchmark, Split
from tfreid.data.pipeline import Pipeline
from tfreid.evaluation import partial, retrieval
from tfreid.evaluation.partial import Curve
from tfreid.evaluation.retrieval import Embeddings, Evaluation
from tfreid.joint_space import JointSpace

# Called with what is being done, how much of it is done and how much there is; None: not known yet.
Progress = Callable[[str, int, Union[int, None]], None]


class FewerAttributes(NamedTuple):
  """How to ask with fewer attributes too: the arguments of `partial.curve` of the same names."""

  counts: Sequence[int | str] | None = None
  draws: int = 5
  seed: int = 0
  relevance: str = 'identity'
  resamples: int = 1000


class Fusion(NamedTuple):
  """How to score with two spaces: the dot product of one plus a share of the other's.

  Attributes:
    directory: of the other space, which takes the same attributes; its images may have another
      size.
    shares: of its dot product, at least 0.
  """

  directory: str
  shares: Sequence[float]


class Findings(NamedTuple):
  """What an evaluation found.

  Attributes:
    evaluation: by the protocol.
    facts: more of a results row: 'violations<k>' and 'nDCG<k>', means of the GradedMetrics of the
      first k images; results by subset; what was asked through, and what that left out.
    curve: over the number of attributes given, where it was asked for.
    fused: for each share of a `Fusion`, by the protocol.
  """

  evaluation: Evaluation
  facts: dict[str, Any]
  curve: Curve | None
  fused: Mapping[float, Evaluation] = types.MappingProxyType({})


class _Asked(NamedTuple):
  """What is searched, and what its images are known by.

  Attributes:
    split: as the model understands it.
    labels: the same images with the attributes that count.
    groups: [A], the attribute of each column of `labels`.
    seen: bool [Q], which queries occur in training; None where that is not known.
  """

  split: Split
  labels: Split
  groups: Sequence[int]
  seen: np.ndarray | None


def evaluate(
  directory: str,
  benchmark: Benchmark,
  *,
  part: str = 'test',
  batch_size: int = 64,
  top: int = 10,
  through: Sequence[str] = (),
  fewer: FewerAttributes | None = None,
  fusion: Fusion | None = None,
  flip_test: bool = False,
  progress: Progress | None = None,
) -> Findings:
  """Embeds a split in a saved space and evaluates it.

  Args:
    directory: of the space.
    benchmark: the data set.
    part: 'test' or 'validation'.
    batch_size: images per step.
    top: k of violations@k and nDCG@k.
    through: ask in the attributes that these data sets share; none: in those of the data set, which
      must be those that the space was trained on.
    fewer: also ask with fewer attributes; not together with `through`.
    fusion: also score with another space beside this one; not together with `through`.
    flip_test: embed images as in a mirror, too, see `tfreid.networks.flip`.
    progress: called again and again.

  Raises:
    FileNotFoundError: there is no such space.
    ValueError: the data set has no such part, or does not fit the space; `fewer` cannot be asked,
      a share is negative, or an image cannot be read.
  """
  if through and fewer:
    raise ValueError('Ask through shared attributes, or with fewer of them: not both at once.')
  if through and fusion:
    raise ValueError('Ask through shared attributes, or with a second space: not both at once.')
  if fusion:
    _check_fusion(fusion, benchmark)
  progress = progress or _silent
  about = JointSpace.metadata(directory)
  asked = _asked(directory, about, benchmark, part, through)
  # What is not said is the rate of the data that the space was trained on.
  schema = _trained_schema(about) or benchmark.schema
  if fewer:
    # Before the long part.
    partial.checked_counts(fewer.counts, schema)
    partial.drawing()
  space = _loaded(directory, flip_test)
  embeddings = _embeddings(space, asked.split, batch_size, progress)
  curve = None
  if fewer:
    curve = _curve(space, asked.split, embeddings, schema, fewer, progress)
  evaluation = retrieval.evaluate_embeddings(embeddings, seen=asked.seen)
  facts = _graded(embeddings, asked, top)
  facts.update(retrieval.subset_results(embeddings, asked.labels))
  if flip_test:
    facts['flip_test'] = True
  if through:
    facts['through'] = [*through]
    facts['through_columns'] = len(asked.groups)
    facts['images'] = len(asked.labels)
    facts['images_left_out'] = dict(asked.labels.dropped)
  fused = {}
  if fusion:
    other = _embeddings(_loaded(fusion.directory, flip_test), asked.split, batch_size, progress)
    for share in fusion.shares:
      fused[share] = retrieval.evaluate_embeddings(
        retrieval.fused(embeddings, other, share), seen=asked.seen
      )
  return Findings(evaluation, facts, curve, fused)


def _loaded(directory: str, flip_test: bool) -> JointSpace:
  space = JointSpace.load(directory)
  return space.with_flip_test() if flip_test else space


def write_curve(base: str, curve: Curve, *, title: str, facts: Mapping[str, Any]) -> None:
  """Writes base.csv, base.json and base.png.

  Args:
    base: path without ending; its folder is created if need be.
    curve: what to write.
    title: of the picture.
    facts: more for the JSON file.

  Raises:
    ImportError: matplotlib is not installed.
    OSError: a file cannot be written.
  """
  _write(f'{base}.png', curve.picture(title))
  _write(f'{base}.csv', curve.to_csv().encode())
  write_json(f'{base}.json', {**facts, **curve.to_json()})


def write_json(path: str, value: Mapping[str, Any]) -> None:
  """Writes JSON; its folder is created if need be.

  Raises:
    ValueError: a number in it is not finite.
    OSError: it cannot be written.
  """
  _write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode())


def _write(path: str, contents: bytes) -> None:
  storage.make_directories(os.path.dirname(os.path.abspath(path)))
  storage.write_bytes(path, contents)


def _silent(what: str, done: int, count: int | None) -> None:
  pass


def _trained_schema(about: Mapping[str, Any]) -> AttributeSchema | None:
  """The attributes that a space was trained on, where that was saved with it."""
  return AttributeSchema.from_json(about['schema']) if about.get('schema') else None


def _check_fusion(fusion: Fusion, benchmark: Benchmark) -> None:
  """Before anything is embedded."""
  wrong = [share for share in fusion.shares if not 0.0 <= share < float('inf')]
  if wrong or not fusion.shares:
    raise ValueError(
      f'The shares of a second space are numbers from 0 on, not {wrong or "none at all"}.'
    )
  check_same_columns(
    _trained_schema(JointSpace.metadata(fusion.directory)),
    benchmark.schema,
    advice='Fuse spaces that were trained on the same attributes.',
  )


def _asked(directory, about, benchmark, part, through) -> _Asked:
  split = getattr(benchmark, part)
  if split is None:
    raise ValueError(
      f'{benchmark.name} has no validation split here. Bind VALIDATION_SHARE as in training, e.g. '
      "--gin_bindings='VALIDATION_SHARE = 0.1'."
    )
  trained = _trained_schema(about)
  if not through:
    advice = 'Evaluate it on a data set with the same attributes.'
    check_same_columns(trained, benchmark.schema, advice=advice)
    return _Asked(split, split, benchmark.schema.groups, benchmark.seen(split))
  if trained is None:
    raise ValueError(f"'{directory}' does not say what attributes it was trained on.")
  shared = shared_attributes.schema(through)
  split, labels = shared_attributes.asked(split, benchmark.schema, shared, trained)
  return _Asked(split, labels, shared.groups, None)


def _embeddings(space, split, batch_size, progress) -> Embeddings:
  pipeline = Pipeline(space.image_shape[:2], batch_size)
  what = 'Embedding images'
  progress(what, 0, len(split))
  try:
    return retrieval.embed_split(
      space,
      split,
      pipeline.evaluation(split),
      progress=lambda done, count: progress(what, done, count),
    )
  except tf.errors.OpError as error:
    raise pipeline.explain(error, split) from error


def _curve(space, split, embeddings, schema, fewer, progress) -> Curve:
  what = 'Asking with fewer attributes'
  progress(what, 0, None)
  return partial.curve(
    space,
    split,
    embeddings.gallery,
    schema=schema,
    progress=lambda done, count: progress(what, done, count),
    **fewer._asdict(),
  )


def _graded(embeddings, asked, top) -> dict[str, Any]:
  graded = retrieval.graded(embeddings, asked.labels, groups=asked.groups, k=top)
  return {
    f'violations{top}': float(np.mean(graded.violations)),
    f'nDCG{top}': float(np.mean(graded.ndcg)),
  }
