"""Paint `sample.png`, the picture that the README filters: three spheres on a chequered floor at dusk.

    python examples/image/make_sample.py

A ray tracer in NumPy: one reflection, hard shadows, 2 x 2 rays a pixel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

OUT = Path(__file__).with_name("sample.png")
WIDTH, HEIGHT, RAYS = 960, 600, 2
Array = npt.NDArray[np.float64]

SUN = np.array([-0.55, 0.62, -0.56])
# centre, radius, colour, share of light that is reflected
SPHERES = (
    (np.array([-1.25, 1.0, 0.6]), 1.0, np.array([0.90, 0.30, 0.22]), 0.25),
    (np.array([1.0, 0.75, -0.3]), 0.75, np.array([0.20, 0.55, 0.85]), 0.35),
    (np.array([0.15, 0.4, -1.7]), 0.4, np.array([0.98, 0.78, 0.25]), 0.15),
)


def unit(v: Array) -> Array:
    """Vectors of length 1."""
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def sky(d: Array) -> Array:
    """Dusk: warm at the horizon, blue above, a soft sun."""
    height = np.clip(d[:, 1:2], 0, 1) ** 0.5
    colour = (1 - height) * np.array([1.0, 0.72, 0.5]) + height * np.array([0.22, 0.36, 0.68])
    return colour + 0.6 * np.clip(d @ unit(SUN), 0, 1)[:, None] ** 60


def nearest(o: Array, d: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """Distance to the first thing that each ray meets, and which: -1 sky, 3 floor, else a sphere."""
    floor = np.where(d[:, 1] < -1e-6, -o[:, 1] / np.minimum(d[:, 1], -1e-6), np.inf)
    best, which = np.where(floor > 1e-4, floor, np.inf), np.where(np.isfinite(floor), 3, -1)
    for i, (centre, radius, _, _) in enumerate(SPHERES):
        b = np.sum((o - centre) * d, -1)
        root = b * b - np.sum((o - centre) ** 2, -1) + radius * radius
        t = np.where(root > 0, -b - np.sqrt(np.maximum(root, 0)), np.inf)
        closer = (t > 1e-4) & (t < best)
        best, which = np.where(closer, t, best), np.where(closer, i, which)
    return best, which


def trace(o: Array, d: Array, depth: int) -> Array:
    """The light that comes back along each ray.

    Args:
        o: origins, [rays, 3].
        d: directions of length 1, [rays, 3].
        depth: reflections to follow.

    Returns:
        RGB, [rays, 3].
    """
    t, which = nearest(o, d)
    colour = sky(d)
    hit = np.flatnonzero(which >= 0)
    if not len(hit):
        return colour
    p, w = o[hit] + t[hit, None] * d[hit], which[hit]
    chequers = (np.floor(p[:, 0]) + np.floor(p[:, 2])).astype(int) % 2
    base = np.where(chequers[:, None] == 1, np.array([0.86, 0.84, 0.80]), np.array([0.24, 0.26, 0.32]))
    normal, shine = np.tile([0.0, 1.0, 0.0], (len(hit), 1)), np.full(len(hit), 0.12)
    for i, (centre, radius, tint, reflects) in enumerate(SPHERES):
        mine = w == i
        base[mine], shine[mine] = tint, reflects
        normal[mine] = (p[mine] - centre) / radius
    above = p + 1e-4 * normal
    sun = np.tile(unit(SUN), (len(hit), 1))
    lit = np.clip(np.sum(normal * sun, -1), 0, 1) * (
        (nearest(above, sun)[1] == -1) | (nearest(above, sun)[1] == 3)
    )
    shaded = base * (0.28 + 0.85 * lit[:, None])
    bounced = d[hit] - 2 * np.sum(d[hit] * normal, -1, keepdims=True) * normal
    if depth:
        shaded = (1 - shine[:, None]) * shaded + shine[:, None] * trace(above, bounced, depth - 1)
    shaded += (
        0.7 * (lit > 0)[:, None] * (w < 3)[:, None] * np.clip(np.sum(bounced * sun, -1), 0, 1)[:, None] ** 80
    )
    haze = np.exp(-0.06 * t[hit])[:, None]
    colour[hit] = haze * shaded + (1 - haze) * sky(np.abs(d[hit]) * [1, 0, 1] + [0, 0.02, 0])
    return colour


def main() -> None:
    """Paint the picture."""
    side = np.mgrid[0 : HEIGHT * RAYS, 0 : WIDTH * RAYS].reshape(2, -1).T + 0.5
    x = (side[:, 1] / RAYS - WIDTH / 2) / HEIGHT
    y = (HEIGHT / 2 - side[:, 0] / RAYS) / HEIGHT
    d = unit(np.stack([x, y - 0.16, np.full_like(x, 1.15)], -1))
    o = np.tile([0.0, 1.35, -5.2], (len(d), 1))
    colour = np.clip(trace(o, d, 2), 0, 1) ** (1 / 1.15)
    pixels = colour.reshape(HEIGHT, RAYS, WIDTH, RAYS, 3).mean((1, 3))
    Image.fromarray((255 * pixels + 0.5).astype(np.uint8)).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
