"""Conformance of every recipe in gin/methods: a new one is tested by being there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import conformance_checks as checks
import gin
import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import market1501
from tfreid.evaluation import retrieval
from tfreid.joint_space import JointSpace, similarity
from tfreid.serving import export, folding
from tfreid.training import stages as stages_lib


@pytest.fixture(scope='module', params=[checks.PRETRAIN, *checks.METHODS, 'a2img+three_state'])
def run(request, tiny_market, pretrained, tmp_path_factory) -> checks.Run:
  """The whole recipe, trained for two epochs a stage; gin stays configured with it."""
  stages = checks.configure(request.param, data=tiny_market, pretrained=pretrained)
  benchmark = market1501.load(tiny_market, encoding=gin.query_parameter('%ENCODING'))
  return checks.train(stages, tmp_path_factory.mktemp(request.param), benchmark)


@pytest.fixture(scope='module')
def spec(run):
  return run.benchmark.spec(run.pipeline.image_shape)


@pytest.fixture(scope='module')
def steps(run, spec, two_devices):
  """The first step of the last stage: on one replica, on two, and in half precision."""
  stage = run.stages[-1]
  pipeline = stage.pipeline() if stage.pipeline else run.pipeline
  batches = checks.image_batches(run.benchmark, pipeline)
  batch, start, draws = checks.sample(stage.method, spec, batches)
  settings = ({}, {'replicas': 2}, {'policy': 'mixed_float16'})

  def step(setting):
    return checks.one_step(stage.method, spec, batch, start=start, **setting)

  if not draws:
    return [step(setting) for setting in settings]
  with checks.still_randomness():
    return [step(setting) for setting in settings]


def joint_spaces(run) -> dict[str, tuple[str, JointSpace, str]]:
  """What each finished stage saved: label of the evaluation -> stage, space, further one's name."""
  found = {}
  for stage in run.stages:
    for name, directory in stages_lib.spaces(stage.path(str(run.directory))).items():
      found[f'{stage.name}/{name}' if name else stage.name] = (stage.name, directory, name)
  return found


class Exported(NamedTuple):
  """A saved space, and the model made of it: its folder and, loaded, its signatures."""

  space: JointSpace
  folder: str
  signatures: dict


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory) -> dict[str, Exported]:
  """Every saved space as an exported model whose gallery is the whole test split, by label."""
  tf.keras.mixed_precision.set_global_policy('float32')
  paths = [str(path) for path in run.benchmark.test.paths]
  crops = [export.Crop(path, Path(path).read_bytes()) for path in paths[:8]]
  found = {}
  for label, (_, directory, _) in joint_spaces(run).items():
    space = JointSpace.load(directory)
    encoders = export.encoders(space)
    gallery, _ = export.embed_files(encoders.image, paths)
    folder = export.export(
      space,
      str(tmp_path_factory.mktemp('exported') / 'model'),
      encoders=encoders,
      gallery=gallery,
      ids=[str(position) for position in range(len(paths))],
      crops=crops,
      schema=run.benchmark.schema,
      top_k=len(paths),
    )
    found[label] = Exported(space, folder, tf.saved_model.load(folder).signatures)
  return found


def test_every_step_reports_finite_losses_of_all_objectives(run):
  assert run.watched
  for watched in run.watched.values():
    checks.check_losses(watched)


def test_every_trainable_variable_is_in_one_objective_and_moves_and_no_other_does(run):
  for watched in run.watched.values():
    checks.check_movement(watched)


def test_run_stopped_after_an_epoch_and_resumed_equals_uninterrupted_run(run, tmp_path):
  stages = [dataclasses.replace(stage, directory='') for stage in run.stages]
  for stage, copy in zip(run.stages[:-1], stages):
    shutil.copytree(stage.path(str(run.directory)), copy.path(str(tmp_path / 'run')))
  last = stages[-1]
  shutil.copytree(run.snapshots / last.name, last.path(str(tmp_path / 'run')))
  again = checks.train(stages, tmp_path, run.benchmark)
  whole = run.watched[last.name].reports
  assert len(again.watched[last.name].reports) == len(whole) // checks.EPOCHS
  checks.check_same_checkpoints(checks.final(again, last), checks.final(run, run.stages[-1]))


def test_checkpoint_brings_back_every_value(run, spec):
  """Into a method that was initialised from another seed."""
  stage = run.stages[-1]
  trained = run.watched[stage.name]
  tf.keras.mixed_precision.set_global_policy('float32')
  tf.keras.utils.set_random_seed(99)
  method = stage.method(spec)
  fresh = checks.values(method)
  assert not all(map(np.array_equal, fresh, trained.after))
  checkpoint = tf.train.Checkpoint(networks=tf.train.Checkpoint(**method.networks), method=method)
  checkpoint.read(str(checks.final(run, stage))).assert_existing_objects_matched()
  for variable, value in zip(method.variables, trained.after):
    np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.name)


