"""Traps 39, 40 and 42: documents, ties and decoding."""

from mistakes import Mistake, Trap, edit
from places import BLOCKS, CSA, DOCUMENTS, HCA, INDEXER, LIGHTNING, SPLITS, TRUNK

MTP_DOCUMENTS = "components/test_mtp.py::test_packed_documents_predict_what_they_predict_alone"
TIES = INDEXER + "test_of_equal_scores_the_earliest_are_chosen"

TRAPS = (
    Trap(
        39,
        "padding or packed documents folded into blocks",
        (
            Mistake(
                "document ids ignored by attention",
                (
                    edit(
                        "ablate.model:Block.forward",
                        (
                            "self.attention if documents is None else "
                            "partial(documents.each, self.attention)",
                            "self.attention",
                        ),
                    ),
                ),
                ("ablate/test_packing.py::test_packed_documents_get_the_logits_that_they_get_alone",),
            ),
            Mistake(
                "document ids ignored by prediction layers",
                (
                    edit(
                        "ablate.prediction:Prediction.forward",
                        ("None if doc_ids is None else Documents.of(doc_ids[:, :-known])", "None"),
                    ),
                ),
                (MTP_DOCUMENTS,),
            ),
            Mistake(
                "losses of prediction layers across a document's end",
                (
                    edit(
                        "ablate.prediction:Prediction.losses",
                        ("counted = counted[:, :-1] & (targets != -100)", "counted = targets != -100"),
                    ),
                ),
                (MTP_DOCUMENTS,),
            ),
            Mistake(
                "padding teaches the indexer",
                (edit(f"{CSA}.compress", ("visible = visible * real", "pass")),),
                (DOCUMENTS + "test_what_fills_up_rows_teaches_no_indexer",),
            ),
        ),
    ),
    Trap(
        40,
        "exact ties of index scores broken in different ways",
        tuple(
            Mistake(name, (edit(f"{LIGHTNING}highest", change),), (TIES,))
            for name, change in (
                (
                    "whatever top-k returns",
                    (
                        "return above | (equal & (equal.cumsum(-1) <= room))",
                        "return torch.zeros_like(equal).scatter(-1, scores.topk(count).indices, True)",
                    ),
                ),
                (
                    "the last of equals",
                    ("equal.cumsum(-1) <= room", "equal.flip(-1).cumsum(-1).flip(-1) <= room"),
                ),
                ("all of equals", ("(equal & (equal.cumsum(-1) <= room))", "equal")),
            )
        ),
    ),
    Trap(
        42,
        "decoding: no mask, blocks lost between chunks, positions from zero",
        tuple(
            Mistake(name, (edit(target, change),), (SPLITS,))
            for name, target, change in (
                (
                    "every entry visible to a chunk of HCA",
                    f"{HCA}.compress_step",
                    (
                        "seen = torch.arange(entries.shape[1], device=x.device) < visible.unsqueeze(1)",
                        "seen = torch.ones(x.shape[1], entries.shape[1], dtype=torch.bool)",
                    ),
                ),
                (
                    "every entry a candidate for a chunk of CSA",
                    f"{LIGHTNING}Lightning.step",
                    (
                        "highest(scores.masked_fill(~seen, -torch.inf), self.topk) & seen",
                        "highest(scores, self.topk)",
                    ),
                ),
                (
                    "block before forgotten between chunks",
                    f"{BLOCKS}BlockCompressor.step",
                    (
                        "projected = self.project(x)",
                        "projected = self.project(x)\n    if cache is not None and self.overlap:\n        "
                        "done = cache.length // self.ratio * self.ratio\n        "
                        "old = cache.length - next(iter(cache.pending.values())).shape[1]\n        "
                        "cache = Cache(cache.length, pending={k: torch.cat((torch.zeros_like("
                        "z[:, : done - old]), z[:, done - old :]), 1) for k, z in cache.pending.items()})",
                    ),
                ),
                (
                    "unfinished block forgotten between chunks",
                    f"{BLOCKS}BlockCompressor.step",
                    (
                        "projected = self.project(x)",
                        "projected = self.project(x)\n    if cache is not None:\n        "
                        "done = cache.length // self.ratio * self.ratio\n        "
                        "old = cache.length - next(iter(cache.pending.values())).shape[1]\n        "
                        "cache = Cache(cache.length, pending={k: torch.cat((z[:, : done - old], "
                        "torch.zeros_like(z[:, done - old :])), 1) for k, z in cache.pending.items()})",
                    ),
                ),
                (
                    "entries of a chunk turned from zero",
                    f"{BLOCKS}BlockCompressor.step",
                    ("torch.arange(done, done + entries.shape[1]", "torch.arange(entries.shape[1]"),
                ),
                (
                    "tokens of a chunk turned from zero",
                    f"{TRUNK}.step",
                    ("torch.arange(before, after,", "torch.arange(after - before,"),
                ),
            )
        ),
        without=("rotary offset of a context-parallel rank: sequences are not split over processes",),
    ),
)
