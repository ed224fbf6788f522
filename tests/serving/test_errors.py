import pytest
import tensorflow as tf

from tfreid.serving import errors


@pytest.mark.parametrize(
  ('message', 'said'),
  [
    (
      'Graph execution error:\n\nDetected at node map/while/Assert defined at (most recent call '
      'last):\n<stack traces unavailable>\nassertion failed: [An image is neither a JPEG nor a PNG '
      'file. Its number of bytes:] [2]\n\t [[{{node map/while/Assert}}]] [Op:__inference_1]',
      'An image is neither a JPEG nor a PNG file. Its number of bytes: 2',
    ),
    (
      '2 root error(s) found.\n  (0) INVALID_ARGUMENT: Invalid PNG data, size 20\n'
      '\t [[{{node DecodePng}}]]\n0 successful operations.\n0 derived errors ignored.',
      'Invalid PNG data, size 20',
    ),
    ('Invalid JPEG data, size 11\n\t [[{{node x}}]]', 'Invalid JPEG data, size 11'),
    ('', 'The model does not take this input.'),
  ],
)
def test_what_is_wrong_is_said_and_not_where(message, said):
  assert errors.plain(message) == said


def test_messages_of_this_tensorflow_are_understood():
  @tf.function
  def decode(contents):
    tf.debugging.Assert(tf.size(contents) == 0, ['Too many:', tf.size(contents)])
    return tf.io.decode_png(contents[0])

  with pytest.raises(tf.errors.InvalidArgumentError) as caught:
    decode(tf.constant(['no image']))
  assert errors.plain(caught.value.message) in (
    'Too many: 1',
    'Unknown image file format. One of JPEG, PNG, GIF, BMP required.',
  )
