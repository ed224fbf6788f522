"""The server of the page before and after searches were joined, and as several processes, in turns.

  python benchmarks/joining.py --base=COMMIT --crops=1000000 --rounds=3
  python benchmarks/joining.py --pictures    # batches of pictures, compared with single ones

All serve one index, of which `benchmarks/soak.py` says what is in it, and are asked by the same 50
clients: first with the pictures that the page fetches, six for each search, and then without them.
The commit before is taken from git into a temporary folder. All servers are there all the time, and
only one of them is asked at a time, in one order and then the other way round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

import soak

# The last commit whose searches go one by one.
BASE = '66ea1e3'
SECONDS, ROUNDS = 10.0, 2


def run() -> dict[str, float]:
  """100k crops, 50 clients."""
  return measure(base=BASE, crops=soak.NUM_CROPS, clients=soak.CLIENTS, seconds=SECONDS, rounds=2)


def measure(*, base: str, crops: int, clients: int, seconds: float, rounds: int) -> dict:
  """Makes an index and a model, serves them with both checkouts, and asks.

  Args:
    base: a commit that this repository knows.
    crops: in the index.
    clients: that ask at the same time.
    seconds: of each measurement.
    rounds: measurements of each kind, at least 1; what is told is their median.

  Returns:
    For each kind of load and checkout: answers per second, the milliseconds that the server
    computed for each (which a busy machine changes less), those in which half of the requests of
    each kind were answered and the slowest was, and errors in all; and how many times the answers
    per second of `base` each has.
  """
  with tempfile.TemporaryDirectory() as folder:
    before = os.path.join(folder, 'commit')
    os.mkdir(before)
    archive = subprocess.Popen(['git', '-C', soak.ROOT, 'archive', base], stdout=subprocess.PIPE)
    subprocess.run(['tar', '-x', '-C', before], stdin=archive.stdout, check=True)
    if archive.wait():
      raise ValueError(f'git knows no commit {base!r} here.')
    # Each makes the same index, in the format of its time.
    shutil.copy(soak.__file__, os.path.join(before, 'benchmarks', 'soak.py'))
    servers = {}
    try:
      for which, root in (('before', before), ('now', soak.ROOT)):
        _make(root, os.path.join(folder, which), crops)
        servers[which] = _start(root, os.path.join(folder, which))
      processes = ['--processes=0']  # one for each core
      servers['processes'] = _start(soak.ROOT, os.path.join(folder, 'now'), processes)
      return _compare(servers, folder, clients=clients, seconds=seconds, rounds=rounds)
    finally:
      for server, _ in servers.values():
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def _make(root, folder, crops):
  """Makes an index and a model below `folder` by the code at `root`."""
  os.mkdir(folder)
  make = os.path.join(root, 'benchmarks', 'soak.py')
  subprocess.run(
    [sys.executable, make, f'--make={folder}', f'--crops={crops}'],
    check=True,
    env={**os.environ, 'PYTHONPATH': root},
  )


def _start(root, folder, flags=()):
  """A server of the code at `root`, of what was made below `folder`; and its port."""
  command = [
    sys.executable,
    os.path.join(root, 'tools', 'serve.py'),
    f'--index={folder}/index',
    f'--model={folder}/model',
    '--port=0',
    f'--audit_log={folder}/audit.jsonl',
    *flags,
  ]
  environment = {**os.environ, 'PYTHONPATH': root}
  server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
  return server, soak._port(server)


def _compare(servers, folder, *, clients, seconds, rounds):
  with open(f'{folder}/now/crops/0.jpg', 'rb') as file:
    picture = file.read()
  results = {}
  for name, pictures in (('with_pictures', 6), ('without_pictures', 0)):
    found = {which: [] for which in servers}
    for which in servers:  # what is traced or read once is no part of it
      soak._ask(servers[which][1], picture, clients=4, seconds=3, pictures=pictures)
    for i in range(rounds):
      for which in list(servers)[:: 1 if i % 2 == 0 else -1]:
        server, port = servers[which]
        computed = _cpu_seconds(server.pid)
        asked = soak._ask(port, picture, clients=clients, seconds=seconds, pictures=pictures)
        computed = _cpu_seconds(server.pid) - computed
        asked['cpu_ms_per_answer'] = 1000 * computed / asked['answered']
        found[which].append(asked)
        print(which, name, json.dumps(_told([asked])), file=sys.stderr, flush=True)
    told = {which: _told(measured) for which, measured in found.items()}
    before = told['before']['answers_per_second']
    told['times'] = {which: told[which]['answers_per_second'] / before for which in servers}
    results[name] = told
  return results


def _cpu_seconds(pid):
  """What a process and its children have computed until now, on all cores together."""
  with open(f'/proc/{pid}/stat', encoding='ascii') as file:
    fields = file.read().rsplit(')', 1)[1].split()
  own = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
  with open(f'/proc/{pid}/task/{pid}/children', encoding='ascii') as file:
    return own + sum(_cpu_seconds(int(child)) for child in file.read().split())


def _told(measured):
  kinds = [kind for kind in measured[0] if isinstance(measured[0][kind], dict)]
  return {
    'answers_per_second': statistics.median(one['answers_per_second'] for one in measured),
    'cpu_ms_per_answer': statistics.median(one['cpu_ms_per_answer'] for one in measured),
    'median_ms': {
      kind: statistics.median(one[kind]['p50_ms'] for one in measured if kind in one)
      for kind in kinds
      if kind != 'error_kinds'
    },
    'slowest_ms': max(
      one[kind]['max_ms']
      for one in measured
      for kind in kinds
      if kind in one and 'max_ms' in one[kind]
    ),
    'errors': sum(one['errors'] for one in measured),
  }


def compare_pictures(count: int = 16) -> dict[str, dict[str, float]]:
  """How far concepts of pictures in batches are from those of the pictures one by one.

  Args:
    count: of pictures, random pixels; a multiple of all sizes of batches is best.

  Returns:
    For each network (with random weights) and size of batches: how many of the concepts have other
    bits, and the greatest difference of a number; concepts have length 1.
  """
  import numpy as np
  import tensorflow as tf

  results = {}
  for name in ('MobileNetV2', 'ResNet50'):
    tf.keras.utils.set_random_seed(0)
    network = getattr(tf.keras.applications, name)(
      input_shape=(256, 128, 3), weights=None, include_top=False, pooling='avg'
    )
    embed = tf.function(
      lambda pixels, network=network: tf.math.l2_normalize(network(pixels, training=False), -1),
      input_signature=[tf.TensorSpec([None, 256, 128, 3])],
    )
    pixels = np.random.default_rng(0).standard_normal((count, 256, 128, 3)).astype(np.float32)

    def batches(size, embed=embed, pixels=pixels):
      parts = [embed(pixels[i : i + size]).numpy() for i in range(0, count, size)]
      return np.concatenate(parts)

    single = batches(1)
    for size in (2, 3, 4, 8, 16):
      found = batches(size)
      results[f'{name}, {size}'] = {
        'others': int((found != single).any(axis=1).sum()),
        'difference': float(np.abs(found - single).max()),
      }
  return results


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--base', default=BASE)
  parser.add_argument('--crops', type=int, default=soak.NUM_CROPS)
  parser.add_argument('--clients', type=int, default=soak.CLIENTS)
  parser.add_argument('--seconds', type=float, default=SECONDS)
  parser.add_argument('--rounds', type=int, default=ROUNDS)
  parser.add_argument('--pictures', action='store_true', help='compare batches of pictures')
  given = vars(parser.parse_args())
  if given.pop('pictures'):
    print(json.dumps(compare_pictures(), indent=1))
  else:
    print(json.dumps(measure(**given), indent=1))
