from __future__ import annotations

import os

import pytest

from tfreid.data.folders import ImageFolder


def touch(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def test_images_of_all_endings_are_found_and_the_others_are_counted(tmp_path):
  images = [
    'a/1.JPG',
    'a/2.jfif',
    'a/3.jpe',
    'b.webp',
    'c.tif',
    'd.TIFF',
    'e.bmp',
    'f.gif',
    'g.png',
  ]
  touch(tmp_path, *images, 'h.heic', 'a/i.heic', 'Thumbs.db', 'README', 'film.mp4')
  folder = ImageFolder(tmp_path)
  assert list(folder) == images
  assert folder.left_out == {'.heic': 2, '.db': 1, 'without ending': 1, '.mp4': 1}
  assert folder.told().startswith('2 .heic, ')
  assert list(folder) == images and folder.left_out['.heic'] == 2  # counted anew


def test_what_systems_hide_is_left_out_and_counted(tmp_path):
  touch(tmp_path, 'a.jpg', '._a.jpg', '.b.jpg', '.Trash-1000/files/c.jpg', '__MACOSX/d.jpg')
  touch(tmp_path, '.git/e.jpg', 'x/@eaDir/f.jpg', 'x/g.jpg')
  folder = ImageFolder(tmp_path)
  assert list(folder) == ['a.jpg', 'x/g.jpg']
  assert folder.left_out == {'hidden files': 2, 'hidden folders': 4}


def test_links_to_folders_outside_are_followed_once_and_loops_end(tmp_path):
  touch(tmp_path, 'in/a/1.jpg', 'out/2.jpg', 'out/deep/3.jpg')
  inside = tmp_path / 'in'
  for link, target in (
    ('link', tmp_path / 'out'),
    ('twice', tmp_path / 'out'),
    ('self', inside),
    ('a/up', inside / 'a'),
    ('neighbour', inside / 'a'),
  ):
    os.symlink(target, inside / link)
  os.symlink(tmp_path, tmp_path / 'out' / 'everything')
  folder = ImageFolder(inside)
  assert sorted(folder) == ['a/1.jpg', 'link/2.jpg', 'link/deep/3.jpg']
  assert folder.left_out['links to a folder that comes anyway'] == 4
  assert folder.left_out['links to a folder that came already'] == 2
  os.symlink(tmp_path / 'out' / '2.jpg', inside / '4.jpg')  # of a file, which is a file
  assert '4.jpg' in list(folder)


def test_a_name_that_is_no_utf8_is_one_bad_file(tmp_path):
  touch(tmp_path, 'a.jpg', 'b.jpg')
  try:
    open(os.fsencode(tmp_path) + b'/\xff.jpg', 'w').close()
  except OSError:
    pytest.skip('this file system has no such names')
  folder = ImageFolder(tmp_path)
  assert list(folder) == ['a.jpg', 'b.jpg']
  assert folder.told() == '1 of a name that is not UTF-8'
