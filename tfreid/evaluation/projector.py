"""The joint space as TensorBoard's projector takes it: both modalities, labelled. Floor 4."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from tfreid import storage
from tfreid.data.attributes import AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.evaluation import pictures
from tfreid.evaluation.retrieval import Embeddings, Evaluation

CONFIG_FILE = 'projector_config.pbtxt'
TENSOR_FILE = 'joint_space.tsv'
METADATA_FILE = 'metadata.tsv'
SPRITE_FILE = 'sprite.png'

_QUERY = (40, 90, 200)


def chosen(
  embeddings: Embeddings, *, max_queries: int = 500, max_images: int = 1500, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Which queries and gallery images to show, where showing all would be too slow.

  If queries must be left out, the images are those of the queries that stay, so that each point
  can have its counterpart in the other modality.

  Args:
    embeddings: both sides.
    max_queries: at most so many queries.
    max_images: at most so many images.
    seed: of the draw.

  Returns:
    int64 positions of queries and of gallery images, ascending.
  """
  rng = np.random.default_rng(seed)

  def some(positions, most):
    if len(positions) > most:
      positions = rng.choice(positions, most, replace=False)
    return np.sort(positions)

  queries = some(np.arange(len(embeddings.queries)), max_queries)
  images = np.arange(len(embeddings.gallery))
  if len(queries) < len(embeddings.queries):
    images = images[np.isin(embeddings.gallery_ids, embeddings.query_ids[queries])]
  return queries, some(images, max_images)


def write(
  directory: str,
  embeddings: Embeddings,
  split: Split,
  schema: AttributeSchema,
  *,
  evaluation: Evaluation | None = None,
  tile: int = 48,
  max_queries: int = 500,
  max_images: int = 1500,
  read: Callable[[str, Sequence[int]], np.ndarray] = pictures.crop,
):
  """Writes what the projector needs beside the event files of a TensorBoard run.

  projector_config.pbtxt, joint_space.tsv (a point per line), metadata.tsv (modality, semantic ID,
  person, camera, every attribute) and sprite.png: a thumbnail per image, a blue disc per query.

  Args:
    directory: of the run, created if need be.
    embeddings: of the split.
    split: queries and gallery.
    schema: names of the attributes.
    evaluation: adds average precision and seen/unseen of the queries to the metadata.
    tile: pixels of a thumbnail's height.
    max_queries, max_images: see `chosen`.
    read: (path, (height, width)) -> uint8 [height, width, 3].
  """
  storage.make_directories(directory)
  queries, images = chosen(embeddings, max_queries=max_queries, max_images=max_images)
  points = np.concatenate([embeddings.queries[queries], embeddings.gallery[images]])
  tensor = io.StringIO()
  np.savetxt(tensor, points, fmt='%.6g', delimiter='\t')
  storage.write_bytes(os.path.join(directory, TENSOR_FILE), tensor.getvalue().encode())
  rows = metadata(embeddings, split, schema, queries, images, evaluation=evaluation)
  storage.write_bytes(os.path.join(directory, METADATA_FILE), rows.encode())
  sheet = io.BytesIO()
  tiles: list[np.ndarray | None] = [None] * len(queries)
  tiles += [read(path, (tile, max(1, tile // 2))) for path in split.paths[images]]
  sprite(tiles, tile).save(sheet, 'PNG')
  storage.write_bytes(os.path.join(directory, SPRITE_FILE), sheet.getvalue())
  # Last: TensorBoard reads the others when it finds this one.
  storage.write_bytes(
    os.path.join(directory, CONFIG_FILE),
    (
      'embeddings {\n'
      '  tensor_name: "joint space"\n'
      f'  tensor_path: "{TENSOR_FILE}"\n'
      f'  metadata_path: "{METADATA_FILE}"\n'
      '  sprite {\n'
      f'    image_path: "{SPRITE_FILE}"\n'
      f'    single_image_dim: {tile}\n'
      f'    single_image_dim: {tile}\n'
      '  }\n'
      '}\n'
    ).encode(),
  )


def metadata(
  embeddings: Embeddings,
  split: Split,
  schema: AttributeSchema,
  queries: np.ndarray,
  images: np.ndarray,
  *,
  evaluation: Evaluation | None = None,
) -> str:
  """The labels of the points, a header and a line each: first the queries, then the images."""
  asked, _ = split.queries()
  names = [attribute.name for attribute in schema.attributes]
  header = ['label', 'modality', 'semantic_id', 'person', 'camera', 'in_training', 'AP', *names]
  lines = ['\t'.join(header)]
  in_training = ['-'] * len(embeddings.queries)
  precision = ['-'] * len(embeddings.queries)
  if evaluation is not None:
    precision = [f'{value:.3f}' for value in evaluation.per_query.average_precision]
    if evaluation.is_seen is not None:
      in_training = ['seen' if seen else 'unseen' for seen in evaluation.is_seen]
  known = dict(zip(embeddings.query_ids.tolist(), in_training))

  def line(vector, label, modality, semantic_id, *facts):
    values = schema.describe(vector)
    row = [label, modality, semantic_id, *facts, *(values[name] for name in names)]
    # A tab or a line break inside a cell would shift all that follow.
    lines.append('\t'.join(' '.join(str(cell).split()) or '-' for cell in row))

  for q in queries:
    semantic_id = embeddings.query_ids[q]
    label = f'query {semantic_id}'
    line(asked[q], label, 'attributes', semantic_id, '-', '-', in_training[q], precision[q])
  for n in images:
    semantic_id = int(embeddings.gallery_ids[n])
    person, camera = split.person_ids[n], split.cameras[n]
    line(
      split.attributes[n],
      f'image of {semantic_id}',
      'image',
      semantic_id,
      person,
      camera,
      known.get(semantic_id, '-'),
      '-',
    )
  return '\n'.join(lines) + '\n'


def sprite(images: Sequence[np.ndarray | None], tile: int) -> Image.Image:
  """All points' tiles in one picture, row by row in a square grid, as the projector cuts them.

  The tiles are square, since the projector would squeeze others, and transparent beside the image.

  Args:
    images: uint8 [H, W, 3], at most `tile` high and wide; None for a query.
    tile: height and width of a tile in pixels.

  Returns:
    RGBA picture.
  """
  columns = max(1, math.ceil(math.sqrt(len(images))))
  picture = Image.new('RGBA', (columns * tile, columns * tile), (255, 255, 255, 0))
  draw = ImageDraw.Draw(picture)
  for i, image in enumerate(images):
    x, y = i % columns * tile, i // columns * tile
    if image is None:
      # Told from any photograph at a glance, also far away.
      edge = tile // 8
      draw.ellipse([x + edge, y + edge, x + tile - 1 - edge, y + tile - 1 - edge], fill=_QUERY)
    else:
      height, width = image.shape[:2]
      place = (x + (tile - width) // 2, y + (tile - height) // 2)
      picture.paste(Image.fromarray(image), place)
  return picture
