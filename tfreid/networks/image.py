"""The paper's image encoder: ResNet-50 and the concept layer. Floor 1."""

from __future__ import annotations

import os

import h5py
import tensorflow as tf
from keras.src.applications import resnet

from tfreid.networks import encoder, heads

_IMAGENET_FILE = 'resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5'
# Mean blue, green and red of ImageNet on the 0 ... 255 scale: what Keras' ResNet-50 weights were
# trained with. (Not the 0 ... 1 mean and deviation of torchvision's.)
_IMAGENET_BGR = (103.939, 116.779, 123.68)


@tf.keras.utils.register_keras_serializable('tfreid')
class PixelNormalization(tf.keras.layers.Layer):
  """RGB pixels 0 ... 255 to mean-free BGR, the input of Keras' ResNet-50 ("caffe" mode).

  Inside the network, so that no caller can forget it or do it twice.
  """

  def call(self, inputs):
    pixels = tf.reverse(inputs, [-1])
    return encoder.by_channel(lambda x, mean: x - mean, pixels, _IMAGENET_BGR)


def image_encoder(
  image_shape: tuple[int, int, int],
  embedding_size: int = 128,
  *,
  weights: str | None = None,
  last_stride: int = 2,
  activation: str = 'tanh',
  batch_norm_momentum: float = heads.BATCH_NORM_MOMENTUM,
  conv_bias: bool = True,
) -> tf.keras.Model:
  """The image branch Phi_I (Sec. 4.2): ResNet-50 without its classifier, and a linear layer.

  Layer 'features' is the globally pooled output [B, 2048] ("ResNet50 features" of Sec. 4.4).

  Args:
    image_shape: (height, width, 3), at least 32 x 32 pixels.
    embedding_size: E, 128 in the paper.
    weights: 'imagenet' (downloads Keras' file, or finds it in Keras' cache), the path of such an
      .h5 file, with or without the 1,000-class top, or None for a random start.
    last_stride: 2 as published, 1 for twice the resolution in the last stage (a common re-ID
      variant; also advisable for crops of less than 128 x 64 pixels).
    activation: of the concept. 'tanh' so that both modalities' concepts have the range that
      Table 1 gives the attribute side; 'linear' is the literal reading of Sec. 4.2.
    batch_norm_momentum: of every batch norm's moving averages.
    conv_bias: whether the convolutions have biases, as Keras's do. Each stands before a batch norm,
      which takes it away again, so False computes the same, with less work.

  Returns:
    Model, float32 RGB pixels 0 ... 255 [B, H, W, 3] -> float32 image concepts C^I [B, E].

  Raises:
    ValueError: the crop is too small, or the weights file does not fit.
    OSError: the ImageNet weights cannot be downloaded.
  """
  encoder.check_crop('ResNet-50', image_shape, 32)
  pixels = tf.keras.Input(image_shape, name='image')

  def stages(x):
    x = resnet.stack1(x, 64, 3, stride1=1, name='conv2')
    x = resnet.stack1(x, 128, 4, name='conv3')
    x = resnet.stack1(x, 256, 6, name='conv4')
    return resnet.stack1(x, 512, 3, stride1=last_stride, name='conv5')

  backbone = resnet.ResNet(
    stages,
    False,
    True,
    'resnet50',
    include_top=False,
    weights=None,
    input_tensor=PixelNormalization(name='pixel_normalization')(pixels),
  )
  if weights is not None:
    _load_weights(backbone, weights)
  if not conv_bias:
    backbone = _without_biases(backbone)
  encoder.set_batch_norms(backbone, batch_norm_momentum)
  x = tf.keras.layers.GlobalAveragePooling2D(dtype='float32', name=encoder.FEATURES)(
    backbone.output
  )
  return encoder.with_concept(
    backbone.input, x, embedding_size=embedding_size, activation=activation
  )


def _without_biases(backbone: tf.keras.Model) -> tf.keras.Model:
  """The same function without the biases of the convolutions, for any values that they have.

  With statistics of the batch, a batch norm subtracts what was added to all of it; with moving
  ones, what a bias adds is subtracted from the moving mean.
  """

  def clone(layer):
    config = layer.get_config()
    if isinstance(layer, tf.keras.layers.Conv2D):
      config['use_bias'] = False
    return layer.__class__.from_config(config)

  copied = tf.keras.models.clone_model(backbone, clone_function=clone)
  biases = {}
  for layer in backbone.layers:
    weights = layer.get_weights()
    if isinstance(layer, tf.keras.layers.Conv2D):
      *weights, bias = weights
      (node,) = layer.outbound_nodes
      biases[node.outbound_layer.name] = bias
    elif isinstance(layer, tf.keras.layers.BatchNormalization):
      gamma, beta, mean, variance = weights
      weights = [gamma, beta, mean - biases.pop(layer.name), variance]
    copied.get_layer(layer.name).set_weights(weights)
  return copied


def _load_weights(backbone: tf.keras.Model, weights: str):
  """Loads Keras' published ResNet-50 weights by layer name, and checks that all were found."""
  path = weights
  if weights == 'imagenet':
    try:
      path = tf.keras.utils.get_file(
        _IMAGENET_FILE,
        resnet.BASE_WEIGHTS_PATH + _IMAGENET_FILE,
        cache_subdir='models',
        file_hash=resnet.WEIGHTS_HASHES['resnet50'][1],
      )
    except Exception as error:  # get_file raises bare Exceptions for URL errors
      raise OSError(
        f"ImageNet weights could not be downloaded ({error}). Fetch '{_IMAGENET_FILE}' on a "
        'machine with internet access and set image_encoder.weights to its path, or copy it to '
        f'{os.path.join("~", ".keras", "models")}; image_encoder.weights = None trains from '
        'scratch.'
      ) from error
  elif not os.path.isfile(path):
    raise FileNotFoundError(
      f"No ResNet-50 weights at '{path}'. image_encoder.weights is 'imagenet', None, or the path "
      f"of a file like '{_IMAGENET_FILE}'."
    )
  try:
    with h5py.File(path, 'r') as file:
      group = file['model_weights'] if 'model_weights' in file else file
      stored = set(group.keys())
  except OSError as error:
    raise ValueError(f"'{path}' is not a Keras .h5 weights file ({error}).") from error
  wanted = [layer.name for layer in backbone.layers if layer.weights]
  missing = [name for name in wanted if name not in stored]
  if missing:
    raise ValueError(
      f"'{path}' does not hold the weights of ResNet-50: layer '{missing[0]}' and "
      f'{len(missing) - 1} more of {len(wanted)} are missing. Expected a file like '
      f"'{_IMAGENET_FILE}'."
    )
  try:
    backbone.load_weights(path, by_name=True)
  except ValueError as error:
    raise ValueError(f"The weights in '{path}' do not fit ResNet-50: {error}") from error
