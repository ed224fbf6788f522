"""An index of a folder of pictures that is made in memory, searched, and gone. Floor 4."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from tfreid.index import manifest, writer
from tfreid.index.embedder import Embedder
from tfreid.index.searcher import Searcher


def open_folder(source: str, model: Embedder, **options: Any) -> tuple[Searcher, writer.Report]:
  """Embeds the pictures of a folder or a manifest, and opens them as an index.

  For a few thousand pictures, and for a first try; what is asked again is better built once
  (`tfreid index build`).

  Args:
    source: folder of crops, or a manifest (.csv or .jsonl).
    model: what embeds them.
    **options: of `writer.add`: skip_corrupt, batch_size, progress, …

  Returns:
    The index, of which nothing is on the disk, and what became of the pictures.

  Raises:
    FileNotFoundError, ValueError: as `manifest.read` and `writer.build`.
  """
  manifest.check(source)
  attributes = {a.name: a.values for a in model.schema.attributes} if model.schema else {}
  rows = manifest.read(source, attributes=attributes)
  with tempfile.TemporaryDirectory(prefix='tfreid-') as folder:
    path = os.path.join(folder, os.path.basename(os.path.abspath(source)))
    report = writer.build(path, rows, model, engine_name='memory', **options)
    return Searcher(path, model=model), report
