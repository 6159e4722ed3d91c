"""Boxes in images: overlaps, box coders, priors, anchor fitting, NMS.

A box is x1, y1, x2, y2 in continuous pixels, half-open: its width is x2 - x1, pixel i covers [i, i + 1), and the origin
is the image's top left corner. Functions take boxes (..., 4) and points x, y (..., 2).
"""
