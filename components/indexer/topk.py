"""What indexers that choose `layer.topk` entries share."""

from components.spec import Site


def check_topk(site: Site) -> None:
    """Raise `ValueError` where nothing may be chosen."""
    if site.layer.topk < 1:
        raise ValueError(f"index_topk={site.layer.topk} must be at least 1")


def topk_warnings(site: Site, seq_len: int) -> list[str]:
    """Whether there is anything to choose among."""
    ratio, topk = site.layer.ratio, site.layer.topk
    entries = seq_len // ratio
    if topk < entries:
        return []
    return [
        f"index_topk={topk} has no effect: {seq_len} tokens have only {entries} compressed "
        f"entries at ratio {ratio}, and queries attend to all that they may see"
    ]
