"""Frozen networks that compare pictures: CLIP, DINO, LPIPS, and substitutes made of a DiffAE's encoder."""
