"""Contact sheets: many crops in one picture, with what is in them written below."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
  images: Sequence[Image.Image],
  *,
  labels: Sequence[str] | None = None,
  columns: int = 8,
  scale: int = 1,
) -> Image.Image:
  """Returns one picture with all images in rows, each above its label.

  Args:
    images: pictures of one size.
    labels: a text for each, may have several lines; None for none.
    columns: images in a row.
    scale: enlargement of the images, without smoothing.

  Returns:
    RGB picture.
  """
  if not images:
    raise ValueError('A contact sheet needs at least one image.')
  labels = [''] * len(images) if labels is None else list(labels)
  if len(labels) != len(images):
    raise ValueError(f'There are {len(images)} images but {len(labels)} labels.')
  font = ImageFont.load_default(10)
  lines = max(label.count('\n') + 1 if label else 0 for label in labels)
  width, height = images[0].width * scale, images[0].height * scale
  cell_width = max(width, 118 if lines else 0) + 6
  cell_height = height + 12 * lines + 6
  rows = -(-len(images) // columns)
  sheet = Image.new('RGB', (cell_width * min(columns, len(images)), cell_height * rows), 'white')
  draw = ImageDraw.Draw(sheet)
  for i, (image, label) in enumerate(zip(images, labels)):
    x, y = cell_width * (i % columns) + 3, cell_height * (i // columns) + 3
    sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (x, y))
    if label:
      draw.multiline_text((x, y + height + 1), label, fill='black', font=font, spacing=1)
  return sheet
