"""What TensorFlow says of a wrong input, made one sentence. Floor 0."""

from __future__ import annotations

import re

# Characters of a message that are looked at: what a server says is as long as it likes.
_READ = 10_000
# Lines about where in the graph it happened. What is left is what happened.
_WHERE = re.compile(
  r'Graph execution error|Detected at node|<stack traces|\d+ root error|\d+ (successful|derived)'
  r'|\[\[|File "|.*function_node|Original stack trace'
)


def plain(message: str) -> str:
  """The first line of an error message that says what is wrong.

  Args:
    message: of a `tf.errors.OpError`, or as TF Serving passes it on.
  """
  for line in (message or '')[:_READ].splitlines():
    line = re.sub(r'^\(\d+\)\s*[A-Z_]+:\s*', '', line.strip())
    if not line or _WHERE.match(line):
      continue
    line = line.partition('[[{{node')[0].partition('[Op:')[0].rstrip()
    if line.startswith('assertion failed: '):
      line = line[len('assertion failed: ') :].replace('] [', ' ').strip('[]')
    return line[:300]
  return 'The model does not take this input.'
