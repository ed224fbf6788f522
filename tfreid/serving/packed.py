"""Matrix products of whole numbers of 8 bits, by ONNX Runtime or NumKong, in several threads.

ONNX Runtime multiplies many queries several times as fast as NumKong where the processor has VNNI.
Where it has not, ONNX Runtime adds pairs of products in 16 bits, and cuts off what does not fit. So
whether it is exact is tried out, with the largest numbers, before it is used.

NumKong's Python function keeps the interpreter's lock while it multiplies, so that threads wait for
one another. Its C function, in the same library, is called with the lock released instead where its
name is exported and the release is one whose arguments are known; both give the same numbers.
"""

from __future__ import annotations

import abc
import ctypes
import functools
import importlib
import logging
from typing import Any, NamedTuple

import numpy as np

# Releases of NumKong whose C functions have been tried.
_KNOWN = ('7.8.',)
# Bytes: the packed queries begin at a multiple of it, as the widest instructions like it.
_ALIGNMENT = 64
# Queries from which on ONNX Runtime is faster than NumKong.
_WIDE = 12
# y = (a - 128) b, an ONNX model of one node: a uint8 [n, E], b int8 [E, Q], y int32 [n, Q].
_MODEL = (
  b'\x08\x08:^\n\x1b\n\x01a\n\x01b\n\x01z\x12\x01y"\rMatMulInteger\x12\x01g*\t\x10\x02*\x02\x80'
  b'\x01B\x01zZ\x0f\n\x01a\x12\n\n\x08\x08\x02\x12\x04\n\x00\n\x00Z\x0f\n\x01b\x12\n\n\x08\x08\x03\x12'
  b'\x04\n\x00\n\x00b\x0f\n\x01y\x12\n\n\x08\x08\x06\x12\x04\n\x00\n\x00B\x04\n\x00\x10\r'
)


@functools.cache
def is_available() -> bool:
  """Whether NumKong or ONNX Runtime is here and multiplies."""
  return _numkong_multiplies() or _session() is not None


def packed(codes: np.ndarray) -> PackedQueries:
  """Queries, int8 [Q, E], Q and E at least 1, for whatever multiplies so many fastest."""
  codes = np.ascontiguousarray(codes, np.int8)
  if len(codes) >= _WIDE or not _numkong_multiplies():
    session = _session()
    if session is not None:
      return _ByOnnxRuntime(codes, session)
  return _ByNumKong(codes)


class PackedQueries(abc.ABC):
  """Queries in the form in which they are multiplied.

  Several threads may multiply at the same time.
  """

  def __init__(self, codes: np.ndarray):
    """Packs queries, int8 [Q, E], contiguous."""
    self._shape = codes.shape

  def multiply(self, rows: np.ndarray, out: np.ndarray, scratch: np.ndarray | None = None) -> None:
    """Writes the dot product of each row with each query.

    Args:
      rows: int8 [n, E].
      out: int32 [n, Q], contiguous; it is overwritten.
      scratch: uint8 [n, E], contiguous, for what is done in between.

    Raises:
      ValueError: a shape or type is another.
    """
    count, (queries, width) = len(rows), self._shape
    rows = np.ascontiguousarray(rows)
    shapes = [(array.shape, array.dtype.str[1:]) for array in (rows, out)]
    wanted = [((count, width), 'i1'), ((count, queries), 'i4')]
    if shapes != wanted or not out.flags.c_contiguous or not out.flags.writeable:
      raise ValueError(f'Rows and products have shapes and types {shapes}; expected {wanted}.')
    if count:
      self._multiply(rows, out, scratch)

  @abc.abstractmethod
  def _multiply(self, rows: np.ndarray, out: np.ndarray, scratch: np.ndarray | None) -> None:
    """As `multiply`, of contiguous rows, at least one."""


class _ByOnnxRuntime(PackedQueries):
  def __init__(self, codes: np.ndarray, session: Any):
    super().__init__(codes)
    self._session, self._columns = session, np.ascontiguousarray(codes.T)

  def _multiply(self, rows, out, scratch):
    if scratch is None:
      scratch = np.empty(rows.shape, np.uint8)
    # Plus 128, in two's complement.
    np.bitwise_xor(rows.view(np.uint8), np.uint8(128), out=scratch)
    binding = self._session.io_binding()
    for name, array in (('a', scratch), ('b', self._columns)):
      binding.bind_input(name, 'cpu', 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output('y', 'cpu', 0, np.int32, out.shape, out.ctypes.data)
    self._session.run_with_iobinding(binding)


@functools.cache
def _session() -> Any:
  """ONNX Runtime's session of `_MODEL`; None where it is not here, or not exact."""
  try:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The threads are ours; each calls it.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(_MODEL, options, providers=['CPUExecutionProvider'])
    return session if _is_exact(lambda codes: _ByOnnxRuntime(codes, session)) else None
  except ImportError:
    return None
  except Exception:  # of releases to come; the scan goes on without
    logging.getLogger(__name__).warning('ONNX Runtime is not used.', exc_info=True)
    return None


def _is_exact(pack) -> bool:
  """Whether products of the largest numbers, and of others, are exact in all shapes."""
  random = np.random.default_rng(0)
  for width in (1, 3, 64, 131, 512):
    codes = random.integers(-127, 128, (70, width), np.int8)
    codes[:20], codes[20:40] = 127, -127
    # Pairs whose sum does not fit into 16 bits, beside each other and apart.
    codes[40:50] = 127 * (1 - 2 * (np.arange(width) // 2 % 2))
    for queries, rows in ((1, 70), (13, 1), (16, 7), (64, 70), (33, 45)):
      products = np.empty((rows, queries), np.int32)
      asked = np.roll(codes, rows, axis=0)[:queries]
      pack(np.ascontiguousarray(asked)).multiply(codes[:rows], products)
      if not np.array_equal(products, codes[:rows].astype(np.int32) @ asked.astype(np.int32).T):
        return False
  return True


@functools.cache
def _numkong_multiplies() -> bool:
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


class _ByNumKong(PackedQueries):
  def __init__(self, codes: np.ndarray):
    super().__init__(codes)
    self._functions = _functions()
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

  def _multiply(self, rows, out, scratch):
    del scratch
    if self._functions is None:
      import numkong

      numkong.dots_packed(rows, self._packed, out=numkong.from_dlpack(out))
      return
    queries, width = self._shape
    self._functions.multiply(
      rows.ctypes.data,
      self._packed.ctypes.data,
      out.ctypes.data,
      len(rows),
      queries,
      width,
      rows.strides[0],
      out.strides[0],
    )
