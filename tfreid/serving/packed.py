"""Matrix products of whole numbers of 8 bits, by NumKong, in several threads.

NumKong's Python function keeps the interpreter's lock while it multiplies, so that threads wait for
one another. Its C function, in the same library, is called with the lock released instead where its
name is exported and the release is one whose arguments are known; both give the same numbers.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from typing import Any, NamedTuple

import numpy as np

# Releases whose C functions have been tried.
_KNOWN = ('7.8.',)
# Bytes: the packed queries begin at a multiple of it, as the widest instructions like it.
_ALIGNMENT = 64


@functools.cache
def is_available() -> bool:
  """Whether NumKong is here and multiplies."""
  codes = np.array([[127, -127, 3], [-127, -127, 5]], np.int8)
  try:
    import numkong

    products = np.asarray(numkong.dots_packed(codes, numkong.dots_pack(codes)))
  except (ImportError, AttributeError, TypeError, ValueError):
    return False
  wanted = codes.astype(np.int32) @ codes.T.astype(np.int32)
  return products.dtype == np.int32 and products.tolist() == wanted.tolist()


class _Functions(NamedTuple):
  """Of C: bytes of packed queries, packing, and multiplying."""

  size: Any
  pack: Any
  multiply: Any


@functools.cache
def _functions() -> _Functions | None:
  """NumKong's C functions; None where they cannot be called."""
  import numkong

  if not str(getattr(numkong, '__version__', '')).startswith(_KNOWN):
    return None
  try:
    # The library is loaded already; this is its handle.
    library = ctypes.CDLL(importlib.import_module('numkong._numkong').__file__)
    names = 'nk_dots_packed_size_i8', 'nk_dots_pack_i8', 'nk_dots_packed_i8'
    found = _Functions(*(getattr(library, name) for name in names))
  except (ImportError, OSError, AttributeError):
    return None
  length, address = ctypes.c_size_t, ctypes.c_void_p
  found.size.restype, found.size.argtypes = length, [length] * 2
  found.pack.restype, found.pack.argtypes = None, [address, length, length, length, address]
  found.multiply.restype, found.multiply.argtypes = None, [address] * 3 + [length] * 5
  return found


class PackedQueries:
  """Queries in the order in which NumKong multiplies them.

  Several threads may multiply at the same time.
  """

  def __init__(self, codes: np.ndarray):
    """Packs queries.

    Args:
      codes: int8 [Q, E], Q and E at least 1.
    """
    codes = np.ascontiguousarray(codes, np.int8)
    self._shape, self._functions = codes.shape, _functions()
    self._packed: Any
    if self._functions is None:
      import numkong

      self._packed = numkong.dots_pack(codes)
      return
    size = self._functions.size(*codes.shape)
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    self._packed = memory[start : start + size]
    self._functions.pack(
      codes.ctypes.data, *codes.shape, codes.strides[0], self._packed.ctypes.data
    )

  def multiply(self, rows: np.ndarray, out: np.ndarray) -> None:
    """Writes the dot product of each row with each query.

    Args:
      rows: int8 [n, E].
      out: int32 [n, Q], contiguous; it is overwritten.

    Raises:
      ValueError: a shape or type is another.
    """
    count, (queries, width) = len(rows), self._shape
    rows = np.ascontiguousarray(rows)
    shapes = [(array.shape, array.dtype.str[1:]) for array in (rows, out)]
    wanted = [((count, width), 'i1'), ((count, queries), 'i4')]
    if shapes != wanted or not out.flags.c_contiguous or not out.flags.writeable:
      raise ValueError(f'Rows and products have shapes and types {shapes}; expected {wanted}.')
    if not count:
      return
    if self._functions is None:
      import numkong

      numkong.dots_packed(rows, self._packed, out=numkong.from_dlpack(out))
      return
    self._functions.multiply(
      rows.ctypes.data,
      self._packed.ctypes.data,
      out.ctypes.data,
      count,
      queries,
      width,
      rows.strides[0],
      out.strides[0],
    )
