"""The files of serving/: their syntax, and that they agree with each other and with an export."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf import wrappers_pb2 as _wrappers
from packaging.requirements import Requirement
from tensorflow_serving.config import model_server_config_pb2

from tfreid.serving import export

sys.path.insert(0, str(Path(__file__).parent))
from served import Served

ROOT = Path(__file__).parents[2]
FILES = ROOT / 'serving'

# Flags of tensorflow_model_server 2.15, as far as they may be of use here.
FLAGS = {
  'port',
  'rest_api_port',
  'rest_api_timeout_in_ms',
  'rest_api_num_threads',
  'model_config_file',
  'model_config_file_poll_wait_seconds',
  'file_system_poll_wait_seconds',
  'monitoring_config_file',
  'enable_batching',
  'batching_parameters_file',
}

_FIELD = descriptor_pb2.FieldDescriptorProto
_INT64_VALUE = '.google.protobuf.Int64Value'


@pytest.fixture(scope='module')
def messages():
  """BatchingParameters and MonitoringConfig, which no Python package has, by their .proto files.

  servables/tensorflow/session_bundle_config.proto and config/monitoring_config.proto of TF Serving.
  """
  file = descriptor_pb2.FileDescriptorProto(
    name='tests/deployment.proto',
    package='tests.deployment',
    syntax='proto3',
    dependency=['google/protobuf/wrappers.proto'],
  )

  def message(name, *fields):
    described = file.message_type.add(name=name)
    for field, number, kind in fields:
      repeated = kind.endswith('*')
      kind = kind.rstrip('*')
      label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
      types = {'int64': _FIELD.TYPE_INT64, 'bool': _FIELD.TYPE_BOOL, 'string': _FIELD.TYPE_STRING}
      described.field.add(
        name=field,
        number=number,
        label=label,
        type=types.get(kind, _FIELD.TYPE_MESSAGE),
        type_name=kind if kind not in types else None,
      )

  message(
    'BatchingParameters',
    ('max_batch_size', 1, _INT64_VALUE),
    ('batch_timeout_micros', 2, _INT64_VALUE),
    ('max_enqueued_batches', 3, _INT64_VALUE),
    ('num_batch_threads', 4, _INT64_VALUE),
    ('thread_pool_name', 5, '.google.protobuf.StringValue'),
    ('allowed_batch_sizes', 6, 'int64*'),
    ('pad_variable_length_inputs', 7, 'bool'),
  )
  message('PrometheusConfig', ('enable', 1, 'bool'), ('path', 2, 'string'))
  message('MonitoringConfig', ('prometheus_config', 1, '.tests.deployment.PrometheusConfig'))
  pool = descriptor_pool.DescriptorPool()
  pool.AddSerializedFile(_wrappers.DESCRIPTOR.serialized_pb)
  pool.AddSerializedFile(file.SerializeToString())
  return lambda name: message_factory.GetMessageClass(
    pool.FindMessageTypeByName(f'tests.deployment.{name}')
  )()


@pytest.fixture(scope='module')
def compose():
  return yaml.safe_load((FILES / 'compose.yaml').read_text())


def parse(name, message):
  return text_format.Parse((FILES / name).read_text(), message)


def test_models_config_serves_the_newest_version_of_one_model():
  config = parse('models.config', model_server_config_pb2.ModelServerConfig())
  (model,) = config.model_config_list.config
  assert (model.name, model.base_path) == ('people', '/models/people')
  assert model.model_platform == 'tensorflow'
  assert model.model_version_policy.latest.num_versions == 1


def test_the_lines_for_a_roll_back_can_be_taken_as_they_are():
  text = (FILES / 'models.config').read_text()
  held = re.findall(r'^ *# (model_version_policy .*|version_labels .*)$', text, re.MULTILINE)
  lines = [line for line in text.splitlines() if not line.strip().startswith('model_version')]
  lines[-3:-3] = held
  config = text_format.Parse('\n'.join(lines), model_server_config_pb2.ModelServerConfig())
  (model,) = config.model_config_list.config
  assert list(model.model_version_policy.specific.versions) == [3, 4]
  assert dict(model.version_labels) == {'stable': 3, 'canary': 4}


def test_batches_have_the_sizes_that_an_export_was_warmed_up_with(messages):
  batching = parse('batching.config', messages('BatchingParameters'))
  sizes = list(batching.allowed_batch_sizes)
  assert sizes == sorted(sizes) == list(export.WARMUP_BATCHES)
  assert sizes[-1] == batching.max_batch_size.value
  assert batching.batch_timeout_micros.value == 1000
  assert batching.max_enqueued_batches.value >= batching.num_batch_threads.value >= 1


def test_monitoring_config_is_for_prometheus(messages):
  monitoring = parse('monitoring.config', messages('MonitoringConfig'))
  assert monitoring.prometheus_config.enable
  path = monitoring.prometheus_config.path
  assert path == '/monitoring/prometheus/metrics'
  assert path in (FILES / 'monitoring.config').read_text().split('\n')[0]


def test_compose_runs_the_release_that_the_client_belongs_to(compose):
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  lines = config['options.extras_require']['client'].split('\n')
  (api,) = [Requirement(line) for line in lines if line.startswith('tensorflow-serving-api')]
  for service in compose['services'].values():
    # Named by tag; a digest may be given in its place.
    tag = re.fullmatch(r'\$\{TF_SERVING_IMAGE:-(.+)\}', service['image'])[1]
    name, _, version = tag.partition(':')
    assert name == 'tensorflow/serving'
    assert str(api.specifier) == f'=={version}'


def test_compose_gives_flags_that_exist_and_files_that_are_there(compose):
  assert set(compose['services']) == {'serving', 'serving-batched'}
  for name, service in compose['services'].items():
    flags = dict(flag[2:].split('=', 1) for flag in service['command'])
    assert all(flag.startswith('--') for flag in service['command'])
    assert set(flags) <= FLAGS
    config = [value for value in flags.values() if value.startswith('/config/')]
    assert len(config) == (3 if name == 'serving-batched' else 2)
    for value in config:
      assert (FILES / Path(value).name).is_file()
    # The file without the switch would keep the server from starting, and so would neither.
    batched = 'batching_parameters_file' in flags
    assert batched == (flags.get('enable_batching') == 'true') == (name == 'serving-batched')
    volumes = {volume.rsplit(':', 2)[1]: volume for volume in service['volumes']}
    assert set(volumes) == {'/models', '/config'}
    assert all(volume.endswith(':ro') for volume in volumes.values())
    ports = {int(port.split(':')[2]) for port in service['ports']}
    assert ports == {int(flags['port']), int(flags['rest_api_port'])}


def test_compose_listens_on_this_machine_only_and_may_do_little(compose):
  for service in compose['services'].values():
    assert all(port.startswith('127.0.0.1:') for port in service['ports'])
    assert service['read_only'] is True
    assert service['cap_drop'] == ['ALL']
    assert service['user'].split(':')[0] not in ('0', 'root')
    assert 'no-new-privileges:true' in service['security_opt']
    assert service['mem_limit'] and service['pids_limit']
  # Only one of the two starts by itself: they have the same ports.
  assert [n for n, s in compose['services'].items() if not s.get('profiles')] == ['serving']


def test_the_health_check_sees_a_model_that_answers_and_no_other(compose, exported):
  if not shutil.which('bash'):
    pytest.skip('no bash here')
  kind, *command = compose['services']['serving']['healthcheck']['test']
  assert kind == 'CMD'
  served = Served({'people': Path(exported).parent})
  try:
    here = [part.replace('/8501', f'/{served.said["rest"]}') for part in command]
    assert subprocess.run(here, check=False, timeout=20).returncode == 0
    other = [part.replace('people', 'nobody') for part in here]
    assert subprocess.run(other, check=False, timeout=20).returncode != 0
  finally:
    served.stop()
  assert subprocess.run(here, check=False, timeout=20, capture_output=True).returncode != 0


def test_the_examples_of_batching_in_the_docs_are_ones_a_server_takes(messages):
  text = (ROOT / 'docs' / 'serving.md').read_text()
  examples = re.findall(r'^```\n(# batching\.config for .*?)^```$', text, re.DOTALL | re.MULTILINE)
  assert len(examples) == 2
  for example in examples:
    batching = text_format.Parse(example, messages('BatchingParameters'))
    sizes = list(batching.allowed_batch_sizes)
    # TF Serving refuses sizes that do not rise, or do not end in the greatest batch.
    assert sizes == sorted(set(sizes)) and sizes[-1] == batching.max_batch_size.value
    assert set(export.WARMUP_BATCHES) <= set(sizes)
    assert batching.num_batch_threads.value >= 1 and batching.max_enqueued_batches.value >= 1
