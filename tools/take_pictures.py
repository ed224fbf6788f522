#!/usr/bin/env python3
"""Takes the pictures of the documentation: the page and an answer, of the model of `make demo`.

  make demo && tools/take_pictures.py

Indexes the gallery of the demo's model, drawn people, serves it, and looks at the page in headless
Chromium (Debian's chromium and chromium-driver). Writes docs/images/*.png.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from absl import app, flags

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tfreid.cli import startup  # noqa: E402

_MODEL = flags.DEFINE_string('model', 'saved_models/demo', 'Exported model.')
_OUT = flags.DEFINE_string('out', 'docs/images', 'Where the pictures are written.')
_QUERY = flags.DEFINE_string('query', 'woman, red top, backpack, no hat', 'What is searched for.')

_WIDE, _NARROW = (1280, 900), (400, 860)
_PATIENCE = 60  # seconds


def main(argv):
  """Serves the crops and takes one picture after the other."""
  startup.no_arguments(argv)
  os.chdir(ROOT)
  with startup.clear_errors():
    if not os.path.isfile(_gallery()):
      raise FileNotFoundError(f"There is no '{_gallery()}'. `make demo` makes it.")
    missing = [name for name in ('chromium', 'chromedriver') if not shutil.which(name)]
    if missing:
      raise FileNotFoundError(f'{" and ".join(missing)} must be installed.')
    os.makedirs(_OUT.value, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
      index = os.path.join(folder, 'depot')
      _index(index, os.path.join(folder, 'crops.jsonl'))
      answer = os.path.join(folder, 'answer.html')
      _run('search', f'--index={index}', '--top_k=12', f'--html={answer}', _QUERY.value)
      with _serving(index) as address, _browser(folder) as driver:
        _take(driver, address, answer)


def _take(driver, address, answer):
  """All pictures, from the empty page to a telephone's."""
  from selenium.webdriver.support.ui import WebDriverWait

  def show(fragment='', size=_WIDE, *, find='#results'):
    driver.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride',
      {'width': size[0], 'height': size[1], 'deviceScaleFactor': 1, 'mobile': size is _NARROW},
    )
    driver.get('about:blank')  # an address that differs in its fragment only would not load
    driver.get(address + fragment)
    settled()
    assert driver.find_elements('css selector', find), f'{find} is not on the page'

  def settled():
    WebDriverWait(driver, _PATIENCE).until(
      lambda _: driver.execute_script(
        'return document.body.dataset.ready === "true"'
        ' && document.getElementById("results").getAttribute("aria-busy") === "false"'
        # Those below the edge are loaded when somebody scrolls there.
        ' && [...document.querySelectorAll("#grid img")].every('
        'i => i.complete || i.getBoundingClientRect().top > innerHeight)'
      )
    )

  def click(selector):
    driver.execute_script('document.querySelector(arguments[0]).click()', selector)

  def save(name):
    driver.save_screenshot(os.path.join(_OUT.value, f'{name}.png'))
    print(f'{_OUT.value}/{name}.png')

  def search(words, where=''):
    for selector, text in (('#words', words), ('#where', where)):
      field = driver.find_element('css selector', selector)
      if text or field.get_property('value'):
        driver.execute_script('arguments[0].value = arguments[1]', field, text)
    click('#go')
    settled()

  show(find='#empty')
  save('web_empty')
  search(_QUERY.value)
  save('web_loaded')
  found = driver.execute_script('return location.hash')
  click('#filters summary')
  search(_QUERY.value, 'camera in [1, 2]')
  driver.execute_script('document.getElementById("filters").scrollIntoView({block: "center"})')
  settled()
  save('web_filtered')
  show(found, find='.hit')
  click('.hit [aria-label^="More like"]')
  settled()
  save('web_like')
  show()
  search('woman, red topp, bagpack')
  save('web_error')
  show(found, _NARROW, find='.hit')
  save('web_narrow')
  driver.execute_cdp_cmd(
    'Emulation.setDeviceMetricsOverride',
    {'width': 1100, 'height': 1000, 'deviceScaleFactor': 1, 'mobile': False},
  )
  driver.get(f'file://{answer}')
  save('demo_answer')


def _gallery() -> str:
  """What the export knows of its gallery: a line of JSON for each crop."""
  return os.path.join(_MODEL.value, '1', 'assets.extra', 'gallery.jsonl')


def _index(index: str, listed: str):
  """An index of the model's own gallery, with cameras and annotations."""
  with open(_gallery(), encoding='utf-8') as file, open(listed, 'w', encoding='utf-8') as manifest:
    for line in file:
      row = json.loads(line)
      kept = {'path': os.path.abspath(row['path']), 'id': row['id'], 'camera': row['camera']}
      manifest.write(json.dumps({**kept, **row['attributes']}) + '\n')
  _run('index', 'build', f'--index={index}', f'--model={_MODEL.value}', f'--source={listed}')


def _run(tool: str, *arguments: str):
  subprocess.run([*startup.program(tool), *arguments], check=True)


@contextlib.contextmanager
def _serving(index: str):
  """A server of the index; yields its address."""
  process = subprocess.Popen(
    [*startup.program('serve'), f'--index={index}', '--port=0'],
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    for line in process.stdout:
      if found := re.match(r'Open (http://\S+)', line):
        yield found[1]
        break
    else:
      raise OSError('The server did not start.')
  finally:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=_PATIENCE)


@contextlib.contextmanager
def _browser(folder: str):
  """A headless Chromium."""
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service

  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which('chromium')
  for flag in (
    '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-dev-shm-usage',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--hide-scrollbars', f'--user-data-dir={os.path.join(folder, "profile")}',
  ):  # fmt: skip
    options.add_argument(flag)
  driver = webdriver.Chrome(options=options, service=Service(shutil.which('chromedriver')))
  try:
    yield driver
  finally:
    driver.quit()


if __name__ == '__main__':
  app.run(main)
