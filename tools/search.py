#!/usr/bin/env python3
"""Finds the crops that fit a description.

  tools/search.py --model=saved_models/demo "gender=female, upper_color=red, backpack=yes"
  tools/search.py --model=saved_models/demo --html=answer.html "woman, red top, no hat"

The description is a list of name=value settings, of words, or of both.
"""

from absl import app, flags

import _tool

_MODEL = flags.DEFINE_string(
  'model', None, 'Exported model: the folder of a version, or of the model (newest version).'
)
_TOP_K = flags.DEFINE_integer('top_k', 20, 'Number of crops to show.', lower_bound=1)
_HTML = flags.DEFINE_string('html', None, 'Also write the answer as one self-contained page.')
_JSON = flags.DEFINE_bool('json', False, 'Print JSON instead of a table.')


def main(argv):
  """Loads the model and answers."""
  if len(argv) < 2 or not _MODEL.value:
    raise app.UsageError('Give --model=DIRECTORY and a description in quotation marks.')
  text = ', '.join(argv[1:])
  with _tool.clear_errors():
    from tfreid.search import exported

    # Reading the schema costs nothing; a misspelt query should not wait for TensorFlow's loading.
    model = exported.ExportedModel(_MODEL.value)
    from tfreid.data import words

    answer = model.search(words.parse(text, model.schema), top_k=_TOP_K.value, text=text)
    _show(answer)


def _show(answer):
  import json
  import os

  if _JSON.value:
    print(json.dumps(answer.to_json(), indent=1, ensure_ascii=False))
  else:
    from rich.console import Console

    Console().print(answer.table())
  if _HTML.value:
    from tfreid.search import page

    partial = f'{_HTML.value}.partial'
    with open(partial, 'w', encoding='utf-8') as file:
      file.write(page.render(answer))
    os.replace(partial, _HTML.value)
    if not _JSON.value:
      print(f'Result page: {_HTML.value}')


if __name__ == '__main__':
  app.run(main)