def test_saved_space_encodes_as_the_live_one_did(run):
  if run.stages[-1].name == checks.PRETRAIN:
    assert not joint_spaces(run)  # there is no attribute encoder yet
    return
  assert run.stages[-1].name in joint_spaces(run)
  for stage, directory, name in joint_spaces(run).values():
    space = JointSpace.load(directory)
    images, attributes = checks.encodings(space, run.benchmark, run.pipeline)
    assert images.shape == attributes.shape == (8, space.size)
    assert images.dtype == attributes.dtype == np.float32
    assert np.isfinite(images).all() and np.isfinite(attributes).all()
    if not name:
      live_images, live_attributes = run.watched[stage].encodings
      np.testing.assert_allclose(images, live_images, rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(attributes, live_attributes, rtol=1e-5, atol=1e-6)


def test_evaluation_of_the_saved_space_is_that_of_the_live_one(run):
  assert set(run.evaluations) == set(joint_spaces(run))
  for label, (stage, _, name) in joint_spaces(run).items():
    if not name:
      assert run.evaluations[label].scalars() == pytest.approx(
        run.watched[stage].evaluation.scalars(), abs=1e-6, nan_ok=True
      )


def test_exported_signatures_encode_as_the_live_encoders_did(run, exported):
  assert set(exported) == set(joint_spaces(run))
  batch = next(iter(run.pipeline.evaluation(run.benchmark.test, batch_size=8)))
  contents = [Path(path).read_bytes() for path in run.benchmark.test.paths[:8]]
  limit = folding.TOLERANCES['float32']
  for label, (stage, _, name) in joint_spaces(run).items():
    model = exported[label]
    images, attributes = (
      checks.encodings(model.space, run.benchmark, run.pipeline)
      if name
      else run.watched[stage].encodings
    )
    for answer, expected in (
      (model.signatures['embed_images'](image_bytes=tf.constant(contents)), images),
      (model.signatures['embed_attributes'](attributes=batch['attributes']), attributes),
    ):
      error = np.linalg.norm(answer['concepts'].numpy() - expected, axis=1)
      assert (error <= limit * np.linalg.norm(expected, axis=1)).all(), label


def average_precision(scores, right) -> float:
  """Of the ranking by descending scores, by counting."""
  places = np.flatnonzero(right[np.argsort(-scores, kind='stable')]) + 1
  return float(np.mean(np.arange(1, len(places) + 1) / places))


def test_exported_model_retrieves_in_the_order_of_the_evaluation(run, exported):
  """But for images that are as alike as rounding is; average precision is counted anew."""
  split = run.benchmark.test
  queries, ids = split.queries()
  for label, model in exported.items():
    embeddings = retrieval.embed_split(model.space, split, run.pipeline.evaluation(split))
    live = np.asarray(similarity(embeddings.queries, embeddings.gallery))  # [Q, N]
    answer = model.signatures['serving_default'](attributes=tf.constant(queries))
    order = answer['ids'].numpy().astype(int)  # [Q, N]
    assert (np.sort(order, axis=1) == np.arange(len(split))).all(), label
    room = 3e-6 * np.linalg.norm(embeddings.queries, axis=1, keepdims=True)
    room = room * np.linalg.norm(embeddings.gallery, axis=1).max()  # [Q, 1]
    found = np.take_along_axis(live, order, axis=1)
    assert (np.abs(found - -np.sort(-live, axis=1)) <= room).all(), label
    assert (np.abs(found - answer['scores'].numpy()) <= room).all(), label
    scores = np.empty_like(live)
    np.put_along_axis(scores, order, answer['scores'].numpy(), axis=1)
    evaluated = run.evaluations[label].per_query.average_precision
    for query, precision in enumerate(evaluated):
      right = split.semantic_ids == ids[query]
      # With each match as much better, and as much worse, as rounding may have made it.
      lowest, highest = (
        average_precision(scores[query] + sign * 2 * room[query] * right, right) for sign in (-1, 1)
      )
      assert lowest - 1e-9 <= precision <= highest + 1e-9, (label, query)


def test_descriptions_drawn_with_stored_noise_are_encoded_alike_after_each_load(run, exported):
  """Of the image GAN. Other noise must make another encoding, or this would show nothing."""
  queries = tf.constant(run.benchmark.test.queries()[0])
  for label, model in exported.items():
    stored = [w for w in model.space.attribute_encoder.weights if 'noise' in w.name]
    assert stored or not label.startswith('gan')
    if not stored:
      continue
    first, second = (
      tf.saved_model.load(model.folder).signatures['embed_attributes'](attributes=queries)
      for _ in range(2)
    )
    np.testing.assert_array_equal(first['concepts'].numpy(), second['concepts'].numpy())
    before = model.space.encode_attributes(queries).numpy()
    kept = stored[0].numpy()
    stored[0].assign(kept[::-1] * 2.0 + 1.0)
    assert np.abs(model.space.encode_attributes(queries).numpy() - before).max() > 1e-6
    stored[0].assign(kept)


def test_not_said_is_neither_yes_nor_no_to_a_three_state_model(run):
  schema = run.benchmark.schema
  if schema.encoding == 'binary':
    return
  space = JointSpace.load(stages_lib.spaces(run.stages[-1].path(str(run.directory)))[''])
  queries = [{'age': 'old', **said} for said in ({'hat': 'yes'}, {'hat': 'no'}, {})]
  concepts = space.encode_attributes(np.stack([schema.encode_query(q) for q in queries])).numpy()
  distances = np.linalg.norm(concepts[:, np.newaxis] - concepts, axis=2)
  assert (distances[np.triu_indices(3, 1)] > 1e-3).all()


def test_step_is_the_same_on_one_replica_and_on_two(steps):
  one, two, _ = steps
  checks.check_same_step(one, two)


def test_half_precision_changes_the_losses_little(run, steps):
  full, _, half = steps
  names = {objective.loss for objective in run.watched[run.stages[-1].name].method.objectives}
  checks.check_half_precision(full, half, sorted(names))
