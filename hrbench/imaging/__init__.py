"""Image and mask files at native resolution, connected components, and resampling."""

from hrbench.imaging.components import Components, find_components
from hrbench.imaging.files import (
    IMAGE_SUFFIXES,
    check_image,
    image_size,
    png_depth,
    read_image,
    read_mask,
    read_pixels,
    read_region,
    read_tiff,
    refuse_no_file,
)
from hrbench.imaging.regions import Region
from hrbench.imaging.resample import bilinear, nearest
from hrbench.imaging.rims import RimPixels, find_rims

__all__ = [
    "IMAGE_SUFFIXES",
    "Components",
    "Region",
    "RimPixels",
    "bilinear",
    "check_image",
    "find_components",
    "find_rims",
    "image_size",
    "nearest",
    "png_depth",
    "read_image",
    "read_mask",
    "read_pixels",
    "read_region",
    "read_tiff",
    "refuse_no_file",
]
