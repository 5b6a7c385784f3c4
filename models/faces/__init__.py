"""Faces: found in whole pictures, read as 468 points, cut out as FFHQ does, and put back (docs/faces.md)."""
