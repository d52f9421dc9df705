"""Images in: files and bytes to float32 [C, H, W] in [0, 1], the same for training, the command line and the server.

docs/images.md says what becomes of every kind of file. `read` and `resize` are for everybody.
"""

from s2ap_defend.images.arrays import check_images, load_images
from s2ap_defend.images.files import Entry, ImageFiles
from s2ap_defend.images.kinds import MAX_PIXELS, OTHER_SUFFIXES, READ, SUFFIXES
from s2ap_defend.images.picture import Picture, open_picture
from s2ap_defend.images.reading import chosen_resize, fitted, read
from s2ap_defend.resizing import resize

__all__ = [
    "MAX_PIXELS",
    "OTHER_SUFFIXES",
    "READ",
    "SUFFIXES",
    "Entry",
    "ImageFiles",
    "Picture",
    "check_images",
    "chosen_resize",
    "fitted",
    "load_images",
    "open_picture",
    "read",
    "resize",
]
