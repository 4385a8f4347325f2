"""Which points no other one beats in every objective, and the layers below them. All objectives are minimised."""

from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def ranks(points: Sequence[Point]) -> list[int]:
    """Of each point the number of its front: 0 where nothing dominates it, 1 where only front 0 does, and so on."""
    left, found, rank = set(range(len(points))), [0] * len(points), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in front:
            found[i] = rank
        left -= front
        rank += 1
    return found


def best(points: Sequence[Point], count: int) -> list[int]:
    """Indices of the best points: front by front, within one by the first objective, then by order."""
    rank = ranks(points)
    return sorted(range(len(points)), key=lambda i: (rank[i], points[i][0], i))[:count]
